"""Answers that are weighted sums of computed predictions, with weights that depend on where the steps lie alone.

Four published ones. Each was published on what a block stack returns, or on the guided velocity, and within a method
that also decides when to compute; here they are applied to whole predictions, for each guidance branch by itself, and
serve every decision. Sums are in float32, and an answer has the predictions' dtype.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .denoiser import Denoiser
from .kept import SAME_LEVEL, Reuse, latent_of, level_of, residual_of

Places = tuple[list[float], float, float]  # of the kept predictions, this step and the next, along an axis


class Forecast(Reuse):
    """Keeps the newest predictions of a branch with the places of their steps, and answers with a weighted sum.

    A place that is visited twice (by Heun's and other solvers of second order) counts once, its last visit. Until
    another transformer's (Wan2.2) predictions are there, the last one of the former is held.
    """

    KEEPS_ANSWERS: ClassVar[bool] = False  # an answer counts from then on as if it had been computed

    @property
    @abstractmethod
    def kept(self) -> int | None:
        """How many predictions are kept of a branch; None is all of them."""

    @abstractmethod
    def weights(self, places: Sequence[float], now: float, after: float) -> list[float]:
        """The weight of each kept prediction, oldest first, at a step at `now`; `after` is the next step's place.

        places: of one prediction or more, all different.
        """

    def place(self, denoiser: Denoiser) -> float:
        """Where the current step lies: its number."""
        return float(denoiser.index)

    def places(self, denoiser: Denoiser, at: list[float]) -> Places:
        """What `weights` is asked, with predictions kept `at` these places."""
        now = self.place(denoiser)
        return at, now, now + 1

    def change_transformer(self) -> None:
        self.memory = {name: [(None, prediction)] for name, (*_, (_, prediction)) in self.memory.items()}

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        now, name = self.place(denoiser), denoiser.branch.name
        known = [each for each in self.memory.get(name, []) if each[0] is not None]
        elsewhere = [each for each in known if abs(each[0] - now) > SAME_LEVEL]
        newest = [*elsewhere, (now, prediction)]
        self.memory[name] = newest if self.kept is None else newest[-self.kept :]

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        known: list[tuple[float | None, torch.Tensor]] = self.memory[denoiser.branch.name]
        newest = known[-1][1]
        at = [place for place, _ in known if place is not None]
        if not at:  # another transformer's
            return newest
        total = torch.zeros(newest.shape, device=newest.device)
        for weight, (_, prediction) in zip(self.weights(*self.places(denoiser, at)), known, strict=True):
            total += weight * prediction.float()
        answer = total.to(newest.dtype)
        if self.KEEPS_ANSWERS:
            self.store(denoiser, answer)
        return answer


def line(places: Sequence[float], now: float) -> list[float]:
    """Weights of the line through the newest two predictions; of one alone, it is held."""
    weights = [0.0] * (len(places) - 1) + [1.0]
    if len(places) > 1:
        along = (now - places[-1]) / (places[-1] - places[-2])
        weights[-2:] = [-along, 1 + along]
    return weights


@dataclass
class Chebyshev(Forecast):
    """Ridge regression of all computed predictions on Chebyshev polynomials of the step (Spectrum, CVPR 2026).

    With t the step's share of all steps, from -1 to 1, and T the polynomials up to degree 4,

        C = argmin sum_a |F_a - C T(t_a)|² + 0.1 |C|²,        F_i = b C T(t_i) + (1 - b) line(i).

    Degree, ridge and time axis are those of hanjq17/Spectrum (src/utils/basis_utils.py, configs/algo/spectrum.yaml).
    b is its `w`: 1 in the paper and in the official config, 0.5 in the official commands for video; the line runs in
    steps through the last two computed predictions. The ridge also shrinks the constant, as published: the weights
    add up to a little less than 1.

    Deviations: officially the output of the last block is forecast, and the head runs; the axis is fixed at 50 steps,
    here at the call's own number; five steps are computed first (as many as there are polynomials), here the line
    answers until then; what is kept and fitted is bfloat16, here of the prediction's own precision.
    """

    blend: float = 1.0

    DEGREE: ClassVar[int] = 4
    RIDGE: ClassVar[float] = 0.1

    @property
    def kept(self) -> None:
        return None

    def place(self, denoiser: Denoiser) -> float:
        return 2 * denoiser.index / (denoiser.num_steps or 50) - 1

    def weights(self, places: Sequence[float], now: float, after: float) -> list[float]:
        straight = line(places, now)
        if len(places) <= self.DEGREE:
            return straight
        basis = np.polynomial.chebyshev.chebvander(np.array(places), self.DEGREE)  # (predictions, polynomials)
        target = np.polynomial.chebyshev.chebvander(np.array([now]), self.DEGREE)
        fit = target @ np.linalg.solve(basis.T @ basis + self.RIDGE * np.eye(self.DEGREE + 1), basis.T)
        return [self.blend * f + (1 - self.blend) * s for f, s in zip(fit[0].tolist(), straight, strict=True)]


@dataclass
class Hermite(Forecast):
    """TaylorSeer's finite differences on scaled Hermite polynomials instead of monomials (HiCache, ICLR 2026).

        F_i = F_a + sum_k c^k H_k(c x) / k! · D_k,        x = i - a steps, c = 0.5, k up to `order`,

    H_k the physicists' polynomials and D_k the differences as in `TaylorSeer`. H_1(x) = 2x, so order 1, the official
    default, is TaylorSeer's line damped by 2c² = 0.5. Rule, scale and order: yiming-l21/CFGCache (the repository of
    HiCache; models/flux/src/flux/taylor_utils, cache_functions/cache_init.py).

    Deviations: officially each attention's and MLP's output is forecast; differences are kept from the third step on.
    """

    order: int = 1

    SCALE: ClassVar[float] = 0.5

    @property
    def kept(self) -> int:
        return self.order + 1

    def weights(self, places: Sequence[float], now: float, after: float) -> list[float]:
        differences, ahead = np.eye(len(places)), now - places[-1]  # rows: of each prediction, then as in `TaylorSeer`
        weights = differences[-1]
        for k in range(1, len(places)):
            differences = np.diff(differences, axis=0) / np.diff(places[k - 1 :])[:, None]
            physicists = np.polynomial.hermite.hermval(self.SCALE * ahead, [0] * k + [1])
            weights = weights + self.SCALE**k * physicists / math.factorial(k) * differences[-1]
        return weights.tolist()


@dataclass
class SecondDifference(Forecast):
    """The last residual and a share of its difference to the one before (D2Cache, CVPR 2026).

        F_i = Z_i + R_a + r (R_a - R_b),        R = F - Z, a and b the last two computed steps.

    r is what the decision has accumulated since a, over what it had accumulated from b to a when it computed a
    (VG-Huai/D2Cache, D2Cache4Wan2.1/delta2cache_generate.py, `delta_delta_scale`): below 1 while a step is reused.
    Where a decision accumulates nothing (`uniform`, `planned`, protected steps), r is the same ratio of noise levels.

    Deviations: officially R is the block stack's residual, and the decision TeaCache's. A protected step counts there
    as one at which nothing had accumulated, and divides by 1e-8; here by noise levels.
    """

    measured: dict[str, float] = field(default_factory=dict)  # what was accumulated when the last step was computed

    NEEDS_NOISE_LEVEL: ClassVar[bool] = True

    @property
    def kept(self) -> int:
        return 2

    def place(self, denoiser: Denoiser) -> float:
        return level_of(denoiser, "second_difference")

    def places(self, denoiser: Denoiser, at: list[float]) -> Places:
        travelled, since = self.measured[denoiser.branch.name], denoiser.step.accumulated
        if len(at) == 2 and math.isfinite(travelled) and travelled > 0 and since is not None:
            return [-travelled, 0.0], since, since
        return super().places(denoiser, at)

    def weights(self, places: Sequence[float], now: float, after: float) -> list[float]:
        return line(places, now)

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        super().store(denoiser, residual_of(denoiser, prediction, "second_difference"))
        self.measured[denoiser.branch.name] = denoiser.step.accumulated or 0.0

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        return latent_of(denoiser) + super().predict(denoiser)


class MeanVelocity(Forecast):
    """The last answer, moved on by how the first velocity of an interval differs from its mean (MeanCache, ICLR 2026).

        F_i = F_(i-1) - (s_(i+1) - s_i) · (F_(i-2) - mean) / (s_i - s_(i-2)),

    mean being the average velocity from level s_(i-2) to s_i, over which the last two answers, computed or not, have
    moved the latent: here the average of the two, weighted by their steps (UnicomAI/MeanCache,
    MeanCache4Z-Image/MC_zimage.py, `compute_current_jvp`, with its default of two steps).

    Deviations: officially the mean is read off the guided latent, which is the same with Euler's method and a constant
    scale of guidance; and the published schedules say of each run of reused steps whether to hold the last velocity or
    to look one to six steps back, as was found best on the model; here it is two throughout.
    """

    NEEDS_NOISE_LEVEL: ClassVar[bool] = True
    KEEPS_ANSWERS: ClassVar[bool] = True

    @property
    def kept(self) -> int:
        return 2

    def place(self, denoiser: Denoiser) -> float:
        return level_of(denoiser, "mean_velocity")

    def places(self, denoiser: Denoiser, at: list[float]) -> Places:
        now = self.place(denoiser)
        # where no schedule tells the next level: as far again as from the last answer
        return at, now, denoiser.next_sigma() if denoiser.levels is not None else 2 * now - at[-1]

    def weights(self, places: Sequence[float], now: float, after: float) -> list[float]:
        span = now - places[0]
        if len(places) == 1 or abs(span) <= SAME_LEVEL:
            return line(places, places[-1])
        ahead = (after - now) / span
        share = (now - places[1]) / span  # of the interval, the second answer's
        return [-ahead * share, 1 + ahead * share]
