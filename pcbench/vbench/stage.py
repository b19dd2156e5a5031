"""The scoring stage: every dimension that was asked for and is not scored yet, each in a process of its own."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..config import Run
from ..generate import place
from ..store import read_json, write_json, write_whole
from . import process
from .environment import Environment, load
from .jobs import DEFINITION, NOT_GENERATED, Contents, Job, inspect, jobs, lay_out, require
from .results import LEFT_OUT, checked, path_of
from .suites import suite_name

Say = Callable[[str], None]


def score(run: Run, say: Say) -> None:
    """Score the run's videos in the dimensions of `score.vbench`. Nothing is generated, and nothing scored twice.

    A dimension that fails leaves its reason in the record, and the others go on. Raises RuntimeError at the end if one
    did, and ConfigError at once for what cannot be scored here at all.
    """
    if not run.score.vbench:
        return
    require(run)
    environment = load()
    asked = jobs(run, environment)
    contents = inspect({video.path for job in asked for video in job.videos})
    todo = [(job, key) for job in asked if (key := _pending(run, job, environment, contents)) is not None]
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices():
        free.put(device)

    def work(item: tuple[Job, str]) -> str | None:
        device = free.get()
        try:
            return _score_one(run, *item, environment, contents, device, say)
        finally:
            free.put(device)

    with ThreadPoolExecutor(free.qsize()) as pool:
        reasons = list(pool.map(work, todo))
    failed = [f"{job.dimension.name}: {why}" for (job, _), why in zip(todo, reasons, strict=True) if why]
    if failed:
        raise RuntimeError(f"VBench scored {len(asked) - len(failed)} of {len(asked)} dimensions; {'; '.join(failed)}")


def devices() -> list[str]:
    """What each of the processes at work at a time is to see as CUDA_VISIBLE_DEVICES: one GPU, or none at all."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return (visible if len(visible) >= count > 0 and visible[0] else [str(i) for i in range(count)])[:count] or [""]


def _pending(run: Run, job: Job, environment: Environment, contents: Contents) -> str | None:
    """The job's key, or None if its result is there."""
    key = job.key(environment, contents.hashes)
    done = read_json(path_of(place(run).folder, job.suite, job.dimension.name))
    return None if done is not None and done["key"] == key else key


def _score_one(
    run: Run, job: Job, key: str, environment: Environment, contents: Contents, device: str, say: Say
) -> str | None:
    """Score one dimension and write its result; the reason if it could not be."""
    name, began = job.dimension.name, time.perf_counter()
    path = path_of(place(run).folder, job.suite, name)
    value: float | None = None
    values: dict[str, float] = {}
    reason = _incomplete(run, job, contents)
    if reason is None:
        try:
            value, values = _ask(run, job, environment, device, lambda bar: say(f"{run.label}  VBench {name}  {bar}"))
        except process.WorkerError as error:
            details, output = path.with_suffix(".error.txt"), error.output
            write_whole(details, lambda partial: partial.write_text(output, encoding="utf-8"))
            reason = f"{error}"
    unscored = dict.fromkeys(job.missing, NOT_GENERATED)
    unscored |= {v.sample: reason or LEFT_OUT for v in job.videos if v.sample not in values}
    result = {
        "key": key if reason is None else None,
        "suite": {
            "suite": suite_name(run.prompts),
            "hash": job.suite,
            "prompts": len(run.prompts),
            "seeds": list(run.seeds),
        },
        "definition": DEFINITION,
        "version": environment.versions["vbench"],
        "mode": job.mode,
        "encoder": contents.encoder,
        "score": value,
        "reason": reason,
        "samples": values,
        "unscored": unscored,
        "packages": environment.versions,
        "seconds": time.perf_counter() - began,
    }
    write_json(path, result)
    if reason is None:
        say(f"{run.label}  VBench {name} {value:.4f}  {len(values)} videos, {result['seconds']:.0f} s, {job.mode}")
    else:
        say(f"{run.label}  VBench {name} not scored: {reason}")
    return reason


def _incomplete(run: Run, job: Job, contents: Contents) -> str | None:
    """Why the videos that are there are not to be scored."""
    of = f"{len(job.missing)} of its {len(job.missing) + len(job.videos)} videos"
    if not job.videos:
        return f"{of} were not generated: there is nothing to score"
    if job.missing and not run.score.vbench_partial:
        return f"{of} were not generated, the first is {job.missing[0]}; score.vbench_partial=true scores the others"
    if broken := [video.path for video in job.videos if video.path in contents.broken]:
        return f"{len(broken)} of its videos are not whole; delete them, and generate again; the first is {broken[0]}"
    return None


def _ask(
    run: Run, job: Job, environment: Environment, device: str, progress: Callable[[str], None]
) -> tuple[float, dict[str, float]]:
    with process.scratch_folder() as name:
        folder = Path(name)
        request: dict[str, Any] = lay_out(job, folder, environment)
        answer = process.run(environment, request, folder, device, run.score.vbench_timeout, progress)
        return checked(job, answer)
