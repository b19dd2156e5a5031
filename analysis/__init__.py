"""Tables, figures and reports from records. Reads what pcbench wrote through its store; never loads torch."""

import importlib.util
import sys
from pathlib import Path


def _refuse_hidden() -> None:
    """Exit with code 2 and one line if a file or folder hides the pcbench that is beside this package."""
    spec = importlib.util.find_spec("pcbench")
    folders = [*(spec.submodule_search_locations or [])] if spec else []  # none for a single file
    beside = Path(__file__).resolve().parents[1] / "pcbench"
    if spec and beside not in [Path(folder).resolve() for folder in folders]:
        hiding = spec.origin or folders[0]
        advice = "rename it, run in another folder, or use python -P (from 3.11 on)"
        print(f"analysis: {hiding} hides the package 'pcbench' of this one: {advice}", file=sys.stderr)
        sys.exit(2)


if sys.argv[:1] == ["-m"]:  # `python -m analysis…` is being looked up, in the working directory before all else
    _refuse_hidden()
