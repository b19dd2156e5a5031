"""One sweep on many GPUs: shards for any scheduler, and launchers that start workers which share the work by claims.

A launcher starts processes that carry out the same command line (worker.py), watches the store (progress.py) and tells
at the end what failed. None of them hands out work.
"""

from __future__ import annotations

import importlib.util
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from .. import feasible, integrity, provenance
from ..config import ConfigError, check_choice
from ..job import Job
from ..runs import Settings
from . import local, progress, ray, slurm
from .worker import FOLDER, Launch, Main

REMOTE = {"slurm": "submitit", "ray": "ray"}  # launchers whose workers may be on other machines, and what they need
LAUNCHERS = ("none", "local", *REMOTE)
FAILED = "pcbench: failed: "  # begins a line of a worker's log
GRACE = 60.0  # seconds that the other workers have when the first one has seen everything done
OUTLOOK = "; the other runs of the sweep go on"


class Pool(Protocol):
    """Started workers."""

    def works(self) -> bool:
        """Whether any worker is still there."""

    def codes(self) -> dict[int, int | None]:
        """The exit code of each worker by number; negative, the signal that ended it; None if it has not ended."""

    def stop(self) -> None:
        """End all workers."""


@dataclass
class Outcome:
    """What became of a launch. failed: a line for each failure. notes: what else to know. machines: where it was."""

    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)


def check(settings: Settings, jobs: Sequence[Job]) -> None:
    """Raise ConfigError for a launch that cannot be."""
    launcher = settings.launcher
    check_choice("launcher", launcher, LAUNCHERS)
    if launcher == "none":
        if settings.workers is not None:
            raise ConfigError(f"workers={settings.workers} needs a launcher: add launcher=local")
        return
    if settings.shard is not None or settings.shards is not None:
        raise ConfigError(f"launcher={launcher} shares the work itself: leave shard and shards away")
    if settings.budget is not None:
        raise ConfigError(f"a budget's setting is found by one process: leave launcher={launcher} away")
    if any(job.recipe.numerics.parallel > 1 for job in jobs):
        raise ConfigError(f"model.numerics.parallel is for torchrun: leave launcher={launcher} away")
    if launcher in REMOTE and importlib.util.find_spec(REMOTE[launcher]) is None:
        raise ConfigError(
            f"launcher={launcher} needs the package {REMOTE[launcher]}: pip install 'pcbench[{launcher}]'"
        )
    if launcher == "local":
        local.count([job.run for job in jobs], settings.workers)
    if launcher == "slurm":
        slurm.count(settings.workers)


def run(settings: Settings, words: Sequence[str], jobs: Sequence[Job], main: Main) -> Outcome:
    """Carry out jobs by workers, and show how far they are. Ends all workers if it is interrupted. `main` is what a
    worker does with the words, where it is not a process of its own."""
    if all(integrity.settled(job) for pair in jobs for job in {pair.reference, pair}):
        return Outcome()
    results = jobs[0].run.results
    feasible.check_writable(results / FOLDER)
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
    host = provenance.host_name() if settings.launcher in REMOTE else None
    launch = Launch(name, results.absolute(), tuple(words), _count(settings, jobs), host)
    print(f"{launch.count} workers; their logs: {launch.folder}", flush=True)
    pool = _start(settings, launch, jobs, main)
    try:
        progress.follow(progress.Watch(jobs, launch), partial(_works, pool, []))
        codes = pool.codes()
    finally:
        pool.stop()
    return _outcome(launch, codes, jobs)


def _works(pool: Pool, since: list[float]) -> bool:
    """Whether any worker is still to end. One that ends without failures has seen everything done: after it the others
    have so long, and those that have not ended by then hang. since: the time when the first one was seen to have ended.
    """
    if not since and 0 in pool.codes().values():
        since.append(time.monotonic())
    return pool.works() and not (since and time.monotonic() - since[0] > GRACE)


def _count(settings: Settings, jobs: Sequence[Job]) -> int:
    """The number of workers: no more than there are samples to make."""
    if settings.launcher == "ray":
        ray.connect(settings.ray)
        count = ray.count(settings.workers)
    elif settings.launcher == "slurm":
        count = slurm.count(settings.workers)
    else:
        count = local.count([job.run for job in jobs], settings.workers)
    samples = sum(len(job.missing()) for job in {each for job in jobs for each in (job.reference, job)})
    return min(count, max(samples, 1))


def _start(settings: Settings, launch: Launch, jobs: Sequence[Job], main: Main) -> Pool:
    if settings.launcher == "ray":
        return ray.Pool(launch, main)
    if settings.launcher == "slurm":
        return slurm.Pool(launch, jobs, settings.slurm, main)
    return local.Pool(launch, [job.run for job in jobs])


def on(jobs: Sequence[Job], machines: Sequence[str]) -> list[Job]:
    """The jobs as they are on the first of the machines that workers were on; as they are, if none has said."""
    if not machines or not jobs or machines[0] == jobs[0].place.machine:
        return list(jobs)
    known: dict[Job, Job] = {}

    def there(job: Job) -> Job:
        if job not in known:
            uncached = job.uncached and there(job.uncached)
            known[job] = replace(job, place=replace(job.place, machine=machines[0]), uncached=uncached)
        return known[job]

    return [there(job) for job in jobs]


def _outcome(launch: Launch, codes: Mapping[int, int | None], jobs: Sequence[Job]) -> Outcome:
    logs = {number: _lines(launch, number) for number in codes}
    failures = [line for log in logs.values() for line in log if line.startswith(FAILED)]
    failed = dict.fromkeys(line.removeprefix(FAILED).removesuffix(OUTLOOK) for line in failures)
    outcome = Outcome(machines=launch.machines())
    outcome.failed = [line for line in failed if not _made_up_for(line, on(jobs, outcome.machines))]
    if made_up_for := len(failed) - len(outcome.failed):
        outcome.notes.append(f"{made_up_for} failures of one worker were made up for by others; see {launch.folder}")
    for number, code in codes.items():
        if code not in (0, 1):
            last = logs[number][-1] if logs[number] else "it printed nothing"
            how = "had not ended when the others were done" if code is None else f"ended with exit code {code}"
            how = f"was ended by signal {-code}" if code is not None and code < 0 else how
            outcome.notes.append(f"worker {number} {how}: {last}")
    if not {0, 1} & set(codes.values()):
        outcome.failed += [f"no worker finished: {note}" for note in outcome.notes]
        outcome.notes = []
    return outcome


def _made_up_for(line: str, jobs: Sequence[Job]) -> bool:
    """Whether everything is there by now of the runs that a worker's line about a failure begins with."""
    meant = {each for job in jobs for each in (job, job.reference) if line.startswith(f"{each.run.label}: ")}
    return bool(meant) and all(map(integrity.settled, meant))


def _lines(launch: Launch, number: int) -> list[str]:
    try:
        text = launch.log(number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
