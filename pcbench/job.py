"""A run together with what follows from it, looked up once: its id, its files' place, its family, its reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import backbones, provenance
from .backbones.family import Family
from .config import Recipe, Run
from .identity import recipe_id, sample_key
from .store import Place, SampleFiles


@dataclass(frozen=True, eq=False)
class Job:
    """A run to carry out or to ask about.

    id: the recipe's. family: the module of its backbone's family. config: the transformer's full config.
    uncached: the job of the same recipe without a cache; None if this job is uncached itself.
    """

    run: Run
    id: str
    place: Place
    family: Family
    config: dict[str, Any]
    uncached: Job | None

    @property
    def recipe(self) -> Recipe:
        """Everything that determines the run's pixels."""
        return self.run.recipe

    @property
    def reference(self) -> Job:
        """The job that this one is compared with: itself if it is uncached."""
        return self.uncached or self

    @property
    def whole(self) -> Job:
        """The job with all its samples, if this one has a shard's only."""
        return self if self.run.only is None else replace(self, run=replace(self.run, only=None))

    def files(self, prompt: str, seed: int) -> SampleFiles:
        """The paths of a sample's files, whether they exist or not."""
        return self.place.sample(sample_key(prompt, seed))

    def in_turn(self, begin: float = 0.0) -> list[tuple[str, int]]:
        """The run's samples (prompt and seed), in turn from the one that is so far into their list, 0 to 1."""
        samples = list(self.run.samples)
        start = int(begin * len(samples))
        return samples[start:] + samples[:start]

    def missing(self, begin: float = 0.0) -> list[tuple[str, int]]:
        """Those that are not on disk."""
        return [(prompt, seed) for prompt, seed in self.in_turn(begin) if not self.files(prompt, seed).complete]


def jobs_of(runs: Iterable[Run]) -> list[Job]:
    """A job for each run; what runs of one backbone and machine have in common is looked up once."""
    machines: dict[tuple[str, int], str] = {}
    known: dict[str, tuple[Family, dict[str, Any]]] = {}

    def job(run: Run, uncached: Job | None) -> Job:
        recipe, backbone = run.recipe, run.recipe.backbone
        machine = run.device, recipe.numerics.parallel
        if machine not in machines:
            machines[machine] = provenance.machine_of(run)["name"]
        if repr(backbone) not in known:
            known[repr(backbone)] = backbones.family(backbone), backbones.transformer_config(backbone)
        identity = recipe_id(recipe)
        place = Place(run.results, machines[machine], backbone.name, recipe.method.NAME, identity)
        return Job(run, identity, place, *known[repr(backbone)], uncached)

    jobs: list[Job] = []
    uncached: Job | None = None
    for run in runs:
        cached = run.recipe.method.NAME != "none"
        reference = run.reference if cached else run
        if uncached is None or uncached.run != reference:
            uncached = job(reference, None)
        jobs.append(job(run, uncached) if cached else uncached)
    return jobs


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """Every recipe (and budget) of a results folder once, each after its reference, with the samples of all its runs:
    the runs of a sweep over prompts or seeds have one recipe, and one record."""
    found: dict[tuple[Place, str | None], Job] = {}
    for job in jobs:
        for each in (job.reference, job):
            key = each.place, each.run.budget
            found[key] = _with_samples_of(found[key], each) if key in found else each
    return list(found.values())


def _with_samples_of(job: Job, other: Job) -> Job:
    run, more = job.run, other.run
    if (run.prompts, run.seeds, run.only) == (more.prompts, more.seeds, more.only):
        return job
    prompts, seeds = (list(dict.fromkeys([*a, *b])) for a, b in ((run.prompts, more.prompts), (run.seeds, more.seeds)))
    only = frozenset([*run.samples, *more.samples])
    return replace(job, run=replace(run, prompts=prompts, seeds=seeds, only=only, images=run.images | more.images))


def job_of(run: Run) -> Job:
    """The job of one run."""
    (job,) = jobs_of([run])
    return job
