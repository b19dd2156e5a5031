"""Where the interpreter and weights of an edition are, and what each dimension still lacks. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..messages import ConfigError
from ..store import read_json
from .dimensions import DIMENSIONS, VBENCH, of
from .edition import Dimension, Edition

MEGA = 1e6


def folder(edition: Edition = VBENCH) -> Path:
    """What `setup` writes an edition's interpreter to: $PCBENCH_VBENCH, or ~/.cache/pcbench/vbench; or …2."""
    name = edition.package
    return _path(f"PCBENCH_{name.upper()}", Path.home() / ".cache" / "pcbench" / name)


def weights_folder(edition: Edition = VBENCH) -> Path:
    """The folder with the weights: $VBENCH_CACHE_DIR, or VBench's own ~/.cache/vbench; or …2."""
    name = edition.package
    return _path(f"{name.upper()}_CACHE_DIR", Path.home() / ".cache" / name)


def _path(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


@dataclass(frozen=True)
class Environment:
    """What `setup` wrote down for an edition: the interpreter, package versions, the edition's prompt file (`suite`),
    for each dimension None or why its code cannot be imported; the folder with its code if that is not installed."""

    edition: Edition
    python: Path
    versions: dict[str, str]
    suite: Path
    imports: dict[str, str | None]
    source: Path | None = None


def load(edition: Edition = VBENCH) -> Environment:
    """The environment. Raises ConfigError, naming the command that makes it, if there is none."""
    data = read_json(folder(edition) / "environment.json")
    if data is None or not Path(data["python"]).exists():
        raise ConfigError(f"{edition.title} has no environment in {folder(edition)}: make one with {edition.setup}")
    source = data.get("source")
    python, suite = Path(data["python"]), Path(data["suite"])
    return Environment(edition, python, data["versions"], suite, data["dimensions"], source and Path(source))


def lacking(dimension: Dimension) -> list[str]:
    """One line for each weight file that is missing or too short: where it belongs, its size, where to get it."""
    lines = []
    for weights in dimension.weights:
        path = weights_folder(dimension.edition) / weights.path
        size = path.stat().st_size / MEGA if path.is_file() else None
        source = f"{f'{weights.megabytes:g} MB or more, ' if weights.megabytes else ''}{weights.url}"
        if size is None:
            lines.append(f"needs {path} ({source})")
        elif size < weights.megabytes:
            lines.append(f"has only {size:.3g} MB of {path} ({source})")
    return lines


def unavailable(dimension: Dimension, environment: Environment) -> str | None:
    """Why the dimension cannot be scored here, in one line; None if it can. Whether there is a GPU is not asked."""
    if broken := environment.imports.get(dimension.name, f"it was not tried yet: run {dimension.edition.setup} again"):
        missing = "No module named 'detectron2'" in broken and dimension.detector
        advice = f"; build with {dimension.edition.setup} --with-detectron2 SOURCE" if missing else ""
        return f"cannot be imported: {broken}{advice}"
    return "; ".join(lacking(dimension)) or None


def status(edition: Edition = VBENCH) -> list[tuple[str, str, list[str]]]:
    """For each dimension: its name, "ok" or why its code does not import, and a line for each weight file."""
    try:
        imports = load(edition).imports
    except ConfigError:
        imports = dict.fromkeys(DIMENSIONS, "no environment")
    rows = []
    for dimension in of(edition):
        name, missing = dimension.name, lacking(dimension)
        there = [weights_folder(edition) / w.path for w in dimension.weights]
        present = [path for path in there if not any(str(path) in line for line in missing)]
        files = [f"has {path}" for path in present] + missing
        rows.append((name, imports.get(name, "not tried yet: run setup again") or "ok", files))
    return rows
