"""`python -m pcbench.calibrate method=teacache model=… prompts=…`: measure what a method must know about a backbone.

The prompts are run without a cache and watched; what comes out is written to methods/calibrations/, where the method
finds it. If there is one for the backbone already, that stays as it is and the new one goes to results/calibrations/.
`method` is one of:

teacache            the polynomial from the change of the input feature to that of the output between adjacent steps
teacache_retention  the same for TeaCache's retention steps (Wan alone)
magcache            the ratios of the block stack's residual between adjacent steps
sencache            how much a prediction changes with the latent and with the timestep
planned             inner products of the predictions of all steps, with which schedules are planned
searched            the errors that LeMiCa's path is drawn through, and BudCache's schedules; its options are
                    search.budgets=[25,20] and more (the fields of `Search` in pcbench/calibrate/search.py)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from methods import calibration
from methods.engine.anatomy import anatomy_of

from .. import backbones, compose, feasible, options, provenance
from ..backbones import weights
from ..command import Command
from ..config import ConfigError, Run
from ..cost.timesteps import num_steps
from ..observe.watch import Caller
from ..sampling.generate import denoise
from ..store import write_json
from . import changes, gram, sensitivity
from .search import Search, describe, measure

MEASURES = (*changes.MEASURES, "sencache", "planned", "searched")
LEAST_STEPS = {"planned": 3, "searched": 3}  # a line's two and one to answer; the others look at a change of steps
DESCRIBE = {"sencache": sensitivity.describe, "planned": gram.describe, "searched": describe}


COMMAND = Command(
    "pcbench.calibrate",
    __doc__ or "",
    {
        "method=NAME": f"what to calibrate: {', '.join(MEASURES)}",
        "search.FIELD=…": "how method=searched searches: the fields of `Search` in pcbench/calibrate/search.py",
    },
    options.SAMPLES,
    compose.one_line,
    resumes=False,
)


@dataclass(frozen=True)
class Work:
    """A calibration to make. used: where the method looks for it. path: where it is written."""

    method: str
    run: Run
    search: Search
    used: Path
    path: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, as the main command line does."""
    return COMMAND.run(argv, prepare, carry_out)


def prepare(arguments: list[str]) -> Work:
    """What to calibrate, checked. Raises ConfigError for what cannot be calibrated here."""
    method, run, search = parse(arguments)
    used = calibration.path_of(method, run.recipe.backbone.name)
    path = run.results / "calibrations" / used.name if used.exists() else used
    feasible.check_writable(path.parent)  # before minutes of work, not after
    weights.require(run.recipe.backbone, run.download)
    return Work(method, run, search, used, path)


def carry_out(work: Work) -> None:
    """Measure, write the calibration, and print what it says."""
    data = measured(work.run, work.method, work.search)
    run, recipe = work.run, work.run.recipe
    data |= {"model": recipe.backbone.name, "source": recipe.backbone.source, "revision": recipe.backbone.revision}
    data |= {"sampling": asdict(recipe.sampling), "dtype": recipe.numerics.dtype}
    data |= {"prompts": run.prompts, "seeds": run.seeds, "packages": provenance.revision()["packages"]}
    write_json(work.path, data)
    stays = f"; {work.used} stays in use until you put this one in its place" if work.path != work.used else ""
    print(f"{work.method} for {data['signature']}: {data['samples']} samples, {data['steps']} steps")
    lines = DESCRIBE.get(work.method, changes.describe)(data)
    print("\n".join([*lines, f"written to {work.path}{stays}"]))


def parse(arguments: list[str]) -> tuple[str, Run, Search]:
    """What to calibrate, the uncached run to do it on, and how to search."""
    if options := [word for word in arguments if word.startswith(("-", "method."))]:
        raise ConfigError(f"{options[0]!r} is no option here: a calibration is one run without a cache")
    names = [word.partition("=")[2] for word in arguments if word.startswith("method=")]
    if len(names) != 1 or names[0] not in MEASURES:
        raise ConfigError(f"say what to calibrate: method= one of {', '.join(MEASURES)}")
    words = [word for word in arguments if word.startswith("search.")]
    if words and names[0] != "searched":
        raise ConfigError(f"{words[0]!r} is an option of method=searched alone")
    others = [word for word in arguments if not word.startswith(("method=", "search."))]
    run = compose.run_from([*others, "method=none"])
    if "guidance_scale_2" in run.recipe.backbone.call:
        raise ConfigError(f"{names[0]}: a pipeline of two transformers cannot be calibrated")
    steps, least = num_steps(run.recipe), LEAST_STEPS.get(names[0], 2)
    if steps < least:
        raise ConfigError(f"{names[0]} is calibrated in {least} steps or more, not in {steps}: model.sampling.steps=")
    return names[0], run, Search.of(words, steps)


def measured(run: Run, method: str, search: Search) -> dict[str, Any]:
    """The calibration on the run's samples, as plain data. Raises ValueError if it cannot be had."""
    pipe = backbones.load(run.recipe, run.device, run.offload)
    header: dict[str, Any] = {"method": method, "signature": calibration.signature(anatomy_of(pipe.transformer))}
    header["steps"] = num_steps(run.recipe)
    if method == "planned":
        return header | gram.measure(Caller.of(run, *sample) for sample in _each(run))
    if method == "searched":
        found = measure(
            (Caller.of(run, *sample) for sample in _each(run)), search, functools.partial(print, flush=True)
        )
        return header | {"search": asdict(search)} | found
    calls = (_call(pipe, run, *sample) for sample in _each(run))
    if method == "sencache":
        return header | sensitivity.measure(pipe, calls)
    return header | changes.measure(pipe, method, calls)


def _each(run: Run) -> Iterator[tuple[str, int]]:
    """The run's samples, each announced when its turn comes."""
    for number, (prompt, seed) in enumerate(run.samples, 1):
        print(f"[{number}/{len(run.samples)}] {prompt!r} seed {seed}", flush=True)
        yield prompt, seed


def _call(pipe: Any, run: Run, prompt: str, seed: int) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with backbones.placed(pipe, run.offload, run.device):
            return denoise(pipe, run.recipe, seed, **backbones.prompt_arguments(pipe, run, prompt))

    return call


if __name__ == "__main__":
    sys.exit(main())
