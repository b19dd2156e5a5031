"""kill -9 of a worker, or of the driver, of `launcher=local`, and workers that hang."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pcbench import launch
from pcbench.launch import hang, local
from pcbench.launch.worker import FOLDER
from pcbench.sampling import generate
from pcbench.store import atomic, claims
from tests import forks

from .harness import LINE, Child, Tally, World, issue, last

LOCAL = (*LINE, "launcher=local", "workers=2")
HERE = "hangs-here"  # a file in a results folder: whoever finds it hangs


def _claimants(store: Path) -> list[int]:
    """The processes that are making something."""
    found = []
    for path in store.rglob(".claim-*"):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_bytes())["process"])
    return found


def workers(results: Path) -> set[int]:
    """The processes that write the logs of the workers on a results folder."""
    found = set()
    for stdout in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):
            if (results / FOLDER) in stdout.readlink().parents:
                found.add(int(stdout.parts[2]))
    return found


def at_work(store: Path, driver: Child, later: float = 0) -> int:
    """A process that is making something, or was, so many seconds later."""
    while not (claimants := _claimants(store)) and driver.runs:
        time.sleep(0.01)
    time.sleep(later)
    return (_claimants(store) or claimants)[0]


def killed(world: World, seed: int, times: int = 4) -> Iterator[Tally]:
    """A worker and the driver in turn, in the middle of their work. The other worker does what is left. After the
    driver's end its workers end too, and the line is issued again: when they have ended, or at once."""
    tally, chance = Tally("kill -9 of a worker or its driver"), random.Random(seed)
    for number in range(times):
        store, what = world.empty(), ("worker", "driver", "driver, back at once")[number % 3]
        driver = Child(store, forks.workers, LOCAL)
        claimant = at_work(store, driver, chance.uniform(0, world.seconds / 2))
        with suppress(ProcessLookupError):  # it had just ended
            os.kill(claimant if what == "worker" else driver.pid, signal.SIGKILL)
        code, said = driver.wait()
        tally.injected += 1
        if what == "worker" and code:
            tally.wrong(f"worker killed: exit code {code}: {last(said)}")
        if what == "driver, back at once":
            code, said = Child(store, forks.workers, LOCAL).wait()
            if code:
                tally.wrong(f"back at once: exit code {code}: {last(said)}")
        while workers(store):
            time.sleep(0.01)
        code, said = issue(store)
        world.judge(tally, store, code, said, f"{what} killed")
        yield tally


def hung(world: World, seed: int, times: int = 2) -> Iterator[Tally]:
    """A worker stands still as a whole (SIGSTOP), or only its working thread, in the middle of a sample. The other one
    takes over what it had claimed, and the launch ends. Two launches at a time, which mostly wait."""
    tally, chance = Tally("a worker hangs"), random.Random(seed)
    for number in range(times):
        if number % 2 == 0:
            launches = [_with_a_hang(world, what, chance) for what in ("thread", "process")[: times - number]]
        what, store, driver = launches.pop(0)
        code, said = driver.wait()
        tally.injected += 1
        if code or not re.search(r"worker \d (had not ended|ended with exit code 75|was ended by signal)", said):
            tally.wrong(f"{what} hung: exit code {code}: {last(said)}")
        if workers(store):
            tally.wrong(f"{what} hung: its worker is still there")
        (store / HERE).unlink(missing_ok=True)
        code, said = issue(store)
        world.judge(tally, store, code, said, f"{what} hung")
        yield tally


def _with_a_hang(world: World, what: str, chance: random.Random) -> tuple[str, Path, Child]:
    """What hangs, and the launch it is of."""
    store = world.empty()
    driver = Child(store, lambda: _quick_to_judge(store / HERE), LOCAL)
    if what == "process":
        with suppress(ProcessLookupError):
            os.kill(at_work(store, driver, chance.uniform(0, world.seconds / 4)), signal.SIGSTOP)
    else:
        (store / HERE).touch()
    return what, store, driver


def _quick_to_judge(at: Path) -> None:
    """Fork the workers, in which seconds count as minutes; the first one that finds a file hangs."""
    claims.BEAT, claims.LIMIT, atomic.PATIENCE = 0.2, 2.0, 1.0
    hang.LIMIT, launch.GRACE, local.PATIENCE = 2.0, 2.0, 0.5
    hangs(at)


def hangs(at: Path) -> None:
    """Fork the workers; the first to begin with a sample while a file is there renames it hung-PID, and hangs."""
    denoise = generate.denoise

    def hanging(*arguments: Any, **named: Any) -> Any:
        with suppress(FileNotFoundError):
            at.rename(at.with_name(f"hung-{os.getpid()}"))
            threading.Event().wait()
        return denoise(*arguments, **named)

    generate.denoise = hanging
    forks.workers()
