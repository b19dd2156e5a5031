"""A worker: a process that carries out the same command line as others, on one results folder, sharing it by claims.

Two variables in its environment make it one: PCBENCH_WORKER=i/n, its number of so many, and PCBENCH_LAUNCH, the name of
the launch, whose folder in the results takes its log and a note of the machine it is on. A worker prints no table.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..job import Job
from ..stages import Share
from ..store import read_json, write_json
from ..store.claims import LAUNCH, WORKER
from . import hang
from .shards import Shard, Unit, group_of, parse, units

Main = Callable[[Sequence[str]], int]  # carries out a command line and returns its exit code
DRIVER = "PCBENCH_DRIVER"  # "stdin": a pipe that is open as long as the driver is there
FOLDER = "launches"  # in the results folder
OWN = ("launcher=none", "workers=null", "wandb=off")  # of the options, a worker's own


@dataclass(frozen=True)
class Launch:
    """One launch of a sweep. name: of its folder. words: the command line. count: of workers, at most. host: the
    PCBENCH_HOST that workers on other machines are to have."""

    name: str
    results: Path
    words: tuple[str, ...]
    count: int
    host: str | None = None
    folder_of_words: str = field(default_factory=os.getcwd)  # what paths in the words are relative to

    @property
    def folder(self) -> Path:
        """Where the logs of its workers are."""
        return (self.results / FOLDER / self.name).absolute()

    def log(self, number: int) -> Path:
        """What the worker of this number prints."""
        return self.folder / f"worker-{number}.log"

    def environment(self, number: int) -> dict[str, str]:
        """What makes a process the worker of this number, from 1."""
        host = {} if self.host is None else {"PCBENCH_HOST": self.host}
        return {WORKER: f"{number}/{self.count}", LAUNCH: self.name, **host}

    def machines(self) -> list[str]:
        """The machines that workers have noted so far."""
        notes = [read_json(path) for path in sorted(self.folder.glob("worker-*.json"))]
        return list(dict.fromkeys(name for note in notes if note for name in note["machines"]))


def current() -> Shard | None:
    """Which worker of how many this process is; None if it is not a worker."""
    return parse(os.environ.get(WORKER))


def begin(jobs: Sequence[Job]) -> None:
    """Note the machine that this worker is on; if it was started by a local driver, end when that does."""
    worker, name = current(), os.environ.get(LAUNCH)
    if worker is None or name is None or not jobs:
        return
    folder = jobs[0].run.results / FOLDER / name
    if os.environ.get(DRIVER) == "stdin":
        end_with(0)
    hang.end_if_this_does()
    machines = sorted({job.place.machine for job in jobs})
    write_json(folder / f"worker-{worker.number}.json", {"machines": machines})


def end_with(stream: int) -> None:
    """End this process at once when the other end of a pipe is closed: its driver has ended, however it did."""

    def wait() -> None:
        while os.read(stream, 1):
            pass
        os._exit(143)  # as after SIGTERM

    threading.Thread(target=wait, name="driver", daemon=True).start()


def in_order(shares: Sequence[Share]) -> list[Share]:
    """The shares in this worker's order. One model after another, so that each is loaded once, beginning where its part
    of the planned cost does: workers begin with different models, and help each other at the end."""
    worker = current()
    if worker is None:
        return list(shares)
    rank = list(dict.fromkeys(share.job.place.model for share in shares))
    ordered = sorted(shares, key=lambda share: rank.index(share.job.place.model))
    start = _start(units([share.job for share in ordered]), worker)
    first = next((at for at, share in enumerate(ordered) if group_of(share.job) == start), 0)
    begin = (worker.number - 1) / worker.count  # of each, so that a worker makes the same prompts with every method
    return [replace(share, begin=begin) for share in ordered[first:] + ordered[:first]]


def _start(parts: Sequence[Unit], worker: Shard) -> str:
    """The group in which a worker's part of the planned cost begins."""
    total, before, start = sum(unit.macs for unit in parts), 0, ""
    for unit in parts:
        if not start or before * worker.count <= (worker.number - 1) * total:
            start = unit.reference
        before += unit.macs
    return start


def models(jobs: Sequence[Job], count: int) -> list[str]:
    """The model with which each of so many workers begins."""
    rank = list(dict.fromkeys(job.place.model for job in jobs))
    parts = units(sorted(jobs, key=lambda job: rank.index(job.place.model)))
    names = {group_of(job): job.place.model for job in jobs}
    return [names[_start(parts, Shard(number, count))] for number in range(1, count + 1)]


def work(main: Main, launch: Launch, number: int) -> int:
    """Be the worker of this number in this process, which others started. Returns the exit code."""
    os.environ.update(launch.environment(number))
    os.chdir(launch.folder_of_words)
    launch.folder.mkdir(parents=True, exist_ok=True)
    with launch.log(number).open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        code = main([*launch.words, *OWN])
        sys.stdout.flush()
    return code
