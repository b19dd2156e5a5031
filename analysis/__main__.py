"""`python -m analysis tables|figures|compare|audit|report|pictures [results] [--out FOLDER]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Command -> the module whose main(argv) runs it, loaded on demand: tables need neither matplotlib nor ffmpeg.
COMMANDS = {
    "tables": "analysis.tables",
    "figures": "analysis.figures",
    "compare": "analysis.paper.compare",
    "audit": "analysis.paper.audit",
    "report": "analysis.report",
    "pictures": "analysis.figures.pictures",
}
USAGE = f"usage: python -m analysis {'|'.join(COMMANDS)} [results] [--out FOLDER]; --help after a command says more"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2, with one line, if it is unknown or a package is missing."""
    command, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if command in {"-h", "--help"}:
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"analysis: {f'no command {command[:60]!r}; ' if command else ''}{USAGE}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[command])
    except ModuleNotFoundError as error:
        print(f"analysis: no package {error.name}: pip install 'pcbench[analysis]'", file=sys.stderr)
        return 2
    return int(module.main(rest[:-1]))


if __name__ == "__main__":
    sys.exit(main())
