"""`python -m pcbench.calibrate method=teacache model=… prompts=…`: measure what a method must know about a backbone.

The prompts are run without a cache and watched; what comes out is written to methods/calibrations/, where the method
finds it. If there is one for the backbone already, that stays as it is and the new one goes to results/calibrations/.
`method` is one of:

teacache            the polynomial from the change of the input feature to that of the output between adjacent steps
teacache_retention  the same for TeaCache's retention steps (Wan alone)
magcache            the ratios of the block stack's residual between adjacent steps
sencache            how much a prediction changes with the latent and with the noise level
planned             inner products of the predictions of all steps, with which schedules are planned
searched            the errors that LeMiCa's path is drawn through, and BudCache's schedules; its options are
                    search.budgets=[25,20] and more (the fields of `Search` in pcbench/calibrate/search.py)

All other words are those of `python -m pcbench`: model, prompts, model.sampling.steps, device, …
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from methods import calibration
from methods.engine.anatomy import anatomy_of

from .. import backbones, compose, feasible, provenance
from ..backbones import weights
from ..config import ConfigError, Run
from ..observe.watch import Caller
from ..sampling.generate import denoise
from ..store import write_json
from . import changes, gram, sensitivity
from .search import Search, describe, measure

MEASURES = (*changes.MEASURES, "sencache", "planned", "searched")
DESCRIBE = {"sencache": sensitivity.describe, "planned": gram.describe, "searched": describe}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, as the main command line does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"}.intersection(arguments):
        print(__doc__)
        return 0
    try:
        method, run, search = parse(arguments)
        used = calibration.path_of(method, run.recipe.backbone.name)
        path = run.results / "calibrations" / used.name if used.exists() else used
        feasible.check_writable(path.parent)  # before minutes of work, not after
        weights.require(run.recipe.backbone, run.download)
    except Exception as error:
        print(f"pcbench.calibrate: {compose.one_line(error)}", file=sys.stderr)
        return 2
    try:
        data = measured(run, method, search)
    except Exception as error:
        print(f"pcbench.calibrate: failed: {compose.one_line(error)}", file=sys.stderr)
        return 1
    recipe = run.recipe
    data |= {"model": recipe.backbone.name, "source": recipe.backbone.source, "revision": recipe.backbone.revision}
    data |= {"sampling": asdict(recipe.sampling), "dtype": recipe.numerics.dtype}
    data |= {"prompts": run.prompts, "seeds": run.seeds, "packages": provenance.revision()["packages"]}
    write_json(path, data)
    stays = f"; {used} stays in use until you put this one in its place" if path != used else ""
    print(f"{method} for {data['signature']}: {data['samples']} samples, {data['steps']} steps")
    print("\n".join([*DESCRIBE.get(method, changes.describe)(data), f"written to {path}{stays}"]))
    return 0


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
    return names[0], run, Search.of(words, run.recipe.sampling.steps)


def measured(run: Run, method: str, search: Search) -> dict[str, Any]:
    """The calibration on the run's samples, as plain data. Raises ValueError if it cannot be had."""
    pipe = backbones.load(run.recipe, run.device, run.offload)
    header: dict[str, Any] = {"method": method, "signature": calibration.signature(anatomy_of(pipe.transformer))}
    header["steps"] = run.recipe.sampling.steps
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
            return denoise(pipe, run.recipe, seed, prompt=prompt)

    return call


if __name__ == "__main__":
    sys.exit(main())
