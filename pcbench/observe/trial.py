"""The trial's settings as a map: its LFD and its gap at every step, for each factor, operator and low-pass radius."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from methods.engine.anatomy import Size
from methods.frequency import downsample, low_frequency_difference

from .watch import Caller, Seen

MODES = ("nearest-exact", "trilinear", "area")
RADII = {
    "1/10": 0.1,
    "1/5": 0.2,
    "1/3": 1 / 3,
    "1/2": 0.5,
    "all": 1.0,
}  # share of the side; "all" frequencies: no filter
FULL = "1x1x1"
DIGITS = 4  # significant ones


def settings(caller: Caller, seen: Seen, by_factor: Mapping[str, Size]) -> dict[str, Any]:
    """By factor, operator and radius, three series over steps, RMS per element.

    adjacent: the LFD between the trials of adjacent steps. literal: between a trial and the prediction of the step
    before, downsampled by the same operator (Algorithm 1). Of both the first step's is None. gap: between a trial and
    the prediction of the same step, downsampled; the part of `literal` that is due to the resolution alone.
    At full size there is no operator and no gap, and the two LFDs are the same.
    """
    full = seen.predictions()
    results: dict[str, Any] = {FULL: {"none": _by_radius(full, full)}}
    sizes = {factor: size for factor, size in by_factor.items() if factor != FULL}
    for mode in MODES:
        tried = caller.trials(seen, tuple(sizes.values()), mode)
        for factor, size in sizes.items():
            small = [downsample(prediction, size, mode) for prediction in full]
            results.setdefault(factor, {})[mode] = _by_radius(tried.trials(size), small)
    return results


def _by_radius(trials: list[torch.Tensor], cached: list[torch.Tensor]) -> dict[str, Any]:
    return {
        name: {
            "adjacent": [None, *_lfds(itertools.pairwise(trials), radius)],
            "literal": [None, *_lfds(zip(cached, trials[1:], strict=False), radius)],
            "gap": _lfds(zip(cached, trials, strict=True), radius),
        }
        for name, radius in RADII.items()
    }


def _lfds(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], radius: float) -> list[float]:
    values = [float(low_frequency_difference(b, a, radius)) for a, b in pairs]
    return [float(f"{value:.{DIGITS}g}") for value in values]
