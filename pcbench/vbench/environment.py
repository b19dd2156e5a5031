"""Where VBench's interpreter and weights are, and what each dimension still lacks. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..messages import ConfigError
from ..store import read_json
from .dimensions import DIMENSIONS, Dimension

SETUP = "python -m pcbench.vbench setup"
MEGA = 1e6


def folder() -> Path:
    """The folder in which `setup` builds: $PCBENCH_VBENCH, or ~/.cache/pcbench/vbench."""
    return _path("PCBENCH_VBENCH", Path.home() / ".cache" / "pcbench" / "vbench")


def weights_folder() -> Path:
    """The folder with the weights: $VBENCH_CACHE_DIR, or VBench's own ~/.cache/vbench."""
    return _path("VBENCH_CACHE_DIR", Path.home() / ".cache" / "vbench")


def _path(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


@dataclass(frozen=True)
class Environment:
    """What `setup` wrote down: the interpreter, package versions, VBench's prompt file (`suite`), and for each
    dimension None or why its code cannot be imported."""

    python: Path
    versions: dict[str, str]
    suite: Path
    imports: dict[str, str | None]


def load() -> Environment:
    """The environment. Raises ConfigError, naming the command that builds it, if there is none."""
    data = read_json(folder() / "environment.json")
    if data is None or not Path(data["python"]).exists():
        raise ConfigError(f"VBench has no environment in {folder()}: build it with {SETUP}")
    return Environment(Path(data["python"]), data["versions"], Path(data["suite"]), data["dimensions"])


def lacking(dimension: Dimension) -> list[str]:
    """One line for each weight file that is missing or too short: where it belongs, its size, where to get it."""
    lines = []
    for weights in dimension.weights:
        path = weights_folder() / weights.path
        size = path.stat().st_size / MEGA if path.is_file() else None
        source = f"{f'{weights.megabytes:g} MB or more, ' if weights.megabytes else ''}{weights.url}"
        if size is None:
            lines.append(f"needs {path} ({source})")
        elif size < weights.megabytes:
            lines.append(f"has only {size:.3g} MB of {path} ({source})")
    return lines


def unavailable(dimension: Dimension, environment: Environment) -> str | None:
    """Why the dimension cannot be scored here, in one line; None if it can."""
    if broken := environment.imports.get(dimension.name, "VBench does not know it"):
        advice = f"; build with {SETUP} --with-detectron2 SOURCE" if "No module named 'detectron2'" in broken else ""
        return f"cannot be imported: {broken}{advice}"
    return "; ".join(lacking(dimension)) or None


def status() -> list[tuple[str, str, list[str]]]:
    """For each dimension: its name, "ok" or why its code does not import, and a line for each weight file."""
    try:
        imports = load().imports
    except ConfigError:
        imports = dict.fromkeys(DIMENSIONS, "no environment")
    rows = []
    for name, dimension in DIMENSIONS.items():
        missing = lacking(dimension)
        present = [w.path for w in dimension.weights if not any(w.path in line for line in missing)]
        files = [f"has {weights_folder() / path}" for path in present] + missing
        rows.append((name, imports.get(name, "not tried yet: run setup again") or "ok", files))
    return rows
