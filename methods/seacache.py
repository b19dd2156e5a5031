"""SeaCache: Chung et al., "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models" (CVPR 2026).

TeaCache's accumulation without its coefficients: before two adjacent steps are compared, their features pass a filter
that keeps the frequencies that denoising has reached at that noise level and drops the noise (equations 5-7).

"official" follows https://github.com/jiwoogit/SeaCache at 0a91c2b (Wan2.1/seacache_generate.py,
HunyuanVideo/seacache_generate.py), "diffusers" the other method that diffusers 0.42 calls by this name
(diffusers/hooks/sea_cache.py).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.reuse import StackResidual
from .engine.trace import Step
from .teacache import relative_l1

# Each variant's values for fields left at None.
VARIANTS: dict[str, dict[str, Any]] = {
    "official": {"threshold": 0.2, "max_reused": 0, "residual_order": 0},
    "diffusers": {"threshold": 0.25, "max_reused": 2, "residual_order": 1},
}


@dataclass(kw_only=True)
class SeaCacheConfig(StepwiseCache):
    """SeaCache. The official retention steps are `protect_first=5, protect_last=0`.

    variant: "official" filters the modulated tokens of the first block, "diffusers" the noisy latent itself.
    threshold: accumulated distance at which a step is computed again; None is 0.2 (0.25 in diffusers).
    max_reused: most steps reused in a row, 0 for no limit; None is 0 (2 in diffusers).
    residual_order: with reuse=stack, 0 adds the last computed residual, 1 extrapolates the last two linearly in
        steps; None is 0 (1 in diffusers).
    power_exp: p of the assumed power spectrum of clean features, 1 / frequency^p.
    filter_protected: whether protected steps' features are filtered too. Wan's official code does not, so the first
        unprotected step is compared with an unfiltered one; HunyuanVideo's and diffusers' do. None is as published.

    Each guidance branch decides for itself. Deviations from the official code:

    - Distances are taken in float32, where HunyuanVideo's code takes them in the model's precision.
    - HunyuanVideo's code is written for one call a step; with true CFG the two calls decide separately, as on Wan.
    - Videos of one batch decide together, where diffusers averages their distances.
    """

    variant: str = "official"
    threshold: float | None = None
    max_reused: int | None = None
    residual_order: int | None = None
    power_exp: float = 3.0
    filter_protected: bool | None = None
    protect_first: float = 1
    protect_last: int = 1
    reuse: str = "stack"

    NAME: ClassVar[str] = "seacache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    DECIDES_PER_BRANCH: ClassVar[bool] = True
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 5.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {self.variant!r}")
        if self.threshold is not None and not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be a finite number of at least 0, not {self.threshold}")
        if self.max_reused is not None and self.max_reused < 0:
            raise ValueError(f"max_reused must be at least 0, not {self.max_reused}")
        if self.residual_order not in (None, 0, 1):
            raise ValueError(f"residual_order must be 0 or 1, not {self.residual_order}")
        if not (self.power_exp > 0 and math.isfinite(self.power_exp)):
            raise ValueError(f"power_exp must be a finite number above 0, not {self.power_exp}")

    def for_backbone(self, anatomy: Anatomy) -> SeaCacheConfig:
        if anatomy.family not in ("wan", "hunyuanvideo"):
            raise ValueError(
                f"seacache: there is no published rule for {anatomy.family}, and its filter needs flow matching's noise"
                " levels; it works on wan and hunyuanvideo"
            )
        if self.variant == "diffusers" and not (anatomy.family == "wan" and _is_text_to_video(anatomy)):
            raise ValueError("seacache: diffusers' variant works on wan's text-to-video models alone")
        own = {**VARIANTS[self.variant], "filter_protected": self.variant == "diffusers" or anatomy.family != "wan"}
        missing = {name: value for name, value in own.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    @property
    def needs_noise_level(self) -> bool:
        return True

    def arithmetic(self, anatomy: Anatomy, tokens: torch.Tensor, latent_size: Size) -> None:
        if self.variant != "diffusers":  # which filters the latent, a small tensor
            sea_filter(tokens.unflatten(1, anatomy.token_grid(latent_size)), 0.5, self.power_exp)

    def rule(self) -> SeaCache:
        return SeaCache(self)


def _is_text_to_video(anatomy: Anatomy) -> bool:
    channels = anatomy.config.get("in_channels")
    return (anatomy.config.get("out_channels") or channels) == channels


@dataclass
class _Branch:
    """The memory of one guidance branch."""

    previous: torch.Tensor | None = None  # feature of the previous step, computed or not
    accumulated: float = 0.0
    reused: int = 0


class SeaCache(StepwiseRule):
    """The rule for one pipeline call."""

    config: SeaCacheConfig

    def __init__(self, config: SeaCacheConfig) -> None:
        super().__init__(config)
        self.branches: dict[str, _Branch] = {}
        if config.reuse == "stack" and config.residual_order:
            self.reuse = _LinearStackResidual(kept=config.kept)

    def forget_branch(self, name: str) -> None:
        super().forget_branch(name)
        self.branches.pop(name, None)

    def change_transformer(self) -> None:
        super().change_transformer()
        self.branches = {}  # features are tokens of the previous transformer

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        config, branch = self.config, self.branches.setdefault(denoiser.branch.name, _Branch())
        assert config.threshold is not None
        previous, protected = branch.previous, denoiser.must_compute or branch.previous is None
        feature = self._feature(denoiser, step, filtered=not protected or bool(config.filter_protected))
        branch.previous, step.threshold = feature, config.threshold
        if protected or previous is None or (config.max_reused and branch.reused >= config.max_reused):
            branch.accumulated, branch.reused = 0.0, 0
            step.indicator = step.accumulated = None
            return True
        step.indicator = relative_l1(feature, previous)
        branch.accumulated += step.indicator
        step.accumulated = branch.accumulated
        reuse = branch.accumulated < config.threshold  # never with a NaN
        branch.reused = branch.reused + 1 if reuse else 0
        if not reuse:
            branch.accumulated = 0.0
        return not reuse

    def _feature(self, denoiser: Denoiser, step: Step, filtered: bool) -> torch.Tensor:
        """The current branch's feature (B, T, H, W, channels)."""
        if step.sigma is None:
            raise ValueError("seacache needs the noise level of each step, which this pipeline does not give")
        inputs, anatomy = denoiser.branch.inputs, denoiser.anatomy
        if self.config.variant == "diffusers":
            volume = anatomy.as_video(inputs["hidden_states"]).movedim(1, -1)
        else:
            grid = anatomy.token_grid(anatomy.latent_size(inputs))
            volume = denoiser.look(anatomy.first_modulated).unflatten(1, grid)
        return sea_filter(volume, step.sigma, self.config.power_exp) if filtered else volume


def sea_filter(volume: torch.Tensor, sigma: float, power_exp: float = 3.0) -> torch.Tensor:
    """Features (B, T, H, W, channels) with each frequency weighted by how much of it is signal at noise level `sigma`.

    One Wiener gain per axis, a / (a² + b² f^p) for x = a·clean + b·noise with clean power f^-p; the product of the
    gains is divided by its mean (equations 5-7).
    """
    tiny = 1e-16
    b = min(max(sigma, 1e-6), 1 - 1e-6)
    a = 1 - b
    gain = torch.ones(1, device=volume.device)
    for size in volume.shape[1:4]:
        frequency = torch.fft.fftfreq(size, device=volume.device).abs()
        gain = gain[..., None] * (a / (a * a + (b * b + tiny) * (frequency**power_exp + tiny)))
    gain = (gain / gain.mean())[..., None]
    spectrum = torch.fft.fftn(volume.float(), dim=(1, 2, 3)) * gain
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real.to(volume.dtype)


class _LinearStackResidual(StackResidual):
    """The block stack's residual, extrapolated linearly from the last two computed (diffusers' residual_order=1).

    Of each branch the last two steps and residuals are kept.
    """

    def keep(self, denoiser: Denoiser, residual: torch.Tensor) -> None:
        name = denoiser.branch.name
        before = self.memory.packed(name) if name in self.memory else None
        self.memory[name] = [*(before or [])[-1:], (denoiser.index, residual)]

    def residual(self, denoiser: Denoiser) -> torch.Tensor | None:
        stored = self.memory.packed(denoiser.branch.name)
        if stored is None:  # another process computes this branch
            return None
        if len(stored) == 1:
            return self.memory[denoiser.branch.name][0][1]
        (earlier_index, earlier), (latest_index, latest) = self.memory[denoiser.branch.name]
        ahead = (denoiser.index - latest_index) / (latest_index - earlier_index)
        return latest + (latest - earlier) * ahead
