"""Search schedules by the error of the final latent: LeMiCa's graph of edges, BudCache's annealing and climbing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import yaml

from methods.engine.reuse import STRATEGIES
from methods.searched import OBJECTIVES, OFFICIAL, edges, path

from ..config import ConfigError, check_choice, check_fields, number
from ..messages import shortened
from ..observe.watch import Caller, Moment
from .latents import final_latent

Cost = Callable[[str], float]  # of a schedule's letters


@dataclass(kw_only=True)
class Search:
    """What to search. LeMiCa: longest, stride. BudCache: budgets, start, iterations, rounds, neighbours.

    objectives, reuse: each with each.
    longest: most steps from one computed step to the next, as in the published schedules of Wan (7) and HunyuanVideo
        1.5 (8).
    stride: edges are measured from every so many steps on; between them they are interpolated.
    budgets: numbers of computed steps; None is a half and two fifths of all, or the fewest of a path from `start`.
    start: "random", as official, or "lemica", its schedule of the same budget, with which a few runs do.
    iterations, rounds, neighbours: official values (configs/search_wan.yaml, stage1_search_wan.py), that many runs of
        each prompt for annealing, and rounds times neighbours for climbing.
    """

    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES))
    reuse: list[str] = field(default_factory=lambda: [OFFICIAL])
    longest: int = number(2, 100, 8)
    stride: int = number(1, 100, 3)
    budgets: list[int] | None = None
    start: str = "random"
    iterations: int = number(0, 10**6, 200)
    rounds: int = number(0, 10**4, 5)
    neighbours: int = number(1, 10**4, 20)

    @classmethod
    def of(cls, words: Sequence[str], steps: int) -> Search:
        """From words of the command line, search.NAME=VALUE, for runs of so many steps. Raises ConfigError."""
        given: dict[str, Any] = {}
        known = {each.name: each for each in fields(cls)}
        for word in words:
            name, _, text = word.removeprefix("search.").partition("=")
            check_choice("the option search.…", name, list(known))
            try:
                given[name] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"cannot read {shortened(word)!r}") from error
        search = cls(**given)
        search._check(steps)
        return search

    def budgets_of(self, steps: int) -> list[int]:
        """The budgets asked for, or the usual ones, of so many steps."""
        return self.budgets or default_budgets(steps, self._fewest(steps))

    def _fewest(self, steps: int) -> int:
        return fewest(steps, self.longest) if self.start == "lemica" else 2

    def _check(self, steps: int) -> None:
        for name, default in vars(Search()).items():
            value = getattr(self, name)
            kinds = {"budgets": (list, type(None))}.get(name, (type(default),))
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(f"search.{name} cannot be {shortened(value)!r}")
        check_fields(self, "search")
        for name, values, choices in (("objectives", self.objectives, OBJECTIVES), ("reuse", self.reuse, STRATEGIES)):
            if not values:
                raise ConfigError(f"search.{name} is empty: name at least one of {', '.join(choices)}")
            for value in values:
                check_choice(f"search.{name}", value, list(choices))
        check_choice("search.start", self.start, ["random", "lemica"])
        least = self._fewest(steps)
        for budget in self.budgets or []:
            if not isinstance(budget, int) or not least <= budget < steps:
                raise ConfigError(
                    f"search.budgets holds {budget!r}: give numbers from {least} to {steps - 1}, of {steps} steps"
                )


def default_budgets(steps: int, least: int) -> list[int]:
    """A half and two fifths of all steps, or the least that there is."""
    return list(dict.fromkeys(max(least, budget) for budget in (steps // 2, 2 * steps // 5)))


def fewest(steps: int, longest: int) -> int:
    """The fewest computed steps of a path from the first step to the last."""
    return -(-(steps - 1) // longest) + 1


@dataclass
class Sample:
    """One prompt's uncached call, against which schedules are measured."""

    caller: Caller
    moments: list[Moment]
    final: torch.Tensor

    @classmethod
    def of(cls, caller: Caller) -> Sample:
        """Call without a cache. Raises ValueError for two transformers, or a final latent that is not finite."""
        if getattr(caller.pipe, "transformer_2", None) is not None:
            raise ValueError("searched: a pipeline of two transformers cannot be calibrated")
        seen = caller.watch()
        if not torch.isfinite(seen.latents[-1]).all():
            raise ValueError("the final latents of these videos are not finite")
        return cls(caller, seen.moments, seen.latents[-1].float())

    def difference(self, actions: str, reuse: str) -> torch.Tensor:
        """The final latent under a schedule minus the uncached one."""
        return final_latent(self.caller, actions, reuse, self.moments).float() - self.final


def measure(callers: Iterable[Caller], search: Search, say: Callable[[str], None]) -> dict[str, Any]:
    """The searches asked for, by reuse and objective, as plain data."""
    samples = [Sample.of(caller) for caller in callers]
    steps = len(samples[0].moments)
    budgets = search.budgets_of(steps)
    searches: dict[str, Any] = {}
    for reuse in search.reuse:
        found: dict[str, Any] = {"lemica": None, "budcache": {}}
        if "lemica" in search.objectives or search.start == "lemica":
            found["lemica"] = graph(samples, reuse, search, say)
        for budget in budgets if "budcache" in search.objectives else []:

            def cost(actions: str, reuse: str = reuse) -> float:
                return float(np.mean([float(each.difference(actions, reuse).square().mean()) for each in samples]))

            rng = random.Random(0)
            first = path(edges(found["lemica"], steps), budget) if search.start == "lemica" else None
            found["budcache"][str(budget)] = anneal(cost, steps, budget, first, search, rng)
            say(f"{reuse}: budcache {budget} of {steps}: {found['budcache'][str(budget)]}")
        searches[reuse] = found
    return {"searches": searches, "samples": len(samples)}


def graph(samples: Sequence[Sample], reuse: str, search: Search, say: Callable[[str], None]) -> dict[str, Any]:
    """LeMiCa's edges: relative L1 error of the final latent if one stretch of steps alone is reused, mean over samples.

    Starts are every `stride`-th step, and the first ones, where errors change fastest; lengths grow by half each.
    """
    steps = len(samples[0].moments)
    starts = sorted({0, 1, 2, *range(0, steps - 2, search.stride)})
    starts = [start for start in starts if start < steps - 2]
    lengths = sorted({min(length, search.longest, steps - 1) for length in (2, 3, 5, 8, 12, 18, 27, 40, 60, 100)})
    errors: list[list[float | None]] = []
    for start in starts:
        row: list[float | None] = []
        for length in lengths:
            rest = steps - start - length
            actions = "F" * (start + 1) + "r" * (length - 1) + "F" * rest
            row.append(_relative_l1(samples, actions, reuse) if rest > 0 else None)
        errors.append(row)
        say(f"{reuse}: edges from step {start}: {row}")
    return {"starts": starts, "lengths": lengths, "errors": errors}


def _relative_l1(samples: Sequence[Sample], actions: str, reuse: str) -> float:
    values = [float(each.difference(actions, reuse).abs().mean() / each.final.abs().mean()) for each in samples]
    return float(f"{np.mean(values):.5g}")


def anneal(
    cost: Cost, steps: int, budget: int, first: str | None, search: Search, rng: random.Random
) -> dict[str, Any]:
    """BudCache's stage 1: annealing, then climbing to the best neighbour (scripts/stage1_search_wan.py of 14ba4c5).

    A schedule keeps its first computed steps, three tenths of the budget; the others move, by swaps. The temperature
    falls from the first schedule's own cost to its thousandth: officially from 0.1 to 0.0001, of costs whose size
    depends on the model.
    """
    kept = max(1, int(budget * 0.3))
    current = first or _random_mask(steps, budget, kept, rng)
    current_cost = lowest = first_cost = cost(current)
    best, runs, temperature = current, 1, first_cost
    for _ in range(search.iterations):
        candidate = swapped(current, kept, rng)
        candidate_cost = cost(candidate)
        runs += 1
        worse = candidate_cost - current_cost
        if worse < 0 or rng.random() < math.exp(-worse / max(temperature, 1e-300)):
            current, current_cost = candidate, candidate_cost
            if current_cost < lowest:
                best, lowest = current, current_cost
        temperature *= 1e-3 ** (1 / search.iterations)
    for _ in range(search.rounds):
        candidates = neighbours(best, kept, search.neighbours, rng)
        costs = {candidate: cost(candidate) for candidate in candidates}
        runs += len(costs)
        if costs and min(costs.values()) < lowest:
            best = min(costs, key=lambda candidate: costs[candidate])
            lowest = costs[best]
    return {"actions": best, "mse": lowest, "first_mse": first_cost, "runs": runs}


def _random_mask(steps: int, budget: int, kept: int, rng: random.Random) -> str:
    computed = {*range(kept), *rng.sample(range(kept, steps), budget - kept)}
    return "".join("F" if step in computed else "r" for step in range(steps))


def _movable(actions: str, kept: int) -> tuple[list[int], list[int]]:
    """The computed and the reused steps that may be swapped."""
    later = range(kept, len(actions))
    return [step for step in later if actions[step] == "F"], [step for step in later if actions[step] == "r"]


def _swap(actions: str, one: int, other: int) -> str:
    letters = list(actions)
    letters[one], letters[other] = letters[other], letters[one]
    return "".join(letters)


def swapped(actions: str, kept: int, rng: random.Random) -> str:
    """The schedule with one computed and one reused step exchanged at random."""
    computed, reused = _movable(actions, kept)
    return _swap(actions, rng.choice(computed), rng.choice(reused)) if computed and reused else actions


def neighbours(actions: str, kept: int, count: int, rng: random.Random, window: int = 3) -> list[str]:
    """`count` schedules one exchange away, out of all exchanges within `window` steps and as many random far ones."""
    computed, reused = _movable(actions, kept)
    if not computed or not reused:
        return []
    pairs = {(one, other) for one in computed for other in reused if abs(one - other) <= window}
    far = ((rng.choice(computed), rng.choice(reused)) for _ in range(2 * count))
    pairs |= {(one, other) for one, other in far if abs(one - other) > window}
    chosen = rng.sample(sorted(pairs), min(count, len(pairs)))
    return [_swap(actions, one, other) for one, other in chosen]


def describe(data: dict[str, Any]) -> list[str]:
    """The searches as lines of text for the terminal."""
    lines = []
    for reuse, found in data["searches"].items():
        if found["lemica"] is not None:
            for budget in default_budgets(data["steps"], fewest(data["steps"], found["lemica"]["lengths"][-1])):
                lines.append(f"{reuse}, lemica {budget}: {path(edges(found['lemica'], data['steps']), budget)}")
        for budget, one in found["budcache"].items():
            gain = f"RMSE {math.sqrt(one['mse']):.4g} after {one['runs']} runs, from {math.sqrt(one['first_mse']):.4g}"
            lines.append(f"{reuse}, budcache {budget}: {one['actions']} ({gain})")
    return lines
