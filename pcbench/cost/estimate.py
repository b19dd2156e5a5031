"""What one video of a run will cost in MACs, before it is made, and how that is known.

The cost is exact if the method follows a schedule (dry_run.py). If the method looks at the data, the trials are known
exactly but the number of computed steps is not: it is taken from records, or from what the paper's MACs imply, or it
stays open, and then the price is the most it can be.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import backbones, paper
from ..config import Run
from ..identity import described, exact, recipe_id
from .dry_run import Rehearsal, rehearse
from .macs import Macs, call_price, trace_price


@dataclass(frozen=True)
class Price:
    """MACs of one video.

    expected: the best estimate; the upper bound if nothing is known. trial: the part of it spent on trials.
    computed: the number of computed steps, out of `steps`, that `expected` assumes.
    basis: "schedule" (exact), "records", "paper", "other records" or "bound"; assumed: the same in a sentence.
    """

    expected: Macs
    trial: Macs
    lower: Macs
    upper: Macs
    computed: float
    steps: int
    basis: str
    assumed: str
    rehearsal: Rehearsal

    @property
    def partial(self) -> int:
        """Steps of the rehearsal that are computed in part."""
        return self.rehearsal.partial


@dataclass
class Known:
    """Everything a rehearsal shows about a run whose computed steps depend on the data."""

    run: Run
    rehearsal: Rehearsal
    upper: Macs = field(init=False)
    trial: Macs = field(init=False)
    step: Macs = field(init=False)  # one computed step, all guidance branches, without the trial
    blocks: Macs = field(init=False)  # the part of a computed step that is in blocks
    saved: Macs = field(init=False)  # what a reused step saves

    def __post_init__(self) -> None:
        trace = self.rehearsal.trace
        transformer, config = transformer_of(self.run)
        price = functools.partial(call_price, transformer, config, trace["arguments"])
        self.upper = trace_price(transformer, config, trace)
        self.trial = trace_price(transformer, config, trace, trials=True)
        calls = [call for call in trace["steps"][0]["calls"] if call["only"] is None]  # the first step computes all
        self.step = sum((price(call) for call in calls), Macs())
        self.blocks = sum((price({**call, "only": self.rehearsal.blocks}) for call in calls), Macs())
        running = self.run.recipe.method.blocks_run(self.rehearsal.blocks)
        spent = sum((price({**call, "only": running or {}}) for call in calls), Macs())
        self.saved = self.step if running is None else self.blocks - spent

    def at(self, computed: float) -> Macs:
        """MACs if this many steps are computed."""
        inside = self.run.recipe.method.steps_saved_inside(computed, sum(self.rehearsal.blocks.values()))
        return self.upper - (self.rehearsal.steps - computed) * self.saved - inside * self.blocks

    def equivalent(self, macs: float) -> float:
        """Number of full steps that, together with the trials, cost this many MACs."""
        return self.rehearsal.steps - (self.upper.total - macs) / self.step.total


def price_of(run: Run, records: Sequence[dict[str, Any]] = ()) -> Price:
    """The price of one video of the run; `records` are earlier measurements it may learn from."""
    known = Known(run, rehearse(run.recipe))
    rehearsal, upper, trial, steps = known.rehearsal, known.upper, known.trial, known.rehearsal.steps
    if rehearsal.follows_schedule:
        assumed = "exact: the method follows a schedule"
        return Price(upper, trial, upper, upper, rehearsal.computed, steps, "schedule", assumed, rehearsal)
    lower = known.at(rehearsal.least)
    for source in SOURCES:
        if (found := source(known, records)) is not None:
            expected, computed, basis, assumed = found
            return Price(expected, trial, lower, upper, computed, steps, basis, assumed, rehearsal)
    assumed = f"upper bound: how many of {steps} steps are computed depends on the video, and there are no records"
    return Price(upper, trial, lower, upper, steps, steps, "bound", assumed, rehearsal)


Found = tuple[Macs, float, str, str]


def _own_records(known: Known, records: Sequence[dict[str, Any]]) -> Found | None:
    """From records of the same recipe, on any machine: what its videos actually cost."""
    own = recipe_id(known.run.recipe)
    samples = [sample for record in records if record["id"] == own for sample in record["samples"]]
    if not samples:
        return None
    macs, computed = (statistics.fmean(sample[name] for sample in samples) for name in ("macs", "computed"))
    removed = known.rehearsal.steps - known.equivalent(macs)
    text = f"mean of {len(samples)} recorded videos of this recipe: {computed:.1f} steps computed"
    return known.upper - removed * known.step, computed, "records", text


def _paper(known: Known, records: Sequence[dict[str, Any]]) -> Found | None:
    """From the paper's own MACs on this backbone, converted to steps of this run."""
    recipe = known.run.recipe
    preset = known.run.preset if recipe.method.NAME == "precisecache" else None
    implied = paper.implied_share(recipe.backbone.name, preset) if preset else None
    if implied is None:
        return None
    row, share = implied
    steps = known.rehearsal.steps
    computed = share * steps - known.trial.total / known.step.total
    text = f"the paper's Table 1 ({row}) implies {computed:.1f} of {steps} full steps beside the trials"
    return known.upper - (steps - computed) * known.step, computed, "paper", text


def _other_records(known: Known, records: Sequence[dict[str, Any]]) -> Found | None:
    """From records of the same method on other backbones: its share of computed steps."""
    method = known.run.recipe.method
    same = json.loads(json.dumps(described(exact(method))))  # how it stores tensors changes no MACs
    samples = [
        (record["recipe"]["backbone"]["name"], sample["computed"] / sample["steps"])
        for record in records
        if {name: value for name, value in record["recipe"]["method"].items() if name != "kept"} == same
        for sample in record["samples"]
    ]
    if not samples:
        return None
    names, steps = sorted({name for name, _ in samples}), known.rehearsal.steps
    computed = max(steps * statistics.fmean(share for _, share in samples), known.rehearsal.least)
    text = f"as on {', '.join(names)} ({len(samples)} recorded videos): {computed:.1f} of {steps} steps computed"
    return known.at(computed), computed, "other records", text


# In this order: a number published for this backbone says more than one measured on another.
SOURCES: tuple[Callable[[Known, Sequence[dict[str, Any]]], Found | None], ...] = (_own_records, _paper, _other_records)


def transformer_of(run: Run) -> tuple[type, dict[str, Any]]:
    """The transformer's class and config."""
    backbone = run.recipe.backbone
    return backbones.family(backbone).TRANSFORMER, backbones.transformer_config(backbone)
