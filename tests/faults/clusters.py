"""kill -9 on Ray and SLURM: of a worker, of the driver, and of a node's own agent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pcbench.store.atomic import is_alive
from tests import slurm_node

from .harness import LINE, Child, Tally, World, issue, last
from .launches import at_work

RAY = (*LINE, "launcher=ray", "workers=2")
SLURM = (*LINE, "launcher=slurm", "workers=2", "slurm.cpus=1", "slurm.gpus=0", "slurm.minutes=30")


def ray_killed(world: World, seed: int, times: int = 6) -> Iterator[Tally]:
    """An actor, the driver, and the agent of the only node in turn. Ray starts the actor anew; without the driver or
    the agent the actors end, and the line is issued again."""
    tally, chance = Tally("kill -9 of a Ray actor, driver or agent"), random.Random(seed)
    for number in range(times):
        store, what = world.empty(), ("actor", "driver", "agent")[number % 3]
        driver = Child(store, _join_ray, RAY)
        actor = at_work(store, driver, chance.uniform(0, world.seconds / 2))
        victim = {"actor": actor, "driver": driver.pid, "agent": _child_named("raylet", driver.pid)}[what]
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        yield _after(world, tally, store, driver, what, goes_on=what == "actor", until=lambda a=actor: not is_alive(a))


def slurm_killed(world: World, seed: int, times: int = 6) -> Iterator[Tally]:
    """A job's process, the driver, and the agent of the only node (which is started again) in turn."""
    tally, chance = Tally("kill -9 of a SLURM job, driver or agent"), random.Random(seed)
    node = world.empty()
    with slurm_node.running(node):
        for number in range(times):
            store, what = world.empty(), ("job", "driver", "agent")[number % 3]
            driver = Child(store, line=SLURM)
            job = at_work(store, driver, chance.uniform(0, world.seconds / 2))
            if what == "agent":
                slurm_node.restart_agent(node)
            else:
                with suppress(ProcessLookupError):
                    os.kill(job if what == "job" else driver.pid, signal.SIGKILL)
            yield _after(world, tally, store, driver, what, goes_on=what != "driver", until=_queue_is_empty)


def _after(
    world: World, tally: Tally, store: Path, driver: Child, what: str, goes_on: bool, until: Callable[[], bool]
) -> Tally:
    code, said = driver.wait()
    tally.injected += 1
    if "Traceback" in said or (goes_on and code) or (what == "agent" and code not in (0, 1)):
        tally.wrong(f"{what} killed: exit code {code}: {last(said)}")
    while not until():
        time.sleep(0.1)
    code, said = issue(store)
    world.judge(tally, store, code, said, f"{what} killed")
    return tally


def _join_ray() -> None:
    """A cluster of this machine alone that says there are two GPUs."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    memory = 80 * 2**20
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=memory)


def _child_named(name: str, parent: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")
            if int(state[2].split()[1]) == parent and state[0].partition("(")[2] == name:
                return int(folder.name)
    raise LookupError(f"process {parent} has no child {name}")


def _queue_is_empty() -> bool:
    return not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout.strip()
