"""The scores of groups of dimensions, and the total, from raw scores, as the leaderboards compute them.

A score is first mapped to (raw - low) / (high - low), not clipped. A group's score is the weighted mean of its
dimensions'. VBench: Total = (4 Quality + Semantic) / 5. VBench-2.0: the mean of its five groups. Source:
Vchitect/VBench@45e79ec, scripts/cal_final_score.py and VBench-2.0/scripts/cal_final_score.py, which count a missing
dimension as a raw 0; here it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from .dimensions import DIMENSIONS, GROUPS, members
from .edition import Edition


def normalised(name: str, raw: float) -> float:
    """A raw score mapped so that the dimension's range becomes 0 to 1; not clipped."""
    dimension = DIMENSIONS[name]
    return (raw - dimension.low) / (dimension.high - dimension.low)


def group(scores: Mapping[str, float], name: str) -> float:
    """A group's score from at least its dimensions'. Raises ValueError naming those that are missing."""
    names = GROUPS[name]
    if missing := [each for each in names if each not in scores]:
        raise ValueError(f"no score without {', '.join(missing)}")
    weights = [DIMENSIONS[each].weight for each in names]
    weighted = (weight * normalised(each, scores[each]) for weight, each in zip(weights, names, strict=True))
    return sum(weighted) / sum(weights)


def total(scores: Mapping[str, float], edition: Edition) -> float:
    """The total from all dimensions of an edition. Raises ValueError naming those that are missing."""
    if missing := [name for name in members(edition) if name not in scores]:
        raise ValueError(f"no score without {', '.join(missing)}")
    weighted = (share * group(scores, name) for name, share in edition.shares.items())
    return sum(weighted) / sum(edition.shares.values())
