"""A deterministic share of a sweep's samples, for any scheduler: `shard=3/8` makes the third eighth of them.

The samples are cut into contiguous shares of equal planned cost, model by model, so that most shares need one model
only. A sample stays together with all methods' samples of the same prompt and seed, and with their uncached reference:
a share has the references of its own samples, and no two shares make the same one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..config import ConfigError, Run
from ..cost.macs import PETA, reference_macs
from ..job import Job, distinct, jobs_of
from ..messages import shortened

MOST = 100_000  # no scheduler takes longer arrays
ARRAYS = (  # of common schedulers: the variable with a task's number, and how to ask for tasks 1 to n
    ("SLURM_ARRAY_TASK_ID", "sbatch --array=1-{n}"),
    ("PBS_ARRAY_INDEX", "qsub -J 1-{n}"),
    ("LSB_JOBINDEX", 'bsub -J "pcbench[1-{n}]"'),
    ("SGE_TASK_ID", "qsub -t 1-{n}"),
)


@dataclass(frozen=True)
class Shard:
    """The share with this number, from 1, of so many."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse(text: str | None) -> Shard | None:
    """The shard that `shard=i/n` names; None for none. Raises ConfigError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MOST:
        raise ConfigError(f"shard must be i/n with i from 1 to n, as in shard=3/8, not {shortened(text)!r}")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Unit:
    """A prompt and seed of one model: the reference and what is compared with it; macs: what that costs at most."""

    reference: str
    sample: tuple[str, int]
    macs: int
    videos: int


def units(jobs: Sequence[Job]) -> list[Unit]:
    """Everything that shards are made of, in the order of the jobs, one model after another."""
    groups: dict[str, list[Job]] = {}
    for job in distinct(jobs):
        groups.setdefault(group_of(job), []).append(job)
    found = []
    for name, group in groups.items():
        full = reference_macs(group[0])
        count: dict[tuple[str, int], int] = {}
        for job in group:
            for sample in job.run.samples:
                count[sample] = count.get(sample, 0) + 1
        found += [Unit(name, sample, full * videos, videos) for sample, videos in count.items()]
    return found


def group_of(job: Job) -> str:
    """What is one group of jobs: a model, and the reference they are compared with."""
    return f"{job.place.model} {job.reference.id}"


def cut(parts: Sequence[Unit], count: int) -> list[list[Unit]]:
    """The units in so many contiguous shares of about equal cost; with fewer units than shares, some are empty."""
    shares: list[list[Unit]] = [[] for _ in range(count)]
    total, before = sum(unit.macs for unit in parts), 0
    for unit in parts:
        shares[(2 * before + unit.macs) * count // (2 * total)].append(unit)
        before += unit.macs
    return shares


def take(runs: Iterable[Run], shard: Shard | None) -> list[Run]:
    """The runs with the shard's samples only; runs without any are left out. All of them if there is no shard."""
    runs = list(runs)
    if shard is None:
        return runs
    jobs = jobs_of(runs)
    own: dict[str, set[tuple[str, int]]] = {}
    for unit in cut(units(jobs), shard.count)[shard.number - 1]:
        own.setdefault(unit.reference, set()).add(unit.sample)
    taken = [replace(job.run, only=frozenset(own.get(group_of(job), ()))) for job in jobs]
    return [run for run in taken if run.samples]


def lines(words: Sequence[str], jobs: Sequence[Job], count: int) -> list[str]:
    """The command lines of all shards, with comments for people: a shell script, or lines for a job array."""
    rest = [word for word in words if not word.startswith(("shards=", "shard="))]
    command = f"python -m pcbench {shlex.join(rest)}".rstrip()
    shares = cut(units(jobs), count)
    found = [f"# {count} shards, each on a GPU and machine of its own, all with one results folder:"]
    for number, share in enumerate(shares, 1):
        videos, macs = sum(unit.videos for unit in share), sum(unit.macs for unit in share)
        note = f"{videos} videos, at most {macs / PETA:.3g} PMACs" if share else "nothing: there are fewer samples"
        found.append(f"{command} shard={number}/{count}  # {note}")
    found.append("# or as an array of jobs, whose number the scheduler puts in:")
    for variable, ask in ARRAYS:
        found.append(f"#   {ask.format(n=count):28} {command} shard=${variable}/{count}")
    found.append("# nodes that are alike count as one machine if all have the same PCBENCH_HOST=NAME; then the table:")
    return [*found, command]
