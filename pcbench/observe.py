"""The stage that looks at samples instead of making more: what figures 3-6 and appendix A.2 are drawn from.

Options: `stages=[generate,observe]`, `observe=[difference,resolution,blocks,impact,bound]`, `observe_stride=1`.

All is seen on the uncached reference; `bound` also follows a run with a cache beside it. What was seen of a sample lies
in <sample>.observations.json, under the versioned names of NAMES; only what is missing is looked for (`impact` step by
step). The record has it all, a sample after the other:

    record["observations"] = [{"prompt": …, "seed": …, "rerun_rmse": 0.0, "difference@1": {…}, …}, …]

Lists run over denoising steps, as in record["samples"][…]["trace"]; null where there is nothing, as at the first step,
which has none before it. Numbers have five significant digits. Of N steps, with `part` one of whole, low, high:

    difference@1  part -> {rms, relative: [N]}                                   observations/change.py
    resolution@1  "2x4x4" -> {size: [3], adjacent, literal: [N]}                 observations/change.py
    blocks@1      {paths: [B], rms, relative: [N][B]}                            observations/change.py
    impact@1      part -> {latent_rmse, video_mse, psnr@2: [N]}                  observations/impact.py
    bound@1       {factors: {…}, c_full, c_trial, step_prediction, step_latent, final_prediction: [N]}
                                                                                 observations/bound.py
    deviation@1   {delta, video, prediction, latent: [N]}, of runs with a cache  observations/bound.py

rerun_rmse: of the final latent when the sample was called again to be watched; 0 where a machine repeats itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from methods.anatomy import Size

from . import backbones
from .config import ConfigError, Recipe, Run
from .generate import latents_of, place
from .identity import recipe_id, sample_key
from .macs import PETA, call_macs
from .observations import bound, change, impact
from .observations.watch import Caller, Seen, compact, rms
from .store import SampleFiles, read_json, write_json

NAMES = {kind: f"{kind}@1" for kind in ("difference", "resolution", "blocks", "impact", "bound")}
DEVIATION = "deviation@1"
RERUN = "rerun_rmse"
ORDER = (RERUN, *NAMES.values(), DEVIATION)
HELD = 8  # references watched and kept for the next run of a sweep: predictions and latents of all steps of each

Found = dict[str, Any]  # by name


def chosen(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds by name, one or several, each once. Raises ConfigError for one that is not known."""
    kinds = tuple(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds or []))
    if unknown := [kind for kind in kinds if kind not in NAMES]:
        raise ConfigError(f"unknown observation {unknown[0]!r}; there are {', '.join(NAMES)}")
    return kinds


def check(run: Run) -> None:
    """Raise ConfigError for observations that cannot be, or would be ignored."""
    if ("observe" in run.stages) != bool(run.observe):
        raise ConfigError(f"observe=[…] and the stage of that name go together; there are {', '.join(NAMES)}")
    if run.observe_stride < 1:
        raise ConfigError(f"observe_stride must be at least 1, not {run.observe_stride}")
    if "bound" in run.observe and run.recipe.method.NAME == "fewer_steps":
        raise ConfigError("observe=[bound] compares step by step, and fewer_steps takes other steps")


def names(run: Run) -> list[str]:
    """What is to be seen of each sample of the run."""
    if run.recipe.method.NAME == "none":
        return [NAMES[kind] for kind in run.observe]
    return [DEVIATION] if "bound" in run.observe else []


def stored(files: SampleFiles) -> Found:
    """What was seen of a sample. What an older definition gave does not count."""
    found = read_json(files.observations) or {}
    return {name: found[name] for name in ORDER if name in found}


def missing(run: Run, files: SampleFiles) -> list[str]:
    """What is still to be seen of a sample."""
    found, steps = stored(files), run.recipe.sampling.steps

    def whole(name: str) -> bool:
        partial = name == NAMES["impact"] and name in found and impact.missing(found[name], steps, run.observe_stride)
        return name in found and not partial

    return [name for name in names(run) if not whole(name)]


def observe(run: Run, say: Callable[[str], None]) -> None:
    """See what is missing of every sample of the run."""
    for prompt, seed in run.samples:
        files = place(run).sample(sample_key(prompt, seed))
        todo = missing(run, files)
        if not todo:
            continue
        if not files.complete:
            say(f"{run.label}  not observed, the sample was not generated: {prompt!r} seed {seed}")
            continue
        began = time.perf_counter()
        found = stored(files)
        caller = Caller.of(run, prompt, seed)
        if todo == [DEVIATION]:
            _deviation(caller, prompt, files, found)
        else:
            _reference(caller, files, found, todo)
        kinds = ", ".join(name.partition("@")[0] for name in todo)
        again = "" if not found[RERUN] else f" [! called again, the final latent is {found[RERUN]:.2g} RMS away]"
        say(f"{run.label}  observed {kinds}, {time.perf_counter() - began:.1f} s  {prompt!r} seed {seed}{again}")


def _write(files: SampleFiles, found: Found) -> None:
    write_json(files.observations, {name: found[name] for name in ORDER if name in found})


def _reference(caller: Caller, files: SampleFiles, found: Found, todo: Sequence[str]) -> None:
    """Watch the uncached call once, and measure what is asked for."""
    run, asked = caller.run, {kind for kind, name in NAMES.items() if name in todo}
    by_factor = trial_sizes(run, asked)
    latent = latent_size(run.recipe)
    seen = caller.watch(tuple({size for size in by_factor.values() if size != latent}), blocks="blocks" in asked)
    found[RERUN] = compact(rms(seen.latents[-1].float() - latents_of(files).float()))
    if "difference" in asked:
        found[NAMES["difference"]] = change.difference(seen)
    if "resolution" in asked:
        found[NAMES["resolution"]] = change.resolution(seen, by_factor)
    if "blocks" in asked:
        found[NAMES["blocks"]] = change.blocks(seen)
    if "bound" in asked:
        found[NAMES["bound"]] = bound.constants(caller, seen, next(iter(by_factor.values()), None))
    _write(files, found)
    if "impact" in asked:
        steps = len(seen.moments)
        tried = found.setdefault(NAMES["impact"], impact.empty(steps))
        for _ in impact.fill(tried, caller, seen, impact.missing(tried, steps, run.observe_stride)):
            _write(files, found)


_references: dict[tuple[str, str, int], Seen] = {}


def _deviation(caller: Caller, prompt: str, files: SampleFiles, found: Found) -> None:
    """Watch the call with its cache, beside the uncached one."""
    run, seed = caller.run, caller.seed
    key = recipe_id(run.recipe.reference), prompt, seed
    if key not in _references:
        while len(_references) >= HELD:
            del _references[next(iter(_references))]
        _references[key] = Caller(caller.pipe, run.reference, seed, caller.words).watch()
    seen = caller.watch()
    found[RERUN] = compact(rms(seen.latents[-1].float() - latents_of(files).float()))
    trace = read_json(files.trace) or {}
    found[DEVIATION] = bound.deviation(caller, seen, _references[key], trace["steps"][-1]["threshold"])
    _write(files, found)


def latent_size(recipe: Recipe) -> Size:
    """(T, H, W) of the recipe's latents."""
    frames, height, width = backbones.family(recipe.backbone).latent_size(recipe.sampling)
    return frames, height, width


def trial_sizes(run: Run, kinds: Iterable[str]) -> dict[str, Size]:
    """The sizes at which these kinds look, by factor; for `bound` alone the first, the one that decides."""
    sizes = change.sizes(backbones.family(run.recipe.backbone).ANATOMY, latent_size(run.recipe))
    if "resolution" in kinds:
        return sizes
    return {name: sizes[name] for name in ("2x4x4",) if "bound" in kinds and name in sizes}


@dataclass
class Work:
    """What is still to be done, in denoising steps at full size (all guidance branches), trials by size, decodes."""

    samples: int = 0
    steps: int = 0
    trials: dict[Size, int] = field(default_factory=dict)
    decodes: int = 0


def work(run: Run) -> Work:
    """The transformer calls that the missing observations of a run will make; with a cache at most these."""
    total, steps, latent = Work(), run.recipe.sampling.steps, latent_size(run.recipe)
    for prompt, seed in run.samples:
        files = place(run).sample(sample_key(prompt, seed))
        todo = missing(run, files)
        if not todo:
            continue
        total.samples += 1
        total.steps += steps * (2 if todo == [DEVIATION] else 1)
        total.decodes += 2 * (DEVIATION in todo)
        for size in trial_sizes(run, [name.partition("@")[0] for name in todo]).values():
            if size != latent:
                total.trials[size] = total.trials.get(size, 0) + steps
        if NAMES["impact"] in todo:
            tried = stored(files).get(NAMES["impact"], impact.empty(steps))
            left = impact.missing(tried, steps, run.observe_stride)
            total.steps += sum(len(change.PARTS) * (steps - 1 - step) for step in left)
            total.decodes += 1 + len(change.PARTS) * len(left)
    return total


def plan(run: Run) -> dict[str, Any] | None:
    """The work as plain data, with its MACs; None if there is none."""
    todo = work(run)
    if not todo.samples:
        return None
    backbone = run.recipe.backbone
    family, config = backbones.family(backbone), backbones.transformer_config(backbone)
    arguments = family.arguments(run.recipe, config)
    batch = arguments["hidden_states"][0]

    def macs(size: Size) -> int:
        call = {"size": size, "batch": batch, "only": None, "skipped": {}}
        return call_macs(family.TRANSFORMER, config, arguments, call) * family.branches(run.recipe)

    calls = {latent_size(run.recipe): todo.steps, **todo.trials}
    return {
        "model": backbone.name,
        "method": run.label,
        "samples": todo.samples,
        "full_steps": todo.steps,
        "generations": todo.steps / run.recipe.sampling.steps,
        "trials": sum(todo.trials.values()),
        "decodes": todo.decodes,
        "pmacs": sum(count * macs(size) for size, count in calls.items()) / PETA,
    }
