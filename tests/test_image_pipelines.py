"""Every method on WanImageToVideoPipeline: the image as channels and CLIP tokens (Wan2.1), and as a first frame whose
tokens stay at timestep 0 (Wan2.2-TI2V-5B)."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from methods import apply
from pcbench.cost.macs import trace_macs

from .contract_parts import DISTINCT, PRESETS, REFUSED, SHORT, Counter, fewer, shortened

KINDS = ("channels", "first_frame")


def pipeline(kind: str) -> WanImageToVideoPipeline:
    torch.manual_seed(0)
    width, channels = 24, 4
    of_channels = {"in_channels": 3 * channels, "image_dim": 16, "added_kv_proj_dim": width}
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=width // 2,
        out_channels=channels,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        **(of_channels if kind == "channels" else {"in_channels": channels}),
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    side = {"image_size": 32, "patch_size": 16}
    clip = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, **side)
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval(),
        image_encoder=CLIPVisionModel(clip).eval(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        expand_timesteps=kind == "first_frame",
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, steps: int) -> torch.Tensor:
    """Final latents (1, 4, 5, 8, 10)."""
    seeded = torch.Generator().manual_seed(0)
    return pipe(
        image=torch.rand(1, 3, 64, 80, generator=seeded),
        prompt_embeds=torch.randn(1, 8, 16, generator=seeded),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        height=64,
        width=80,
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=seeded,
        output_type="latent",
    ).frames


def ran(pipe: Any, method: Any, steps: int) -> tuple[torch.Tensor, Any, int, int]:
    """Latents, trace, the transformer's MACs as the trace has them, and all others that were counted."""
    counter = Counter()
    with warnings.catch_warnings(), apply(pipe, method) as handle, counter:
        warnings.simplefilter("ignore")
        latents = call(pipe, steps)
    own = trace_macs(type(pipe.transformer), pipe.transformer.config, handle.trace)
    return latents, handle.trace, own, counter.flops // 2 - own


@functools.cache
def untouched(kind: str, steps: int) -> torch.Tensor:
    return call(pipeline(kind), steps)


@functools.cache
def uncached(kind: str) -> tuple[Any, int]:
    """The pipeline that methods are applied to, and the MACs outside its transformer."""
    pipe = pipeline(kind)
    same, _, _, beside = ran(pipe, PRESETS["none"], SHORT)
    assert torch.equal(same, untouched(kind, SHORT))
    return pipe, beside


@pytest.mark.parametrize("preset", sorted(DISTINCT))
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_works_on_image_to_video(kind, preset):
    """It reuses, is priced as counted, leaves the model as it was, and without an effect changes no bit."""
    method, (pipe, beside) = PRESETS[preset], uncached(kind)
    text_alone = preset == "seacache_diffusers" and kind == "channels"
    if "wan" in REFUSED.get(preset, ()) or text_alone:
        with pytest.raises(ValueError, match=method.NAME):
            apply(pipe, method)
        return
    steps = fewer(method)
    latents, trace, own, others = ran(pipe, method, steps)
    assert others == pytest.approx(beside, abs=1e-3 * own)
    assert latents.isfinite().all()
    if method.EXPECTS_REUSE:
        assert trace.reused + trace.partial > 0
        assert not torch.equal(latents, untouched(kind, steps))
    assert torch.equal(call(pipe, SHORT), untouched(kind, SHORT))
    if method.INERT is not None:
        inert = shortened(method.INERT)
        steps, without = inert.get("steps", steps), dataclasses.replace(method, **inert)
        assert torch.equal(ran(pipe, without, steps)[0], untouched(kind, steps))
