"""What can be observed: a line for each kind, with what it needs, measures and costs.

A new kind is a file beside this one with its measure, and a line in OBSERVATIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from methods.engine.anatomy import Size

from . import bound, change, impact
from .watch import Caller, Seen

Data = dict[str, Any]  # of one observation, plain
Sizes = dict[str, Size]  # of trials, by factor ("2x4x4")


@dataclass
class Subject:
    """A sample that was called again and watched.

    caller: calls it once more, if need be. seen: what was watched. sizes: of the trials that were made beside it.
    stride: of the steps that are tried one by one. known: what an earlier look has found already; empty if nothing.
    reference, threshold: of a run with a cache, the uncached run as it was seen and the method's threshold.
    """

    caller: Caller
    seen: Seen
    sizes: Sizes
    stride: int
    known: Data
    reference: Seen | None = None
    threshold: float | None = None


class Cost(NamedTuple):
    """Beyond the one call that is watched: denoising steps at full size, and latents to decode."""

    steps: int
    decodes: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One kind of observation.

    kind: what the option `observe` calls it. name: of its data, with a version, which is raised when they come to mean
    something else. measure: yields the data, more than once if they are worth keeping before they are complete.
    cached: whether it is of runs with a cache; else of uncached ones. blocks: whether it looks at single blocks.
    sizes: the trials it needs, of those that can be. left: of data (empty: none yet), steps and stride the steps still
    to try. cost: of the number of steps and of those left.
    """

    kind: str
    name: str
    measure: Callable[[Subject], Iterator[Data]]
    cached: bool = False
    blocks: bool = False
    sizes: Callable[[Sizes], Sizes] = lambda sizes: {}
    left: Callable[[Data, int, int], list[int]] = lambda data, steps, stride: []
    cost: Callable[[int, list[int]], Cost] = lambda steps, left: Cost(0, 0)


def _difference(subject: Subject) -> Iterator[Data]:
    yield change.difference(subject.seen)


def _resolution(subject: Subject) -> Iterator[Data]:
    yield change.resolution(subject.seen, subject.sizes)


def _blocks(subject: Subject) -> Iterator[Data]:
    yield change.blocks(subject.seen)


def _impact(subject: Subject) -> Iterator[Data]:
    steps = len(subject.seen.moments)
    data = subject.known or impact.empty(steps)
    left = impact.missing(data, steps, subject.stride)
    for _ in impact.fill(data, subject.caller, subject.seen, left):
        yield data


def _impact_cost(steps: int, left: list[int]) -> Cost:
    parts = len(change.PARTS)
    return Cost(sum(parts * (steps - 1 - step) for step in left), 1 + parts * len(left))


def _bound(subject: Subject) -> Iterator[Data]:
    yield bound.constants(subject.caller, subject.seen, next(iter(subject.sizes.values()), None))


def _deviation(subject: Subject) -> Iterator[Data]:
    assert subject.reference is not None
    yield bound.deviation(subject.caller, subject.seen, subject.reference, subject.threshold)


def _all(sizes: Sizes) -> Sizes:
    return sizes


def _deciding(sizes: Sizes) -> Sizes:
    """Of the trials that PreciseCache decides by."""
    return {factor: size for factor, size in sizes.items() if factor == "2x4x4"}


# In the order of the data in a file; `impact`, the longest, is measured last all the same.
OBSERVATIONS = (
    Observation(kind="difference", name="difference@1", measure=_difference),
    Observation(kind="resolution", name="resolution@1", measure=_resolution, sizes=_all),
    Observation(kind="blocks", name="blocks@1", measure=_blocks, blocks=True),
    Observation(
        kind="impact",
        name="impact@1",
        measure=_impact,
        left=lambda data, steps, stride: impact.missing(data or impact.empty(steps), steps, stride),
        cost=_impact_cost,
    ),
    Observation(kind="bound", name="bound@1", measure=_bound, sizes=_deciding),
    Observation(
        kind="bound", name="deviation@1", measure=_deviation, cached=True, cost=lambda steps, left: Cost(steps, 2)
    ),
)
KINDS = tuple(dict.fromkeys(observation.kind for observation in OBSERVATIONS))
