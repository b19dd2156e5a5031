"""pcbench: measure training-free caching methods for video diffusion transformers, side by side."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(name: str, device: str = "auto", dtype: str | None = None) -> Any:
    """The diffusers pipeline of a model, placed on a device: a name as in `model=`, a pipeline folder, or owner/name on
    the hub. Bundled models ("tiny_wan") bring their weights. See pcbench/library.py."""
    from .library import load  # torch is not loaded before it is needed: `analysis` imports pcbench.store

    return load(name, device, dtype)


def arguments(name: str) -> dict[str, Any]:
    """What a model's pipeline is usually called with: size, frames, steps, guidance. See pcbench/library.py."""
    from .library import arguments

    return arguments(name)


def _hiding(name: str) -> str | None:
    """The file or folder that `import name` finds instead of the package next to this one; None if nothing hides it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    folders = [*(spec.submodule_search_locations or [])]  # a folder without __init__.py has only these, a file has none
    if Path(__file__).resolve().parents[1] / name in [Path(folder).resolve() for folder in folders]:
        return None
    return spec.origin or folders[0]


def _report_hidden_packages() -> None:
    """Print a line for each file that hides a package of ours; exit if it hides `methods`, which every run needs."""
    for name in ("methods", "analysis"):
        if file := _hiding(name):
            advice = "rename it, run in another folder, or use python -P (from 3.11 on)"
            print(f"pcbench: {file} hides the package {name!r} that belongs to pcbench: {advice}", file=sys.stderr)
            if name == "methods":
                sys.exit(2)


if sys.argv[:1] == ["-m"]:  # Python is looking up `python -m pcbench…`, in the working directory first
    _report_hidden_packages()
