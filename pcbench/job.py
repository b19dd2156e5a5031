"""A run with what follows from it looked up once: its id, where its files are, its family, its reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import backbones, provenance
from .backbones.family import Family
from .config import Recipe, Run
from .identity import recipe_id, sample_key
from .store import Place, SampleFiles


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is to be carried out, or asked about.

    id: the recipe's. family: what its backbone's family has of its own. config: the transformer's, in full.
    uncached: the job of the same recipe without a cache; None if this is it.
    """

    run: Run
    id: str
    place: Place
    family: Family
    config: dict[str, Any]
    uncached: Job | None

    @property
    def recipe(self) -> Recipe:
        """What decides the run's pixels."""
        return self.run.recipe

    @property
    def reference(self) -> Job:
        """What this job is compared with: itself, if it is uncached."""
        return self.uncached or self

    def files(self, prompt: str, seed: int) -> SampleFiles:
        """Where a sample's files are, made or not."""
        return self.place.sample(sample_key(prompt, seed))

    def missing(self) -> list[tuple[str, int]]:
        """The run's samples that are not on disk."""
        return [(prompt, seed) for prompt, seed in self.run.samples if not self.files(prompt, seed).complete]


def jobs_of(runs: Iterable[Run]) -> list[Job]:
    """A job for each run; runs of one backbone and machine share what they have in common."""
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

    found: list[Job] = []
    uncached: Job | None = None
    for run in runs:
        cached = run.recipe.method.NAME != "none"
        reference = run.reference if cached else run
        if uncached is None or uncached.run != reference:
            uncached = job(reference, None)
        found.append(job(run, uncached) if cached else uncached)
    return found


def job_of(run: Run) -> Job:
    """The job of one run."""
    (job,) = jobs_of([run])
    return job
