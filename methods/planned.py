"""Planned reuse, a method of ours: the best schedule for a number of computed steps, found before any video is made.

How wrong a reused step is depends, for the answers of reuse.py that are sums of computed predictions with weights that
add up to one, on inner products of uncached predictions alone: with F(s) the prediction at noise level s, and a line
through levels a and b,

    |F(s) - w F(a) - (1 - w) F(b)|²   =   a quadratic form in the Gram matrix of F.

`python -m pcbench.calibrate method=planned` averages that matrix over a few uncached calls. Errors of all (s, a, b)
follow from it without another call of the transformer, and dynamic programming over the last two computed steps finds
the schedule that minimises the sum of |s' - s| times the error over its reused steps: how far they may move the latent.
The matrix is kept of the predictions' differences, level to level, and read off between levels by a spline, so that one
calibration serves other numbers of steps. docs/planned.md has the mathematics on a page.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .calibration import all_measured, measured
from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.forecast import Hermite
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step
from .schedule import check_actions, check_fits, check_steps


@dataclass(kw_only=True)
class PlannedConfig(StepwiseCache):
    """Compute `steps` steps, those that a plan for this backbone, schedule and `reuse` says.

    steps: how many are computed, protected ones included.
    calibration: fingerprint of the matrix that is planned with, or the model it was measured on; None is the
        backbone's own.
    gain_power: how much the measured gain counts, by which an error grows or shrinks on its way to the final latent; 0
        weighs all levels alike.
    actions: a plan of your own instead, a letter a step as in `ReplayConfig`.

    What is planned is the error of `reuse` as a line through the last two computed predictions: in noise levels for
    "extrapolate" with its damping, and for "second_difference"; in steps for "taylorseer" and "chebyshev", and damped
    by half for "hermite" (exact for orders up to 1). All others are planned as the last prediction held, which
    "prediction" is.
    """

    steps: int = 25
    calibration: str | None = None
    gain_power: float = 1.0
    actions: str | None = None
    reuse: str = "extrapolate"

    NAME: ClassVar[str] = "planned"
    APPROACH: ClassVar[str] = "schedule"
    TRADEOFF: ClassVar = Tradeoff("steps", 1, None, more_is_faster=False)
    INERT: ClassVar = {"actions": "F" * 12}
    EAGER: ClassVar = {"actions": "FFFrFrrFrrrF"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if self.actions is not None:
            check_actions(self.actions)

    @property
    def needs_noise_level(self) -> bool:
        return self.actions is None or super().needs_noise_level

    def for_backbone(self, anatomy: Anatomy) -> PlannedConfig:
        if self.actions is not None:
            return self
        return replace(self, calibration=chosen(self.calibration, anatomy))

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None:
            raise ValueError(f"{self.NAME}: this pipeline does not announce its number of steps")
        if self.actions is None:
            check_fits(self.NAME, self.steps, num_steps)
            check_protected(self.steps, self.protected(num_steps))
        elif num_steps != len(self.actions):
            raise ValueError(f"{self.NAME}: {len(self.actions)} actions for {num_steps} steps")

    def protected(self, num_steps: int) -> set[int]:
        """The steps that every plan computes."""
        last = range(max(0, num_steps - self.protect_last), num_steps)
        return {0, *range(min(self.first_steps(num_steps), num_steps)), *last}

    def rule(self) -> Planned:
        return Planned(self)


class Planned(StepwiseRule):
    """The plan for one pipeline call."""

    config: PlannedConfig

    def __init__(self, config: PlannedConfig) -> None:
        super().__init__(config)
        self.actions = config.actions or ""

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        if not self.actions:
            self.actions = self._planned(denoiser)
        return denoiser.must_compute or self.actions[step.index] == "F"

    def _planned(self, denoiser: Denoiser) -> str:
        config, levels = self.config, denoiser.levels
        if levels is None or len(levels) != denoiser.num_steps:
            raise ValueError("planned needs the noise level of every step before the first, which this pipeline lacks")
        return plan(config, levels)


def plan(config: PlannedConfig, levels: Sequence[float], known: dict[str, Any] | None = None) -> str:
    """The letters of the best schedule for these noise levels, by a calibration's data or by the config's own."""
    num_steps = len(levels)
    damping, in_steps = _line(config)
    positions = tuple(range(0, -num_steps, -1)) if in_steps else tuple(levels)
    if known is None:
        assert config.calibration is not None
        known = calibrated(config.calibration)
        errors = forecast_errors(config.calibration, tuple(levels), positions, damping)
    else:
        errors = errors_by(known, levels, positions, damping)
    weights = np.abs(np.diff([*levels, 0.0])) * gain(known, levels) ** config.gain_power
    return best_schedule(errors, weights, config.steps, config.protected(num_steps))


def gain(known: dict[str, Any], levels: Sequence[float]) -> np.ndarray:
    """How many times an error at each of these levels reaches the final latent (N,); 1 where that was not measured."""
    if "gain" not in known:
        return np.ones(len(levels))
    falling, values = (np.array(known["gain"][name]) for name in ("levels", "values"))
    return np.exp(np.interp(-np.array(levels), -falling, np.log(values)))


def chosen(name: str | None, anatomy: Anatomy) -> str:
    """The fingerprint of a calibration: the named one, or the backbone's own."""
    return fingerprint(measured(PlannedConfig.NAME, anatomy) if name is None else calibrated(name))


def _line(config: PlannedConfig) -> tuple[float, bool]:
    """The line that stands for `reuse`: its damping (0: the last prediction held), and whether it runs in steps."""
    order = float(config.taylor_order > 0)
    lines = {
        "extrapolate": (config.damping, False),
        "second_difference": (1.0, False),
        "taylorseer": (order, True),
        "hermite": (2 * Hermite.SCALE**2 * order, True),
        "chebyshev": (1.0, True),
    }
    return lines.get(config.reuse, (0.0, False))


def calibrated(name: str) -> dict[str, Any]:
    """The calibration with this fingerprint, or of this model. Raises ValueError if there is none."""
    known = all_measured(PlannedConfig.NAME)
    by_model = {each["model"]: each for each in known}
    found = by_model | {fingerprint(each): each for each in known}
    if name not in found:
        raise ValueError(
            f"planned: there is no calibration {name!r}, but of {', '.join(by_model) or 'none'}: leave calibration at"
            " null, or give the plan itself as actions"
        )
    return found[name]


def fingerprint(calibration: dict[str, Any]) -> str:
    """Twelve hex digits of the numbers that decide a plan."""
    numbers = json.dumps([calibration[name] for name in ("levels", "gram", "gain") if name in calibration])
    return hashlib.sha256(numbers.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=8)
def forecast_errors(
    calibration: str, levels: tuple[float, ...], positions: tuple[float, ...], damping: float
) -> np.ndarray:
    """Root mean square error (N, N, N) of answering step k from the last two computed ones, a > b: [k, a, b].

    [k, a, a] is of holding a's prediction. positions: along which the line runs: the levels, or the steps' numbers.
    """
    return errors_by(calibrated(calibration), levels, positions, damping)


def errors_by(known: dict[str, Any], levels: Sequence[float], positions: Sequence[float], damping: float) -> np.ndarray:
    """`forecast_errors` by a calibration's own data."""
    paths = _paths(np.array(known["levels"]), np.array(levels))  # (N, M - 1)
    lower = np.array([row + [0.0] * (len(known["gram"]) - len(row)) for row in known["gram"]])
    gram = lower + np.tril(lower, -1).T
    number = len(levels)
    errors = np.full((number, number, number), np.inf)
    x = np.array(positions)
    for a in range(number):
        for b in range(a + 1):
            slope = np.zeros(number) if a == b else damping * (x - x[a]) / (x[a] - x[b] or np.inf)
            off = paths - paths[a] - slope[:, None] * (paths[a] - paths[b])  # (N, M - 1)
            errors[:, a, b] = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", off, gram, off), 0.0))
    return errors


def _paths(known: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Predictions at `levels` as sums of the differences between `known` levels (both fall): weights (N, M - 1).

    Row n leads from the first known level to level n, along a cubic through the two known ones around it, with the
    slopes of a parabola through three (Catmull and Rom's spline); beyond the last one, along the last parabola.
    Straight pieces would not do: a line through two computed steps in one of them is right up to its end, for nothing.
    """
    at_known = np.tri(len(known), len(known) - 1, -1)  # level m is the sum of the first m differences
    slopes = np.gradient(at_known, known, axis=0, edge_order=2 if len(known) > 2 else 1)
    piece = np.clip(np.searchsorted(-known, -levels, side="right") - 1, 0, len(known) - 2)
    width = (known[piece + 1] - known[piece])[:, None]
    t = (levels - known[piece])[:, None] / width
    start, end, before, after = at_known[piece], at_known[piece + 1], slopes[piece] * width, slopes[piece + 1] * width
    square, cube = 3 * (end - start) - 2 * before - after, 2 * (start - end) + before + after
    return start + t * before + t**2 * square + t**3 * cube


def check_protected(steps: int, protected: Collection[int]) -> None:
    """Raise ValueError if more steps are protected than computed."""
    if len(protected) > steps:
        raise ValueError(
            f"planned: {len(protected)} steps are protected, more than the {steps} to compute: raise steps, or lower"
            " protect_first or protect_last"
        )


def best_schedule(errors: np.ndarray, weights: np.ndarray, steps: int, forced: Iterable[int]) -> str:
    """The letters of the schedule of `steps` computed steps, step 0 and the `forced` among them, of least cost.

    Cost is the sum over reused steps k of weights[k] · errors[k, a, b], a and b the last two computed steps before k
    (b = a while there is one). Raises ValueError if more are forced than `steps`.
    """
    number = len(weights)
    needed = set(forced) | {0}
    check_protected(steps, needed)
    weighted = weights[:, None, None] * errors
    # run[a, b, c]: cost of reusing all steps from a + 1 to c - 1
    run = np.full((number, number, number + 1), np.inf)
    for a in range(number):
        costs = np.cumsum(weighted[a + 1 :, a, : a + 1], axis=0)  # (steps after a, b)
        run[a, : a + 1, a + 1] = 0.0
        for c in range(a + 2, number + 1):
            if c - 1 in needed:
                break  # it may not be reused
            run[a, : a + 1, c] = costs[c - a - 2]
    # least[a, b]: cost up to computing a, with b computed before it
    least = np.full((number, number), np.inf)
    least[0, 0] = 0.0
    came_from: list[np.ndarray] = []
    for _ in range(steps - 1):
        reached = least[:, :, None] + run[:, :, :number]  # (a, b, c): c is computed next
        before = reached.argmin(axis=1)  # (a, c): the b that is best
        came_from.append(before)
        least = np.take_along_axis(reached, before[:, None, :], axis=1)[:, 0, :].T  # (c, a)
    ends = least + run[:, :, number]
    a, b = (int(index) for index in np.unravel_index(int(ends.argmin()), ends.shape))
    computed = {a}
    for before in reversed(came_from):
        computed.add(b)
        a, b = b, int(before[b, a])
    return "".join("F" if step in computed else "r" for step in range(number))
