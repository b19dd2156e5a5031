"""Local search over schedules with a fixed number of computed steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

NEAR = 3  # steps by which a computed step is moved before farther moves are tried


@dataclass
class Climb:
    """Moves computed steps one at a time, and keeps every move that lowers the cost.

    tried: the cost of every schedule that this walk has come to. It begins empty: what another search has found would
    change the walk, so that the same command would not find the same again.
    """

    cost: Callable[[str], float]
    tried: dict[str, float] = field(default_factory=dict, init=False)

    def find(self, starts: Iterable[str], most: int) -> str:
        """The best schedule found, from the best of `starts` on, with at most `most` measured in all.

        Deterministic: the same costs give the same walk. It ends early where no neighbour is better.
        """
        draw = random.Random(0)
        for start in starts:
            self._measure(start)
        best = min(self.tried, key=lambda actions: self.tried[actions])
        walked: set[str] = set()
        while True:
            moved = None
            for neighbour in neighbours(best, draw):
                if neighbour in walked:
                    continue
                if neighbour not in self.tried and len(self.tried) >= most:
                    return best
                walked.add(neighbour)
                if self._measure(neighbour) < self.tried[best]:
                    moved = neighbour
                    break
            if moved is None:
                return best
            best = moved

    def _measure(self, actions: str) -> float:
        if actions not in self.tried:
            self.tried[actions] = self.cost(actions)
        return self.tried[actions]


def neighbours(actions: str, draw: random.Random) -> list[str]:
    """The schedules in which one computed step, not the first of all, changes places with a reused one.

    Near ones come first; within both halves the order is random.
    """
    near: list[str] = []
    far: list[str] = []
    for step, other in itertools.permutations(range(1, len(actions)), 2):
        if actions[step] == "F" and actions[other] == "r":
            letters = list(actions)
            letters[step], letters[other] = "r", "F"
            (near if abs(step - other) <= NEAR else far).append("".join(letters))
    draw.shuffle(near)
    draw.shuffle(far)
    return near + far
