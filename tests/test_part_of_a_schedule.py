"""A call with a strength below 1 takes the last part of a schedule: what belongs to a noise level stays with it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from methods import AdaCacheConfig, FasterCacheConfig, MagCacheConfig, SearchedConfig, SenCacheConfig, apply
from methods.adacache import AdaptiveCaching
from methods.fastercache import _FasterCache
from methods.magcache import MagCache
from methods.sencache import SenCache

from .families import SMALL as FAMILIES

STEPS = 16
# What a method looks up by the number of a step: where, and how to read it of the rule or of what that returns.
LOOKED_UP: dict[str, tuple[Any, type, str, Any]] = {
    "magcache": (
        MagCacheConfig(threshold=9.0, ratios={"all": [1.0 + 0.01 * i for i in range(STEPS)]}, protect_first=0),
        MagCache, "_ratio", lambda rule, found: found,
    ),
    "sencache": (
        SenCacheConfig(**{**SenCacheConfig.EAGER, "threshold_first": 0.5, "threshold": 1.0, "first_share": 0.7}),
        SenCache, "_threshold", lambda rule, found: found,
    ),
    "fastercache": (FasterCacheConfig(steps=50), _FasterCache, "_begin", lambda rule, found: rule._time),
    "adacache": (
        AdaCacheConfig(codebook={1.0: 1}, moreg=True, moreg_steps=(6, 11), moreg_divisor=3.0),
        AdaptiveCaching, "_moreg", lambda rule, found: rule.moreg == 1.0,
    ),
}  # fmt: skip


def call(pipe: Any, strength: float, steps: int = STEPS) -> None:
    FAMILIES["wan_video_to_video"].call(pipe, steps=steps * 3 // 4, strength=strength)


@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_is_looked_up_by_step_is_that_of_the_noise_level(name, monkeypatch):
    method, rule_class, function, read = LOOKED_UP[name]
    original, found = getattr(rule_class, function), {}

    def recorded(rule: Any, denoiser: Any, *args: Any) -> Any:
        result = original(rule, denoiser, *args)
        found[round(denoiser.step.sigma, 5)] = read(rule, result)
        return result

    monkeypatch.setattr(rule_class, function, recorded)
    pipe, by_strength = FAMILIES["wan_video_to_video"].pipeline(), []
    with warnings.catch_warnings(), apply(pipe, method) as handle:
        warnings.simplefilter("ignore")
        for strength in (1.0, 0.5):
            found.clear()
            call(pipe, strength)
            by_strength.append(dict(found))
    assert [len(trace.steps) for trace in handle.traces] == [STEPS, STEPS // 2]
    whole, part = by_strength
    assert len(part) > 3
    assert len(set(whole.values())) > 1
    assert part.items() <= whole.items()


def test_a_searched_schedule_is_of_a_whole_denoising(monkeypatch):
    monkeypatch.setattr(SearchedConfig, "schedule", lambda self: self.actions or "F" + "r" * (STEPS - 1))
    pipe = FAMILIES["wan_video_to_video"].pipeline()
    with apply(pipe, SearchedConfig(calibration="here")):
        call(pipe, strength=1.0)
        with pytest.raises(ValueError, match="takes the last 16 of 32 steps"):
            call(pipe, strength=0.5, steps=2 * STEPS)
    with apply(pipe, SearchedConfig(actions="F" + "r" * (STEPS - 1))) as handle:
        call(pipe, strength=0.5, steps=2 * STEPS)
    assert handle.trace.reused == STEPS - 1
