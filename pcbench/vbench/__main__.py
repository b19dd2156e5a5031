"""`python -m pcbench.vbench setup|status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..messages import ConfigError, Parser
from . import build, environment


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one line about what went wrong."""
    parser = Parser(prog="python -m pcbench.vbench", description="VBench's own interpreter.")
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="build it (about 450 MB), or complete it")
    setup.add_argument("--full", action="store_true", help="with its own torch instead of this interpreter's")
    setup.add_argument("--python", type=Path, help="the Python 3.11 to build it with (default: this one)")
    setup.add_argument("--with-detectron2", metavar="SOURCE", help="a folder or git URL, built for the detector's four")
    commands.add_parser("status", help="what every dimension has and lacks")
    args = parser.parse_args(argv)
    try:
        if args.command == "setup":
            began = time.perf_counter()
            build.build(args.full, args.python, args.with_detectron2, say=lambda line: print(line, flush=True))
            ready = [row for row in environment.status() if row[1] == "ok"]
            spent = time.perf_counter() - began
            print(f"the code of {len(ready)} of {len(environment.status())} dimensions is ready; {spent:.0f} s")
            print("what the others lack, and weights: python -m pcbench.vbench status")
        else:
            show()
    except ConfigError as error:
        print(f"pcbench.vbench: {error}", file=sys.stderr)
        return 2
    return 0


def show() -> None:
    """Print the status of every dimension: whether its code imports, and which of its weights are there."""
    for name, imports, files in environment.status():
        print(f"{name:24}{imports}{'' if files else ', needs no weights'}")
        for line in files:
            print(f"    {line}")
    try:
        loaded = environment.load()
        print(f"interpreter: {loaded.python}")
        print("packages:    " + ", ".join(f"{name} {version}" for name, version in loaded.versions.items()))
    except ConfigError as error:
        print(error)
    print(f"weights:     {environment.weights_folder()}")


if __name__ == "__main__":
    sys.exit(main())
