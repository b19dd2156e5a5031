"""Controlled reuse, a method of ours: the step size control of an adaptive ODE solver decides which steps to compute.

A reused step is answered by the line through the last two computed predictions, at noise levels a and b. By Newton's
formula that line is off, at level s, by

    |F(s) - line(s)| = c · |s - a| · |s - b|,

where c is the second divided difference of F: its curvature. Each computed step tells c for nothing: the line through
the two before it is a forecast of what was just computed, and c is how wrong it was over its two distances. Such an
error moves the latent by |s' - s| times itself, s' being the next level. While what the reused steps since the last
computed one have moved it by, summed, stays below a tolerance, the line is taken; then a step is computed. There is no
trial, no calibration, and no number of the backbone's own. docs/planned.md has more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .engine.denoiser import Denoiser
from .engine.kept import SAME_LEVEL
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step


@dataclass(kw_only=True)
class ControlledConfig(StepwiseCache):
    """Compute a step as soon as the forecast error of reusing it, and the steps before it, reaches `tolerance`.

    tolerance: bound on how far a run of reused steps may move the final latent, as root mean square over its cells
        (whose own is about 1); 0 never reuses.
    remembered: of how many computed steps the largest curvature counts; more is more careful.
    protect_first: a line needs two computed steps, and its first error a third.
    """

    tolerance: float = 0.002
    remembered: int = 2
    protect_first: float = 3
    reuse: str = "extrapolate"

    NAME: ClassVar[str] = "controlled"
    TRADEOFF: ClassVar = Tradeoff("tolerance", 1e-7, 100.0)
    INERT: ClassVar = {"tolerance": 0.0}
    EAGER: ClassVar = {"tolerance": 0.1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, not {self.tolerance}")
        if self.remembered < 1:
            raise ValueError(f"remembered must be at least 1, not {self.remembered}")

    @property
    def needs_noise_level(self) -> bool:
        return True

    def rule(self) -> Controlled:
        return Controlled(self)


class Controlled(StepwiseRule):
    """The control for one pipeline call, by the guided prediction."""

    config: ControlledConfig

    SCALE: ClassVar[str] = "curvature"  # what the factor is called in the trace

    def __init__(self, config: ControlledConfig) -> None:
        super().__init__(config)
        self.computed: list[tuple[float, torch.Tensor]] = []  # noise level and guided prediction, last two computed
        self.scales: list[float] = []  # forecast errors of the last computed steps, over their shape
        self.moved = 0.0  # by the steps reused since the last computed one, root mean square
        self.unseen: float | None = None  # noise level of a computed step whose prediction was not looked at yet

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        assert step.sigma is not None
        self._look_at_last(denoiser)
        step.threshold = self.config.tolerance
        compute = denoiser.must_compute or len(self.computed) < 2 or not self.scales
        if not compute:
            (a, _), (b, _) = self.computed[::-1]
            step.indicator = max(self.scales) * self.shape(denoiser, step.sigma, a, b)
            moved = step.indicator * abs(step.sigma - denoiser.next_sigma())
            step.accumulated = self.moved + self.counts(step.sigma) * moved
            compute = not step.accumulated < self.config.tolerance  # a NaN computes
        if compute:
            self.moved, self.unseen = 0.0, step.sigma
        else:
            assert step.accumulated is not None
            self.moved = step.accumulated
        return compute

    def shape(self, denoiser: Denoiser, sigma: float, a: float, b: float) -> float:
        """How the error of a line through levels a and b grows up to `sigma`, but for a factor."""
        return abs(sigma - a) * abs(sigma - b)

    def counts(self, sigma: float) -> float:
        """How many times what a latent is moved by at this level counts."""
        return 1.0

    def _look_at_last(self, denoiser: Denoiser) -> None:
        """The prediction of the step before, if it was computed: the error of its forecast, by the two before it."""
        if self.unseen is None:
            return
        sigma, self.unseen = self.unseen, None
        prediction = denoiser.cached(denoiser.latent_size, "nearest-exact").float()
        elsewhere = [each for each in self.computed if abs(each[0] - sigma) > SAME_LEVEL]  # solvers of second order
        if len(elsewhere) == 2:
            (b, before), (a, last) = elsewhere
            line = last + (last - before) * ((sigma - a) / (a - b))
            scale = float((prediction - line).square().mean().sqrt()) / self.shape(denoiser, sigma, a, b)
            denoiser.step.details[self.SCALE] = scale
            self.scales = [*self.scales, scale][-self.config.remembered :]
        self.computed = [*elsewhere[-1:], (sigma, prediction)]
