"""A few of each fault; `python -m tests.faults` injects hundreds."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pcbench.store import atomic

from .faults import damage, disks, kills, launches, writers
from .faults.harness import World, issue


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    """An undisturbed sweep; folders above are open to the user that root becomes for read-only folders."""
    root: Path = tmp_path_factory.mktemp("faults")
    shared = Path(tempfile.gettempdir())
    for folder in (root, *itertools.takewhile(lambda path: path != shared and shared in path.parents, root.parents)):
        folder.chmod(0o755)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield World(root)
    torch.set_num_threads(threads)  # records say how many there were


FAULTS = {
    "kills": lambda world: kills.at_random(world, 3, seed=1),
    "writes": lambda world: kills.in_writes(world, every=6),
    "writers": lambda world: writers.together(world, 2, times=1),
    "one killed": lambda world: writers.one_killed(world, seed=1, times=1),
    "launches": lambda world: launches.killed(world, seed=1, times=2),
    "empty": lambda world: damage.each(world, (".trace.json",), ("empty",)),
    "flipped": lambda world: damage.each(world, (".safetensors", ".mp4", ".fidelity.json"), ("a bit flipped late",)),
    "folder": lambda world: damage.each(world, (".mp4", "record"), ("a folder",)),
    "full": lambda world: disks.full(world, every=6),
    "read-only": disks.read_only,
    "deleted": lambda world: disks.deleted(world, times=1),
    "vanished": lambda world: disks.vanished(world, seconds=0.4, times=2),
    "hung": lambda world: launches.hung(world, seed=1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_costs_nothing_but_what_was_in_flight(world, fault):
    *_, tally = fault(world)
    assert tally.injected
    assert tally.clean, tally


@pytest.mark.parametrize("where", ["samples/*/*/*", "samples/*/*/*/vbench/custom", "records/*/*"])
def test_what_a_killed_writer_left_in_a_finished_sweep_is_deleted(world, where):
    """Another process had finished the sweep by then, so that nothing of it has to be made again."""
    store = world.copy()
    assert issue(store)[0] == 0
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    for folder in store.glob(where.removesuffix("/vbench/custom")):
        with atomic.partial(folder / "vbench" / "custom" / "x.mp4" if "vbench" in where else folder / "x.mp4") as own:
            own.touch()
            own.rename(own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{dead}-")))
    assert list(store.rglob(".partial-*"))
    code, said = issue(store)
    assert code == 0, said
    assert not list(store.rglob(".partial-*"))
    assert "sample 1/" not in said, said
