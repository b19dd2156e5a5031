"""MagCache: Ma et al., "MagCache" (NeurIPS 2025), as in Zehong-Ma/MagCache at df81cb1.

From step to step the block stack's residual shrinks by a ratio that hardly depends on the prompt. Ratios known in
advance give the error in magnitude of a cached residual; while those errors sum to less than a threshold, and for at
most K steps, the residual is added again. The schedule depends on the ratios alone.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .calibration import FOLDER, measured, signature
from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step

PUBLISHED: dict[str, dict[str, Any]] = {
    # MagCache4Wan2.1/magcache_generate.py, defaults of --magcache_thresh and --magcache_K
    "wan": {"threshold": 0.12, "max_skip": 2},
    # MagCache4HunyuanVideo/magcache_sample_video.py, "add magcache config here"
    "hunyuanvideo": {"threshold": 0.24, "max_skip": 6},
    # eval/magcache/experiments/opensora.py, eval_ours
    "opensora": {"threshold": 0.12, "max_skip": 3, "ratio_power": 0.5, "signed": True},
}


@dataclass(kw_only=True)
class MagCacheConfig(StepwiseCache):
    """MagCache with its official settings; CogVideoX and HunyuanVideo-1.5 have none, get Wan's and need a calibration.

    threshold: bound on the error summed since the last computed step; None is the official value of the backbone (Wan
        and Open-Sora 0.12, HunyuanVideo 0.24).
    max_skip: K, most steps reused in a row; None is the official value of the backbone (Wan 2, Open-Sora 3,
        HunyuanVideo 6).
    ratios: for each guidance branch, "cond" and "uncond", or for "all", each step's mean residual norm over that of the
        step before, with 1.0 for the first step; for another number of steps the nearest are taken, as in the official
        code. None is the official set of the backbone, or else its measured calibration. If there are official sets for
        two resolutions, None is 720p's, whatever size is sampled: for 480p or 544p, name the other (`ratio_set`).
    ratio_set: an official set by name (calibrations/magcache-official.json), on any backbone.
    ratio_power: exponent of the ratios; the paper and the official evaluations take 0.5, the generation scripts 1. None
        is 0.5 on Open-Sora, which has only an evaluation, and 1 elsewhere.
    signed: sum 1 - r with its sign instead of |1 - r|; None follows the official code: true on Open-Sora only.

    Each guidance branch decides for itself. Wan2.2's A14B looks the same as Wan2.1's 14B and gets its ratios; A14B's
    own official ones are not among the sets. Its steps are counted over both transformers, as in the official code, and
    the second transformer's first step is computed; officially a fifth of each transformer's steps is computed, and on
    image to video all of the first's.

    Deviations: the official HunyuanVideo and Open-Sora code skips at an error equal to the threshold; Wan's and ours do
    not. The official Wan code protects a share of the calls, not of the steps: for numbers of steps that end in 3, 4,
    8 or 9 its conditional branch is protected one step longer.
    """

    threshold: float | None = None
    max_skip: int | None = None
    ratios: dict[str, list[float]] | None = None
    ratio_set: str | None = None
    ratio_power: float | None = None
    signed: bool | None = None
    protect_first: float = 0.2
    reuse: str = "stack"

    NAME: ClassVar[str] = "magcache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 0.2, "max_skip": 2, "ratios": {"all": [1.0, *[0.97] * 11]}, "ratio_set": None}
    DECIDES_PER_BRANCH: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, not {self.threshold}")
        if self.max_skip is not None and self.max_skip < 0:
            raise ValueError(f"max_skip must be at least 0, not {self.max_skip}")
        if self.ratio_set is not None and self.ratio_set not in official():
            raise ValueError(f"ratio_set must be one of {', '.join(official())}, not {self.ratio_set!r}")
        if self.ratios is None:
            return
        if set(self.ratios) not in ({"all"}, {"cond", "uncond"}):
            raise ValueError(f'ratios must be for "all" or for "cond" and "uncond", not for {sorted(self.ratios)}')
        if not all(row and all(math.isfinite(ratio) and ratio > 0 for ratio in row) for row in self.ratios.values()):
            raise ValueError("ratios must be lists of finite numbers above 0, one a step")
        if self.ratio_set is not None and self.ratios != official()[self.ratio_set]["ratios"]:
            raise ValueError(f"give either ratios or ratio_set; the ratios given are not those of {self.ratio_set}")

    def for_backbone(self, anatomy: Anatomy) -> MagCacheConfig:
        published = PUBLISHED.get(anatomy.family, PUBLISHED["wan"])
        missing = {name: value for name, value in published.items() if getattr(self, name) is None}
        return replace(self, **missing, ratios=self._ratios(anatomy) if self.ratios is None else self.ratios)

    def _ratios(self, anatomy: Anatomy) -> dict[str, list[float]]:
        if self.ratio_set is not None:
            return copy.deepcopy(official()[self.ratio_set]["ratios"])
        for entry in official().values():  # text and image to video differ only in input channels
            if entry["signature"] == signature(anatomy) and entry["in_channels"] == anatomy.config.get("in_channels"):
                return copy.deepcopy(entry["ratios"])
        return measured(self.NAME, anatomy)["ratios"]

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None:
            raise ValueError(
                "magcache: this pipeline does not say how many steps there will be, on which the ratios depend"
            )

    def rule(self) -> MagCache:
        return MagCache(self)


@dataclass
class Drift:
    """The error in magnitude of a branch's cached residual."""

    ratio: float = 1.0  # magnitude of the residual now over that of the cached one
    error: float = 0.0  # summed over the steps reused
    steps: int = 0  # since the last computed one


class MagCache(StepwiseRule):
    """Error modelling and adaptive caching for one pipeline call; each branch decides for itself."""

    config: MagCacheConfig

    def __init__(self, config: MagCacheConfig) -> None:
        super().__init__(config)
        self.drifts: dict[str, Drift] = {}

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        config, name = self.config, denoiser.branch.name
        assert config.threshold is not None
        assert config.max_skip is not None
        drift = self.drifts.setdefault(name, Drift())
        if denoiser.must_compute:
            self.drifts[name] = Drift()
            return True
        drift.ratio *= self._ratio(denoiser)
        drift.steps += 1
        error = 1 - drift.ratio if config.signed else abs(1 - drift.ratio)
        drift.error += error
        step.indicator, step.accumulated, step.threshold = error, drift.error, config.threshold
        step.details.setdefault("accumulated", {})[name] = drift.error
        reuse = drift.error < config.threshold and drift.steps <= config.max_skip and self.reuse.ready(denoiser)
        if not reuse:
            self.drifts[name] = Drift()
        return not reuse

    def _ratio(self, denoiser: Denoiser) -> float:
        """The ratio of the current step for the current branch."""
        ratios, (place, total) = self.config.ratios, denoiser.place
        assert ratios is not None
        assert total is not None
        branch = "uncond" if denoiser.anatomy.is_unconditional(denoiser.branch.name) else "cond"
        row = ratios.get("all") or ratios[branch]
        power = 1.0 if self.config.ratio_power is None else self.config.ratio_power
        return nearest(row, place, total) ** power


def nearest(row: list[float], index: int, total: int) -> float:
    """The entry at `index` of `row` stretched to `total` entries; the last one if `total` is 1."""
    return row[-1] if total == 1 else row[round(index * ((len(row) - 1) / (total - 1)))]


@functools.cache
def official() -> dict[str, dict[str, Any]]:
    """The published sets of ratios, by name."""
    return json.loads((FOLDER / "magcache-official.json").read_text())["sets"]
