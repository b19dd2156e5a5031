"""One view of a whole sweep, counted in the store: whoever makes the samples, and wherever."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..cost.macs import reference_macs
from ..identity import sample_key
from ..job import Job, distinct
from ..store import TRACE, read_json
from ..store.claims import CLAIM, running
from .worker import Launch

LINE = 60.0  # seconds between two lines of a log
PAUSE = 1.0  # seconds between two looks
SHARE = 20  # a look is taken at most a 20th of the time, however slow the folder is


@dataclass(frozen=True)
class Counts:
    """Samples of a sweep, references included. cost: the planned share of the work that is done or failed."""

    done: int = 0
    running: int = 0
    failed: int = 0
    left: int = 0
    cost: float = 0.0

    @property
    def total(self) -> int:
        return self.done + self.running + self.failed + self.left


@dataclass(frozen=True)
class _Recipe:
    job: Job
    names: frozenset[str]
    ends: tuple[str, ...]
    macs: int


class Watch:
    """Counts what a launch has done; a failure of an earlier launch is work still to do."""

    def __init__(self, jobs: Sequence[Job], launch: Launch) -> None:
        self._launch, self._began = launch, time.monotonic()
        self._recipes = [_recipe(job) for job in distinct(jobs)]
        self._first: float | None = None

    def count(self) -> Counts:
        """The counts now, on the machines that the workers are on, or else on this one."""
        machines = self._launch.machines()
        done = at_work = failed = total = cost = whole = 0
        for recipe in self._recipes:
            places = [replace(recipe.job.place, machine=name) for name in machines] or [recipe.job.place]
            states = [self._states(recipe, place.folder) for place in places]
            have, bad = (set().union(*(state[at] for state in states)) for at in (0, 1))
            busy = set().union(*(state[2] for state in states)) - have
            bad -= have | busy
            done, at_work, failed = done + len(have), at_work + len(busy), failed + len(bad)
            cost += recipe.macs * len(have | bad)
            total, whole = total + len(recipe.names), whole + recipe.macs * len(recipe.names)
        return Counts(done, at_work, failed, total - done - at_work - failed, cost / max(whole, 1))

    def _states(self, recipe: _Recipe, folder: Path) -> tuple[set[str], set[str], set[str]]:
        """The names of samples that are done, have failed, and are being worked on."""
        names: set[str] = set()
        with suppress(OSError):
            names = set(os.listdir(folder))
        done = {name for name in recipe.names if all(name + end in names for end in recipe.ends)}
        claimed = running(folder) if any(name.startswith(CLAIM) for name in names) else ()  # the dead do not count
        busy = {name.partition(".")[0] for name in claimed} & recipe.names
        failed = {name for name in recipe.names - done if f"{name}.failed.json" in names and self._ours(folder / name)}
        return done, failed, busy

    def _ours(self, stem: Path) -> bool:
        found = read_json(stem.with_name(f"{stem.name}.failed.json"))
        return found is not None and found.get("launch") == self._launch.name

    def line(self, counts: Counts) -> str:
        """The counts and the time left, in words."""
        if self._first is None:
            self._first = counts.cost
        parts = f"{counts.running} running, {counts.failed} failed, {counts.left} left"
        made, seconds = counts.cost - self._first, time.monotonic() - self._began
        left = f", {_duration(seconds * (1 - counts.cost) / made)} left at this pace" if made > 0 else ""
        return f"{counts.done} of {counts.total} samples done, {parts}{left if counts.left + counts.running else ''}"


def _recipe(job: Job) -> _Recipe:
    names = frozenset(sample_key(prompt, seed) for prompt, seed in job.run.samples)
    ends = [".safetensors", ".mp4", TRACE]
    if "score" in job.run.stages and job.uncached is not None:
        ends.append(".fidelity.json")
    return _Recipe(job, names, tuple(ends), reference_macs(job))


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else "a minute"


def follow(watch: Watch, works: Callable[[], bool], console: Console | None = None) -> Counts:
    """Show how far the sweep is while `works` says that it goes on: a bar on a terminal, else one line a minute.
    Returns the last counts."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        return _follow(watch, works, lambda line, counts: console.print(line, soft_wrap=True), LINE)
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("")

        def show(line: str, counts: Counts) -> None:
            bar.update(task, description=line, total=counts.total, completed=counts.done + counts.failed)

        counts = _follow(watch, works, show, PAUSE)
    console.print(watch.line(counts), soft_wrap=True)
    return counts


def _follow(watch: Watch, works: Callable[[], bool], show: Callable[[str, Counts], None], every: float) -> Counts:
    shown = -math.inf
    while True:
        goes_on, began = works(), time.monotonic()
        if not goes_on or began - shown >= every:
            counts = watch.count()
            show(watch.line(counts), counts)
            shown = began
        if not goes_on:
            return counts
        time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))
