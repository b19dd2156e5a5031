"""How long VBench would take to score what a run asks for."""

from __future__ import annotations

from collections import Counter

from ..config import ConfigError, Run
from .dimensions import DIMENSIONS, VBENCH, expand, members
from .environment import load
from .tasks import by_edition, mode_of, scored

# The one figure that is published: "nearly half a day" for all of VBench on an H100 (Vchitect/VBench#195).
HALF_A_DAY = 12.0


def scorings(run: Run) -> Counter[str]:
    """By an edition's title, how many videos are scored, each once for every dimension it is asked in.

    Without the edition's environment its prompts are not here to look at: then at most so many as its protocol has.
    """
    counts: Counter[str] = Counter()
    for edition, dimensions in by_edition(expand(run.score.vbench) if "score" in run.stages else []).items():
        try:
            mode, known = mode_of(run, load(edition))
            counts[edition.title] = sum(len(scored(run, each, mode, known)) for each in dimensions)
        except ConfigError:
            counts[edition.title] = sum(min(each.official, len(run.samples)) for each in dimensions)
    return counts


def hours(vbench_scorings: int) -> float:
    """Hours of an H100 for so many videos of VBench, at the mean of its full protocol."""
    return HALF_A_DAY * vbench_scorings / sum(DIMENSIONS[name].official for name in members(VBENCH))
