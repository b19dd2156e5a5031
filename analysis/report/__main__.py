"""`python -m analysis.report results --out report`: write the report, say where it is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import PROMPTS, write

FIGURES = Path("figures")  # where `python -m analysis figures` writes, unless told otherwise


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; exit code 2 with one line if there is nothing to show."""
    parser = argparse.ArgumentParser(prog="analysis report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write to")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="show so many of each bench, the worst first")
    parser.add_argument(
        "--figures", type=Path, help="folder of PNG files, each with its words in NAME.md: `figures` if there"
    )
    args = parser.parse_args(argv)
    began = time.perf_counter()
    figures = args.figures or (FIGURES if FIGURES.is_dir() else None)
    try:
        page = write(args.results, args.out, args.prompts, figures)
    except (OSError, ValueError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
