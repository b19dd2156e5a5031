"""Appendix A.2: measures the constants of its bound on the final error, and the deviations that it should bound.

All norms are RMS (root mean square) per element, the threshold's unit: each of the appendix's inequalities compares
tensors of one shape, except (20), where the units go into c_LF.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch

from methods.engine.anatomy import Size

from ..sampling.generate import decode
from .change import lfds
from .watch import Caller, Seen, compact, rms

PUSH = 10.0  # size of a disturbance; a solver's step is affine, so any size works that rounding does not drown


def constants(caller: Caller, seen: Seen, trial: Size | None) -> dict[str, Any]:
    """The quantities in the bound, as lists over steps, and the bound's factors.

    c_full, c_trial: the change of the whole prediction divided by the LFD (low-frequency difference), either of full
        predictions as in (20), or of the trials of this size, which the threshold is compared with.
    step_prediction, step_latent: change of the latent after a step per change of its prediction (L_F of (12)), and per
        change of the latent before it (L_Z), both with the pipeline's own solver; all other predictions, and what the
        solver remembers of earlier steps, stay as they were.
    final_prediction: change of the final latent per change of one step's prediction; the other predictions stay as they
        were. A solver is affine in all predictions, so the sum of these bounds the final error per largest change, for
        every solver. (12) leaves out a solver's memory; for a solver without one the sum is at most C_Z / c_LF.
    factors: c_LF, L_F and L_Z as the maxima of (14) and (20), C_Z of (30), and the sum as its replacement.
    """
    predictions = seen.predictions()
    changes = [rms(b - a) for a, b in itertools.pairwise(predictions)]
    differences = {"c_full": lfds(predictions)}
    if trial is not None:
        differences["c_trial"] = lfds(seen.trials(trial))
    ratios = {name: [_ratio(a, b) for a, b in zip(changes, lfd, strict=True)] for name, lfd in differences.items()}
    solver = _solver(caller, seen)
    l_f, l_z = max(solver["step_prediction"]), max(solver["step_latent"])
    factors = {"L_F": l_f, "L_Z": l_z, "sum_final": sum(solver["final_prediction"])}
    for name, ratio in ratios.items():
        c = factors[name] = max(ratio)
        kind = name.removeprefix("c_")
        factors[f"C_Z_{kind}"] = l_f * c * sum(l_z**t for t in range(len(predictions)))
        factors[f"sum_{kind}"] = c * factors["sum_final"]
    lists = {name: [None, *ratio] for name, ratio in ratios.items()} | solver
    lists["step_latent"] = [None, *solver["step_latent"]]  # nothing disturbs the noise
    return compact_all({"factors": factors, **lists})


def _solver(caller: Caller, seen: Seen) -> dict[str, list[float]]:
    """How the pipeline's own solver propagates a change of a prediction or of a latent."""
    steps = range(len(seen.moments))
    recorded = [{name: tensor.float() for name, tensor in moment.predictions.items()} for moment in seen.moments]
    noise = torch.Generator().manual_seed(0)
    like = next(iter(recorded[0].values()))
    push = PUSH * torch.randn(1, *like.shape[1:], generator=noise)  # guidance does not change what branches share
    pushed = rms(seen.anatomy.as_video(push))
    latent_push = PUSH * torch.randn(seen.latents[0].shape, generator=noise)

    def path(prediction: int | None = None, latent: int | None = None) -> list[torch.Tensor]:
        """Latents after each step, with one step's prediction disturbed, or the latent that it starts from."""
        latents: list[torch.Tensor] = []

        def after(index: int, value: torch.Tensor) -> torch.Tensor:
            latents.append(value.to("cpu", torch.float32, copy=True))
            return value + latent_push.to(value) if index + 1 == latent else value

        def answer(index: int, branch: str) -> torch.Tensor:
            return recorded[index][branch] + (push if index == prediction else 0.0)

        caller.again(answer, after)
        return latents

    base = path()
    changes: dict[str, list[float]] = {"step_prediction": [], "step_latent": [], "final_prediction": []}
    for step in steps:
        disturbed = path(prediction=step)
        changes["step_prediction"].append(rms(disturbed[step] - base[step]) / pushed)
        changes["final_prediction"].append(rms(disturbed[-1] - base[-1]) / pushed)
        if step:
            disturbed = path(latent=step)
            changes["step_latent"].append(rms(disturbed[step] - base[step]) / rms(latent_push))
    return changes


def _ratio(change: float, lfd: float) -> float:
    return change / lfd if lfd else math.inf


def deviation(caller: Caller, seen: Seen, reference: Seen, threshold: float | None) -> dict[str, Any]:
    """How far a run with a cache is from the uncached one, as lists over steps.

    prediction: d_i of (25), also at computed steps, where (22) says 0. latent: e of (24) after the step; the last is
    the final error. video: RMS of the frames' difference, for values in [0, 1]. delta: the run's threshold.
    """
    pairs = zip(seen.predictions(), reference.predictions(), strict=True)
    latents = zip(seen.latents, reference.latents, strict=True)
    decoded = functools.partial(decode, caller.pipe, caller.run)
    video, uncached = (decoded(call.latents[-1]).astype(np.float32) / 255 for call in (seen, reference))
    return compact_all(
        {
            "delta": threshold,
            "prediction": [rms(a - b) for a, b in pairs],
            "latent": [rms(a.float() - b.float()) for a, b in latents],
            "video": float(np.square(video - uncached).mean(dtype=np.float64)) ** 0.5,
        }
    )


def compact_all(data: dict[str, Any]) -> dict[str, Any]:
    """Applies `compact` to every value of a dictionary and of the dictionaries inside it."""
    return {name: compact_all(v) if isinstance(v, dict) else compact(v) for name, v in data.items()}
