"""Uncertainty that respects prompts: everything is resampled by prompt, paired across methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """A value and its 95 % interval; the ends are NaN without an interval, the value without data."""

    value: float
    low: float
    high: float


NOTHING = Interval(float("nan"), float("nan"), float("nan"))


def bootstrap(
    measure: Callable[[np.ndarray], Any], prompts: int, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """`measure` of all prompts, and its 95 % percentile interval over prompts drawn with replacement.

    `measure` gets indices of prompts (..., prompts), with repeats, and returns numbers (...), for all draws at once.
    Resamples where it is NaN are left out. The interval is NaN if fewer than nine in ten resamples gave a number, or if
    there is only one prompt.
    """
    value = float(measure(np.arange(prompts)))
    if prompts < 2:
        return Interval(value, float("nan"), float("nan"))
    return interval(value, np.broadcast_to(measure(_draws(prompts, resamples, seed)), resamples).astype(float))


@functools.lru_cache(maxsize=64)
def _draws(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """Prompts drawn with replacement (resamples, prompts), the same for every measure; not to be written to."""
    draws = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))
    draws.setflags(write=False)
    return draws


def interval(value: float, drawn: np.ndarray) -> Interval:
    """A value with the 95 % percentile interval of its resamples; none if over a tenth of them are NaN."""
    kept = drawn[~np.isnan(drawn)]
    if len(kept) < 0.9 * len(drawn):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.percentile(kept, PERCENTILES)
    return Interval(float(value), float(low), float(high))


@functools.lru_cache(maxsize=64)
def weights(prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each prompt is drawn: (1 + resamples, prompts), the first row once each. For measures that are sums.

    All callers get the same array, which is not to be written to.
    """
    chosen = _draws(prompts, resamples, seed)
    counts = np.stack([(chosen == prompt).sum(1) for prompt in range(prompts)], axis=1)
    found = np.concatenate([np.ones((1, prompts)), counts])
    found.setflags(write=False)
    return found


def mean_interval(values: pd.Series, prompts: pd.Series, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of the values that are there, and its 95 % bootstrap interval over prompts.

    All seeds of a prompt are drawn together. `values` and `prompts` match row by row; NaN is left out.
    """
    scored = values.notna()
    if not scored.any():
        return NOTHING
    grouped = values[scored].astype(float).groupby(prompts[scored])
    totals, counts = grouped.sum().to_numpy(), grouped.count().to_numpy()
    value = totals.sum() / counts.sum()
    if len(totals) < 2:
        return Interval(float(value), float("nan"), float("nan"))
    chosen = _draws(len(totals), resamples, seed)
    return interval(value, totals[chosen].sum(1) / counts[chosen].sum(1))


def worst(samples: pd.DataFrame, metric: str, count: int, lower_is_better: bool = False) -> pd.DataFrame:
    """The `count` samples with the worst score, the worst first; those without a score are left out."""
    scored = samples[samples[metric].notna()]
    return scored.sort_values([metric, "prompt"], ascending=[not lower_is_better, True], kind="stable").head(count)


def at_speedup(
    speedups: np.ndarray, scores: np.ndarray, target: float | np.ndarray, better: np.ndarray | None = None
) -> Any:
    """The score of a method at `target` speedup, on straight lines between its settings; NaN outside their range.

    Interpolated over 1/speedup, the share of the cost that is left. Of equally fast settings the best counts, by
    `better` if it is not by these scores. speedups, scores, better: (..., settings); target: one, or (...). Returns an
    array (...), a float if it has no axes.
    """
    costs, scores = _lines(speedups, scores, better)
    cost = 1 / np.asarray(target, dtype=float)
    after = np.clip((costs < cost[..., None]).sum(-1, keepdims=True), 1, max(costs.shape[-1] - 1, 1))
    if costs.shape[-1] == 1:
        return np.where(costs[..., 0] == cost, scores[..., 0], np.nan)[()]
    (c0, s0), (c1, s1) = (
        (np.take_along_axis(costs, place, -1)[..., 0], np.take_along_axis(scores, place, -1)[..., 0])
        for place in (after - 1, after)
    )
    inside = (c0 <= cost) & (cost <= c1)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = s0 + (s1 - s0) * (cost - c0) / (c1 - c0)
    found = np.where(c0 == cost, s0, np.where(c1 == cost, s1, between))
    return np.where(inside, found, np.nan)[()]


def at_quality(speedups: np.ndarray, scores: np.ndarray, target: float) -> Any:
    """The greatest speedup at which a method's line has the score `target`; NaN where no two settings bracket it.

    The line is that of `at_speedup`, so that each inverts the other where scores fall with speed. Shapes as there.
    """
    costs, scores = _lines(speedups, scores)
    left, right = scores[..., :-1], scores[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = costs[..., :-1] + (target - left) / (right - left) * np.diff(costs, axis=-1)
        crossed = (np.minimum(left, right) < target) & (target < np.maximum(left, right))
    candidates = np.full((*costs.shape[:-1], 2 * costs.shape[-1] - 1), np.nan)  # settings, and the lines between them
    candidates[..., ::2] = np.where(scores == target, costs, np.nan)
    candidates[..., 1::2] = np.where(crossed, crossing, np.nan)
    first = np.argmax(~np.isnan(candidates), -1)[..., None]  # the fastest; any index if all are NaN
    return (1 / np.take_along_axis(candidates, first, -1)[..., 0])[()]


def _lines(speedups: np.ndarray, scores: np.ndarray, better: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Costs in rising order and their scores; equal costs all get the best of their scores."""
    costs, scores = 1 / np.asarray(speedups, dtype=float), np.asarray(scores, float)
    ranks = scores if better is None else np.nan_to_num(better, nan=-np.inf)
    order = np.lexsort(np.broadcast_arrays(ranks, costs), axis=-1)  # of `better`, one for many lines of scores
    shape = np.broadcast_shapes(order.shape, costs.shape, scores.shape)
    costs = np.broadcast_to(np.take_along_axis(np.broadcast_to(costs, order.shape), order, -1), shape)
    scores = np.take_along_axis(np.broadcast_to(scores, shape), np.broadcast_to(order, shape), -1)
    for place in range(costs.shape[-1] - 2, -1, -1):
        same = costs[..., place] == costs[..., place + 1]
        scores[..., place] = np.where(same, scores[..., place + 1], scores[..., place])
    return costs, scores
