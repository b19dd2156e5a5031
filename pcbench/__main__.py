"""`python -m pcbench`, and `pcbench` once it is installed: the main command, or another one by its name."""

import importlib
import sys
from collections.abc import Sequence

from .messages import nearest, shortened
from .options import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, or else the main one; returns the exit code."""
    first, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if first in COMMANDS:
        return run(COMMANDS[first][0], rest[:-1])
    if first.isidentifier() and (hint := nearest(first, COMMANDS)).startswith("did you mean"):
        print(f"pcbench: no command {shortened(first)!r}: {hint}", file=sys.stderr)
        return 2
    from .cli import main as run_cli

    return run_cli(argv)


def run(module: str, arguments: Sequence[str]) -> int:
    """Run the main function of a command's module; returns the exit code."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"pcbench: no package {error.name}: pip install 'pcbench[analysis]' has all", file=sys.stderr)
        return 2
    return int(found.main(list(arguments)) or 0)


if __name__ == "__main__":  # launchers import this module in their workers
    sys.exit(main())
