"""kill -9: at random moments, and in the middle of every write."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .harness import Child, Tally, World, complete, issue


def at_random(world: World, kills: int, seed: int) -> Iterator[Tally]:
    """So many kills, at moments spread evenly over a run; after each the line again, till the next kill or its end."""
    tally, chance = Tally("kill -9 at a random moment"), random.Random(seed)
    while tally.injected < kills:
        store, there = world.empty(), {}
        for _ in range(min(chance.randint(1, 4), kills - tally.injected)):
            child = Child(store)
            time.sleep(chance.uniform(0, world.seconds))
            child.kill()
            child.wait()
            tally.injected += 1
            tally.lost += _lost(there, complete(store))
            there = complete(store)
            yield tally
        code, said = issue(store)
        tally.lost += _lost(there, complete(store))
        world.judge(tally, store, code, said, f"kill {tally.injected}")
        yield tally


def _lost(before: dict[str, Any], after: dict[str, Any]) -> int:
    return sum(after.get(sample) != state for sample, state in before.items())


def in_writes(world: World, every: int = 1) -> Iterator[Tally]:
    """A kill in the middle of each write and before and after each rename of a run, one run each."""
    tally = Tally("kill -9 in a write or rename")
    moment = 1
    while True:
        store = world.empty()
        code, _ = issue(store, lambda moment=moment: _fatal(moment))  # type: ignore[misc]
        if code == 0:  # there is no such moment any more
            return
        tally.injected += 1
        there = complete(store)
        code, said = issue(store)
        tally.lost += _lost(there, complete(store))
        world.judge(tally, store, code, said, f"write {moment}")
        yield tally
        moment += every


def _fatal(moment: int) -> None:
    """In this process, die at the so-many-th chance that files give to do so."""
    left = moment

    def chance() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def halfway(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(path: Path, data: Any, *more: Any, **named: Any) -> Any:
            write(path, data[: len(data) // 2], *more, **named)
            chance()
            return write(path, data, *more, **named)

        return writing

    rename = os.replace

    def replacing(*arguments: Any, **named: Any) -> None:
        chance()
        rename(*arguments, **named)
        chance()

    os.replace = replacing
    Path.write_bytes = halfway(Path.write_bytes)  # type: ignore[method-assign]
    Path.write_text = halfway(Path.write_text)  # type: ignore[method-assign]
