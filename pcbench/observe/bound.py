"""Appendix A.2: the constants of its bound on the final error, measured, and the deviations that it is to bound.

All norms are RMS per element, the threshold's unit: each of the appendix's inequalities compares tensors of one shape,
but for (20), where the units go into c_LF.
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

PUSH = 10.0  # size of a disturbance; a solver's step is affine, so any will do that rounding does not drown


def constants(caller: Caller, seen: Seen, trial: Size | None) -> dict[str, Any]:
    """What the bound is made of, as lists over steps, and the bound's factors.

    c_full, c_trial: the change of the whole prediction over the LFD, of full predictions as (20) has it, or of the
        trials of this size, which are what the threshold is compared with.
    step_prediction, step_latent: change of the latent after a step per change of its prediction (L_F of (12)), of the
        latent before it (L_Z), both on the pipeline's own solver with all other predictions, and what it remembers
        of earlier steps, as they were.
    final_prediction: change of the final latent per change of one step's prediction, the other predictions as they
        were. A solver is affine in all predictions, so their sum bounds the final error per largest change, for every
        solver. (12) leaves out what a solver remembers; of one without a memory the sum is at most C_Z / c_LF.
    factors: c_LF, L_F and L_Z as the maxima of (14) and (20), C_Z of (30), and the sum in its place.
    """
    predictions = seen.predictions()
    changes = [rms(b - a) for a, b in itertools.pairwise(predictions)]
    low = {"c_full": lfds(predictions)}
    if trial is not None:
        low["c_trial"] = lfds(seen.trials(trial))
    ratios = {name: [_over(a, b) for a, b in zip(changes, lfd, strict=True)] for name, lfd in low.items()}
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
    """How the pipeline's own solver carries on a change of a prediction, or of a latent."""
    steps = range(len(seen.moments))
    recorded = [{name: each.float() for name, each in moment.predictions.items()} for moment in seen.moments]
    noise = torch.Generator().manual_seed(0)
    like = next(iter(recorded[0].values()))
    push = PUSH * torch.randn(1, *like.shape[1:], generator=noise)  # guidance leaves alone what is common to branches
    pushed = rms(seen.anatomy.as_video(push))
    latent_push = PUSH * torch.randn(seen.latents[0].shape, generator=noise)

    def path(prediction: int | None = None, latent: int | None = None) -> list[torch.Tensor]:
        """Latents after each step, with the prediction of one step disturbed, or the latent it starts from."""
        latents: list[torch.Tensor] = []

        def after(index: int, value: torch.Tensor) -> torch.Tensor:
            latents.append(value.to("cpu", torch.float32, copy=True))
            return value + latent_push.to(value) if index + 1 == latent else value

        def answer(index: int, branch: str) -> torch.Tensor:
            return recorded[index][branch] + (push if index == prediction else 0.0)

        caller.again(answer, after)
        return latents

    base = path()
    found: dict[str, list[float]] = {"step_prediction": [], "step_latent": [], "final_prediction": []}
    for step in steps:
        moved = path(prediction=step)
        found["step_prediction"].append(rms(moved[step] - base[step]) / pushed)
        found["final_prediction"].append(rms(moved[-1] - base[-1]) / pushed)
        if step:
            moved = path(latent=step)
            found["step_latent"].append(rms(moved[step] - base[step]) / rms(latent_push))
    return found


def _over(change: float, lfd: float) -> float:
    return change / lfd if lfd else math.inf


def deviation(caller: Caller, seen: Seen, reference: Seen, threshold: float | None) -> dict[str, Any]:
    """How far a run with a cache is from the uncached one, as lists over steps.

    prediction: d_i of (25), at computed steps too, where (22) says 0. latent: e of (24) after the step; the last is the
    final error. video: RMS of the frames' difference, of values in [0, 1]. delta: the run's threshold.
    """
    pairs = zip(seen.predictions(), reference.predictions(), strict=True)
    latents = zip(seen.latents, reference.latents, strict=True)
    of_frames = functools.partial(decode, caller.pipe, caller.run)
    video, plain = (of_frames(each.latents[-1]).astype(np.float32) / 255 for each in (seen, reference))
    return compact_all(
        {
            "delta": threshold,
            "prediction": [rms(a - b) for a, b in pairs],
            "latent": [rms(a.float() - b.float()) for a, b in latents],
            "video": float(np.square(video - plain).mean(dtype=np.float64)) ** 0.5,
        }
    )


def compact_all(data: dict[str, Any]) -> dict[str, Any]:
    """`compact` on every value of a dictionary and those inside it."""
    return {name: compact_all(v) if isinstance(v, dict) else compact(v) for name, v in data.items()}
