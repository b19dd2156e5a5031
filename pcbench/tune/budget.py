"""Runs with a budget: each method is set to cost the same before methods are compared, so nothing is interpolated.

The setting is found on the run's own prompts. That is no leak: only its cost is looked at, never its quality (unless
the budget is a PSNR, and what is compared is speed). What is tried is kept in the folder `tuning` under the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from .. import target
from ..config import Run
from ..failures import FailedError
from .evidence import Bench, search_on
from .search import UnreachableError

PROMPTS = 8  # a setting is tried on these many of the run's
CLOSE = 0.015  # relative distance from the budget that is close enough
NARROW = 1.005  # nor is a setting tried that differs by less


def same_but_for_names(run: Run, other: Run) -> bool:
    """Whether two runs do the same work: two budgets of a method may be met by one setting."""
    return replace(run, label="", preset=None) == replace(other, label="", preset=None)


@dataclass
class Budgets:
    """Finds settings one after another; what was tried for one budget of a method brackets the next.

    missed: a line for each budget that no setting reaches. failed: a line for each whose search failed.
    """

    say: Callable[[str], None]
    missed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _tried: dict[str, dict[float, float]] = field(default_factory=dict)

    def settle(self, runs: Iterable[Run]) -> list[Run]:
        """The runs with the settings that their budgets ask for, each once; runs without a budget as they are.

        A budget out of reach gets the nearest setting.
        """
        settled: list[Run] = []
        for run in runs:
            try:
                done = run if run.budget is None else self._settled(run)
            except FailedError as error:
                self.failed.append(f"{run.recipe.backbone.name} {run.label}: {error}")
            else:
                if run.budget is None or not any(same_but_for_names(done, other) for other in settled):
                    settled.append(done)
        return settled

    def _settled(self, run: Run) -> Run:
        assert run.budget is not None
        goal = target.parse(run.budget)
        trials = replace(run, results=run.results / "tuning")
        bench = Bench(trials, goal, run.prompts[:PROMPTS], self.say, self.say)
        search = search_on(bench)
        search.close, search.narrow = CLOSE, NARROW
        search.tried = self._tried.setdefault(f"{run.recipe} {goal.unit}", search.tried)
        start = search.best(goal.value) if search.tried else bench.default
        try:
            value = search.find(goal.value, start)
        except UnreachableError as error:
            self.missed.append(f"{run.recipe.backbone.name} {run.label}: {goal}, while {error}")
            value = search.best(goal.value)
        tuned = bench.with_setting(value)
        return replace(run, label=tuned.label, recipe=tuned.recipe, preset=None, budget=None)
