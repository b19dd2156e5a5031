"""SeaCache against numbers of its official code, its variant against diffusers itself, the filter by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import SeaCacheConfig as DiffusersSeaCache

from methods import apply
from methods.engine.anatomy import anatomy_for, anatomy_of
from methods.seacache import SeaCacheConfig, sea_filter

from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "seacache.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_equals_the_official_code(name):
    case = GOLDEN["cases"][name]
    family = FAMILIES[case["family"]]
    pipe = family.pipeline()
    with apply(pipe, SeaCacheConfig(**case["config"]), **family.options) as handle:
        latents = family.call(pipe, steps=GOLDEN["steps"])
    steps = handle.trace.steps
    assert (
        [int(step.action == "full") for step in steps]
        == case["computed"]
        == case.get("computed_uncond", case["computed"])
    )
    assert [s.indicator for s in steps if s.indicator is not None] == pytest.approx(case["indicators"], rel=1e-4)
    few = latents.flatten()[:: latents.numel() // 32]
    assert few.tolist() == pytest.approx(case["latents"], rel=1e-4, abs=1e-5)
    assert float(latents.abs().mean()) == pytest.approx(case["mean_abs"], rel=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"threshold": 3.0}, {"threshold": 3.0}),
        ({"threshold": 0.6, "max_consecutive_cached": 0}, {"threshold": 0.6, "max_reused": 0}),
        ({"threshold": 1.0, "residual_order": 0}, {"threshold": 1.0, "residual_order": 0}),
        ({"threshold": 2.0, "power_exp": 2.0}, {"threshold": 2.0, "power_exp": 2.0}),
        (
            {"threshold": 2.0, "retention_steps": 4, "cache_end_steps": 3},
            {"threshold": 2.0, "protect_first": 4, "protect_last": 3},
        ),
    ],
)
def test_the_variant_equals_diffusers(theirs, ours):
    wan, computed = FAMILIES["wan"], []
    pipe = wan.pipeline()
    pipe.transformer.blocks[1].attn1.register_forward_pre_hook(lambda *_: computed.append(1))
    pipe.transformer.enable_cache(DiffusersSeaCache(**theirs))
    expected = wan.call(pipe, steps=20)
    fresh = wan.pipeline()
    with apply(fresh, SeaCacheConfig(variant="diffusers", **ours)) as handle:
        latents = wan.call(fresh, steps=20)
    assert 0 < handle.trace.reused < 15
    assert len(computed) == 2 * handle.trace.computed
    assert torch.allclose(latents, expected, rtol=1e-5, atol=1e-6)


def gain(frequency: float, sigma: float) -> float:
    a, b = 1 - sigma, sigma
    return a / (a * a + b * b * frequency**3)


def test_the_filter_weighs_each_frequency_by_its_share_of_signal():
    grid, sigma = (2, 4, 8), 0.7
    gains = [[gain(min(i, n - i) / n, sigma) for i in range(n)] for n in grid]
    mean = math.prod(sum(row) / len(row) for row in gains)
    wave = torch.cos(torch.arange(8) * 2 * math.pi * 3 / 8).expand(1, 2, 4, 8)[..., None]
    expected = gains[0][0] * gains[1][0] * gains[2][3] / mean
    assert torch.allclose(sea_filter(wave, sigma), wave * expected, atol=1e-5)
    flat = torch.ones(1, 2, 4, 8, 3)
    assert torch.allclose(sea_filter(flat, sigma), flat * gains[0][0] * gains[1][0] * gains[2][0] / mean, atol=1e-5)


def test_with_less_noise_more_passes():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, 8, 2, generator=generator)
    kept = [float((sea_filter(noise, sigma) - noise).abs().mean()) for sigma in (0.0, 0.1, 0.5, 0.9)]
    assert kept == sorted(kept)
    assert kept[0] < 1e-4
    assert sea_filter(noise.bfloat16(), 0.5).dtype == torch.bfloat16
    assert sea_filter(noise, 1.0).isfinite().all()


def test_wan_compares_the_first_free_step_with_an_unfiltered_one():
    """The official code's way, which makes that step's distance large; a field undoes it."""
    wan = FAMILIES["wan"]
    first = {}
    for filtered in (None, True):
        pipe = wan.pipeline()
        with apply(pipe, SeaCacheConfig(threshold=0.8, filter_protected=filtered)) as handle:
            wan.call(pipe)
        first[filtered] = handle.trace.steps[1].indicator
        assert handle.method.filter_protected is bool(filtered)
    assert first[None] > 5 * first[True]


def test_families_and_variants_without_a_rule_are_refused():
    cogvideox, hunyuan = (anatomy_of(FAMILIES[name].pipeline().transformer) for name in ("cogvideox_2b", "hunyuan"))
    with pytest.raises(ValueError, match="no published rule for cogvideox"):
        SeaCacheConfig().for_backbone(cogvideox)
    images = anatomy_for(WanTransformer3DModel, {"in_channels": 36})
    for anatomy in (hunyuan, images):
        with pytest.raises(ValueError, match="wan's text-to-video models alone"):
            SeaCacheConfig(variant="diffusers").for_backbone(anatomy)
    assert SeaCacheConfig().for_backbone(hunyuan).filter_protected is True


def test_each_variant_fills_in_what_is_its_own():
    wan = anatomy_of(FAMILIES["wan"].pipeline().transformer)
    official, other = (SeaCacheConfig(variant=name).for_backbone(wan) for name in ("official", "diffusers"))
    assert (official.threshold, official.max_reused, official.residual_order) == (0.2, 0, 0)
    assert (other.threshold, other.max_reused, other.residual_order) == (0.25, 2, 1)
    assert SeaCacheConfig(variant="diffusers", max_reused=0).for_backbone(wan).max_reused == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "mine"}, "variant must be one of official, diffusers"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"max_reused": -1}, "max_reused"),
        ({"residual_order": 2}, "residual_order must be 0 or 1"),
        ({"power_exp": 0.0}, "power_exp"),
    ],
)
def test_bad_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SeaCacheConfig(**fields)
