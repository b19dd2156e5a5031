"""The scoring stage for VBench: every requested dimension that is not scored yet, each in a process of its own."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..config import Run
from ..devices import visible
from ..job import Job
from ..store import read_json, write_sealed, write_whole
from . import process
from .environment import Environment
from .results import LEFT_OUT, WITH_FIRST, checked, path_of
from .suites import suite_name
from .tasks import DEFINITION, NOT_GENERATED, Contents, Task, inspect, lay_out, require, tasks

Say = Callable[[str], None]


def score(job: Job, say: Say) -> None:
    """Score the job's videos in the dimensions of `score.vbench`. Nothing is generated, and nothing is scored twice.

    If a dimension fails, the reason goes into the record, and the others go on. Raises RuntimeError at the end if one
    failed, and ConfigError at once if a dimension cannot be scored here at all.
    """
    if not job.run.score.vbench:
        return
    require(job.run)
    requested = tasks(job)
    contents = inspect({video.path for task, _ in requested for video in task.videos})
    todo = [
        (task, environment, key)
        for task, environment in requested
        if (key := _pending(job, task, environment, contents)) is not None
    ]
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in visible(job.run.device) or [""]:
        free.put(device)

    def work(item: tuple[Task, Environment, str]) -> str | None:
        device = free.get()
        try:
            return _score_one(job, *item, contents, device, say)
        finally:
            free.put(device)

    with ThreadPoolExecutor(free.qsize()) as pool:
        reasons = list(pool.map(work, todo))
    failed = [f"{task.dimension.name}: {why}" for (task, *_), why in zip(todo, reasons, strict=True) if why]
    if failed:
        scored = len(requested) - len(failed)
        raise RuntimeError(f"VBench scored {scored} of {len(requested)} dimensions; {'; '.join(failed)}")


def _pending(job: Job, task: Task, environment: Environment, contents: Contents) -> str | None:
    """The task's key, or None if its result already exists."""
    key = task.key(environment, contents.hashes)
    done = read_json(path_of(job.place.folder, task.suite, task.dimension.name))
    return None if done is not None and done["key"] == key else key


def _score_one(
    job: Job, task: Task, environment: Environment, key: str, contents: Contents, device: str, say: Say
) -> str | None:
    """Score one dimension and write its result; returns the reason if it could not be scored."""
    run, name, began = job.run, task.dimension.name, time.perf_counter()
    title = f"{run.label}  {environment.edition.title} {name}"
    path = path_of(job.place.folder, task.suite, name)
    value: float | None = None
    values: dict[str, float] = {}
    reason = _incomplete(run, task, contents)
    if reason is None:
        try:
            value, values = _ask(run, task, environment, device, lambda bar: say(f"{title}  {bar}"))
        except process.WorkerError as error:
            details, output = path.with_suffix(".error.txt"), error.output
            write_whole(details, lambda partial: partial.write_text(output, encoding="utf-8"))
            reason = f"{error}"
    unscored = dict.fromkeys(task.missing, NOT_GENERATED)
    why = reason or (WITH_FIRST if task.dimension.together else f"{LEFT_OUT}: {task.dimension.leaves_out}")
    unscored |= {v.sample: why for v in task.videos if v.sample not in values}
    result = {
        "key": key if reason is None else None,
        "suite": {
            "suite": suite_name(run.prompts),
            "hash": task.suite,
            "prompts": len(run.prompts),
            "seeds": list(run.seeds),
        },
        "definition": DEFINITION,
        "version": environment.versions[environment.edition.package],
        "mode": task.mode,
        "encoder": contents.encoder,
        "score": value,
        "reason": reason,
        "samples": values,
        "unscored": unscored,
        "packages": environment.versions,
        "seconds": time.perf_counter() - began,
    }
    write_sealed(path, result)
    if reason is None:
        say(f"{title} {value:.4f}  {len(task.videos)} videos, {result['seconds']:.0f} s, {task.mode}")
    else:
        say(f"{title} not scored: {reason}")
    return reason


def _incomplete(run: Run, task: Task, contents: Contents) -> str | None:
    """Why the existing videos should not be scored; None if they should."""
    count = f"{len(task.missing)} of its {len(task.missing) + len(task.videos)} videos"
    if not task.videos:
        return f"{count} were not generated: there is nothing to score"
    if task.missing and not run.score.vbench_partial:
        first = task.missing[0]
        return f"{count} were not generated, the first is {first}; score.vbench_partial=true scores the others"
    if broken := [video.path for video in task.videos if video.path in contents.broken]:
        return f"{len(broken)} of its videos are not whole; delete them, and generate again; the first is {broken[0]}"
    return None


def _ask(
    run: Run, task: Task, environment: Environment, device: str, progress: Callable[[str], None]
) -> tuple[float, dict[str, float]]:
    with process.scratch_folder() as name:
        folder = Path(name)
        try:
            request: dict[str, Any] = lay_out(task, folder, environment)
        except FileExistsError as error:  # names of VBench's own prompts that differ in case alone
            name = Path(str(error.filename2 or error.filename)).name
            why = f"a file system that tells no A from a has two videos called {name!r}: set TMPDIR to another one"
            raise process.WorkerError(why, str(error)) from error
        answer = process.run(environment, request, folder, device, run.score.vbench_timeout, progress)
        return checked(task, answer)
