"""`python -m tests.faults [--kills 100] [--only WORD …]`: the table; exit code 1 if not all is clean."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests import slurm_node

from . import clusters, damage, disks, kills, launches, writers
from .harness import Tally, World

Fault = Callable[[World], Iterator[Tally]]


def faults(kill_count: int, seed: int) -> dict[str, Fault]:
    """Every kind of fault by a word for it."""
    return {
        "writers": lambda world: writers.together(world, 2),
        "three": lambda world: writers.together(world, 3),
        "killed": lambda world: writers.one_killed(world, seed),
        "launches": lambda world: launches.killed(world, seed),
        "hung": lambda world: launches.hung(world, seed),
        **({"ray": lambda world: clusters.ray_killed(world, seed)} if importlib.util.find_spec("ray") else {}),
        **({"slurm": lambda world: clusters.slurm_killed(world, seed)} if slurm_node.can_start() else {}),
        "read-only": disks.read_only,
        "deleted": disks.deleted,
        "vanished": disks.vanished,
        "limit": disks.small_files,
        "damage": damage.each,
        "full": disks.full,
        "writes": kills.in_writes,
        "kills": lambda world: kills.at_random(world, kill_count, seed),
    }


def inject(world: World, chosen: dict[str, Fault], say: Callable[[str], None]) -> list[Tally]:
    """All tallies of these faults, in order."""
    found: dict[str, Tally] = {}
    for number, (word, fault) in enumerate(chosen.items(), 1):
        began = time.monotonic()
        for tally in fault(world):
            if tally.fault not in found or tally.injected % 10 == 0:
                say(f"[{number}/{len(chosen)}] {word}: {tally.injected} injected, {time.monotonic() - began:.0f} s")
            found[tally.fault] = tally
        say("\n".join(row(tally) for tally in found.values()))  # all so far, should this be the last word
    return list(found.values())


def row(tally: Tally) -> str:
    """A line of the table."""
    return f"{tally.fault:44} {tally.injected:8} {tally.lost:13} {tally.differ:15} {tally.silent:18}"


def show(tallies: Sequence[Tally]) -> None:
    """Print the table and what was wrong."""
    print(f"{'fault':44} {'injected':>8} {'samples lost':>13} {'records differ':>15} {'silent or unclear':>18}")
    for tally in [*tallies, _sum(tallies)]:
        print(row(tally))
    for note in (note for tally in tallies for note in tally.notes):
        print(f"  {note}")


def _sum(tallies: Sequence[Tally]) -> Tally:
    totals = (sum(getattr(tally, name) for tally in tallies) for name in ("injected", "lost", "differ", "silent"))
    return Tally("all", *totals)


def main(argv: Sequence[str] | None = None) -> int:
    """Inject and report."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at random moments; those in writes are apart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="words for faults: " + ", ".join(faults(0, 0)))
    args = parser.parse_args(argv)
    chosen = {
        word: fault for word, fault in faults(args.kills, args.seed).items() if not args.only or word in args.only
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pcbench-faults-") as folder:
        world = World(Path(folder))
        print(f"an undisturbed run takes {world.seconds:.1f} s: {len(world.records)} records", flush=True)
        tallies = inject(world, chosen, lambda line: print(line, file=sys.stderr, flush=True))
    show(tallies)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(tally.clean for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
