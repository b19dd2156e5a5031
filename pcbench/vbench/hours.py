"""How long VBench would take to score what a run asks for."""

from __future__ import annotations

from collections import Counter

from ..config import ConfigError, Run
from .dimension import Dimension
from .dimensions import DIMENSIONS, VBENCH, expand, members
from .environment import Environment, load
from .suites import dimensions_of, read_entries

# The one figure that is published: "nearly half a day" for all of VBench on an H100 (Vchitect/VBench#195).
HALF_A_DAY = 12.0


def scorings(run: Run) -> Counter[str]:
    """By an edition's title, how many videos are scored, each once for every dimension it is asked in."""
    counts: Counter[str] = Counter()
    for dimension in expand(run.score.vbench) if "score" in run.stages else []:
        counts[dimension.edition.title] += _videos(run, dimension)
    return counts


def hours(vbench_scorings: int) -> float:
    """Hours of an H100 for so many videos of VBench, at the mean of its full protocol."""
    return HALF_A_DAY * vbench_scorings / sum(DIMENSIONS[name].official for name in members(VBENCH))


def _videos(run: Run, dimension: Dimension) -> int:
    """The run's videos that the dimension scores: of its own prompts if the edition knows them all, else all."""
    environment = _environment(dimension)
    if environment is None:  # its prompts are not here to look at
        return min(dimension.official, len(run.samples))
    known = dimensions_of(read_entries(environment.suite))
    if any(prompt not in known for prompt in run.prompts):
        return len(run.samples)
    return sum(dimension.name in known[prompt] for prompt in run.prompts) * min(len(run.seeds), dimension.samples)


def _environment(dimension: Dimension) -> Environment | None:
    try:
        return load(dimension.edition)
    except ConfigError:
        return None
