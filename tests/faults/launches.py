"""kill -9 of a worker, or of the driver, of `launcher=local`."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pcbench.launch.worker import FOLDER
from tests import forks

from .harness import LINE, Child, Tally, World, issue

LOCAL = (*LINE, "launcher=local", "workers=2")


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


def killed(world: World, seed: int, times: int = 4) -> Iterator[Tally]:
    """A worker and the driver in turn, in the middle of their work. The other worker does what is left; after the
    driver's end its workers end too, and the line is issued again."""
    tally, chance = Tally("kill -9 of a worker or its driver"), random.Random(seed)
    for number in range(times):
        store, what = world.empty(), ("worker", "driver")[number % 2]
        driver = Child(store, forks.workers, LOCAL)
        while not (claimants := _claimants(store)) and driver.runs:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, world.seconds / 2))
        claimants = _claimants(store) or claimants
        with suppress(ProcessLookupError):  # it had just ended
            os.kill(driver.pid if what == "driver" else claimants[0], signal.SIGKILL)
        code, said = driver.wait()
        tally.injected += 1
        if what == "worker" and code:
            tally.wrong(f"worker killed: exit code {code}: {said.strip().splitlines()[-1:]}")
        while workers(store):
            time.sleep(0.01)
        code, said = issue(store)
        world.judge(tally, store, code, said, f"{what} killed")
        yield tally
