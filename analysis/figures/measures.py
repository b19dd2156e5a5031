"""Measures of one sample's observations, which are arrays over denoising steps, NaN where there is no value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..load import Bench
from .claims import NotDrawnError

Entry = dict[str, Any]
FACTOR = "2x4x4"  # the downsampling of PreciseCache's trial


def entries(bench: Bench, *names: str) -> list[Entry]:
    """The observations of each sample of the uncached reference that has all these, sorted by prompt and seed."""
    seen = (bench.uncached or {}).get("observations", [])
    found = [entry for entry in seen if all(name in entry for name in names)]
    if not found:
        raise NotDrawnError(f"no record with {' and '.join(name.partition('@')[0] for name in names)} observed")
    return sorted(found, key=lambda entry: (entry["prompt"], entry["seed"]))


def array(values: Sequence[float | None]) -> np.ndarray:
    """An array of floats, NaN for None."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation over the steps that both have; NaN for fewer than three, or if one is constant."""
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 3:
        return float("nan")
    ranks = [pd.Series(values[both]).rank().to_numpy() for values in (a, b)]
    if min(np.ptp(values) for values in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Geometric mean of a / b over the steps where both are above zero."""
    both = (a > 0) & (b > 0)
    return float(np.exp(np.log(a[both] / b[both]).mean())) if both.any() else float("nan")


def stretch(values: np.ndarray, start: float, stop: float) -> float:
    """Mean from the share `start` to the share `stop` of the steps that have a value."""
    known = values[~np.isnan(values)]
    chosen = known[round(start * len(known)) : max(round(stop * len(known)), round(start * len(known)) + 1)]
    return float(chosen.mean()) if len(chosen) else float("nan")


def quarters(values: np.ndarray) -> float:
    """Mean of the last quarter of the steps over that of the first; NaN if the first is zero."""
    first = stretch(values, 0, 0.25)
    return stretch(values, 0.75, 1) / first if first else float("nan")


def through_zero(x: np.ndarray, y: np.ndarray) -> float:
    """R² of the best line through 0: 1 minus its squared error over that of the mean. NaN for fewer than 3."""
    if len(x) < 3 or not np.ptp(y):
        return float("nan")
    slope = (x * y).sum() / np.square(x).sum()
    return float(1 - np.square(y - slope * x).sum() / np.square(y - y.mean()).sum())


def power(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent p of y = a xᵖ, by least squares of logarithms; NaN for fewer than three different x above 0."""
    both = (x > 0) & (y > 0)
    if len(np.unique(x[both])) < 3:
        return float("nan")
    return float(np.polyfit(np.log(x[both]), np.log(y[both]), 1)[0])
