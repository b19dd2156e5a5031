"""`python -m pcbench.vbench setup|setup-2.0|status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..messages import ConfigError, Parser
from . import build, environment
from .adopt import adopt
from .dimensions import EDITIONS, VBENCH, VBENCH2
from .edition import Edition


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one line about what went wrong."""
    parser = Parser(prog="python -m pcbench.vbench", description="The interpreters of VBench and VBench-2.0.")
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="build it (about 450 MB), or complete it")
    setup.add_argument("--full", action="store_true", help="with its own torch instead of this interpreter's")
    setup.add_argument("--python", type=Path, help="the Python 3.11 to build it with (default: this one)")
    setup.add_argument("--with-detectron2", metavar="SOURCE", help="a folder or git URL, built for the detector's four")
    adopted = commands.add_parser("setup-2.0", help="make an interpreter with VBench-2.0's packages known")
    adopted.add_argument(
        "--python", type=Path, required=True, help="the interpreter, built as VBench-2.0's README says"
    )
    adopted.add_argument(
        "--source", type=Path, required=True, help="the folder VBench-2.0 of a clone of Vchitect/VBench"
    )
    commands.add_parser("status", help="what every dimension has and lacks")
    args = parser.parse_args(argv)
    try:
        if args.command == "setup":
            began = time.perf_counter()
            build.build(args.full, args.python, args.with_detectron2, say=lambda line: print(line, flush=True))
            say_ready(VBENCH, time.perf_counter() - began)
        elif args.command == "setup-2.0":
            began = time.perf_counter()
            adopt(args.python, args.source)
            say_ready(VBENCH2, time.perf_counter() - began)
        else:
            for edition in EDITIONS:
                show(edition)
    except ConfigError as error:
        print(f"pcbench.vbench: {error}", file=sys.stderr)
        return 2
    return 0


def say_ready(edition: Edition, seconds: float) -> None:
    """Print how many dimensions can be imported."""
    rows = environment.status(edition)
    print(f"the code of {sum(row[1] == 'ok' for row in rows)} of {len(rows)} dimensions is ready; {seconds:.0f} s")
    print("what the others lack, and weights: python -m pcbench.vbench status")


def show(edition: Edition) -> None:
    """Print the status of every dimension: whether its code imports, and which of its weights are there."""
    print(edition.title)
    for name, imports, files in environment.status(edition):
        print(f"{name:30}{imports}{'' if files else ', needs no weights'}")
        for line in files:
            print(f"    {line}")
    try:
        loaded = environment.load(edition)
        print(f"interpreter: {loaded.python}")
        print("packages:    " + ", ".join(f"{name} {version}" for name, version in loaded.versions.items()))
    except ConfigError as error:
        print(error)
    print(f"weights:     {environment.weights_folder(edition)}")


if __name__ == "__main__":
    sys.exit(main())
