"""pcbench: measure training-free caching methods for video diffusion transformers, side by side."""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"


def _hiding(name: str) -> str | None:
    """The file or folder that `import name` finds before the package beside this one; None if it finds that."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    folders = [*(spec.submodule_search_locations or [])]  # all that a folder without __init__.py has; none of a file
    if Path(__file__).resolve().parents[1] / name in [Path(folder).resolve() for folder in folders]:
        return None
    return spec.origin or folders[0]


def _tell_hidden() -> None:
    """One line for a file that hides a package of ours. Only the tables need `analysis`: without it a run goes on."""
    for name in ("methods", "analysis"):
        if file := _hiding(name):
            advice = "rename it, run in another folder, or use python -P (from 3.11 on)"
            print(f"pcbench: {file} hides the package {name!r} that belongs to pcbench: {advice}", file=sys.stderr)
            if name == "methods":
                sys.exit(2)


if sys.argv[:1] == ["-m"]:  # `python -m pcbench…` is being looked up, in the working directory before all else
    _tell_hidden()
