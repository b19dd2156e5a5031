"""A metric over many videos: what a record, and a comparison of folders, says about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .metrics import IDENTICAL, METRICS
from .stage import RESCALED, Entry


def summarise(samples: Sequence[dict[str, Entry]]) -> dict[str, dict[str, Any]]:
    """A summary of each metric over all samples, each of which has its entries by metric.

    mean: as the convention computes it; half_width_95: of the 95 % interval (normal approximation, all videos weighted
    equally; None for one video); worst: the value furthest from the reference; n, identical, unscored: how many videos
    have a value, have none because they are identical to the reference, were not scored; and the metric's description.
    `compared_at` is there if the convention's mp4 had another size than the frames: [height, width].
    """
    summaries = {}
    for name in sorted({name for entries in samples for name in entries}):
        metric, entries = METRICS[name], [entries[name] for entries in samples if name in entries]
        values = [entry["value"] for entry in entries if entry["value"] is not None]
        identical = sum(entry["value"] is None and entry["note"] == IDENTICAL for entry in entries)
        sizes = [entry[RESCALED] for entry in entries if RESCALED in entry]
        summaries[name] = {
            "mean": metric.over_videos(values) if values else None,
            "half_width_95": _half_width(values) if len(values) > 1 else None,
            "worst": metric.worst(values) if values else None,
            "n": len(values),
            "identical": identical,
            "unscored": len(samples) - len(values) - identical,
            **metric.description,
            **({RESCALED: sizes[0]} if sizes else {}),
        }
    return summaries


def _half_width(values: Sequence[float]) -> float:
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values))
