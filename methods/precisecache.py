"""PreciseCache's LFCache: Algorithm 1 of Wang et al., "PreciseCache" (ICLR 2026), without BlockCache.

At each step a *trial*, the transformer on a downsampled latent, tells how much the low frequencies of its prediction
have moved (the LFD). While the accumulated LFD stays below a threshold the last prediction is reused.

Where the paper leaves a choice it is a field here, with a default and a reason; docs/precisecache.md has the
measurements behind the defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .anatomy import Anatomy, Size
from .denoiser import Denoiser
from .frequency import DOWNSAMPLE_MODES, low_frequency_difference
from .method import StepwiseCache, StepwiseRule
from .trace import Step

REFERENCES = ("previous_trial", "cached_output", "anchor_trial")
GUIDANCE = ("guided", "cond")


@dataclass(kw_only=True)
class PreciseCacheConfig(StepwiseCache):
    """LFCache. `alpha` = 0.5 is the paper's Base, 0.7 its Turbo.

    alpha: threshold as a share of the largest LFD seen in the warm-up (section 4.1); 0 never reuses.
    warmup_steps: steps always computed at the start, the paper's three; the threshold is taken from their LFDs.
    downsample_factor: of the trial in time, height, width (section 4.1).
    downsample_mode: how the trial's latent is shrunk, see `frequency.DOWNSAMPLE_MODES`; the paper says "Downsample".
    radius_ratio: of the low-pass disk, to min(H, W) of the trial (section 4.1).
    reference: what a trial is compared with. "cached_output" is Algorithm 1 to the letter: the downsampled prediction
        last used; it puts a resolution gap under every LFD. "previous_trial" compares trials of adjacent steps,
        "anchor_trial" with the trial of the last computed step.
    accumulate: sum the LFDs since the last computed step (Algorithm 1, line 12), or look at the latest alone.
    guidance: the trial's prediction after classifier-free guidance ("guided", as the cached one in section 4.3),
        or of the conditional branch alone ("cond", half the cost).
    """

    alpha: float = 0.7
    warmup_steps: int = 3
    downsample_factor: tuple[int, int, int] = (2, 4, 4)
    downsample_mode: str = "nearest-exact"
    radius_ratio: float = 0.2
    reference: str = "previous_trial"
    accumulate: bool = True
    guidance: str = "guided"

    NAME: ClassVar[str] = "precisecache"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.downsample_factor = tuple(self.downsample_factor)  # type: ignore[assignment]  # YAML gives a list
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha must be a finite number of at least 0, not {self.alpha}")
        if self.warmup_steps < 2:
            raise ValueError(f"warmup_steps must be at least 2 (one LFD needs two steps), not {self.warmup_steps}")
        if len(self.downsample_factor) != 3 or min(self.downsample_factor) < 1:
            raise ValueError(f"downsample_factor must be three whole numbers from 1, not {self.downsample_factor}")
        if not 0 < self.radius_ratio <= 1:
            raise ValueError(f"radius_ratio must be in (0, 1], not {self.radius_ratio}")
        for name, known in (("downsample_mode", DOWNSAMPLE_MODES), ("reference", REFERENCES), ("guidance", GUIDANCE)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        anatomy.trial_size(latent_size, self.downsample_factor)

    def rule(self) -> LFCache:
        return LFCache(self)


class LFCache(StepwiseRule):
    """Algorithm 1, lines 6-18, for one pipeline call; step indices count up where the paper's count down."""

    config: PreciseCacheConfig

    def __init__(self, config: PreciseCacheConfig) -> None:
        super().__init__(config)
        self.error = 0.0  # E
        self.max_lfd = 0.0  # over the warm-up; the threshold is alpha times it
        self.previous_trial: torch.Tensor | None = None
        self.anchor_trial: torch.Tensor | None = None

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        if denoiser.index == 0:
            return True  # line 3
        config = self.config
        size = denoiser.anatomy.trial_size(denoiser.latent_size, config.downsample_factor)
        reference = self._reference(denoiser, size)  # line 10
        trial = denoiser.trial(size, config.downsample_mode, config.guidance)  # lines 7-8
        lfd = float(low_frequency_difference(trial, reference, config.radius_ratio))  # lines 9-11

        warming_up = denoiser.index < config.warmup_steps
        if warming_up:
            self.max_lfd = lfd if math.isnan(lfd) or lfd > self.max_lfd else self.max_lfd  # a NaN stays
        else:
            self.error = self.error + lfd if config.accumulate else lfd  # line 12
        threshold = config.alpha * self.max_lfd
        step.indicator, step.threshold = lfd, None if warming_up else threshold
        step.accumulated = None if warming_up else self.error

        reuse = not warming_up and not denoiser.must_compute and self.error < threshold  # line 13; never with a NaN
        if not reuse:
            self.error = 0.0  # line 17
            self.anchor_trial = trial
        self.previous_trial = trial
        return not reuse

    def _reference(self, denoiser: Denoiser, size: Size) -> torch.Tensor:
        config = self.config
        if config.reference == "cached_output":
            return denoiser.cached(size, config.downsample_mode, config.guidance)
        if self.previous_trial is None or self.anchor_trial is None:
            # The first step's trial, made up for now that all of its branches have been seen.
            first = denoiser.trial(size, config.downsample_mode, config.guidance, previous=True)
            self.previous_trial = self.anchor_trial = first
        return self.previous_trial if config.reference == "previous_trial" else self.anchor_trial
