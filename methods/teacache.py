"""TeaCache: Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (CVPR 2025).

The change of a cheap feature of the transformer's input between adjacent steps, rescaled by a polynomial fitted once
for each backbone, estimates the change of its output. While the accumulated estimate stays below a threshold, what the
block stack added at the last computed step is added again (sections 3.2-3.3, equations 4-6).

Follows https://github.com/ali-vilab/TeaCache at 7c10efc: TeaCache4Wan2.1/teacache_generate.py:519-568,
TeaCache4HunyuanVideo/teacache_sample_video.py:84-160, and in eval/teacache/experiments cogvideox.py:68-126 and
opensora.py:64-139.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from .calibration import measured
from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step
from .teacache_official import RETENTION_SETS, SETS, Official, set_of

SPEEDS = {"slow": 0.1, "fast": 0.2}  # the paper's thresholds (section 4.1), for backbones without published ones
FEATURES = {
    "wan": "e",
    "hunyuanvideo": "modulated",
    "hunyuanvideo15": "modulated",
    "ltx2": "modulated",
    "cogvideox": "embedding",
    "opensora": "modulated",
    "vchitect": "modulated",
}


@dataclass(kw_only=True)
class TeaCacheConfig(StepwiseCache):
    """TeaCache, by default with the coefficients and the threshold published for the backbone at hand.

    threshold: accumulated estimate at which a step is computed again; None is the published one for `speed`.
    speed: "slow" or "fast", the two settings reported for each backbone.
    coefficients: the polynomial's, highest power first. None takes the published ones (teacache_official.py) or, where
        there are none, measured ones (`python -m pcbench.calibrate`).
    coefficient_set: name of a published set, to replace the backbone's own or to choose among several.
    retention_steps: Wan's `use_ret_steps`: measure the projected embedding `e0` instead of `e`, with coefficients of
        its own; five steps computed at the start and none at the end, unless protection is set.
    protect_first, protect_last: None is 1 and 1, or 5 and 0 with retention steps.

    The feature (`FEATURES`) is the timestep embedding on Wan and CogVideoX, which does not depend on the prompt, and
    the modulated input of the first block on HunyuanVideo and Open-Sora; and on HunyuanVideo-1.5, LTX-2 and
    Vchitect-2.0, for which there is no official code. Deviations from the official code:

    - One decision per step. Wan's code decides separately for each guidance branch, but always alike: both have the
      same timestep. HunyuanVideo's is written for one call a step; with true CFG the first call decides.
    - Distances are taken in float32, where all official code but Wan's takes them in the model's precision.
    - The text stream's residual, which CogVideoX's code adds too, is not kept: no prediction depends on it.
    - CogVideoX's and Open-Sora's code recognises the last step by its timestep, ours by its index.
    """

    threshold: float | None = None
    speed: str = "slow"
    coefficients: list[float] | None = None
    coefficient_set: str | None = None
    retention_steps: bool = False
    protect_first: float | None = None  # type: ignore[assignment]  # numbers once the backbone is known
    protect_last: int | None = None  # type: ignore[assignment]
    reuse: str = "stack"

    NAME: ClassVar[str] = "teacache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 1.5, "coefficients": [1.0, 0.0]}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be a finite number of at least 0, not {self.threshold}")
        if self.speed not in SPEEDS:
            raise ValueError(f"speed must be one of {', '.join(SPEEDS)}, not {self.speed!r}")
        if self.coefficients is not None and not (self.coefficients and np.isfinite(self.coefficients).all()):
            raise ValueError(f"coefficients must be finite numbers, highest power first, not {self.coefficients}")
        if self.coefficient_set is not None and self.coefficient_set not in self._sets:
            raise ValueError(
                f"coefficient_set must be one of {', '.join(self._sets)}"
                f"{' with retention_steps' if self.retention_steps else ''}, not {self.coefficient_set!r}"
            )
        chosen = self._sets[self.coefficient_set].coefficients if self.coefficient_set else None
        if chosen and self.coefficients is not None and list(self.coefficients) != list(chosen):
            raise ValueError(
                "give either coefficients or coefficient_set; the coefficients given are not those of"
                f" {self.coefficient_set}"
            )

    @property
    def _sets(self) -> dict[str, Official]:
        return RETENTION_SETS if self.retention_steps else SETS

    def feature(self, anatomy: Anatomy) -> str:
        """The name of the feature that is measured on this family."""
        return "e0" if self.retention_steps else FEATURES[anatomy.family]

    def for_backbone(self, anatomy: Anatomy) -> TeaCacheConfig:
        if anatomy.family not in FEATURES:
            raise ValueError(f"teacache: no feature to look at is known for {anatomy.family}")
        if self.retention_steps and anatomy.family != "wan":
            raise ValueError(f"teacache: retention_steps is an option of Wan's code, none of {anatomy.family}'s")
        chosen = self._sets[self.coefficient_set] if self.coefficient_set else None
        if chosen and chosen.family != anatomy.family:
            raise ValueError(
                f"teacache: coefficient_set {self.coefficient_set} is of {chosen.family}, not {anatomy.family}"
            )
        coefficients, threshold = self.coefficients, self.threshold
        if coefficients is None:
            if chosen is None and (name := set_of(anatomy)):
                chosen = self._sets.get(name)
            if chosen is None:
                data = measured("teacache_retention" if self.retention_steps else "teacache", anatomy)
                coefficients = list(data["coefficients"])
            else:
                coefficients = list(chosen.coefficients)
        if threshold is None:
            threshold = getattr(chosen, self.speed) if chosen else SPEEDS[self.speed]
        first, last = (5.0, 0) if self.retention_steps else (1.0, 1)
        return dataclasses.replace(
            self,
            coefficients=coefficients,
            threshold=threshold,
            protect_first=first if self.protect_first is None else float(self.protect_first),
            protect_last=last if self.protect_last is None else self.protect_last,
        )

    def rule(self) -> TeaCache:
        return TeaCache(self)


class TeaCache(StepwiseRule):
    """The rule for one pipeline call."""

    config: TeaCacheConfig

    def __init__(self, config: TeaCacheConfig) -> None:
        super().__init__(config)
        self.previous: torch.Tensor | None = None  # the previous step's, computed or not
        self.accumulated = 0.0

    def change_transformer(self) -> None:
        super().change_transformer()
        self.previous = None  # the previous transformer's embedding

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        assert self.config.coefficients is not None
        assert self.config.threshold is not None
        feature, previous = look(denoiser, self.config.feature(denoiser.anatomy)), self.previous
        self.previous, step.threshold = feature, self.config.threshold
        if previous is not None:
            distance = relative_l1(feature, previous)
            step.details["distance"] = distance
            step.indicator = float(np.polyval(self.config.coefficients, distance))  # may be below 0, as published
        if previous is None or denoiser.must_compute:
            self.accumulated = 0.0
            return True
        assert step.indicator is not None
        self.accumulated += step.indicator
        step.accumulated = self.accumulated
        reuse = self.accumulated < self.config.threshold  # never with a NaN
        if not reuse:
            self.accumulated = 0.0
        return not reuse


def look(denoiser: Denoiser, feature: str) -> torch.Tensor:
    """The current branch's feature (a tensor) by its name: a value of FEATURES, or "e0"."""
    if feature == "modulated":
        return denoiser.look(denoiser.anatomy.first_modulated)
    options = {"projected": True} if feature == "e0" else {}
    return denoiser.look(denoiser.anatomy.timestep_embedding, **options)


def relative_l1(a: torch.Tensor, b: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor] = torch.mean) -> float:
    """Mean absolute difference of a and b over the mean absolute value of b (equation 4); in float32.

    mean: `denoiser.processes.mean` for tokens of which each process holds a part.
    """
    return float(mean((a.float() - b.float()).abs()) / mean(b.float().abs()))
