"""SenCache: Haghighi and Alahi, "Sensitivity-Aware Caching" (CVPR 2026, arXiv 2602.24208).

How far a prediction moves is estimated to first order: by the latent's change and the timestep's since the last
computed step, each times the norm of the model's derivative along it. While the estimate stays below a threshold, and
for at most K steps in a row, what the block stack added is added again. The norms are tabulated in advance.

Follows https://github.com/vita-epfl/SenCache at 4bf419b: Wan2.1/sencache.py:40-194 and :357-421, CogVideoX/sencache.py;
norms as in Wan2.1/sensitivity_calculation.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from .calibration import measured
from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step

# Family -> threshold, threshold_first, max_skip, protect_last.
PUBLISHED = {
    "wan": (2.0, 0.045, 3, 0),  # Wan2.1/README.md, the command for 1.3B
    "cogvideox": (0.07, 0.005, 10, 1),  # CogVideoX/sencache.py, defaults of its options and model.cutoff_steps
}
TABLE = ("levels", "latent", "level")


@dataclass(kw_only=True)
class SenCacheConfig(StepwiseCache):
    """SenCache with its official settings; HunyuanVideo (also 1.5) and Open-Sora, which have none, get Wan's.

    threshold: bound on the estimated change since the last computed step, per element of the prediction (root mean
        square); None is the official value of the backbone (Wan 2, CogVideoX 0.07).
    threshold_first: the bound in the first fifth of the steps, `first_share`; None is official (Wan 0.045, CogVideoX
        0.005).
    max_skip: K, most steps reused in a row; None is official (Wan 3, CogVideoX 10).
    sensitivity: by time ("levels": timesteps from 0 to 1, for flow matching the noise levels), how much a prediction
        changes with the latent ("latent": norm of the change over norm of the latent's) and with the time ("level":
        root mean square of the change over the time's). The row nearest the last computed step's counts. None is the
        backbone's measured calibration: the authors' own tables are not in their repository.
    protect_last: None is official: 1 on CogVideoX, 0 elsewhere.

    At Wan's published 2, more than a prediction's own root mean square, it is K that decides after the first fifth. The
    options' defaults in the same file are 0.07, 0.005 and 10 (the preset `sencache_strict`).

    The official code takes norms of whole latents, and multiplies its thresholds by 1447.98 on Wan, 1099.82 on
    CogVideoX and 1015.97 on LTX-Video, constants to be set by hand for another size. Each is the square root of the
    number of elements of a latent (of 81 frames at 480x832: 16 x 21 x 60 x 104). Root mean squares need none, and a
    calibration holds for every size.

    The first branch of a step, the conditional one, decides and the other follows. Deviations from the official code:
    time runs from 0 to 1, timesteps to 1000; Wan's code counts the first fifth in calls, so it may be one step
    longer.
    """

    threshold: float | None = None
    threshold_first: float | None = None
    first_share: float = 0.2
    max_skip: int | None = None
    sensitivity: dict[str, list[float]] | None = None
    protect_last: int | None = None  # type: ignore[assignment]  # a number once the backbone is known
    reuse: str = "stack"

    NAME: ClassVar[str] = "sencache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0, "threshold_first": 0.0}
    EAGER: ClassVar = {
        "threshold": 0.4,
        "threshold_first": 0.2,
        "max_skip": 3,
        "sensitivity": {"levels": [1.0, 0.0], "latent": [0.2, 0.3], "level": [0.1, 0.2]},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "threshold_first", "first_share"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if self.max_skip is not None and self.max_skip < 0:
            raise ValueError(f"max_skip must be at least 0, not {self.max_skip}")
        if self.sensitivity is None:
            return
        if set(self.sensitivity) != set(TABLE):
            raise ValueError(f"sensitivity must have {', '.join(TABLE)}, not {', '.join(sorted(self.sensitivity))}")
        if len({len(row) for row in self.sensitivity.values()}) != 1 or not self.sensitivity["levels"]:
            raise ValueError("sensitivity must have lists of one length, at least one number in each")
        if not all(math.isfinite(value) and value >= 0 for row in self.sensitivity.values() for value in row):
            raise ValueError("sensitivity must hold finite numbers of at least 0")

    def for_backbone(self, anatomy: Anatomy) -> SenCacheConfig:
        names = ("threshold", "threshold_first", "max_skip", "protect_last")
        published: dict[str, Any] = dict(zip(names, PUBLISHED.get(anatomy.family, PUBLISHED["wan"]), strict=True))
        missing = {name: value for name, value in published.items() if getattr(self, name) is None}
        table = self.sensitivity
        if table is None:
            data = measured(self.NAME, anatomy)
            table = {name: list(data[name]) for name in TABLE}
        return replace(self, **missing, sensitivity=table)

    @property
    def needs_noise_level(self) -> bool:
        return True

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None:
            raise ValueError(
                "sencache: this pipeline does not say how many steps there will be, on which the threshold depends"
            )

    def rule(self) -> SenCache:
        return SenCache(self)


class SenCache(StepwiseRule):
    """The criterion for one pipeline call, measured on the branch that comes first in a step."""

    config: SenCacheConfig

    def __init__(self, config: SenCacheConfig) -> None:
        super().__init__(config)
        self.latent: torch.Tensor | None = None  # of the last computed step
        self.time = 0.0  # of the last computed step
        self.skipped = 0  # steps in a row

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        anatomy, latent, time = denoiser.anatomy, denoiser.branch.inputs["hidden_states"], denoiser.time
        latent = anatomy.used(anatomy.as_prediction(latent))  # without an image's channels
        if self.latent is not None and not denoiser.must_compute:
            step.indicator = step.accumulated = self._estimate(latent, time)
            step.threshold = self._threshold(denoiser)
            few = self.skipped < (self.config.max_skip or 0)
            if step.indicator < step.threshold and few and self.reuse.ready(denoiser):  # never with a NaN
                self.skipped += 1
                return False
        self.latent, self.time, self.skipped = latent, time, 0
        return True

    def _threshold(self, denoiser: Denoiser) -> float:
        place, total = denoiser.place
        assert total is not None
        first = place < round(self.config.first_share * total)
        threshold = self.config.threshold_first if first else self.config.threshold
        assert threshold is not None
        return threshold

    def _estimate(self, latent: torch.Tensor, time: float) -> float:
        """Root mean square of the change of the prediction since the last computed step, to first order."""
        assert self.latent is not None
        assert self.config.sensitivity is not None
        times, by_latent, by_time = (self.config.sensitivity[name] for name in TABLE)
        row = int(np.argmin(np.abs(np.array(times) - self.time)))
        moved = float((latent.float() - self.latent.float()).square().mean().sqrt())
        return by_latent[row] * moved + by_time[row] * abs(time - self.time)
