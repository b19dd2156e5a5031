"""One setting carried out on some prompts, and what its record says of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from methods.engine.method import Method, Tradeoff

from .. import runs, stages
from ..config import ConfigError, Run
from ..cost.macs import reference_macs
from ..cost.timesteps import num_steps
from ..job import job_of
from ..record import read
from ..runs import RefusedError
from ..target import Target
from .search import MOST, Search

FEW = 2  # prompts on which a setting is tried first
CLEAR = 4.0  # standard errors from the target at which more prompts would not change where a setting lies


def tradeoff_of(method: Method) -> Tradeoff:
    """The field by which a method is tuned. Raises ConfigError if it has none."""
    if method.TRADEOFF is None:
        raise ConfigError(f"{method.NAME} has no single field that trades quality for speed: nothing to tune")
    return method.TRADEOFF


@dataclass
class Bench:
    """Settings of one method, measured on some of a run's prompts.

    tuned_on: the prompts. say: where a line for each setting goes. detail: where what a stage says goes.
    settled: a line for each setting that was carried out, with what it measured.
    """

    run: Run
    target: Target
    tuned_on: Sequence[str]
    say: Callable[[str], None]
    detail: Callable[[str], None]
    settled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tradeoff = tradeoff_of(self.run.recipe.method)
        self._longest = 0.0  # seconds that a setting took
        self._exact: dict[float, float] = {}  # what settings measure on all prompts to tune on

    @property
    def limits(self) -> tuple[float, float]:
        """The range of the field."""
        low, high = self.tradeoff.limits(num_steps(self.run.recipe))
        return (self.values[0], self.values[-1]) if self.values else (low, high)

    @functools.cached_property
    def values(self) -> tuple[float, ...]:
        """The whole numbers of the field that the method accepts here, rising; none if it takes others as well."""
        low, high = self.tradeoff.limits(num_steps(self.run.recipe))
        whole = map(float, range(int(low), int(high) + 1)) if self.tradeoff.whole else ()
        return tuple(value for value in whole if self._accepts(value))

    def _accepts(self, value: float) -> bool:
        try:
            runs.check(self.with_setting(value))
        except RefusedError:
            return False
        return True

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

    def tune(self, value: float, fewest: int = FEW) -> float:
        """Measure a setting on the prompts to tune on, on as few as tell where it lies, and say so."""
        began, number = time.monotonic(), fewest
        while True:
            measured, error = self.measure(value, self.tuned_on[:number])
            if number >= len(self.tuned_on) or self._clear(measured, error, number):
                break
            number *= 2
        if number >= len(self.tuned_on):
            self._exact[value] = measured
        self.settled.append(f"{self.tradeoff.field} {value:g}: {self.target.text(measured)}")
        self._longest = max(self._longest, time.monotonic() - began)
        tries = len(self.settled)
        left = f"at most {MOST - tries} more, {(MOST - tries) * self._longest / 60:.0f} min"
        self.say(f"{self.run.label}  {self.settled[-1]}, aiming at {self.target} (try {tries}, {left})")
        return measured

    def confirm(self, value: float) -> float:
        """Measure a setting on all prompts to tune on, and say so, unless that was done."""
        return self._exact[value] if value in self._exact else self.tune(value, len(self.tuned_on))

    def _clear(self, measured: float, error: float, number: int) -> bool:
        """Whether more prompts would not change on which side of the target a setting is, or would all say the same."""
        if error == 0:
            return number > FEW  # two may agree by chance
        return abs(measured - self.target.value) > CLEAR * error

    def measure(self, value: float, prompts: Sequence[str]) -> tuple[float, float]:
        """Carry out a setting on some prompts, unless that was done before: what it measures, and the standard error.

        Raises FailedError.
        """
        run = replace(self.with_setting(value), prompts=list(prompts))
        job = job_of(run)
        stages.execute(job, self.detail)
        samples, reference = [sample for sample in read(job)["samples"] if _asked(sample, run)], reference_macs(job)
        return self.target.measure(samples, reference), self.target.error(samples, reference)


def _asked(sample: Mapping[str, Any], run: Run) -> bool:
    return sample["prompt"] in run.prompts and sample["seed"] in run.seeds


def search_on(bench: Bench) -> Search:
    """A search over the settings of a bench. Where few prompts are all there are, nothing can be measured better."""
    low, high = bench.limits
    rises = bench.tradeoff.more_is_faster == bench.target.faster_is_more
    confirm = bench.confirm if len(bench.tuned_on) > FEW else None
    return Search(bench.tune, low, high, rises, bench.values, confirm=confirm, at_least=bench.target.at_least)
