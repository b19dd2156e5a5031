"""How predictions, trials and tokens change along the trajectory (figures 4, 5 and 6)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from methods.engine.anatomy import Anatomy, Size
from methods.frequency import downsample, low_frequency_difference, low_passed

from .watch import MODE, Seen, compact, rms

# The factors of the paper's Table 3, and the full size. PreciseCache runs its trials at the first one.
FACTORS: tuple[Size, ...] = ((2, 4, 4), (1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (4, 4, 4))
PARTS = ("whole", "low", "high")


def part(prediction: torch.Tensor, name: str) -> torch.Tensor:
    """The "whole" prediction (..., H, W), the "low" part that PreciseCache's low-pass keeps, or the "high" rest."""
    if name == "whole":
        return prediction
    low = low_passed(prediction).to(prediction.dtype)
    return low if name == "low" else prediction - low


def difference(seen: Seen) -> dict[str, Any]:
    """Equation (3): each part's change since the step before, as RMS per element, and relative to that step's RMS.

    The low part's RMS is the LFD (low-frequency difference) at full size.
    """
    results: dict[str, Any] = {}
    predictions = seen.predictions()
    for name in PARTS:
        parts = [part(prediction, name) for prediction in predictions]
        changes = [rms(b - a) for a, b in itertools.pairwise(parts)]
        shares = [change / rms(a) for change, a in zip(changes, parts, strict=False)]
        results[name] = {"rms": compact([None, *changes]), "relative": compact([None, *shares])}
    return results


def sizes(anatomy: Anatomy, latent: Size) -> dict[str, Size]:
    """The sizes of a latent's trials in cells, by factor ("2x4x4"); without factors that leave less than one patch."""
    results = {}
    for factor in FACTORS:
        try:
            results["x".join(map(str, factor))] = anatomy.trial_size(latent, factor) if max(factor) > 1 else latent
        except ValueError:
            continue
    return results


def resolution(seen: Seen, by_factor: Mapping[str, Size]) -> dict[str, Any]:
    """LFD of each step at several sizes, RMS per element.

    adjacent: between the trials of adjacent steps, by which PreciseCache decides by default.
    literal: between a trial and the full prediction of the step before, downsampled (Algorithm 1 to the letter).

    The trial of 1x1x1 is the full prediction itself. The low-pass disk covers a fixed share of the grid, so on a
    smaller grid it holds lower frequencies; the paper defines it so.
    """
    predictions = seen.predictions()
    full: Size = tuple(predictions[0].shape[-3:])  # type: ignore[assignment]
    results = {}
    for factor, size in by_factor.items():
        trials = predictions if size == full else seen.trials(size)
        small = [downsample(prediction, size, MODE) for prediction in seen.cached()]
        results[factor] = {
            "size": list(size),
            "adjacent": compact([None, *lfds(trials)]),
            "literal": compact([None, *map(_lfd, trials[1:], small)]),
        }
    return results


def lfds(predictions: Sequence[torch.Tensor]) -> list[float]:
    """LFD between each step and the one before it, with PreciseCache's default settings; none for the first step."""
    return [_lfd(b, a) for a, b in itertools.pairwise(predictions)]


def _lfd(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(low_frequency_difference(a, b))


def blocks(seen: Seen) -> dict[str, Any]:
    """What each block adds to its input: a list over steps of lists over blocks, averaged over guidance branches.

    rms: per element; BlockCache ranks blocks by it (section 3.4). relative: divided by the RMS of the block's input.
    """
    paths = list(next(iter(seen.moments[0].blocks.values())))
    measures = [[[branch[path] for branch in moment.blocks.values()] for path in paths] for moment in seen.moments]
    means = [[[statistics.fmean(kind) for kind in zip(*block, strict=True)] for block in step] for step in measures]
    return {
        "paths": paths,
        "rms": compact([[block[0] for block in step] for step in means]),
        "relative": compact([[block[1] for block in step] for step in means]),
    }
