"""Vchitect-2.0's sampling and pipeline: parity with the official code and FasterCache's script, saving, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import NoCacheConfig, PABConfig, apply
from methods.engine.method import Rule
from pcbench import cli
from pcbench.backbones.vchitect.pipeline import VchitectPipeline, dynamic_scale

from .opensora_parts import close
from .vchitect_parts import CALLS, T5_TOKENS, noise, pipeline, text_parts, vae

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vchitect_pipeline.json").read_text())
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    call = CALLS[name]
    return {**call, "latents": noise(call), "max_sequence_length": T5_TOKENS, "output_type": "latent", **changes}


def embedded(name: str, **changes: Any) -> dict[str, Any]:
    """The same with random embeddings in place of prompts."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 9, 20), (1, 9, 20), (1, 12), (1, 12))
    embeds = {key: torch.randn(shape, generator=generator) for key, shape in zip(EMBEDS, shapes, strict=True)}
    return {**arguments(name), **embeds, "prompt": None, "negative_prompt": None, **changes}


@torch.no_grad()
@pytest.mark.parametrize("name", CALLS)
def test_the_official_pipeline(name):
    """Prompts' embeddings, latents and guidance scale after each step, frames."""
    pipe, expected, call = pipeline(vae=vae(), **text_parts()), GOLDEN[name], CALLS[name]
    found = pipe.encode_prompt(call["prompt"], call["negative_prompt"], max_sequence_length=T5_TOKENS)
    for key, tensor in zip(EMBEDS, found, strict=True):
        close(tensor, expected["embeds"][key])
    steps, scales = [], []

    def look(pipe, index, timestep, tensors):
        steps.append(tensors["latents"])
        scales.append(pipe.guidance_scale)
        return tensors

    frames = pipe(**arguments(name, output_type="np"), callback_on_step_end=look).frames
    assert len(steps) == len(expected["latents"])
    for latents, official in zip(steps, expected["latents"], strict=True):
        close(latents, official, atol=5e-5)  # of values up to 20
    assert scales == pytest.approx(expected["scales"])
    close(torch.from_numpy(frames[0]), expected["frames"])


def test_the_official_guidance_scales():
    assert len(GOLDEN["scales"]) == 100
    for timestep, scale in GOLDEN["scales"]:
        assert dynamic_scale(7.5, timestep, 100) == pytest.approx(scale, abs=1e-9)


def test_fastercache_is_what_its_own_script_makes():
    """The authors' pipeline and cached attention, on the same weights, over all 100 steps."""
    pipe = pipeline(**text_parts())
    method = cli.run_from(["model=vchitect", "method=fastercache_vchitect"]).recipe.method
    with apply(pipe, method) as handle:
        latents = pipe(**arguments("video", num_inference_steps=100)).frames
    close(latents, GOLDEN["fastercache"]["latents"], atol=5e-5)
    assert sum(len(step.calls) for step in handle.trace.steps) == 200 - 56
    assert {path for step in handle.trace.steps for call in step.calls for path in call.skipped} == {
        "transformer_blocks.*.attn",
        "final_transformer_blocks.*.attn",
    }


def test_pab_treats_the_three_kinds_of_attention_apart():
    pipe = pipeline()
    with apply(pipe, PABConfig(window=(0, 1001))) as handle:
        pipe(**embedded("video", num_inference_steps=8))
    every = ["cross", "self", "temporal"]
    seen = [step.details["broadcast"] for step in handle.trace.steps]
    assert seen == [[], every, ["cross", "temporal"], every, ["cross"], every, ["temporal"], every]
    skipped = {path.partition(".*.")[2] for path in handle.trace.steps[1].calls[0].skipped}
    assert skipped == {"attn.spatial", "attn.temporal", "attn.cross"}


def test_a_method_is_told_the_scale_of_the_step():
    """And not the one at the start of the call, as pipelines that call twice a step otherwise have."""
    seen = []

    class Look(Rule):
        def predict(self, denoiser):
            seen.append(denoiser.guidance_scale())
            return denoiser.run()

    class LookConfig(NoCacheConfig):
        def rule(self):
            return Look()

    pipe = pipeline()
    with apply(pipe, LookConfig()):
        pipe(**embedded("video"))
    assert seen[::2] == seen[1::2] == pytest.approx(GOLDEN["video"]["scales"])


def test_without_guidance_only_the_conditional_branch_runs():
    pipe, texts = pipeline(), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: texts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    given = embedded("video", guidance_scale=1.0)
    pipe(**given)
    assert len(texts) == given["num_inference_steps"]
    assert all(torch.equal(text, given["prompt_embeds"]) for text in texts)
    pipe(**embedded("video", use_dynamic_cfg=False))
    assert pipe.guidance_scale == CALLS["video"]["guidance_scale"]
    assert len(texts) == 3 * given["num_inference_steps"]


def test_noise_is_drawn_frame_after_frame():
    """As officially, so that a seed gives the official noise."""
    drawn = pipeline().prepare_latents((1, 4, 3, 2, 5), torch.device("cpu"), torch.Generator().manual_seed(0), None)
    assert torch.equal(drawn[0].transpose(0, 1), torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0)))


def test_a_callback_sees_and_changes_the_latents():
    seen = []

    def halt(pipe, index, timestep, tensors):
        seen.append(index)
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not pipeline()(**embedded("image"), callback_on_step_end=halt).frames.any()
    assert seen == list(range(CALLS["image"]["num_inference_steps"]))


def test_save_and_load(tmp_path):
    pipe = pipeline(vae=vae(), **text_parts())
    pipe.save_pretrained(tmp_path / "whole")
    again = VchitectPipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    videos = [
        each(**arguments("image", latents=None, output_type="pt"), generator=torch.Generator().manual_seed(0)).frames
        for each in (pipe, again)
    ]
    assert videos[0].shape == (1, 1, 3, 48, 32)
    assert torch.allclose(*videos, atol=1e-5)
    pipeline().save_pretrained(tmp_path / "bare")
    bare = VchitectPipeline.from_pretrained(tmp_path / "bare", dtype=torch.bfloat16)
    assert (bare.vae, bare.text_encoder, bare.tokenizer_3) == (None, None, None)
    assert bare.transformer.dtype == torch.bfloat16
    assert bare(**embedded("image")).frames.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 72}, "multiples of 16, not 72x96"),
        ({"prompt_embeds": None}, "either prompt or prompt_embeds"),
        ({"prompt": "a cat"}, "either prompt or prompt_embeds"),
        ({"pooled_prompt_embeds": None}, "come with pooled_prompt_embeds"),
        ({"negative_pooled_prompt_embeds": None}, "for guidance, with negative ones"),
        ({"prompt": "a cat", "prompt_embeds": None}, "no text encoders"),
        ({"output_type": "np"}, "no VAE"),
        ({"latents": torch.zeros(1, 4, 1, 1, 1)}, r"latents must be \(1, 4, 5, 8, 12\)"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "knows no x"),
    ],
)
def test_bad_calls_are_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        pipeline()(**embedded("video", **change))
    assert "\n" not in str(caught.value)
