"""Image to video: what is concatenated to the latent, and frames that are the user's and not denoised."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel

from methods import EasyCacheConfig, PreciseCacheConfig, UniformConfig, apply
from methods.engine.anatomy import anatomy_for
from methods.frequency import DOWNSAMPLE_MODES
from pcbench.backbones import FAMILIES

from .conftest import call, pipeline_of, random_transformer

CONFIGS = {
    "wan": {"in_channels": 12, "out_channels": 4, "patch_size": (1, 2, 2)},
    "hunyuan": {"in_channels": 9, "out_channels": 4, "patch_size": 2, "patch_size_t": 1},
    "hunyuan15": {"in_channels": 9, "out_channels": 4, "patch_size": 1, "patch_size_t": 1, "task_type": "i2v"},
    "cogvideox": {"in_channels": 8, "out_channels": 4, "patch_size": 2, "patch_size_t": 2},
}


def call_of(name: str, frames: int) -> dict[str, torch.Tensor]:
    """Noise, and behind it a mask or image that marks the first temporal patch with ones."""
    config = CONFIGS[name]
    patch = config.get("patch_size_t") or 1
    latent = torch.randn(1, 4, frames, 8, 8)
    behind = torch.zeros(1, config["in_channels"] - 4, frames, 8, 8)
    behind[:, :, :patch] = 1
    hidden = torch.cat([latent, behind], dim=1)
    hidden = hidden.transpose(1, 2) if name == "cogvideox" else hidden
    return {"hidden_states": hidden, "timestep": torch.tensor([500])}


@pytest.mark.parametrize("mode", DOWNSAMPLE_MODES)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_trial_keeps_the_image_and_its_mask_at_every_length(name, mode):
    anatomy = anatomy_for(FAMILIES[name].TRANSFORMER, CONFIGS[name])
    patch = anatomy.patch[0]
    for frames in range(2 * patch, 24, patch):
        for factor in (1, 2, 3):
            if frames // (factor * patch) < 2:
                continue
            inputs = call_of(name, frames)
            size = anatomy.trial_size(anatomy.latent_size(inputs), (factor, 2, 2))
            trial = anatomy.as_video(anatomy.trial_inputs(inputs, size, mode)["hidden_states"])
            assert trial.shape[2:] == size
            marked = trial[:, 4:]
            assert bool((marked[:, :, :patch] == 1).all())
            assert bool((marked[:, :, patch:] == 0).all())


@pytest.mark.parametrize("frames", [2, 5, 8, 16, 21])
def test_one_timestep_a_token_keeps_the_image_at_timestep_0(frames):
    anatomy = anatomy_for(WanTransformer3DModel, {"patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4})
    timestep = torch.full((1, frames, 4, 4), 700.0)
    timestep[:, 0] = 0
    inputs = {"hidden_states": torch.randn(1, 4, frames, 8, 8), "timestep": timestep.flatten(1)}
    size = (max(2, frames // 2), 4, 4)
    trial = anatomy.trial_inputs(inputs, size, "area")
    small = trial["timestep"].view(1, size[0], 2, 2)
    assert bool((small[:, 0] == 0).all())
    assert bool((small[:, 1:] == 700).all())


def test_a_trial_of_the_image_alone_is_refused_before_the_first_step():
    pipe = pipeline_of(random_transformer(), expand_timesteps=True)
    calls = []
    pipe.transformer.proj_out.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        apply(pipe, PreciseCacheConfig(downsample_factor=(5, 2, 2))),
        pytest.raises(ValueError, match="only the first"),
    ):
        call(pipe)
    assert not calls


def test_learned_positions_allow_no_trial():
    config = {**CONFIGS["cogvideox"], "patch_size_t": None, "use_learned_positional_embeddings": True}
    anatomy = anatomy_for(FAMILIES["cogvideox"].TRANSFORMER, config)
    assert anatomy.trial_size((13, 8, 8), (1, 1, 1)) == (13, 8, 8)
    with pytest.raises(ValueError, match="learned its positions"):
        anatomy.trial_size((13, 8, 8), (2, 2, 2))


@pytest.mark.parametrize("method", [UniformConfig(steps=6, reuse="residual"), EasyCacheConfig(**EasyCacheConfig.EAGER)])
def test_the_residual_is_of_the_latent_alone(method):
    """What is behind the latent has no part in a residual, nor in EasyCache's measure."""
    torch.manual_seed(0)
    plain = random_transformer()
    config = {**dict(plain.config), "in_channels": 12}
    wide = WanTransformer3DModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
    weights = plain.state_dict()
    embedding = wide.state_dict()["patch_embedding.weight"].zero_()
    embedding[:, :4] = weights.pop("patch_embedding.weight")
    wide.load_state_dict({**weights, "patch_embedding.weight": embedding})
    answers = []
    for transformer, behind in ((plain, 0), (wide, 8)):
        pipe = pipeline_of(transformer)
        latents = torch.randn(12, 1, 4, 5, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(0)
        with apply(pipe, dataclasses.replace(method)) as handle, torch.no_grad():
            for index in range(12):
                hidden = torch.cat([latents[index], torch.full((1, behind, 5, 16, 16), float(index))], dim=1)
                with transformer.cache_context("cond", step_index=index, num_inference_steps=12, sigma=1 - index / 12):
                    out = transformer(hidden, torch.tensor([1000 - 80 * index]), torch.ones(1, 8, 16))[0]
            answers.append((out, "".join(row.action[0] for row in handle.trace.steps)))
    assert answers[0][1] == answers[1][1]
    assert "r" in answers[0][1]
    assert torch.allclose(answers[0][0], answers[1][0], atol=1e-4)
