"""What can be observed: an entry for each kind, with what it needs, measures and costs.

A new kind is a file next to this one with its measure, and an entry in OBSERVATIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from methods.engine.anatomy import Size

from . import bound, change, impact, trial
from .watch import MODE, Caller, Seen

Data = dict[str, Any]  # the plain data of one observation
Sizes = dict[str, Size]  # sizes of trials, by factor ("2x4x4")


@dataclass
class Subject:
    """A sample whose pipeline call was repeated and watched.

    caller: repeats the call if needed. seen: what was watched. sizes: sizes of the trials that were run alongside.
    stride: every n-th step is tried. known: the data of an earlier observation; empty if there is none.
    reference, threshold: for a run with a cache, the watched uncached run and the method's threshold.
    """

    caller: Caller
    seen: Seen
    sizes: Sizes
    stride: int
    known: Data
    reference: Seen | None = None
    threshold: float | None = None


class Cost(NamedTuple):
    """The cost beyond the one call that is watched: denoising steps at full size, and latents to decode."""

    steps: int
    decodes: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One kind of observation.

    kind: its name in the option `observe`. name: the name of its data, with a version that is raised when their meaning
    changes. measure: yields the data, more than once if they are worth storing before they are complete.
    cached: whether it observes runs with a cache, or uncached ones. blocks: whether it looks at single blocks.
    sizes: selects the trials it needs from the possible ones. modes: by which operators latents are resized for them;
    those beyond the first are a call of its own each. left: the steps still to try, from the data (empty if
    none yet), the number of steps and the stride. cost: its cost, from the number of steps and the steps left.
    """

    kind: str
    name: str
    measure: Callable[[Subject], Iterator[Data]]
    cached: bool = False
    blocks: bool = False
    sizes: Callable[[Sizes], Sizes] = lambda sizes: {}
    modes: tuple[str, ...] = (MODE,)
    left: Callable[[Data, int, int], list[int]] = lambda data, steps, stride: []
    cost: Callable[[int, list[int]], Cost] = lambda steps, left: Cost(0, 0)


def _difference(subject: Subject) -> Iterator[Data]:
    yield change.difference(subject.seen)


def _resolution(subject: Subject) -> Iterator[Data]:
    yield change.resolution(subject.seen, subject.sizes)


def _trial(subject: Subject) -> Iterator[Data]:
    yield trial.settings(subject.caller, subject.seen, subject.sizes)


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
    """The size of the trials by which PreciseCache decides."""
    return {factor: size for factor, size in sizes.items() if factor == "2x4x4"}


# In the order in which a file lists their data; `impact`, which takes longest, is still measured last.
OBSERVATIONS = (
    Observation(kind="difference", name="difference@1", measure=_difference),
    Observation(kind="resolution", name="resolution@1", measure=_resolution, sizes=_all),
    Observation(kind="trial", name="trial@2", measure=_trial, sizes=_all, modes=(MODE, *trial.MODES)),
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
