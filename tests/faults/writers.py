"""Several processes on one results folder."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from .harness import Child, Tally, World, issue


def together(world: World, count: int, times: int = 2) -> Iterator[Tally]:
    """The same sweep, so many times at once, on an empty folder."""
    tally = Tally(f"{count} writers")
    for _ in range(times):
        store = world.empty()
        children = [Child(store) for _ in range(count)]
        ends = [child.wait() for child in children]
        tally.injected += 1
        for code, said in ends:
            if code or "Traceback" in said:
                tally.wrong(f"{count} writers: exit code {code}: {said.strip().splitlines()[-1:]}")
        world.judge(tally, store, *max(ends), f"{count} writers")
        yield tally


def one_killed(world: World, seed: int, times: int = 3) -> Iterator[Tally]:
    """Two at once, of which one is killed; the other finishes as if it had been alone, and waits for nobody."""
    tally, chance = Tally("2 writers, one killed"), random.Random(seed)
    for _ in range(times):
        store = world.empty()
        victim, other = Child(store), Child(store)
        time.sleep(chance.uniform(0.2, 1.5 * world.seconds))
        victim.kill()
        victim.wait()
        code, said = other.wait()
        tally.injected += 1
        if code:
            tally.wrong(f"one killed: the other's exit code is {code}: {said.strip().splitlines()[-1:]}")
        issue(store)
        world.judge(tally, store, code, said, "one killed")
        yield tally
