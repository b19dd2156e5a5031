"""Latency: the method and the uncached reference timed in turn, in one process, with spread.

Text encoder, denoising loop and VAE are timed apart; the speedup is of the denoising loop, which is what a cache
changes. Each round times the reference and the method in alternating order, and gives one ratio.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from . import backbones, parallel, provenance
from .config import Recipe, Run
from .generate import cached, decode, denoise, place
from .store import read_json, write_json


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    _synchronize()
    began = time.perf_counter()
    result = work()
    _synchronize()
    return time.perf_counter() - began, result


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def profile(run: Run, say: Callable[[str], None]) -> None:
    """Time the run's method on its first sample, unless that was done with at least as many repeats."""
    path = place(run).latency
    done = parallel.of_the_first(read_json(path))
    if done is not None and done["repeats"] >= run.latency.repeats:
        return
    family = backbones.family(run.recipe.backbone)
    pipe = backbones.load(run.recipe, backbones.resolve_device(run.device), run.offload)
    prompt, seed = run.samples[0]
    with backbones.placed(pipe, run.offload, run.device):
        text_seconds, embeds = _timed(lambda: family.embed(pipe, prompt, run.recipe))

    def once(recipe: Recipe) -> tuple[float, Any]:
        with cached(pipe, run, recipe) as handle:
            seconds, latents = _timed(lambda: denoise(pipe, recipe, seed, **embeds))
        return seconds, (handle.trace, latents)

    pair = {"reference": run.recipe.reference, "method": run.recipe}
    if run.recipe.method.NAME == "none":
        del pair["reference"]  # it is its own reference
    for _ in range(run.latency.warmup):
        for recipe in pair.values():
            once(recipe)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    decode_seconds: list[float] = []
    trace = None
    for number in range(run.latency.repeats):
        for name in pair if number % 2 == 0 else reversed(pair):
            spent, (trace_of_call, latents) = once(pair[name])
            seconds[name].append(spent)
            if name == "method":
                trace = trace_of_call
                decode_seconds.append(_timed(functools.partial(decode, pipe, run, latents))[0])
        say(f"{run.label}  timing {number + 1}/{run.latency.repeats}  {seconds['method'][-1]:.2f} s")
    assert trace is not None
    ratios = [r / m for r, m in zip(seconds.get("reference", seconds["method"]), seconds["method"], strict=True)]
    write_json(
        path,
        {
            "repeats": run.latency.repeats,
            "warmup": run.latency.warmup,
            "prompt": prompt,
            "seed": seed,
            "text_seconds": text_seconds,
            "denoise_seconds": _spread(seconds["method"]),
            "reference_denoise_seconds": _spread(seconds.get("reference", seconds["method"])),
            "decode_seconds": _spread(decode_seconds),
            "speedup": _spread(ratios),
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "attention": backbones.attention_backend(),
            "trace": trace.to_dict(),
            "revision": provenance.revision(),
        },
    )
