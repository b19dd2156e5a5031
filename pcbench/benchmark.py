"""Time each kind of denoising step on this machine: `python -m pcbench.benchmark model=wan model.weights=random`.

Times a full step, PreciseCache's trial, a reused step, BlockCache's refreshing and cached steps, the text encoders and
the VAE, in turn and several times, on the available device; prints a table, and writes a record under
results/benchmarks/. No checkpoint is needed: random weights cost as much as trained ones.
Ratios hold for this machine and this process only.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from methods import Method, NoCacheConfig, PreciseCacheConfig, ReplayConfig
from methods.engine.anatomy import Anatomy, Size
from methods.engine.trace import Step

from . import backbones, compose, devices, options, provenance
from .backbones import weights
from .command import Command
from .config import ConfigError, Run
from .sampling.generate import cached, decode, denoise
from .store import write_json

NEVER, ALWAYS = 0.0, 1e9  # α with which a cache never reuses, and with which it always does
WARM = 3  # full steps before PreciseCache starts to decide
L = 3  # cached steps after a refreshing one
FULL, TRIAL, REUSED = "full step", "trial", "reused step"
REFRESH, CACHED = "BlockCache, refreshing step", "BlockCache, cached step"
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Scenario:
    """A short generation, and which parts of the table its steps time.

    part: the part of the table that a row of the trace times; None if it times none.
    less: a part that such a row contains as well; its latest seconds are subtracted.
    """

    name: str  # the label of its peak memory
    method: Method
    steps: int
    part: Callable[[Step], str | None]
    less: str | None = None


def scenarios(anatomy: Anatomy, latent_size: Size) -> list[Scenario]:
    """The scenarios in the order to run them: each subtracts what the one before it has measured."""
    frames, height, width = (min(by, n // p) for by, n, p in zip((2, 4, 4), latent_size, anatomy.patch, strict=True))
    lfcache = PreciseCacheConfig(protect_last=0, downsample_factor=(frames, height, width), alpha=ALWAYS)
    blocks = replace(lfcache, alpha=NEVER, block_cache_rate=0.4, block_cache_steps=L)
    phases = {"refresh": REFRESH, "cached": CACHED}  # not "full": the last warm-up step already refreshes
    return [
        Scenario("no cache", ReplayConfig(actions="FFr"), 3, lambda row: FULL if row.action == "full" else REUSED),
        Scenario("LFCache", lfcache, 2 * WARM, lambda row: TRIAL if row.index >= WARM else None, less=REUSED),
        Scenario(
            "LFCache and BlockCache",
            blocks,
            WARM + L + 1,
            lambda row: phases.get(row.details.get("blocks", "")),
            less=TRIAL,
        ),
    ]


def measure(run: Run, rounds: int, say: Callable[[str], None]) -> tuple[Times, dict[str, int | None]]:
    """Seconds of each kind of step (all guidance branches together) and part; peak bytes of each kind of generation."""
    device = devices.resolve(run.device)
    pipe = backbones.load(run.recipe, device, run.offload)
    family = backbones.family(run.recipe.backbone)
    prompt, seed = run.samples[0]
    with backbones.placed(pipe, run.offload, run.device):
        embeds = backbones.prompt_arguments(pipe, run, prompt, encoded=True)
    times: defaultdict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int | None] = {}

    def generate(method: Method, steps: int) -> tuple[list[Step], torch.Tensor]:
        sampling = replace(run.recipe.sampling, steps=steps)
        recipe = replace(run.recipe, sampling=sampling, method=method.for_backbone(family.ANATOMY))
        with cached(pipe, run, recipe) as handle:
            latents = denoise(pipe, recipe, seed, **embeds)
        return handle.trace.steps, latents

    generate(NoCacheConfig(), 1)  # warm up: kernels are chosen and compiled
    for number in range(rounds):
        for scenario in scenarios(family.ANATOMY, family.latent_size(run.recipe.sampling)):
            devices.reset_peak(device)
            rows, latents = generate(scenario.method, scenario.steps)
            peaks[scenario.name] = devices.peak(device)
            subtracted = times[scenario.less][-1] if scenario.less else 0.0
            for row in rows:
                if part := scenario.part(row):
                    times[part].append(row.milliseconds / 1000 - subtracted)
        devices.reset_peak(device)
        times["VAE decoding"].append(_timed(partial(decode, pipe, run, latents), device))
        peaks["VAE decoding"] = devices.peak(device)
        say(f"round {number + 1} of {rounds}: full step {times[FULL][-1]:.3f} s")
    if pipe.text_encoder is not None:
        for _ in range(rounds):
            encode = partial(backbones.prompt_arguments, pipe, run, prompt, encoded=True)
            times["text encoders"].append(_timed(encode, device))
    return dict(times), peaks


def time_text_encoders(run: Run, rounds: int) -> list[float]:
    """Seconds, per round, to encode one prompt with the family's full-size text encoders; their weights are random."""
    device, family = devices.resolve(run.device), backbones.family(run.recipe.backbone)
    seconds = [0.0] * (rounds + 1)
    for kind, config, tokens in family.TEXT_ENCODERS:
        with weights.at(device, getattr(torch, run.recipe.numerics.dtype)):
            encoder = kind(config()).eval()
        ids = torch.randint(3, 1000, (1, tokens), device=device)
        for number in range(rounds + 1):  # the first round warms up
            seconds[number] += _timed(partial(encoder, ids), device)
        del encoder
    return seconds[1:]


@torch.no_grad()
def _timed(work: Callable[[], Any], device: str) -> float:
    return devices.timed(work, device)[0]


def table(times: Times) -> list[str]:
    """A Markdown table, one line per part: median and spread in seconds, share of a full step, number of timings."""
    full = statistics.median(times[FULL])
    lines = ["| part | median s | min to max s | of a full step | n |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, values in times.items():
        median = statistics.median(values)
        lines.append(
            f"| {name} | {median:.4g} | {min(values):.4g} to {max(values):.4g} | {median / full:.4f} | {len(values)} |"
        )
    return lines


COMMAND = Command(
    "pcbench.benchmark",
    __doc__ or "",
    {"rounds=N": "how often each is timed; default: 3"},
    options.SAMPLES,
    compose.one_line,
    resumes=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if it failed, or 2 for a wrong command line."""
    return COMMAND.run(argv, prepare, carry_out)


def prepare(arguments: list[str]) -> tuple[int, Run]:
    """The number of rounds and the run to time, checked."""
    rounds, run = parse(arguments)
    weights.require(run.recipe.backbone, run.download)
    return rounds, run


def carry_out(work: tuple[int, Run]) -> None:
    """Time everything, write the record and print the table."""
    rounds, run = work
    times, peaks = measure(run, rounds, lambda line: print(line, flush=True))
    if "text encoders" not in times:
        backbones.forget()
        times["text encoders"] = time_text_encoders(run, rounds)
    recipe, machine = run.recipe, provenance.machine_of(run)
    data = {
        "model": recipe.backbone.name,
        "weights": recipe.backbone.source,
        "sampling": [recipe.sampling.height, recipe.sampling.width, recipe.sampling.frames],
        "numerics": {"dtype": recipe.numerics.dtype, "attention": backbones.attention_backend()},
        "offload": run.offload,
        "rounds": rounds,
        "seconds": times,
        "peak_gpu_bytes": peaks,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "machine": machine,
        "revision": provenance.revision(),
    }
    path = run.results / "benchmarks" / machine["name"] / f"{recipe.backbone.name}.json"
    write_json(path, data)
    print("\n".join([*table(times), *_memory_lines(data), f"written to {path}"]))


def _memory_lines(data: dict[str, Any]) -> list[str]:
    peaks = {name: size for name, size in data["peak_gpu_bytes"].items() if size is not None}
    if not peaks:
        return [f"peak memory of the process: {data['peak_process_bytes'] / 2**30:.2f} GiB"]
    return [f"peak GPU memory, {name}: {size / 2**30:.2f} GiB" for name, size in peaks.items()]


def parse(arguments: list[str]) -> tuple[int, Run]:
    """The number of rounds, and the uncached run whose parts to time. Raises ConfigError for an unsuitable option."""
    if options := [word for word in arguments if word.startswith(("-", "method"))]:
        raise ConfigError(f"{options[0]!r} is no option here: the benchmark chooses the methods itself")
    rounds = [word.partition("=")[2] for word in arguments if word.startswith("rounds=")]
    if rounds and not (rounds[-1].isdigit() and int(rounds[-1]) > 0):
        raise ConfigError(f"rounds must be a whole number of at least 1, not {rounds[-1]!r}")
    rest = [word for word in arguments if not word.startswith("rounds=")]
    return int(rounds[-1]) if rounds else 3, compose.run_from([*rest, "method=none"])


if __name__ == "__main__":
    sys.exit(main())
