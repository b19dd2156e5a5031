"""The value at which a monotone measure hits its target: a bracket is found, then narrowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

CLOSE = 0.01  # relative distance from the target at which the search stops
STRIDE = 3.0  # factor from one value to the next until the target is bracketed
NARROW = 1.0005
NEAR = 1.1  # ratio of two values at which a measure that jumps between them is better measured exactly
MOST = 24  # evaluations


class UnreachableError(ValueError):
    """No value reaches the target; the message gives the range that is reachable."""


@dataclass
class Search:
    """Looks for the value in [low, high] where `measure` is `target`.

    rises: whether the measure rises with the value. values: the only ones allowed, rising from low to high; none: all.
    tried: all values measured so far; those of an earlier search count. close: relative distance from the target at
    which the search stops. narrow: ratio of a bracket's ends from which on it is not worth narrowing.
    confirm: measures a value that is to be taken once more, better. confirmed: the values for which that was done.
    at_least: whether only a value whose measure is not below the target will do.
    """

    measure: Callable[[float], float]
    low: float
    high: float
    rises: bool
    values: Sequence[float] = ()
    tried: dict[float, float] = field(default_factory=dict)
    close: float = CLOSE
    narrow: float = NARROW
    confirm: Callable[[float], float] | None = None
    confirmed: set[float] = field(default_factory=set)
    at_least: bool = False

    def find(self, target: float, start: float) -> float:
        """The value whose measure is closest to the target, of those that will do. Raises UnreachableError without one,
        and if the target is out of range."""
        self._at(self._legal(start))
        for _ in range(MOST):
            best, following = self.best(target), None
            if self._short(best, target) or abs(self.tried[best] - target) > self.close * abs(target):
                following = self._next(target)
            unsure = self._unsure(following)
            if unsure is not None:
                self._confirm(unsure, target)
            elif following is not None:
                self._at(following)
            elif self.confirm is None or best in self.confirmed:
                return best
            else:
                self._confirm(best, target)
        best = self.best(target)
        if self._short(best, target):
            raise UnreachableError(
                f"of {len(self.tried)} settings that were tried none has more than {self.tried[best]:.4g}"
            )
        return best

    def _short(self, value: float, target: float) -> bool:
        """Whether a value will not do, however close it is."""
        return self.at_least and self.tried[value] < target

    def _unsure(self, following: float | None) -> float | None:
        """A value next to the following one that was not measured well. Few prompts jump where many change little by
        little, and a jump is not narrowed any further."""
        if following is None or self.confirm is None or self.values:
            return None
        near = [v for v in self.tried if v not in self.confirmed and 1 / NEAR < v / following < NEAR]
        return min(near, key=lambda value: abs(value - following), default=None)

    def _confirm(self, value: float, target: float) -> None:
        """Measure a value better. If that differs, forget the values that may lie on the target's other side by as
        much, and measure like that from now on."""
        assert self.confirm is not None
        exact, known = self.confirm(value), self.tried[value]
        self.confirmed.add(value)
        unsure = 2 * abs(exact - known)
        kept = {v: m for v, m in self.tried.items() if v in self.confirmed or abs(m - target) > unsure}
        self.tried.clear()
        self.tried.update(kept | {value: exact})
        if abs(exact - known) > self.close * target:
            self.measure = self.confirm

    def _at(self, value: float) -> None:
        if value not in self.tried:
            self.tried[value] = self.measure(value)
            if self.measure == self.confirm:
                self.confirmed.add(value)

    def best(self, target: float) -> float:
        """The value tried whose measure is closest to the target, of those that will do if there are any."""
        return min(self.tried, key=lambda value: (self._short(value, target), abs(self.tried[value] - target)))

    def _next(self, target: float) -> float | None:
        """The next value to measure; None if none promises more."""
        values = sorted(self.tried)
        short = {value: self.tried[value] < target for value in values}
        if all(short.values()) or not any(short.values()):
            upward = short[values[0]] == self.rises
            return self._beyond(values if upward else values[::-1], self.high if upward else self.low)
        # neighbours on either side of the target; a measure with noise may have several such pairs
        pairs = [(low, high) for low, high in pairwise(values) if short[low] != short[high]]
        below, above = min(pairs, key=lambda pair: sum(abs(self.tried[value] - target) for value in pair))
        return self._between(below, above, target)

    def _beyond(self, values: list[float], limit: float) -> float:
        """A value farther out than the last of `values`; the limit itself if the last two measure the same."""
        end = values[-1]
        if end == limit:
            self._at(self.low + self.high - limit)
            reached = sorted(self.tried.values())
            raise UnreachableError(f"from {reached[0]:.4g} to {reached[-1]:.4g} is reachable")
        if len(values) > 1 and self.tried[end] == self.tried[values[-2]]:
            return limit
        value = self._legal(end * (STRIDE if limit > end else 1 / STRIDE))
        if value != end:
            return value
        return self.values[self.values.index(end) + (1 if limit > end else -1)]

    def _between(self, below: float, above: float, target: float) -> float | None:
        """A value inside a bracket, near where a power law through its ends has the target; None if none is between."""
        first, last = self.tried[below], self.tried[above]
        sound = all(0 < each < math.inf for each in (first, last, target))
        share = math.log(target / first) / math.log(last / first) if sound else 0.5
        value = below * (above / below) ** min(max(share, 0.1), 0.9)
        if self.values:
            between = [each for each in self.values if below < each < above]
            return min(between, key=lambda each: abs(each - round(value)), default=None)
        return self._legal(value) if above / below > self.narrow else None

    def _legal(self, value: float) -> float:
        if self.values:
            return min(self.values, key=lambda each: abs(each - round(value)))
        return min(max(float(f"{value:.4g}"), self.low), self.high)
