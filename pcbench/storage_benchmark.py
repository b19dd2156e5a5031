"""What each storage of kept tensors costs and saves: `python -m pcbench.storage_benchmark model=tiny_wan rounds=3`.

Makes the videos of the first prompts without a cache, and by each method under each storage (`method.kept`), in turn
and several times. Prints for each PSNR against the video without a cache and against the method's own with exact
storage, the time of denoising as a ratio to the latter's of the same prompt and round (on a CPU, the processor's time,
which other processes do not lengthen), and the bytes kept. "float8, one scale" is float8 with one scale for a whole
tensor instead of one for each token.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from methods.engine.kept_tensors import STORAGES, KeptTensors

from . import backbones, compose, devices, options
from .backbones import weights
from .command import Command, Progress
from .config import ConfigError, Run
from .cost.dry_run import rehearse
from .fidelity import stage as fidelity
from .identity import exact
from .sampling.generate import cached, decode, denoise

METHODS = "precisecache_flash,taylorseer,pab"
ONE_SCALE = "float8, one scale"
ALL = (*STORAGES, ONE_SCALE)
OWN = ("methods", "rounds")
MIB = 2**20
Found = dict[tuple[str, str], dict[str, list[float]]]  # (method, storage) -> quantity -> values

COMMAND = Command(
    "pcbench.storage_benchmark",
    __doc__ or "",
    {
        "methods=NAME,…": f"of conf/method/, which keep what blocks compute; default: {METHODS}",
        "rounds=N": "how often each video is made; default: 3",
    },
    options.SAMPLES,
    compose.one_line,
    resumes=False,
)


@contextmanager
def stored(run: Run, storage: str) -> Iterator[Run]:
    """The run with its method's tensors stored in this way, which holds inside the block."""
    usual = KeptTensors.SCALED_OVER
    method: Any = run.recipe.method
    try:
        KeptTensors.SCALED_OVER = None if storage == ONE_SCALE else usual
        kept = storage.partition(",")[0]
        yield replace(run, recipe=replace(run.recipe, method=replace(method, kept=kept)))
    finally:
        KeptTensors.SCALED_OVER = usual


def measure(runs: Sequence[Run], rounds: int, say: Callable[[str], None]) -> Found:
    """PSNRs in dB by prompt, and ratios of seconds by prompt and round; no PSNR where frames are identical."""
    found: Found = defaultdict(lambda: defaultdict(list))
    first, progress = runs[0], Progress(say)
    device = devices.resolve(first.device)
    pipe = backbones.load(first.recipe, device, first.offload)

    def make(run: Run, seed: int, embeds: dict[str, Any]) -> tuple[float, Any]:
        with cached(pipe, run, run.recipe):
            began = time.process_time()
            seconds, latents = devices.timed(partial(denoise, pipe, run.recipe, seed, **embeds), device)
            return time.process_time() - began if device == "cpu" else seconds, latents

    for number, (prompt, seed) in enumerate(first.samples):
        progress(number, len(first.samples), prompt)
        with backbones.placed(pipe, first.offload, first.device):
            embeds = backbones.prompt_arguments(pipe, first, prompt, encoded=True)
        reference = decode(pipe, first, make(first.reference, seed, embeds)[1])
        for run in runs:
            frames: dict[str, np.ndarray] = {}
            for again in range(rounds):
                seconds = {}
                for storage in ALL:
                    with stored(run, storage) as one:
                        seconds[storage], latents = make(one, seed, embeds)
                    if not again:
                        frames[storage] = decode(pipe, run, latents)
                for storage in ALL:
                    found[run.label, storage]["time"].append(seconds[storage] / seconds["exact"])
            for storage, video in frames.items():
                for name, other in (("uncached", reference), ("exact", frames["exact"])):
                    value = fidelity.measure("psnr@2", video, other)["value"]
                    found[run.label, storage][name] += [] if value is None else [value]
    return found


def table(runs: Sequence[Run], found: Found) -> list[str]:
    """A Markdown table, one line for each method and storage."""
    lines = [
        "| method | kept | PSNR, uncached | PSNR, exact | time | MiB kept | on the CPU |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        for storage in ALL:
            values = found[run.label, storage]
            with stored(run, storage) as one:
                kept = rehearse(one.recipe)
            ratios = values["time"]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells = [
                run.label, storage, _mean(values["uncached"]), _mean(values["exact"]),
                "1" if storage == "exact" else spread,
                f"{kept.held_inside / MIB:.1f}", f"{kept.waiting / MIB:.1f}" if kept.waiting else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(decibels: list[float]) -> str:
    return f"{statistics.fmean(decibels):.1f}" if decibels else "identical"


def parse(arguments: Sequence[str]) -> tuple[list[Run], int]:
    """The runs to compare, with exact storage, and the number of rounds. Raises ConfigError for unsuitable options."""
    given = {name: value for name, _, value in (word.partition("=") for word in arguments) if name in OWN}
    if wrong := [word for word in arguments if word.startswith(("-", "method=", "method."))]:
        raise ConfigError(f"{wrong[0]!r} is no option here: methods=… names presets")
    if not given.get("rounds", "3").isdigit() or int(given.get("rounds", "3")) < 1:
        raise ConfigError(f"rounds must be a whole number of at least 1, not {given['rounds']}")
    rest = [word for word in arguments if word.partition("=")[0] not in OWN]
    runs = [compose.run_from([*rest, f"method={name}"]) for name in given.get("methods", METHODS).split(",")]
    for run in runs:
        if not getattr(run.recipe.method, "keeps_blocks", False) or exact(run.recipe.method) != run.recipe.method:
            raise ConfigError(f"{run.label} keeps nothing of blocks, so there is nothing to store")
    weights.require(runs[0].recipe.backbone, runs[0].download)
    return runs, int(given.get("rounds", "3"))


def carry_out(work: tuple[list[Run], int]) -> None:
    """Make all videos and print the table."""
    runs, rounds = work
    print("\n".join(table(runs, measure(runs, rounds, lambda line: print(line, flush=True)))))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if it failed, or 2 for a wrong command line."""
    return COMMAND.run(argv, parse, carry_out)


if __name__ == "__main__":
    sys.exit(main())
