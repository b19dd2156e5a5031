"""TeaCache against numbers of its official code, its rule by hand, and the sets it chooses."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel

from methods import apply, teacache
from methods import calibration as calibrations
from methods.calibration import NotCalibratedError
from methods.engine.anatomy import anatomy_for
from methods.teacache import TeaCacheConfig, relative_l1
from methods.teacache_official import RETENTION_SETS, SETS

from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "teacache.json").read_text())
LINE = [1.0, 0.0]  # the distance itself


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_equals_the_official_code(name):
    case = GOLDEN["cases"][name]
    family = FAMILIES[case["family"]]
    pipe = family.pipeline()
    with apply(pipe, TeaCacheConfig(**case["config"]), **family.options) as handle:
        latents = family.call(pipe, steps=GOLDEN["steps"])
    steps = handle.trace.steps
    assert [int(step.action == "full") for step in steps] == case["computed"]
    assert case.get("computed_uncond", case["computed"]) == case["computed"]  # why one decision a step is enough
    free = [step for step in steps if step.accumulated is not None]
    assert [step.indicator for step in free] == pytest.approx(case["indicators"], rel=1e-3, abs=1e-5)
    assert [step.details["distance"] for step in free] == pytest.approx(case["distances"], rel=1e-5)
    few = latents.flatten()[:: latents.numel() // 32]
    assert few.tolist() == pytest.approx(case["latents"], rel=1e-4, abs=1e-5)
    assert float(latents.abs().mean()) == pytest.approx(case["mean_abs"], rel=1e-5)


def decisions(features, config, protected=(), steps=None):
    """The rule alone over a list of features."""
    rule, rows = config.rule(), []
    features = [torch.tensor([float(each)]) for each in features]
    for index, feature in enumerate(features):
        step = SimpleNamespace(details={}, indicator=None, accumulated=None, threshold=None)
        denoiser = SimpleNamespace(
            anatomy=SimpleNamespace(family="wan", timestep_embedding=None),
            look=lambda view, feature=feature: feature,
            must_compute=index in protected,
        )
        rows.append((rule.decide(denoiser, step), step))
    return rows


def test_adjacent_steps_are_compared_and_the_sum_starts_again_at_a_computed_step():
    config = TeaCacheConfig(coefficients=LINE, threshold=0.7)
    rows = decisions([1, 1.5, 1.8, 1.8, 3.6, 3.6], config, protected=(0,))
    # distances 0.5, 0.2, 0, 1, 0: the third step is compared with the second, which was reused
    assert [row.indicator for _, row in rows[1:]] == pytest.approx([0.5, 0.2, 0.0, 1.0, 0.0], abs=1e-6)
    assert [row.accumulated for _, row in rows[1:]] == pytest.approx([0.5, 0.7, 0.7, 1.7, 0.0], abs=1e-6)
    assert [compute for compute, _ in rows] == [True, False, False, False, True, False]


def test_a_protected_step_starts_the_sum_again():
    config = TeaCacheConfig(coefficients=LINE, threshold=0.7)
    rows = decisions([1, 1.5, 2.25, 3.0], config, protected=(0, 2))
    assert [compute for compute, _ in rows] == [True, False, True, False]
    assert rows[3][1].accumulated == pytest.approx(1 / 3)


def test_the_polynomial_may_be_negative_as_published():
    config = TeaCacheConfig(coefficients=[1.0, -0.5], threshold=0.2)
    rows = decisions([1, 1.1, 1.98], config, protected=(0,))
    assert [row.indicator for _, row in rows[1:]] == pytest.approx([-0.4, 0.3])
    assert [compute for compute, _ in rows] == [True, False, False]  # -0.4 + 0.3


def test_nan_computes():
    config = TeaCacheConfig(coefficients=LINE, threshold=100.0)
    rows = decisions([1, float("nan"), 1, 1], config, protected=(0,))
    assert [compute for compute, _ in rows] == [True, True, True, False]


def test_relative_l1():
    a, b = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([2.0, -2.0, -4.0])
    assert relative_l1(a, b) == pytest.approx(9 / 8)


def anatomy(cls, **config):
    return anatomy_for(cls, config)


BACKBONES = {
    "wan2.1-t2v-14b": anatomy(WanTransformer3DModel),
    "wan2.1-t2v-1.3b": anatomy(WanTransformer3DModel, num_layers=30, num_attention_heads=12),
    "hunyuanvideo": anatomy(HunyuanVideoTransformer3DModel),
    "cogvideox-2b": anatomy(CogVideoXTransformer3DModel),
    "cogvideox-5b": anatomy(CogVideoXTransformer3DModel, num_layers=42, num_attention_heads=48),
    "cogvideox1.5-5b": anatomy(CogVideoXTransformer3DModel, num_layers=42, num_attention_heads=48, patch_size_t=2),
}
TINY = anatomy(WanTransformer3DModel, num_layers=2, num_attention_heads=2, attention_head_dim=12)


@pytest.mark.parametrize("name", BACKBONES)
def test_published_backbones_get_their_own_numbers(name):
    slow = TeaCacheConfig().for_backbone(BACKBONES[name])
    fast = TeaCacheConfig(speed="fast").for_backbone(BACKBONES[name])
    assert slow.coefficients == fast.coefficients == list(SETS[name].coefficients)
    assert (slow.threshold, fast.threshold) == (SETS[name].slow, SETS[name].fast)
    assert slow.for_backbone(BACKBONES[name]) == slow
    assert (slow.protect_first, slow.protect_last) == (1, 1)


def test_retention_steps_have_coefficients_and_protection_of_their_own():
    config = TeaCacheConfig(retention_steps=True).for_backbone(BACKBONES["wan2.1-t2v-14b"])
    assert config.coefficients == list(RETENTION_SETS["wan2.1-t2v-14b"].coefficients)
    assert (config.threshold, config.protect_first, config.protect_last) == (0.1, 5, 0)
    assert TeaCacheConfig(retention_steps=True, protect_first=2, protect_last=1).protect_first == 2
    with pytest.raises(ValueError, match="none of hunyuanvideo's"):
        TeaCacheConfig(retention_steps=True).for_backbone(BACKBONES["hunyuanvideo"])


def test_where_there_are_two_sets_the_user_chooses():
    images = anatomy(WanTransformer3DModel, in_channels=36)
    with pytest.raises(ValueError, match=r"choose coefficient_set=wan2\.1-i2v-480p"):
        TeaCacheConfig().for_backbone(images)
    chosen = TeaCacheConfig(coefficient_set="wan2.1-i2v-720p").for_backbone(images)
    assert chosen.coefficients == list(SETS["wan2.1-i2v-720p"].coefficients)
    assert chosen.threshold == 0.18
    with pytest.raises(ValueError, match="of hunyuanvideo, not wan"):
        TeaCacheConfig(coefficient_set="hunyuanvideo").for_backbone(TINY)


def test_an_unknown_backbone_needs_a_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    with pytest.raises(NotCalibratedError, match=r"wan-2x24.*pcbench.calibrate method=teacache "):
        TeaCacheConfig().for_backbone(TINY)
    with pytest.raises(NotCalibratedError, match="method=teacache_retention"):
        TeaCacheConfig(retention_steps=True).for_backbone(TINY)
    data = {"signature": "wan-2x24", "model": "mine", "coefficients": [2.0, 1.0]}
    (tmp_path / "teacache-mine.json").write_text(json.dumps(data))
    config = TeaCacheConfig(speed="fast").for_backbone(TINY)
    assert (config.coefficients, config.threshold) == ([2.0, 1.0], 0.2)
    assert TeaCacheConfig(coefficients=LINE).for_backbone(TINY).coefficients == LINE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"speed": "quick"}, "speed must be one of slow, fast"),
        ({"coefficients": []}, "coefficients"),
        ({"coefficients": [float("inf")]}, "coefficients"),
        ({"coefficients": LINE, "coefficient_set": "wan2.1-t2v-14b"}, "give either coefficients or coefficient_set"),
        ({"coefficient_set": "flux"}, "coefficient_set must be one of wan2.1"),
        ({"coefficient_set": "hunyuanvideo", "retention_steps": True}, "with retention_steps"),
        ({"protect_first": -1}, "protect_first"),
    ],
)
def test_bad_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TeaCacheConfig(**fields)


def test_wan_looks_at_float32_whatever_the_weights_are(pipe, monkeypatch):
    """As Wan's own code does; the differences between steps are finer than bfloat16."""
    pipe.transformer.to(torch.bfloat16)
    seen, original = [], teacache.look
    monkeypatch.setattr(teacache, "look", lambda *args: seen.append(original(*args)) or seen[-1])
    for fields in ({}, {"retention_steps": True}):
        with warnings.catch_warnings(), apply(pipe, TeaCacheConfig(coefficients=LINE, threshold=0.5, **fields)):
            warnings.simplefilter("ignore")
            FAMILIES["wan"].call(pipe)
    assert {feature.dtype for feature in seen} == {torch.float32}
    assert {feature.shape[-1] for feature in seen} == {24, 6 * 24}


def test_every_look_is_cheap(pipe):
    with warnings.catch_warnings(), apply(pipe, TeaCacheConfig(coefficients=LINE, threshold=0.5)) as handle:
        warnings.simplefilter("ignore")
        FAMILIES["wan"].call(pipe)
    looks = [call for step in handle.trace.steps for call in step.calls if call.only is not None]
    assert len(looks) == len(handle.trace.steps)
    assert all(call.only == {"condition_embedder.time_embedder": 1} for call in looks)
    assert dataclasses.replace(handle.method, reuse="prediction").modules(TINY, pipe.transformer) == []
