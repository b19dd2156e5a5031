"""Uncertainty that respects prompts: everything is resampled by prompt, paired across methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000


def bootstrap(
    measure: Callable[[np.ndarray], float], prompts: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """`measure` of all prompts, and its 95 % percentile interval over prompts drawn with replacement.

    `measure` gets indices of prompts (with repeats) and returns a number; resamples where it is NaN are left out. The
    interval is NaN if fewer than nine in ten resamples gave a number.
    """
    generator = np.random.default_rng(seed)
    value = measure(np.arange(prompts))
    drawn = np.array([measure(generator.integers(prompts, size=prompts)) for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < 0.9 * resamples:
        return value, float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)


def at_speedup(speedups: np.ndarray, scores: np.ndarray, target: float) -> float:
    """The score of a method at `target` speedup, on straight lines between its settings; NaN outside their range.

    Interpolated over 1/speedup, the share of the cost that is left. Of settings equally fast the better counts.
    """
    costs = 1 / np.asarray(speedups, dtype=float)
    order = np.lexsort((np.asarray(scores), costs))
    costs, scores = costs[order], np.asarray(scores, dtype=float)[order]
    last = np.append(costs[1:] != costs[:-1], True)  # of equal costs the last has the best score
    costs, scores = costs[last], scores[last]
    if not costs[0] <= 1 / target <= costs[-1]:
        return float("nan")
    return float(np.interp(1 / target, costs, scores))
