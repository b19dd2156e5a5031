"""EasyCache: Zhou et al., "Less is Enough" (arXiv 2507.02860), as in H-EmbodVis/EasyCache at 5127804.

The rate k at which the transformer's output changes with its input varies slowly between steps. So the change of the
latent, which costs nothing to measure, gives an estimate of the change of the prediction; while the estimates sum to
less than a threshold, what the whole transformer added to its input at the last computed step is added again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step

# Family -> threshold, steps computed at the start.
PUBLISHED = {
    "wan": (
        0.05,
        10,
    ),  # EasyCache4Wan2.1/easycache_generate.py:800 (--thresh), :974 and :1083 (which override --ret_steps)
    "hunyuanvideo": (0.025, 5),  # EasyCache4HunyuanVideo/easycache_sample_video.py:318, :320
}


@dataclass(kw_only=True)
class EasyCacheConfig(StepwiseCache):
    """EasyCache with its official settings; there are none for CogVideoX, which gets Wan's.

    threshold: bound on the estimated relative change summed since the last computed step; None is the official value
        of the backbone (Wan 0.05, HunyuanVideo 0.025).
    protect_first: None is the official number of steps of the backbone (Wan 10, HunyuanVideo 5).

    The first branch of a step, the conditional one, decides and the other follows, each with its own residual. Where
    one call holds both branches (CogVideoX, not official) both are measured at once.

    Deviations: the official code restarts its step count for each video but keeps k from the previous video, which
    matters where fewer than two steps are protected at the start (officially 5 and 10 are); here each call starts
    without k. The official code keeps the latents in float32; diffusers passes the transformer a latent in the weights'
    type, so in bfloat16 the change from step to step carries that rounding.
    """

    threshold: float | None = None
    protect_first: float | None = None  # type: ignore[assignment]  # a number once the backbone is known
    protect_last: int = 1
    reuse: str = "residual"

    NAME: ClassVar[str] = "easycache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 0.5, "protect_first": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, not {self.threshold}")

    def for_backbone(self, anatomy: Anatomy) -> EasyCacheConfig:
        threshold, first = PUBLISHED.get(anatomy.family, PUBLISHED["wan"])
        return replace(
            self,
            threshold=threshold if self.threshold is None else self.threshold,
            protect_first=first if self.protect_first is None else self.protect_first,
        )

    def rule(self) -> EasyCache:
        return EasyCache(self)


class EasyCache(StepwiseRule):
    """The runtime-adaptive criterion for one pipeline call, measured on the branch that comes first in a step."""

    config: EasyCacheConfig

    def __init__(self, config: EasyCacheConfig) -> None:
        super().__init__(config)
        self.leader = ""  # name of the branch that comes first
        self.error = 0.0  # estimated change since the last computed step
        self.rate: torch.Tensor | None = None  # k, from the last two computed steps
        self.latent: torch.Tensor | None = None  # the previous step's, computed or not
        self.computed: tuple[torch.Tensor, torch.Tensor] | None = None  # latent and prediction, last computed step

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        assert self.config.threshold is not None
        self.leader = denoiser.branch.name
        previous, self.latent = self.latent, _noisy(denoiser)
        if denoiser.must_compute:
            self.error = 0.0
            return True
        if previous is None or self.computed is None or self.rate is None:
            return True
        change = _difference(self.latent, previous) / self.computed[1].float().abs().mean()
        estimate = math.prod(torch.stack([self.rate, change]).tolist())
        self.error += estimate
        step.indicator, step.accumulated, step.threshold = estimate, self.error, self.config.threshold
        reuse = self.error < self.config.threshold  # never with a NaN
        if not reuse:
            self.error = 0.0
        return not reuse

    def observe(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        if denoiser.branch.name != self.leader:
            return
        latent, prediction = _noisy(denoiser), denoiser.anatomy.used(prediction)
        if self.computed is not None:
            latent_before, prediction_before = self.computed
            self.rate = _difference(prediction, prediction_before) / _difference(latent, latent_before)
        self.computed = latent, prediction


def _noisy(denoiser: Denoiser) -> torch.Tensor:
    """The noisy latent, without the image channels that follow it (easycache_generate.py:476)."""
    return denoiser.anatomy.used(denoiser.anatomy.as_prediction(denoiser.branch.inputs["hidden_states"]))


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() - b.float()).abs().mean()
