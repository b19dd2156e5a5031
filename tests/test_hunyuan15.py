"""HunyuanVideo-1.5: guidance is its guider's, latents and timesteps are in the weights' precision."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance

from methods import PreciseCacheConfig, ReplayConfig, apply
from methods.engine.anatomy import anatomy_of
from methods.engine.clock import Clock
from pcbench import backbones
from pcbench.config import Backbone, Numerics, Recipe, Sampling

from .conftest import STEPS
from .families import SMALL

FAMILY = replace(SMALL["hunyuan15"], steps=STEPS)
EAGER = PreciseCacheConfig(**{**PreciseCacheConfig.EAGER, "guidance": "guided"})


@pytest.fixture
def pipe():
    return FAMILY.pipeline()


@pytest.mark.parametrize("original", [False, True])
def test_the_trial_is_guided_as_the_guider_guides(pipe, original):
    pipe.guider = ClassifierFreeGuidance(guidance_scale=3.0, use_original_formulation=original)
    conditional, unconditional = torch.randn(2, 1, 4, 5, 4, 5)
    ours = anatomy_of(pipe.transformer).guided(
        {"pred_cond": conditional, "pred_uncond": unconditional}, Clock(pipe).guidance_scale()
    )
    assert torch.allclose(ours, pipe.guider.forward(conditional, unconditional).pred, atol=1e-5)


def test_guidance_that_stops_in_mid_call_is_followed(pipe):
    """Half of the steps have one branch, which alone is computed and tried."""
    pipe.guider = ClassifierFreeGuidance(guidance_scale=4.0, stop=0.5)
    uncached = FAMILY.call(pipe)
    inert = PreciseCacheConfig(alpha=0.0, downsample_factor=(1, 2, 2))
    with warnings.catch_warnings(), apply(pipe, inert) as handle:
        warnings.simplefilter("ignore")
        assert torch.equal(FAMILY.call(pipe), uncached)
    assert [row.forwards for row in handle.trace.steps] == [2] * 6 + [1] * 6
    assert [row.trials for row in handle.trace.steps][-5:] == [1] * 5


@pytest.mark.parametrize("guider", [AdaptiveProjectedGuidance(), ClassifierFreeGuidance(guidance_rescale=0.5)])
def test_a_guider_of_another_kind_is_refused_where_its_formula_matters(pipe, guider):
    pipe.guider = guider
    with apply(pipe, EAGER), pytest.raises(ValueError, match="does not tell its scale"):
        FAMILY.call(pipe)
    with apply(pipe, ReplayConfig(actions="Fr" * 6)) as handle:
        FAMILY.call(pipe)
    assert handle.trace.computed == 6


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (6.0, 2)])
def test_the_guider_has_the_recipe_s_scale(pipe, scale, calls):
    backbone = Backbone(name="x", family="hunyuan15", source="no/where")
    sampling = Sampling(height=64, width=80, frames=17, guidance_scale=scale)
    recipe = Recipe(backbone=backbone, sampling=sampling, method=ReplayConfig(actions="F"), numerics=Numerics())
    backbones.set_guidance(pipe, recipe)
    assert pipe.guider.guidance_scale == scale
    with apply(pipe, ReplayConfig(actions="F" * STEPS)) as handle:
        FAMILY.call(pipe)
    assert handle.trace.steps[0].forwards == calls == backbones.family(backbone).branches(recipe)


def test_steps_are_told_apart_in_bfloat16(pipe):
    """Where timesteps are rounded to three digits, and are no part of the scheduler's."""
    pipe.to(torch.bfloat16)
    uncached = FAMILY.call(pipe, steps=50)
    with apply(pipe, ReplayConfig(actions="F" * 50)) as handle:
        assert torch.equal(FAMILY.call(pipe, steps=50), uncached)
    assert [row.index for row in handle.trace.steps] == list(range(50))
    assert all(row.forwards == 2 for row in handle.trace.steps)
    sigmas = [row.sigma for row in handle.trace.steps]
    assert sigmas == sorted(sigmas, reverse=True)
    assert len(set(sigmas)) == 50
