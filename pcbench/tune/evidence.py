"""One setting carried out on some prompts, and what its record says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from methods.engine.method import Tradeoff

from .. import stages
from ..config import ConfigError, Run
from ..cost.macs import reference_macs
from ..job import job_of
from ..record import read
from .target import Target


@dataclass
class Bench:
    """Settings of one method on a run's prompts: the first half is tuned on, the other half checks.

    settled: a line for each setting that was carried out, with what it measured.
    """

    run: Run
    target: Target
    say: Callable[[str], None]
    settled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        method = self.run.recipe.method
        if method.TRADEOFF is None:
            raise ConfigError(f"{method.NAME} has no single field that trades quality for speed: nothing to tune")
        if len(self.run.prompts) < 2:
            raise ConfigError("tuning needs at least two prompts: one half to tune on, the other half to check on")
        self.tradeoff: Tradeoff = method.TRADEOFF

    @property
    def halves(self) -> tuple[list[str], list[str]]:
        """The prompts to tune on, and those to check on."""
        middle = (len(self.run.prompts) + 1) // 2
        return self.run.prompts[:middle], self.run.prompts[middle:]

    @property
    def limits(self) -> tuple[float, float]:
        """The range of the field."""
        high = self.run.recipe.sampling.steps if self.tradeoff.high is None else self.tradeoff.high
        return self.tradeoff.low, high

    @property
    def default(self) -> float:
        """The field's value to begin at: the method's own."""
        value = getattr(self.run.recipe.method, self.tradeoff.field)
        low, high = self.limits
        return float(value) if value else (low * high) ** 0.5

    def with_setting(self, value: float) -> Run:
        """The run with the field set."""
        name, method = self.tradeoff.field, self.run.recipe.method
        changed = replace(method, **{name: int(value) if self.tradeoff.whole else value})
        label = f"{self.run.label} {name}={value:g}"
        recipe = replace(self.run.recipe, method=changed)
        return replace(self.run, label=label, recipe=recipe, stages=self.target.stages, fidelity=("raw",), preset=None)

    def measure(self, value: float, prompts: Sequence[str]) -> float:
        """Carry out a setting on some prompts, unless that was done before, and measure it. Raises FailedError."""
        run = replace(self.with_setting(value), prompts=list(prompts))
        job = job_of(run)
        stages.execute(job, self.say)
        samples = [sample for sample in read(job)["samples"] if _asked(sample, run)]
        return self.target.measure(samples, reference_macs(job))

    def tune(self, value: float) -> float:
        """Measure a setting on the half to tune on, and say so."""
        measured = self.measure(value, self.halves[0])
        self.settled.append(f"{self.tradeoff.field} {value:g}: {self.target.text(measured)}")
        self.say(f"{self.run.label}  {self.settled[-1]}, aiming at {self.target}")
        return measured


def _asked(sample: Mapping[str, Any], run: Run) -> bool:
    return sample["prompt"] in run.prompts and sample["seed"] in run.seeds
