"""What the commands have in common: what cannot be is one line and exit code 2; what was done ends in its time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .render import Table

PRINTED = "-"  # as the folder: Markdown on standard output


def run(work: Callable[[], str]) -> int:
    """Do the work and print what it says, if anything, and how long it took; returns the exit code."""
    began = time.perf_counter()
    try:
        said = work()
    except (OSError, ValueError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    if said:
        print(f"{said} ({time.perf_counter() - began:.1f} s)")
    return 0


def publish(tables: Sequence[Table], out: str) -> str:
    """Write tables to a folder, or print them; says how many were written."""
    for table in tables:
        print(table.markdown() if out == PRINTED else ", ".join(map(str, table.write(Path(out)))))
    return "" if out == PRINTED else f"{len(tables)} tables"
