"""The stage that looks at samples instead of making more: what figures 3-6 and appendix A.2 are drawn from.

Options: `stages=[generate,observe]`, `observe=[difference,resolution,blocks,impact,bound]`, `observe_stride=1`.

All is seen on the uncached reference; `bound` also follows a run with a cache beside it. What was seen of a sample lies
in <sample>.observations.json, under the versioned names of kinds.py; only what is missing is looked for (`impact` step
by step). The record has it all, a sample after the other:

    record["observations"] = [{"prompt": …, "seed": …, "rerun_rmse": 0.0, "difference@1": {…}, …}, …]

Lists run over denoising steps, as in record["samples"][…]["trace"]; null where there is nothing, as at the first step,
which has none before it. Numbers have five significant digits. Of N steps, with `part` one of whole, low, high:

    difference@1  part -> {rms, relative: [N]}                                   change.py
    resolution@1  "2x4x4" -> {size: [3], adjacent, literal: [N]}                 change.py
    blocks@1      {paths: [B], rms, relative: [N][B]}                            change.py
    impact@1      part -> {latent_rmse, video_mse, psnr@2: [N]}                  impact.py
    bound@1       {factors: {…}, c_full, c_trial, step_prediction, step_latent, final_prediction: [N]}
                                                                                 bound.py
    deviation@1   {delta, video, prediction, latent: [N]}, of runs with a cache  bound.py

rerun_rmse: of the final latent when the sample was called again to be watched; 0 where a machine repeats itself.
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
from ..failures import Failure, attempt_each
from ..job import Job
from ..sampling.generate import checksum, latents_of
from ..store import SampleFiles, read_json, write_sealed
from ..store.atomic import alone
from . import change
from .kinds import KINDS, OBSERVATIONS, Observation, Subject
from .watch import Caller, Seen, compact, rms

RERUN = "rerun_rmse"
# Of references watched and kept for the next run of a sweep, each with predictions and latents of all steps: about 2 GB
# each at 720p. The last one is kept whatever its size.
MOST_BYTES = 8 << 30

Found = dict[str, Any]  # by name


def chosen(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds by name, one or several, each once. Raises ConfigError for one that is not known."""
    kinds = tuple(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds or []))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"unknown observation {unknown[0]!r}; there are {', '.join(KINDS)}")
    return kinds


def check(run: Run) -> None:
    """Raise ConfigError for observations that cannot be, or would be ignored."""
    if ("observe" in run.stages) != bool(run.observe):
        raise ConfigError(f"observe=[…] and the stage of that name go together; there are {', '.join(KINDS)}")
    if run.observe_stride < 1:
        raise ConfigError(f"observe_stride must be at least 1, not {run.observe_stride}")
    if "bound" in run.observe and run.recipe.method.NAME == "fewer_steps":
        raise ConfigError("observe=[bound] compares step by step, and fewer_steps takes other steps")


def asked_of(run: Run) -> list[Observation]:
    """What is to be seen of each sample of the run."""
    cached = run.recipe.method.NAME != "none"
    return [each for each in OBSERVATIONS if each.kind in run.observe and each.cached == cached]


def stored(files: SampleFiles) -> Found:
    """What was seen of a sample. What an older definition gave does not count."""
    found = read_json(files.observations) or {}
    if None not in (pair := [found.get("latent"), checksum(files)]) and pair[0] != pair[1]:
        return {}  # the sample was made again since, and came out otherwise
    return _ordered(found)


def _ordered(found: Found) -> Found:
    return {name: found[name] for name in (RERUN, *(each.name for each in OBSERVATIONS)) if name in found}


def missing(run: Run, files: SampleFiles) -> list[Observation]:
    """What is still to be seen of a sample."""
    found = stored(files)
    return [each for each in asked_of(run) if each.name not in found or _left(each, run, found)]


def _left(observation: Observation, run: Run, found: Found) -> list[int]:
    """The steps that the observation has still to try."""
    return observation.left(found.get(observation.name, {}), run.recipe.sampling.steps, run.observe_stride)


def observe(job: Job, say: Callable[[str], None]) -> list[Failure]:
    """See what is missing of every sample of the job; returns what failed."""

    def work(prompt: str, seed: int) -> None:
        _observe_one(job, prompt, seed, say)

    return attempt_each(job.run.label, "observation", job.run.samples, work, say)


def _observe_one(job: Job, prompt: str, seed: int, say: Callable[[str], None]) -> None:
    run, files = job.run, job.files(prompt, seed)
    todo = missing(run, files)
    if not todo:
        return
    if not files.complete:
        say(f"{run.label}  not observed, the sample was not generated: {prompt!r} seed {seed}")
        return
    began = time.perf_counter()
    found = stored(files)
    for name, data in _look(job, Caller.of(run, prompt, seed), prompt, files, todo):
        found[name] = data
        if name != RERUN:
            _write(files, found)
    kinds = ", ".join(each.name.partition("@")[0] for each in todo)
    again = "" if not found[RERUN] else f" [! called again, the final latent is {found[RERUN]:.2g} RMS away]"
    say(f"{run.label}  observed {kinds}, {time.perf_counter() - began:.1f} s  {prompt!r} seed {seed}{again}")


def _write(files: SampleFiles, found: Found) -> None:
    with alone(files.observations.parent):  # another process may have seen other kinds
        found = stored(files) | found
        write_sealed(files.observations, {"latent": checksum(files), **_ordered(found)})


def _look(
    job: Job, caller: Caller, prompt: str, files: SampleFiles, todo: Sequence[Observation]
) -> Iterator[tuple[str, Any]]:
    """Watch the call once, and measure what is asked for: names and data, first those that are complete at once."""
    sizes, latent, known = trial_sizes(job.run, todo), latent_size(job.recipe), stored(files)
    uncached = job.uncached and _uncached(job, caller, prompt)
    trials = tuple({size for size in sizes.values() if size != latent})
    seen = caller.watch(trials, blocks=any(each.blocks for each in todo))
    yield RERUN, compact(rms(seen.latents[-1].float() - latents_of(files).float()))
    threshold = (read_json(files.trace) or {})["steps"][-1]["threshold"]
    for each in sorted(todo, key=lambda each: bool(_left(each, job.run, known))):
        subject = Subject(
            caller, seen, sizes, job.run.observe_stride, known.get(each.name, {}), uncached or None, threshold
        )
        for data in each.measure(subject):
            yield each.name, data


_references: dict[tuple[str, str, int], Seen] = {}


def _uncached(job: Job, caller: Caller, prompt: str) -> Seen:
    """The same call without its cache, as it was seen; kept for the next method of a sweep."""
    key = job.reference.id, prompt, caller.seed
    if key not in _references:
        reference = Caller(caller.pipe, job.run.reference, caller.seed, caller.embeds).watch()
        while _references and sum(each.nbytes for each in _references.values()) + reference.nbytes > MOST_BYTES:
            del _references[next(iter(_references))]
        _references[key] = reference
    return _references[key]


def latent_size(recipe: Recipe) -> Size:
    """(T, H, W) of the recipe's latents."""
    frames, height, width = backbones.family(recipe.backbone).latent_size(recipe.sampling)
    return frames, height, width


def trial_sizes(run: Run, observations: Iterable[Observation]) -> dict[str, Size]:
    """The sizes at which these look, by factor."""
    sizes = change.sizes(backbones.family(run.recipe.backbone).ANATOMY, latent_size(run.recipe))
    wanted = {factor for each in observations for factor in each.sizes(sizes)}
    return {factor: size for factor, size in sizes.items() if factor in wanted}


@dataclass
class Work:
    """What is still to be done, in denoising steps at full size (all guidance branches), trials by size, decodes."""

    samples: int = 0
    steps: int = 0
    trials: dict[Size, int] = field(default_factory=dict)
    decodes: int = 0


def work(job: Job) -> Work:
    """The transformer calls that the missing observations of a job will make; with a cache at most these."""
    run = job.run
    total, steps, latent = Work(), run.recipe.sampling.steps, latent_size(run.recipe)
    for prompt, seed in run.samples:
        files = job.files(prompt, seed)
        todo = missing(run, files)
        if not todo:
            continue
        costs = [each.cost(steps, _left(each, run, stored(files))) for each in todo]
        total.samples += 1
        total.steps += steps + sum(cost.steps for cost in costs)
        total.decodes += sum(cost.decodes for cost in costs)
        for size in trial_sizes(run, todo).values():
            if size != latent:
                total.trials[size] = total.trials.get(size, 0) + steps
    return total


def plan(job: Job) -> dict[str, Any] | None:
    """The work as plain data, with its MACs; None if there is none."""
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
        "generations": todo.steps / run.recipe.sampling.steps,
        "trials": sum(todo.trials.values()),
        "decodes": todo.decodes,
        "pmacs": sum(count * macs(size) for size, count in calls.items()) / PETA,
    }
