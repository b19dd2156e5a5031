"""`python -m pcbench.tracking results [--mode online]`: send the existing records to W&B (with --beside, new ones)."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..messages import Parser
from ..store import records
from . import mode_of
from .projection import Projection, first_line

EVERY = 15.0  # seconds between two passes over a sweep's records


def _passes(beside_sweep: bool) -> Iterable[None]:
    """Yields for each pass: once, or during a sweep every few seconds and once more after standard input is closed."""
    if beside_sweep:
        os.nice(19)
        closed = threading.Event()
        threading.Thread(target=_wait_for_end, args=(closed,), daemon=True).start()
        while not closed.wait(EVERY):
            yield
    yield


def _wait_for_end(closed: threading.Event) -> None:
    sys.stdin.read()
    closed.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Send the records of results folders; returns the exit code: 0, or 2 after one line about what went wrong."""
    parser = Parser(prog="python -m pcbench.tracking", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="folders with records/ in them")
    parser.add_argument("--mode", default="offline", help="offline or online; WANDB_MODE overrides it")
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)  # a sweep; until stdin is closed
    args = parser.parse_args(argv)
    try:
        mode = mode_of(os.environ.get("WANDB_MODE") or args.mode)
        if mode is None:
            return 0
        if not args.beside and (empty := [folder for folder in args.results if not any(records(folder))]):
            raise ValueError(f"no records under {empty[0]}")
        return _project_all(args.results, mode, args.beside)
    except ImportError:
        _complain("not installed (pip install 'pcbench[wandb]'); the records do without it")
    except Exception as error:
        _complain(first_line(error))
    return 2


def _complain(text: str) -> None:
    print(f"wandb: {text}", file=sys.stderr, flush=True)


def _project_all(folders: Sequence[Path], mode: str, beside_sweep: bool) -> int:
    began, sent = time.perf_counter(), 0
    _stay_in(folders[0] / "wandb")
    projection = Projection(mode, _complain)
    for _ in _passes(beside_sweep):
        sent += sum(projection.project(folder) for folder in folders)
    offline = " ".join(f"{folder / 'wandb'}/offline-run-*" for folder in folders)
    advice = f"; to send them: wandb sync {offline}" if sent and projection.mode == "offline" else ""
    print(f"wandb: {sent} runs written {projection.mode} ({time.perf_counter() - began:.1f} s){advice}", flush=True)
    return 0


def _stay_in(folder: Path) -> None:
    """Keep W&B's own files in this folder, not in the home folder; make it send no error reports and print nothing."""
    for name, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ.setdefault(name, str((folder / place).resolve()))
        Path(os.environ[name]).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")


if __name__ == "__main__":
    sys.exit(main())
