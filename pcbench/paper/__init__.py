"""The paper's published numbers (tables as CSV), and which presets of conf/method/ correspond to rows of Table 1."""

from __future__ import annotations

import csv
from pathlib import Path

FOLDER = Path(__file__).parent


def table(name: str) -> list[dict[str, str]]:
    """The rows of a published table: "table1" or "table3".

    `presets` in Table 1 lists the choices in conf/method/ for a row: first the literal one, then other readings.
    """
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def to_the_letter(row: dict[str, str]) -> str:
    """The preset that follows a row of Table 1 to the letter."""
    return row["presets"].split()[0]


def implied_share(model: str, preset: str) -> tuple[str, float] | None:
    """The row of Table 1 that a preset follows to the letter, and its share of the uncached MACs; None if no row."""
    rows = [row for row in table("table1") if row["model"] == model]
    uncached = next((float(row["pmacs"]) for row in rows if row["method"] == "none"), 0.0)
    named = (row for row in rows if to_the_letter(row) == preset)
    return next(((row["method"], float(row["pmacs"]) / uncached) for row in named), None)
