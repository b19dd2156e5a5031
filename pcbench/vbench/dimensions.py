"""The dimensions of VBench and VBench-2.0, by name. No name is in both."""

from __future__ import annotations

from collections.abc import Iterable

from ..messages import ConfigError, nearest
from .edition import Dimension, Edition
from .vbench1 import DIMENSIONS as OF_VBENCH
from .vbench1 import VBENCH
from .vbench2 import DIMENSIONS as OF_VBENCH2
from .vbench2 import VBENCH2

EDITIONS = (VBENCH, VBENCH2)
DIMENSIONS = {dimension.name: dimension for dimension in (*OF_VBENCH, *OF_VBENCH2)}


def of(edition: Edition) -> tuple[Dimension, ...]:
    """An edition's dimensions, those that count in none of its scores included."""
    return tuple(dimension for dimension in DIMENSIONS.values() if dimension.edition is edition)


def members(edition: Edition, group: str | None = None) -> tuple[str, ...]:
    """The names of the dimensions that count in an edition's total, or in one of its groups."""
    wanted = edition.shares if group is None else (group,)
    return tuple(dimension.name for dimension in of(edition) if dimension.group in wanted)


GROUPS = {
    "all": members(VBENCH),
    "vbench2": members(VBENCH2),
    **{group: members(edition, group) for edition in EDITIONS for group in edition.shares},
}


def expand(names: Iterable[str]) -> list[Dimension]:
    """The dimensions for names of dimensions and groups (all, quality, semantic: VBench's; vbench2 and its five groups:
    VBench-2.0's), each once and in the packages' order.

    Raises ConfigError for an unknown name.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in DIMENSIONS:
            raise ConfigError(f"unknown VBench dimension {name!r}; {nearest(name, [*GROUPS, *DIMENSIONS])}")
        wanted.update(GROUPS.get(name, (name,)))
    return [dimension for dimension in DIMENSIONS.values() if dimension.name in wanted]
