"""What `methods.planned` plans with: inner products of uncached predictions, and what an error at each level counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..observe.watch import Caller, Seen
from . import gain

DIGITS = 9  # significant ones


def measure(callers: Iterable[Caller]) -> dict[str, Any]:
    """Levels, Gram matrix and gains, averaged over some uncached calls, as plain data. Raises ValueError if there is
    none.

    gram: of the differences D_m = F(levels[m + 1]) - F(levels[m]) of guided predictions, mean over cells; the lower
    half, row by row. scale: mean square of a prediction. gain: gain.py.
    """
    grams, scales, gains = [], [], []
    levels: list[float | None] = []
    for caller in callers:
        if getattr(caller.pipe, "transformer_2", None) is not None:
            raise ValueError("planned: a pipeline of two transformers cannot be calibrated")
        seen = caller.watch()
        gram, scale = of_one(seen)
        levels = [moment.sigma for moment in seen.moments]
        grams.append(gram)
        scales.append(scale)
        gains.append(gain.of_one(caller, seen))
    data = as_data(levels, np.mean(grams, axis=0))
    data["gain"] = gain.as_data(data["levels"], gains)
    return data | {"scale": float(f"{np.mean(scales):.5g}"), "samples": len(grams)}


def of_one(seen: Seen) -> tuple[np.ndarray, float]:
    """The Gram matrix (N - 1, N - 1) and scale of one uncached call. Raises ValueError if it is not fit for that."""
    levels = [moment.sigma for moment in seen.moments]
    if None in levels or not _falls(levels):
        raise ValueError("planned needs a scheduler whose noise levels fall from step to step")
    predictions = torch.stack([each.flatten() for each in seen.predictions()])
    if not torch.isfinite(predictions).all():
        raise ValueError("the predictions of these videos are not finite")
    differences = predictions.diff(dim=0).double()
    return (differences @ differences.T / predictions.shape[1]).numpy(), float(predictions.square().mean())


def as_data(levels: Sequence[float | None], gram: np.ndarray) -> dict[str, Any]:
    """Levels and the lower half of the matrix as plain data."""
    return {
        "levels": [float(f"{level:.{DIGITS}g}") for level in levels],
        "gram": [[float(f"{value:.{DIGITS}g}") for value in row[: n + 1]] for n, row in enumerate(gram)],
    }


def _falls(levels: list[Any]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(levels))


def describe(data: dict[str, Any]) -> list[str]:
    """What was measured, for people: how wrong the last prediction and a line are one and two steps ahead."""
    lower = np.array([row + [0.0] * (len(data["gram"]) - len(row)) for row in data["gram"]])
    gram, steps = lower + np.tril(lower, -1).T, np.diff(data["levels"])
    held = np.sqrt(np.diag(gram) / data["scale"])
    ahead = steps[1:] / steps[:-1]
    square = gram.diagonal()[1:] - 2 * ahead * gram.diagonal(1) + ahead**2 * gram.diagonal()[:-1]
    line = np.sqrt(np.maximum(square, 0) / data["scale"])
    return [
        "error of one step's answer, as a share of the prediction, median over all steps:"
        f" the last prediction {np.median(held):.2%}, a line through the last two {np.median(line):.2%}",
        gain.describe(data["gain"]),
    ]
