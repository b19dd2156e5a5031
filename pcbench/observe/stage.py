"""The stage that observes existing samples: the data behind figures 3-6 and appendix A.2.

Options: `stages=[generate,observe]`, `observe=[difference,resolution,trial,blocks,impact,bound]`, `observe_stride=1`.

The uncached reference is observed; `bound` also compares a run with a cache to it. A sample's observations are in
<sample>.observations.json, under the versioned names of kinds.py; only missing ones are made (`impact` step by step).
The record contains all of them, one sample after another:

    record["observations"] = [{"prompt": …, "seed": …, "rerun_rmse": 0.0, "difference@1": {…}, …}, …]

Lists run over denoising steps, as in record["samples"][…]["trace"]; null where there is no value, as at the first step,
which has none before it. Numbers have five significant digits. For N steps, B blocks, and part = whole, low or high:

    difference@1  part -> {rms, relative: [N]}                                   change.py
    resolution@1  "2x4x4" -> {size: [3], adjacent, literal: [N]}                 change.py
    trial@2       "2x4x4" -> operator -> radius -> {adjacent, literal, gap: [N]}  trial.py
    blocks@1      {paths: [B], rms, relative: [N][B]}                            change.py
    impact@1      part -> {latent_rmse, video_mse, psnr@2: [N]}                  impact.py
    bound@1       {factors: {…}, c_full, c_trial, step_prediction, step_latent, final_prediction: [N]}
                                                                                 bound.py
    deviation@1   {delta, video, prediction, latent: [N]}, of runs with a cache  bound.py

rerun_rmse: RMS error of the final latent when the call was repeated to be watched; 0 on a deterministic machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from methods.engine.anatomy import Size

from .. import backbones
from ..config import ConfigError, Recipe, Run
from ..cost.macs import PETA, call_macs
from ..cost.timesteps import num_steps
from ..failures import Failure, attempt_each
from ..job import Job
from ..sampling.generate import checksum, latents_of
from ..store import SampleFiles, read_json, write_sealed
from ..store.atomic import alone
from ..store.claims import busy, claim
from . import change
from .kinds import KINDS, OBSERVATIONS, Observation, Subject
from .watch import Caller, Seen, compact, rms

RERUN = "rerun_rmse"
# Limit for the watched references kept for the next run of a sweep; each takes about 2 GB at 720p, as it holds the
# predictions and latents of all steps. The last one is kept whatever its size.
MOST_BYTES = 8 << 30

Found = dict[str, Any]  # the data of observations, by name


def chosen(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds by name, one or several, without repetitions. Raises ConfigError for an unknown one."""
    kinds = tuple(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds or []))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"unknown observation {unknown[0]!r}; there are {', '.join(KINDS)}")
    return kinds


def check(run: Run) -> None:
    """Raise ConfigError for observations that are impossible or would be ignored."""
    if ("observe" in run.stages) != bool(run.observe):
        raise ConfigError(f"observe=[…] and the stage of that name go together; there are {', '.join(KINDS)}")
    if run.observe_stride < 1:
        raise ConfigError(f"observe_stride must be at least 1, not {run.observe_stride}")
    if "bound" in run.observe and run.recipe.method.NAME == "fewer_steps":
        raise ConfigError("observe=[bound] compares step by step, and fewer_steps takes other steps")


def asked_of(run: Run) -> list[Observation]:
    """The observations that the run asks for, of each of its samples."""
    cached = run.recipe.method.NAME != "none"
    return [known for known in OBSERVATIONS if known.kind in run.observe and known.cached == cached]


def stored(files: SampleFiles) -> Found:
    """The stored observations of a sample, without those of older versions."""
    found = read_json(files.observations) or {}
    if None not in (pair := [found.get("latent"), checksum(files)]) and pair[0] != pair[1]:
        return {}  # the sample has been generated again since, with another result
    return _ordered(found)


def _ordered(found: Found) -> Found:
    return {name: found[name] for name in (RERUN, *(known.name for known in OBSERVATIONS)) if name in found}


def missing(run: Run, files: SampleFiles) -> list[Observation]:
    """The observations of a sample that are still to be made, or completed."""
    found = stored(files)
    return [wanted for wanted in asked_of(run) if wanted.name not in found or _left(wanted, run, found)]


def _left(observation: Observation, run: Run, found: Found) -> list[int]:
    """The steps that the observation still has to try."""
    return observation.left(found.get(observation.name, {}), num_steps(run.recipe), run.observe_stride)


def observe(job: Job, say: Callable[[str], None], failed_before: set[str] | None = None) -> list[Failure]:
    """Make the missing observations of every sample of the job. Returns the failures; `failed_before` collects what
    failed, and is not tried again."""
    failed_before = set() if failed_before is None else failed_before

    def work(prompt: str, seed: int) -> None:
        _observe_one(job, prompt, seed, say)

    return attempt_each(job.run.label, "observation", job.run.samples, work, say, failed_before)


def _observe_one(job: Job, prompt: str, seed: int, say: Callable[[str], None]) -> None:
    run, files = job.run, job.files(prompt, seed)
    if not missing(run, files):
        return
    if not files.complete and busy(files.stem):
        return  # another process is making it
    if not files.complete:
        say(f"{run.label}  not observed, the sample was not generated: {prompt!r} seed {seed}")
        return
    with claim(files.observations) as claimed:
        if claimed and (todo := missing(run, files)):
            _observe_missing(job, prompt, seed, files, todo, say)


def _observe_missing(
    job: Job, prompt: str, seed: int, files: SampleFiles, todo: list[Observation], say: Callable[[str], None]
) -> None:
    run, began = job.run, time.perf_counter()
    found = stored(files)
    for name, data in _look(job, Caller.of(run, prompt, seed), prompt, files, todo):
        found[name] = data
        if name != RERUN:
            _write(files, found)
    kinds = ", ".join(observation.name.partition("@")[0] for observation in todo)
    again = "" if not found[RERUN] else f" [! called again, the final latent is {found[RERUN]:.2g} RMS away]"
    say(f"{run.label}  observed {kinds}, {time.perf_counter() - began:.1f} s  {prompt!r} seed {seed}{again}")


def _write(files: SampleFiles, found: Found) -> None:
    with alone(files.observations.parent):  # another process may have observed other kinds
        found = stored(files) | found
        write_sealed(files.observations, {**files.identity, "latent": checksum(files), **_ordered(found)})


def _look(
    job: Job, caller: Caller, prompt: str, files: SampleFiles, todo: Sequence[Observation]
) -> Iterator[tuple[str, Any]]:
    """Repeat the call once and watch it; yields name and data of what is measured, quick observations first."""
    sizes, latent, known = trial_sizes(job.run, todo), latent_size(job.recipe), stored(files)
    uncached = job.uncached and _uncached(job, caller, prompt)
    trials = tuple({size for size in sizes.values() if size != latent})
    seen = caller.watch(trials, blocks=any(observation.blocks for observation in todo))
    yield RERUN, compact(rms(seen.latents[-1].float() - latents_of(files).float()))
    threshold = (read_json(files.trace) or {})["steps"][-1]["threshold"]
    for observation in sorted(todo, key=lambda observation: bool(_left(observation, job.run, known))):
        data_so_far = known.get(observation.name, {})
        subject = Subject(caller, seen, sizes, job.run.observe_stride, data_so_far, uncached or None, threshold)
        for data in observation.measure(subject):
            yield observation.name, data


_references: dict[tuple[str, str, int], Seen] = {}


def _uncached(job: Job, caller: Caller, prompt: str) -> Seen:
    """The same call without its cache, watched; kept for the next method of a sweep."""
    key = job.reference.id, prompt, caller.seed
    if key not in _references:
        reference = Caller(caller.pipe, job.run.reference, caller.seed, caller.embeds).watch()
        while _references and sum(seen.nbytes for seen in _references.values()) + reference.nbytes > MOST_BYTES:
            del _references[next(iter(_references))]
        _references[key] = reference
    return _references[key]


def latent_size(recipe: Recipe) -> Size:
    """(T, H, W) of the recipe's latents, in cells."""
    frames, height, width = backbones.family(recipe.backbone).latent_size(recipe.sampling)
    return frames, height, width


def trial_sizes(run: Run, observations: Iterable[Observation]) -> dict[str, Size]:
    """The sizes of the trials that these observations need, by factor."""
    sizes = change.sizes(backbones.family(run.recipe.backbone).ANATOMY, latent_size(run.recipe))
    wanted = {factor for observation in observations for factor in observation.sizes(sizes)}
    return {factor: size for factor, size in sizes.items() if factor in wanted}


@dataclass
class Work:
    """Work still to do: denoising steps at full size (all guidance branches), trials by size, latents to decode."""

    samples: int = 0
    steps: int = 0
    trials: dict[Size, int] = field(default_factory=dict)
    decodes: int = 0


def work(job: Job) -> Work:
    """The work of a job's missing observations; an upper bound if the job has a cache."""
    run = job.run
    total, steps, latent = Work(), num_steps(run.recipe), latent_size(run.recipe)
    for prompt, seed in run.samples:
        files = job.files(prompt, seed)
        todo = missing(run, files)
        if not todo:
            continue
        costs = [observation.cost(steps, _left(observation, run, stored(files))) for observation in todo]
        total.samples += 1
        total.steps += steps + sum(cost.steps for cost in costs)
        total.decodes += sum(cost.decodes for cost in costs)
        asked = list(trial_sizes(run, todo).values())
        for observation in todo:
            asked += (len(observation.modes) - 1) * list(trial_sizes(run, [observation]).values())
        for size in asked:
            if size != latent:
                total.trials[size] = total.trials.get(size, 0) + steps
    return total


def plan(job: Job) -> dict[str, Any] | None:
    """The work as plain data, with its MACs (in units of 10^15: "pmacs"); None if there is no work."""
    todo = work(job)
    if not todo.samples:
        return None
    run, family, config = job.run, job.family, job.config
    arguments = family.arguments(run.recipe, config)
    batch = arguments["hidden_states"][0]

    def macs(size: Size) -> int:
        call = {"size": size, "batch": batch, "only": None, "skipped": {}}
        return call_macs(family.TRANSFORMER, config, arguments, call) * family.branches(run.recipe)

    calls = {latent_size(run.recipe): todo.steps, **todo.trials}
    return {
        "model": run.recipe.backbone.name,
        "method": run.label,
        "samples": todo.samples,
        "full_steps": todo.steps,
        "generations": todo.steps / num_steps(run.recipe),
        "trials": sum(todo.trials.values()),
        "decodes": todo.decodes,
        "pmacs": sum(count * macs(size) for size, count in calls.items()) / PETA,
    }
