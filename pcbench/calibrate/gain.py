"""How far an error made at one step has moved the final latent: what `methods.planned` weighs its errors with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..observe.impact import reusing
from ..observe.watch import Caller, Seen, rms

COUNT = 12  # steps at which it is measured, evenly spread; between them it is read off a line
DIGITS = 4  # significant ones


def steps_of(num_steps: int) -> list[int]:
    """The steps at which an error is made: from the second to the last."""
    return sorted({round(step) for step in np.linspace(1, num_steps - 1, COUNT)})


def of_one(caller: Caller, seen: Seen) -> list[float]:
    """The gain at each of these steps, for one uncached call.

    At one step the prediction of the step before is used again, all others are computed. The gain is how far that moves
    the final latent over how far it moved the latent at that step (|next level - level| times the predictions'
    difference), both as root mean square: above 1 where the steps that follow enlarge an error, below 1 where they
    take it back. Raises ValueError where the predictions do not differ.
    """
    predictions, levels = seen.predictions(), [moment.sigma for moment in seen.moments]
    gains = []
    for step in steps_of(len(predictions)):
        level, following = levels[step], levels[step + 1] if step + 1 < len(levels) else 0.0
        assert level is not None
        assert following is not None
        moved = abs(level - following) * rms(predictions[step] - predictions[step - 1])
        if not moved > 0:
            raise ValueError(f"the predictions of steps {step - 1} and {step} do not differ")
        latent = caller.again(functools.partial(reusing, seen, step, "whole"))
        gains.append(rms(latent.float() - seen.latents[-1].float()) / moved)
    return gains


def as_data(levels: Sequence[float], gains: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The geometric mean over calls, with its levels, as plain data. levels: of all steps."""
    means = np.exp(np.mean(np.log(np.array(gains)), axis=0))
    return {
        "levels": [levels[step] for step in steps_of(len(levels))],
        "values": [float(f"{value:.{DIGITS}g}") for value in means],
    }


def describe(data: dict[str, Any]) -> str:
    """The gains for people, from high noise to low."""
    pairs = itertools.islice(zip(data["levels"], data["values"], strict=True), 0, None, 3)
    return "an error at a level moves the final latent by so many times itself: " + ", ".join(
        f"{level:.2g}: {value:.2g}" for level, value in pairs
    )
