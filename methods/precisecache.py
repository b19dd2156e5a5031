"""PreciseCache: Algorithm 1 and equations (2)-(4) of Wang et al., "PreciseCache" (ICLR 2026).

LFCache decides *which steps* to compute. At each step a *trial*, the transformer on a downsampled latent, shows how
much the low frequencies of its prediction have changed (the LFD); while the accumulated LFD stays below a threshold the
last prediction is reused. BlockCache (block_cache.py) decides *which blocks* to compute at the computed steps.

Read `PreciseCache.algorithm_1` beside the paper. Each choice that the paper leaves open is a field, with a default and
a reason, and a small function around the algorithm; the defaults are Algorithm 1 to the letter. What the other choices
do: docs/precisecache.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .block_cache import RANKINGS, SETS, BlockCache
from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser, ModuleCall
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step
from .frequency import DOWNSAMPLE_MODES, NORMS, SPECTRA, low_frequency_difference, low_passed

CHOICES = {
    "downsample_mode": DOWNSAMPLE_MODES,
    "reference": ("cached_output", "previous_trial", "anchor_trial"),
    "radius_of": ("trial", "latent"),
    "guidance": ("guided", "cond"),
    "norm": NORMS,
    "spectrum": SPECTRA,
    "threshold_from": ("trial", "full"),
    "block_ranking": RANKINGS,
    "block_sets": SETS,
}


@dataclass(kw_only=True)
class PreciseCacheConfig(StepwiseCache):
    """LFCache, and BlockCache where `block_cache_rate` is above 0.

    `alpha` 0.5 is the paper's Base, 0.7 its Turbo; Flash is Turbo with a `block_cache_rate` of 0.4.

    The algorithm:
    alpha: threshold as a share of the largest LFD seen in the warm-up (section 4.1); 0 never reuses.
    warmup_steps: steps always computed at the start, the paper's three; the threshold is taken from their LFDs.
    downsample_factor: how far the trial's latent is shrunk in time, height, width (section 4.1).
    radius_ratio: radius of the low-pass disk as a share of min(H, W) of the trial (section 4.1).
    block_cache_rate: share of the blocks whose residual is cached, 0 to 1. "Cache rate 40 %" could also mean that 40 %
        are pivotal; the paper's MACs (Flash computes 0.77 to 0.81 of Turbo) fit 40 % cached.
    block_cache_steps: L, computed steps from one refresh to the next (section 4.1).

    What the paper leaves open, with the number of the question in docs/precisecache.md:
    accumulate (1): sum the LFDs since the last computed step (Algorithm 1, line 12), or use the latest alone.
    reference (2): what a trial is compared with. "cached_output" is Algorithm 1 (line 10): the downsampled prediction
        last used; every LFD then includes a resolution gap. "previous_trial" compares trials of adjacent steps
        (equation 10 of appendix A.2, on trials), "anchor_trial" with the trial of the last computed step.
    subtract_bias (3): with "cached_output", subtract the gap measured at the last computed step, where both trial and
        full prediction are known.
    norm (4): norm of the LFD, see `low_frequency_difference`. "rms" is the L2 norm of line 11 divided by a constant,
        which cancels in E < alpha * max LFD: the same decisions, and values that compare across sizes.
    threshold_from (5): measure the warm-up's LFDs on trials, like the later ones, or on full predictions, which is
        free but gives another scale.
    count_warmup (6): let E start with the warm-up's LFDs instead of 0.
    spectrum (7), whole_bins (8): see `low_frequency`.
    low_pass_first (9): with "cached_output", low-pass the prediction before it is downsampled (Algorithm 1, line 4) and
        not only after (line 10, which overwrites the same quantity before line 4's is ever used).
    downsample_mode (11): how the latent is shrunk, see `frequency.DOWNSAMPLE_MODES`; the paper says "Downsample".
    guidance (15): the trial's prediction after classifier-free guidance ("guided", as the cached one in section 4.3),
        or of the conditional branch alone ("cond", half the cost).
    max_reused (20): most steps reused in a row; 0 is no limit, as in the paper.
    block_ranking (24): by the norm of the residual (section 3.4), or by that norm over the norm of the block's input.
    block_sets (26): each guidance branch ranks for itself, or all follow the first. Where both are in one batch
        (CogVideoX, Open-Sora) they have one ranking anyway.
    radius_of (31): min(H, W) is the trial's, whose spectrum is masked, or the full latent's, as section 3.3 defines H
        and W; the mask then keeps nearly all of the trial (83 to 100 % at the released sizes).
    """

    alpha: float = 0.7
    warmup_steps: int = 3
    downsample_factor: tuple[int, int, int] = (2, 4, 4)
    radius_ratio: float = 0.2
    block_cache_rate: float = 0.0
    block_cache_steps: int = 3

    accumulate: bool = True
    reference: str = "cached_output"
    subtract_bias: bool = False
    norm: str = "rms"
    threshold_from: str = "trial"
    count_warmup: bool = False
    spectrum: str = "spatial"
    whole_bins: bool = False
    low_pass_first: bool = False
    downsample_mode: str = "nearest-exact"
    guidance: str = "guided"
    max_reused: int = 0
    block_ranking: str = "absolute"
    block_sets: str = "apart"
    radius_of: str = "trial"

    NAME: ClassVar[str] = "precisecache"
    VERSION: ClassVar[int] = 2  # 1: `reference` was "previous_trial" unless set
    TRADEOFF: ClassVar = Tradeoff("alpha", 0.001, 1000.0)
    INERT: ClassVar = {"alpha": 0.0, "block_cache_rate": 0.0}
    EAGER: ClassVar = {"alpha": 5.0, "downsample_factor": (2, 2, 2)}

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
        if not 0 <= self.block_cache_rate <= 1:
            raise ValueError(f"block_cache_rate must be in [0, 1], not {self.block_cache_rate}")
        if self.block_cache_steps < 1 or self.max_reused < 0:
            raise ValueError("block_cache_steps must be at least 1 and max_reused at least 0")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("subtract_bias", "low_pass_first"):
            if getattr(self, name) and self.reference != "cached_output":
                raise ValueError(f"{name} means something only with reference=cached_output")
        if self.block_cache_rate and self.reuses_stack:
            raise ValueError("BlockCache and reuse=stack both answer for the blocks; use one of them")

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        anatomy.trial_size(latent_size, self.downsample_factor)

    def check_call(self, anatomy: Anatomy, inputs: Mapping[str, Any], pipe: Any) -> None:
        frames = anatomy.latent_size(inputs)[0]
        trial_frames = anatomy.trial_size(anatomy.latent_size(inputs), self.downsample_factor)[0]
        if anatomy.conditioned(inputs) and trial_frames == anatomy.patch[0] < frames:
            raise ValueError(
                f"downsample factor {self.downsample_factor} leaves of {frames} latent frames only the first, which in"
                " image to video is the image and not denoised; lower the factor in time"
            )

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        if self.block_cache_rate:
            paths = [block.path for block in anatomy.blocks(transformer)]
            if round(self.block_cache_rate * len(paths)) == 0:
                raise ValueError(f"block_cache_rate {self.block_cache_rate} is less than one of {len(paths)} blocks")
            return paths
        return super().modules(anatomy, transformer)

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        follows = self.block_cache_rate and self.block_sets == "shared"  # one branch the other's ranking
        return super().shares_guidance(anatomy) and (anatomy.BATCHED is not None or not follows)

    @property
    def keeps_blocks(self) -> bool:
        return bool(self.block_cache_rate) or super().keeps_blocks

    def rule(self) -> PreciseCache:
        return PreciseCache(self)

    @property
    def trial_factor(self) -> tuple[int, int, int]:
        return self.downsample_factor

    @property
    def always_computed(self) -> int:
        return self.warmup_steps

    def steps_saved_inside(self, computed: float, blocks: int) -> float:
        """From the warm-up's last step on, computed steps repeat a cycle: one refresh, then L cached steps."""
        after = max(0.0, computed - self.warmup_steps + 1)
        refreshes = -(-after // (self.block_cache_steps + 1))
        return (after - refreshes) * round(self.block_cache_rate * blocks) / blocks


def accumulated(config: PreciseCacheConfig, error: float, lfd: float, warming_up: bool) -> float:
    """Line 12: E plus this LFD; or the LFD alone (question 1), or E unchanged in the warm-up (question 6)."""
    if not config.accumulate:
        return lfd
    return error + lfd if config.count_warmup or not warming_up else error


def larger(maximum: float, lfd: float) -> float:
    """The larger of the two; NaN if either is, so that nothing is reused after it."""
    return lfd if math.isnan(lfd) or lfd > maximum else maximum


def radius_ratio(config: PreciseCacheConfig, latent: Size, compared: Size) -> float:
    """Question 31: the low-pass radius as a share of min(H, W) of what is compared, converted from the latent's."""
    if config.radius_of == "trial":
        return config.radius_ratio
    return config.radius_ratio * min(latent[1:]) / min(compared[1:])


class PreciseCache(StepwiseRule):
    """Algorithm 1 for one pipeline call; step indices count up where the paper's count down."""

    config: PreciseCacheConfig

    def __init__(self, config: PreciseCacheConfig) -> None:
        super().__init__(config)
        self.error = 0.0  # E, line 2
        self.max_lfd = 0.0  # of the warm-up; the threshold is alpha times it
        self.reused = 0  # steps reused in a row
        self.past_trial: torch.Tensor | None = None  # the previous step's, or the last computed step's
        self.bias = 0.0  # share of an LFD due to the trial's resolution, at the last computed step
        self.latest_full: torch.Tensor | None = None  # prediction, kept through the warm-up where needed
        blocks = config.block_cache_rate, config.block_cache_steps, config.block_ranking, config.block_sets, config.kept
        self.block_cache = BlockCache(*blocks) if config.block_cache_rate else None

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        return self.algorithm_1(denoiser, step)

    def decide_together(self, denoiser: Denoiser, step: Step) -> bool:
        compute = super().decide_together(denoiser, step)
        if compute and self.block_cache is not None:  # line 16
            self.block_cache.begin_step(denoiser, warming_up=denoiser.index < self.config.warmup_steps - 1)
        return compute

    def algorithm_1(self, denoiser: Denoiser, step: Step) -> bool:
        """Lines 2-18 at one step: whether to compute (lines 16-17) or to reuse (line 14)."""
        config, warming_up = self.config, denoiser.index < self.config.warmup_steps
        if denoiser.index == 0:
            return True  # line 3
        size = denoiser.anatomy.trial_size(denoiser.latent_size, config.downsample_factor)
        reference = self._reference(denoiser, size)  # line 10
        trial = denoiser.trial(size, config.downsample_mode, config.guidance)  # lines 7-8
        lfd = self._above_bias(denoiser, self._lfd(denoiser, trial, reference))  # lines 9-11
        self.error = accumulated(config, self.error, lfd, warming_up)  # line 12
        threshold = config.alpha * self._max_lfd(denoiser, lfd)  # section 4.1
        reuse = self.error < threshold and self._may_reuse(denoiser)  # line 13; never with a NaN
        step.indicator = lfd
        if not warming_up:
            step.accumulated, step.threshold = self.error, threshold
        if not reuse and not (warming_up and config.count_warmup):
            self.error = 0.0  # line 17
        self._remember(trial, reuse)
        return not reuse

    def _reference(self, denoiser: Denoiser, size: Size) -> torch.Tensor:
        """Question 2: what the trial is compared with, at its size."""
        config = self.config
        if config.reference == "cached_output":
            return self._cached(denoiser, size)
        if self.past_trial is None:  # the first step's, run now that all of its branches have been seen
            self.past_trial = denoiser.trial(size, config.downsample_mode, config.guidance, previous=True)
        return self.past_trial

    def _cached(self, denoiser: Denoiser, size: Size) -> torch.Tensor:
        """Line 10, or with `low_pass_first` (question 9) line 4: the prediction last used, downsampled."""
        config, whole = self.config, denoiser.latent_size
        if not config.low_pass_first:
            return denoiser.cached(size, config.downsample_mode, config.guidance)
        full = denoiser.cached(whole, config.downsample_mode, config.guidance)
        low = low_passed(full, config.radius_ratio, config.whole_bins, config.spectrum)
        conditioned = denoiser.anatomy.conditioned(denoiser.branch.inputs)
        return denoiser.anatomy.resize_video(low, size, config.downsample_mode, conditioned)

    def _lfd(self, denoiser: Denoiser, a: torch.Tensor, b: torch.Tensor) -> float:
        config = self.config
        ratio = radius_ratio(config, denoiser.latent_size, (a.shape[-3], a.shape[-2], a.shape[-1]))
        return float(low_frequency_difference(a, b, ratio, config.whole_bins, config.spectrum, config.norm))

    def _above_bias(self, denoiser: Denoiser, lfd: float) -> float:
        """Question 3: with `subtract_bias`, minus the LFD of the last computed step's trial and full prediction."""
        if self.config.subtract_bias and self.past_trial is not None and not self.reused:
            frames, height, width = self.past_trial.shape[-3:]
            self.bias = self._lfd(denoiser, self.past_trial, self._cached(denoiser, (frames, height, width)))
            denoiser.step.details["bias"] = self.bias
        return 0.0 if lfd < self.bias else lfd - self.bias

    def _max_lfd(self, denoiser: Denoiser, lfd: float) -> float:
        """Section 4.1: the largest LFD of the warm-up, of trials or (question 5) of full predictions."""
        config = self.config
        if config.threshold_from == "full" and denoiser.index <= config.warmup_steps:
            self.max_lfd = larger(self.max_lfd, self._full_lfd(denoiser))
        elif config.threshold_from == "trial" and denoiser.index < config.warmup_steps:
            self.max_lfd = larger(self.max_lfd, lfd)
        return self.max_lfd

    def _full_lfd(self, denoiser: Denoiser) -> float:
        """LFD of the last two full predictions, which the warm-up computes anyway; 0 while there is only one."""
        config = self.config
        latest = denoiser.cached(denoiser.latent_size, config.downsample_mode, config.guidance)
        before, self.latest_full = self.latest_full, latest
        return 0.0 if before is None else self._lfd(denoiser, latest, before)

    def _may_reuse(self, denoiser: Denoiser) -> bool:
        """Conditions besides line 13: no warm-up (section 4.1), no protected step, no limit reached (question 20)."""
        limit = self.config.max_reused or math.inf
        return denoiser.index >= self.config.warmup_steps and not denoiser.must_compute and self.reused < limit

    def _remember(self, trial: torch.Tensor, reused: bool) -> None:
        """Keep the trial that later trials may be compared with."""
        self.reused = self.reused + 1 if reused else 0
        if self.config.reference == "previous_trial" or not reused:
            self.past_trial = trial

    def forget_branch(self, name: str) -> None:
        super().forget_branch(name)
        if self.block_cache is not None:
            self.block_cache.forget_branch(name)

    def change_transformer(self) -> None:
        super().change_transformer()
        if self.block_cache is not None:
            self.block_cache.forget()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        return super().visit(denoiser, call) if self.block_cache is None else self.block_cache.visit(denoiser, call)
