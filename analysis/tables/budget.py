"""Every method tuned to the same budgets: its PSNR at each, its worst prompt, and how far it is from the best there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..load import Bench
from ..pareto import METRICS, SPECS, Curve, curves, mean_score, short_names, worst_score
from ..render import Block, Cell, Table
from ..stats import Interval, bootstrap
from .cells import IDENTICAL

TOLERANCE = 0.05  # relative distance from a budget within which a setting belongs to it
PSNR = next(iter(METRICS))


@dataclass(frozen=True)
class Point:
    """The setting of a curve that is nearest to a budget. place: its number in the curve. speedup: its own, by MACs.
    scores: PSNR (prompts,).

    reached: whether its speedup is within TOLERANCE of the budget.
    """

    place: int
    speedup: float
    scores: np.ndarray
    reached: bool

    @property
    def mean(self) -> Interval:
        """Over prompts, with its interval."""
        return bootstrap(lambda chosen: mean_score(self.scores[chosen]), len(self.scores))

    @property
    def worst(self) -> float:
        """The lowest PSNR of a prompt."""
        return float(worst_score(self.scores))

    def minus(self, other: Point) -> Interval:
        """The mean difference, prompt by prompt, over those for which both have a score: identical videos have none."""
        gaps = self.scores - other.scores
        return bootstrap(lambda chosen: mean_score(gaps[chosen]), len(gaps))


def nearest(curve: Curve, budget: float) -> Point:
    """The point of a curve at a budget, which is a speedup by MACs."""
    speedups = curve.speedups(np.arange(curve.macs.shape[1]), latency=False)
    place = int(np.abs(np.log(speedups / budget)).argmin())
    reached = abs(speedups[place] / budget - 1) <= TOLERANCE
    return Point(place, float(speedups[place]), curve.scores[PSNR][place], bool(reached))


def points(found: Mapping[str, Curve], budgets: Sequence[float]) -> dict[str, list[Point]]:
    """For each curve its point at each budget; the curves in the order of PSNR at the middle one, the best first."""
    at = {name: [nearest(curve, budget) for budget in budgets] for name, curve in found.items()}

    def place(name: str) -> tuple[float, str]:
        middle = at[name][(len(budgets) - 1) // 2]
        score = float(mean_score(middle.scores))
        return (-score if middle.reached and not math.isnan(score) else math.inf, name)

    return {name: at[name] for name in sorted(at, key=place)}


def reached(found: Sequence[Mapping[str, Curve]], budgets: Sequence[float]) -> tuple[float, ...]:
    """The budgets that a setting of at least one curve is at; all of them if none is."""
    all_curves = [curve for each in found for curve in each.values()]
    return tuple(b for b in budgets if any(nearest(curve, b).reached for curve in all_curves)) or tuple(budgets)


def tables(name: str, benches: Sequence[Bench], budgets: Sequence[float]) -> list[Table]:
    """PSNR at each budget, and its paired difference to the best there, a block for each bench; [] without curves."""
    scores, differences, known = [], [], []
    for bench in benches:
        with contextlib.suppress(ValueError):  # no prompt in common
            known.append((bench, *curves(bench)))
    budgets = reached([found for _, found, _ in known], budgets)
    for bench, found, prompts in known:
        if found:
            names, at = short_names(found), points(found, budgets)
            best = [_best([each[number] for each in at.values()]) for number in range(len(budgets))]
            heading = f"{bench.heading}: {prompts} prompts"
            scores.append(Block(heading, [_scores(names[curve], each) for curve, each in at.items()]))
            differences.append(Block(heading, [_differences(names[curve], each, best) for curve, each in at.items()]))
    if not scores:
        return []
    heads = [f"{budget:g}×" for budget in budgets]
    pairs = [each for head in heads for each in (f"PSNR (dB) at {head} ↑", f"worst at {head}")]
    notes = [
        f"A setting is at a budget if it has that many times fewer MACs than no cache, within {TOLERANCE:.0%}, over"
        " the prompts that all records of a block have. In parentheses: the method has no setting there; its "
        "nearest one, and how many times fewer MACs that has.",
        "worst: the lowest PSNR of a prompt. Brackets: 95 % bootstrap intervals over prompts.",
    ]
    paired = [notes[0].partition(" In parentheses")[0], "Differences are paired, prompt by prompt, in dB of PSNR."]
    return [
        Table(f"{name}-at", f"{name}: every method at equal MACs", ("method", *pairs), scores, notes),
        Table(f"{name}-behind", f"{name}: how far behind the best", ("method", *heads), differences, paired),
    ]


def _best(at: Sequence[Point]) -> Point | None:
    """The point with the highest mean of those that reach the budget; None if none does."""
    scored = [point for point in at if point.reached and not np.isnan(point.scores).all()]
    return max(scored, key=lambda point: float(mean_score(point.scores)), default=None)


def _scores(name: str, at: Sequence[Point]) -> list[Cell]:
    row = [Cell(text=name)]
    for point in at:
        mean = point.mean
        if point.reached or math.isnan(mean.value):
            row += [Cell(*mean, spec=SPECS[PSNR], why=IDENTICAL), Cell(point.worst, spec=SPECS[PSNR])]
        else:
            row += [Cell(text=f"({mean.value:{SPECS[PSNR]}} at {point.speedup:.2f}×)"), Cell()]
    return row


def _differences(name: str, at: Sequence[Point], best: Sequence[Point | None]) -> list[Cell]:
    row = [Cell(text=name)]
    for point, leader in zip(at, best, strict=True):
        if not point.reached or leader is None:
            row.append(Cell(why=f"no setting within {TOLERANCE:.0%} of the budget"))
        else:
            same = point is leader
            row.append(Cell(text="best") if same else Cell(*point.minus(leader), spec=f"+{SPECS[PSNR]}", why=IDENTICAL))
    return row
