"""How much a video changes if the last prediction is reused at one step and all other steps are computed (figure 3)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..fidelity.metrics import METRICS
from ..sampling.generate import decode
from .change import PARTS, part
from .watch import Caller, Seen, compact, rms

PSNR = "psnr@2"
MEASURES = ("latent_rmse", "video_mse", PSNR)


def steps_of(count: int, stride: int) -> range:
    """The steps to try, every `stride`-th out of `count`; the first step has nothing to reuse."""
    return range(1, count, stride)


def empty(count: int) -> dict[str, Any]:
    """Lists over steps, by part and measure, filled with None."""
    return {name: {measure: [None] * count for measure in MEASURES} for name in PARTS}


def missing(data: dict[str, Any], count: int, stride: int) -> list[int]:
    """The steps that have not been tried yet."""
    return [step for step in steps_of(count, stride) if data[PARTS[-1]]["latent_rmse"][step] is None]


def fill(data: dict[str, Any], caller: Caller, seen: Seen, steps: list[int]) -> Iterator[int]:
    """Try these steps, part by part; yields each step once its results are in `data`.

    Before the step, the recorded predictions are used. At the step, the prediction is the last one; or its low part
    plus the high part of the current one; or the other way round. After it, the transformer computes again.
    """
    final = seen.latents[-1]
    reference = decode(caller.pipe, caller.run, final)
    for step in steps:
        for name in PARTS:
            latents = caller.again(functools.partial(reusing, seen, step, name))
            measured = errors(latents, final, decode(caller.pipe, caller.run, latents), reference)
            for measure, value in measured.items():
                data[name][measure][step] = compact(value)
        yield step


def reusing(seen: Seen, at: int, name: str, index: int, branch: str) -> torch.Tensor | None:
    """The prediction of one branch at step `index` of a call that reuses a part at step `at`."""
    if index > at:
        return None
    current = seen.moments[index].predictions[branch]
    if index < at:
        return current
    last = seen.moments[index - 1].predictions[branch]
    if name == "whole":
        return last
    return current + part(last - current, name)  # the split is linear


def errors(latents: torch.Tensor, final: torch.Tensor, video: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """latent_rmse in units of the latent; video_mse for values in [0, 1]; PSNR in dB of fidelity's raw convention.

    latents, final: (1, C, T, H, W). video, reference: uint8 (frames, height, width, 3).
    """
    metric = METRICS[PSNR]
    difference = (video.astype(np.float32) - reference) / 255
    return {
        "latent_rmse": rms(latents.float() - final.float()),
        "video_mse": float(np.square(difference).mean(dtype=np.float64)),
        PSNR: metric.pool(metric.frames(video, reference, "cpu")),
    }
