"""VBench's Quality, Semantic and Total from raw dimension scores, as its leaderboard computes them.

A score is first mapped to (raw - low) / (high - low), not clipped. Quality and Semantic are weighted means of seven and
nine of those; Total = (4 Quality + Semantic) / 5. Source: Vchitect/VBench@45e79ec, scripts/cal_final_score.py, which
counts a missing dimension as a raw 0; here it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .dimensions import DIMENSIONS, QUALITY, SEMANTIC

QUALITY_SHARE, SEMANTIC_SHARE = 4, 1


def normalised(name: str, raw: float) -> float:
    """A raw score mapped so that the dimension's range becomes 0 to 1; not clipped."""
    dimension = DIMENSIONS[name]
    return (raw - dimension.low) / (dimension.high - dimension.low)


def quality(scores: Mapping[str, float]) -> float:
    """Quality score from at least the seven quality dimensions. Raises ValueError naming those that are missing."""
    return _mean(scores, QUALITY)


def semantic(scores: Mapping[str, float]) -> float:
    """Semantic score from at least the nine semantic dimensions. Raises ValueError naming those that are missing."""
    return _mean(scores, SEMANTIC)


def total(scores: Mapping[str, float]) -> float:
    """Total score from all sixteen dimensions. Raises ValueError naming those that are missing."""
    _complete(scores, (*QUALITY, *SEMANTIC))
    return (QUALITY_SHARE * quality(scores) + SEMANTIC_SHARE * semantic(scores)) / (QUALITY_SHARE + SEMANTIC_SHARE)


def _mean(scores: Mapping[str, float], names: Sequence[str]) -> float:
    _complete(scores, names)
    weights = [DIMENSIONS[name].weight for name in names]
    weighted = (w * normalised(name, scores[name]) for w, name in zip(weights, names, strict=True))
    return sum(weighted) / sum(weights)


def _complete(scores: Mapping[str, float], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in scores]:
        raise ValueError(f"no score without {', '.join(missing)}")
