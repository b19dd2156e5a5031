"""What the commands share: an error is one line and exit code 2, a success one line that ends in the time taken."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from .render import Table

LONGEST = 200  # characters of a message
PRINTED = "-"  # given as the folder: Markdown on standard output


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(f"{self.prog}: {message}; --help says more".split())
        print(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}", file=sys.stderr)
        sys.exit(2)


def run(work: Callable[[], str]) -> int:
    """Do the work, print the text it returns, if any, and the seconds taken; return the exit code, 2 on an error."""
    start = time.perf_counter()
    try:
        report = work()
    except (OSError, ValueError) as error:
        print(f"analysis: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if report:
        print(f"{report} ({time.perf_counter() - start:.1f} s)")
    return 0


def publish(tables: Sequence[Table], out: str) -> str:
    """Write tables to a folder, or print them; return a text that says how many were written."""
    for table in tables:
        print(table.markdown() if out == PRINTED else ", ".join(map(str, table.write(Path(out)))))
    return "" if out == PRINTED else f"{len(tables)} tables"
