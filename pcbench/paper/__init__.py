"""The paper's published numbers (tables as CSV), and how many computed steps its MACs imply."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

from methods import Method, PreciseCacheConfig

FOLDER = Path(__file__).parent
# The presets of Table 1 (section 4.1).
PRESETS = {
    "base": PreciseCacheConfig(alpha=0.5),
    "turbo": PreciseCacheConfig(alpha=0.7),
    "flash": PreciseCacheConfig(alpha=0.7, block_cache_rate=0.4, block_cache_steps=3),
}


def table(name: str) -> list[dict[str, str]]:
    """The rows of a published table: "table1" or "table3"."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def preset_of(method: Method) -> str | None:
    """The row of Table 1 that a method's settings are, whatever it compares a trial with; None if none."""
    if not isinstance(method, PreciseCacheConfig):
        return None
    either = {"reference": "", "norm": ""}
    return next((name for name, preset in PRESETS.items() if asdict(preset) | either == asdict(method) | either), None)


def implied_share(model: str, method: str) -> float | None:
    """MACs of a row of Table 1 as a share of its own uncached row; None if there is no such row."""
    rows = {row["method"]: float(row["pmacs"]) for row in table("table1") if row["model"] == model}
    return rows[method] / rows["none"] if method in rows else None
