"""LTX-2: what answers for the video answers for the sound, in all of its guidance branches."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import methods
from methods import apply
from methods.engine.anatomy import anatomy_of
from methods.engine.reuse import STRATEGIES
from pcbench import backbones
from pcbench.compose import run_from

from .contract_parts import DISTINCT, PRESETS, REFUSED, STEPS
from .ltx2_parts import GUIDED, PLAIN, both_of, small_ltx2_pipeline, transformer

SIZE = {"height": 64, "width": 96, "steps": STEPS}
WORKING = sorted(name for name in DISTINCT if "ltx2" not in REFUSED.get(name, set()))


@pytest.fixture(scope="module")
def pipe():
    return small_ltx2_pipeline()


@pytest.fixture(scope="module")
def uncached(pipe):
    return {name: both_of(pipe, **SIZE, **guidance) for name, guidance in (("plain", PLAIN), ("guided", GUIDED))}


def a_call(model, time: float = 700.0, batch: int = 1) -> dict:
    """Arguments of a call on a latent of 2 x 3 x 4 cells and 5 tokens of sound."""
    random = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 24, 4, generator=random),
        "audio_hidden_states": torch.randn(batch, 5, 4, generator=random),
        "encoder_hidden_states": torch.randn(batch, 8, 16, generator=random),
        "audio_encoder_hidden_states": torch.randn(batch, 8, 16, generator=random),
        "timestep": torch.full((batch,), time),
        "sigma": torch.full((batch,), time),
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "audio_num_frames": 5,
        "return_dict": False,
    }


@pytest.mark.parametrize("guidance", ["plain", "guided"])
def test_without_a_cache_both_streams_are_bitwise_those_of_diffusers(pipe, uncached, guidance):
    options = PLAIN if guidance == "plain" else GUIDED
    with apply(pipe, methods.NoCacheConfig()) as handle:
        cached = both_of(pipe, **SIZE, **options)
    assert all(torch.equal(a, b) for a, b in zip(cached, uncached[guidance], strict=True))
    assert handle.trace.steps[0].forwards == (1 if guidance == "plain" else 3)


@pytest.mark.parametrize("preset", WORKING)
def test_every_method_works_with_all_of_the_guidance(pipe, uncached, preset):
    """Its three calls a step hold three branches, of two batch sizes."""
    with warnings.catch_warnings(), apply(pipe, PRESETS[preset]) as handle:
        warnings.simplefilter("ignore")
        if preset.startswith("fastercache"):
            with pytest.raises(ValueError, match="also has uncond_stg, uncond_modality: switch it off"):
                both_of(pipe, **SIZE, **GUIDED)
            return
        both = both_of(pipe, **SIZE, **GUIDED)
    if PRESETS[preset].EXPECTS_REUSE:
        assert handle.trace.reused + handle.trace.partial > 0
    assert all(stream.isfinite().all() for stream in both)
    changed = [not torch.equal(a, b) for a, b in zip(both, uncached["guided"], strict=True)]
    assert changed[0] == changed[1]


@pytest.mark.parametrize("reuse", STRATEGIES)
def test_a_reused_step_answers_for_both_streams(reuse):
    """Where nothing has changed since the computed step, its answer is that step's."""
    torch.manual_seed(0)
    model = transformer()
    pipe = small_ltx2_pipeline()
    pipe.transformer = model
    pipe._guidance_scale, pipe._num_timesteps = 1.0, 2
    inputs, answers = a_call(model), []
    with torch.no_grad(), apply(pipe, methods.ReplayConfig(actions="Fr", reuse=reuse)) as handle:
        for index in range(2):
            at = {"step_index": index, "num_inference_steps": 2, "sigma": 0.7 - 0.1 * index}
            with model.cache_context("cond_uncond", **at):
                answers.append(model(**inputs))
        assert [row.action for row in handle.trace.steps] == ["full", "reuse"]
    for computed, reused in zip(*answers, strict=True):
        assert torch.allclose(computed, reused, atol=1e-5)


def test_what_methods_see_is_sent_on_as_it_came():
    model = transformer()
    anatomy, arguments = anatomy_of(model), a_call(model)
    inputs = anatomy.received(arguments)
    assert inputs["hidden_states"].shape == (1, 4, 3, 3, 4)  # one more frame, of sound
    assert anatomy.latent_size(inputs) == (2, 3, 4)
    sent = anatomy.sent(inputs)
    assert sent.keys() == arguments.keys()
    assert all(torch.equal(sent[name], arguments[name]) for name in ("hidden_states", "audio_hidden_states"))
    of_call = anatomy.of_call(inputs, None)
    assert torch.equal(of_call.used(inputs["hidden_states"]), inputs["hidden_states"][:, :, :2])


def test_a_trial_makes_the_video_smaller_and_leaves_the_sound():
    model = transformer()
    anatomy, arguments = anatomy_of(model), a_call(model)
    inputs = anatomy.received(arguments)
    trial = anatomy.trial_inputs(inputs, (1, 2, 2), "area")
    sent = anatomy.sent(trial)
    assert (sent["num_frames"], sent["height"], sent["width"]) == (1, 2, 2)
    assert torch.equal(sent["audio_hidden_states"], arguments["audio_hidden_states"])
    with torch.no_grad():
        prediction = anatomy.prediction(model(**sent), trial)
    assert prediction.shape == (1, 4, 1 + 2, 2, 2)  # five tokens of sound are two frames of four
    assert anatomy.of_call(inputs, None).as_video(prediction).shape == (1, 4, 1, 2, 2)


@pytest.mark.parametrize(
    ("said", "batch"), [({}, 2), ({"audio_guidance_scale": 7.0}, 2), ({"audio_guidance_scale": 1.0}, 1)]
)
def test_the_sounds_own_guidance_is_priced_too(said, batch):
    """Where nothing is said of it, the pipeline's own scale keeps both branches, whatever the video's is."""
    recipe = run_from(["model=ltx2", "model.sampling.guidance_scale=1"]).recipe
    call = {name: value for name, value in recipe.backbone.call.items() if name != "audio_guidance_scale"} | said
    recipe = replace(recipe, backbone=replace(recipe.backbone, call=call))
    assert backbones.family(recipe.backbone).arguments(recipe, {})["timestep"] == [batch]


def test_guidance_is_combined_as_the_pipeline_does(pipe):
    """In the pipeline it is of clean latents z - sigma F, and the spread is left as it is (guidance_rescale 0)."""
    random = torch.Generator().manual_seed(0)
    latent, sigma = torch.randn(1, 4, 3, 3, 4, generator=random), 0.6
    both, stg, modality = (torch.randn(n, 4, 3, 3, 4, generator=random) for n in (2, 1, 1))
    pipe._stg_scale, pipe._modality_scale = 1.5, 3.0
    inputs = anatomy_of(pipe.transformer).received(a_call(pipe.transformer, batch=2))
    anatomy = anatomy_of(pipe.transformer).of_call(inputs, pipe)
    predictions = {"cond_uncond": both, "uncond_stg": stg, "uncond_modality": modality}
    guided = anatomy.guided(predictions, 4.0, True)
    null, asked, without_attention, apart = (latent - sigma * each for each in (both[:1], both[1:], stg, modality))
    clean = asked + 3.0 * (asked - null) + 1.5 * (asked - without_attention) + 2.0 * (asked - apart)
    assert torch.allclose(guided, (latent - clean) / sigma, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audio_hidden_states": torch.zeros(1, 5, 3)}, "as many channels of sound"),
        ({"timestep": torch.zeros(1, 24)}, "a timestep for each token"),
        ({"num_frames": None}, "without num_frames, height and width"),
        ({"width": 5}, "without num_frames, height and width"),
    ],
)
def test_a_call_that_cannot_be_put_together_is_refused(change, said):
    model = transformer()
    with pytest.raises(ValueError, match=said):
        anatomy_of(model).received(a_call(model) | change)
