"""Tiny random pipelines of every transformer family: real classes, no weights, no text encoder, no VAE."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    WanVideoToVideoPipeline,
)

from pcbench.backbones.opensora.pipeline import OpenSoraPipeline
from pcbench.backbones.opensora.scheduler import rectified_flow_scheduler
from pcbench.backbones.opensora.transformer import STDiT3Transformer3DModel

from .conftest import STEPS, call, pipeline_of, random_transformer
from .ltx2_parts import call_ltx2, small_ltx2_pipeline
from .vchitect_parts import call_small, small_pipeline


@dataclass(frozen=True)
class Family:
    """A way to call one family of pipelines. `branches`: transformer calls a step."""

    name: str
    branches: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # of apply()
    size: dict[str, int] = field(default_factory=dict)  # height and width in pixels, if not the usual ones
    steps: int = STEPS

    def pipeline(self, seed: int = 0) -> Any:
        """A fresh random pipeline; the same seed gives the same weights."""
        return MAKERS[self.name](seed)

    def call(self, pipe: Any, prompt: int = 0, seed: int = 0, steps: int | None = None, **options: Any) -> torch.Tensor:
        """One generation's final latents. options: more arguments of the pipeline's call."""
        return CALLS[self.name](pipe, prompt, seed, steps or self.steps, **{**self.size, **options})


def _wan_video_to_video(seed: int) -> WanVideoToVideoPipeline:
    pipe = WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=random_transformer(seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call_wan_video_to_video(
    pipe: Any, prompt: int, seed: int, steps: int, height: int = 128, width: int = 128, **options: Any
) -> torch.Tensor:
    """`steps` steps, from part way down the schedule; the pipeline announces neither steps nor branches."""
    text = torch.Generator().manual_seed(1000 + prompt)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=text),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        latents=torch.randn(1, 4, 5, height // 8, width // 8, generator=torch.Generator().manual_seed(seed)),
        height=height,
        width=width,
        num_inference_steps=steps * 4 // 3,
        guidance_scale=4.0,
        output_type="latent",
        **{"strength": 0.75, **options},
    ).frames


def _hunyuan(seed: int) -> HunyuanVideoPipeline:
    torch.manual_seed(seed)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    ).eval()
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call_hunyuan(true_cfg: float) -> Any:
    def run(pipe: Any, prompt: int, seed: int, steps: int, **options: Any) -> torch.Tensor:
        text = torch.Generator().manual_seed(1000 + prompt)
        negative = {
            "negative_prompt_embeds": torch.zeros(1, 8, 16),
            "negative_pooled_prompt_embeds": torch.zeros(1, 8),
            "negative_prompt_attention_mask": torch.ones(1, 8, dtype=torch.long),
            "true_cfg_scale": true_cfg,
        }
        return pipe(
            prompt_embeds=torch.randn(1, 8, 16, generator=text),
            pooled_prompt_embeds=torch.randn(1, 8, generator=text),
            prompt_attention_mask=torch.ones(1, 8, dtype=torch.long),
            num_frames=17,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **(negative if true_cfg > 1 else {}),
            **{"height": 128, "width": 128, **options},
        ).frames

    return run


def _hunyuan15(seed: int) -> HunyuanVideo15Pipeline:
    torch.manual_seed(seed)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(2, 4, 4),
        task_type="t2v",
    ).eval()
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(  # without which the pipeline does not know its latent's channels
            latent_channels=4, block_out_channels=(1, 1, 1, 1, 1), layers_per_block=1
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vision_num_semantic_tokens = 1
    return pipe


def _call_hunyuan15(
    pipe: Any, prompt: int, seed: int, steps: int, callback_on_step_end: Any = None, **options: Any
) -> torch.Tensor:
    """Prompts of which some tokens are masked. The pipeline takes no callback: here its scheduler calls it."""
    text = torch.Generator().manual_seed(1000 + prompt)
    embeds: dict[str, Any] = {}
    for name, first in (("", torch.randn(1, 8, 16, generator=text)), ("negative_", torch.zeros(1, 8, 16))):
        embeds[f"{name}prompt_embeds"] = first
        embeds[f"{name}prompt_embeds_mask"] = (torch.arange(8) < 5)[None]
        embeds[f"{name}prompt_embeds_2"] = torch.zeros(1, 1, 8)
        embeds[f"{name}prompt_embeds_mask_2"] = torch.zeros(1, 1)
    pipe.vision_num_semantic_tokens = 1
    with _stepping(pipe, callback_on_step_end):
        return pipe(
            **embeds,
            num_frames=17,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **{"height": 128, "width": 128, **options},
        ).frames


@contextlib.contextmanager
def _stepping(pipe: Any, callback: Any) -> Iterator[None]:
    """Inside it, the scheduler calls `callback` after each step."""
    if callback is None:
        yield
        return
    original, index = pipe.scheduler.step, itertools.count()

    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        callback(pipe, next(index), args[1], {})
        return result

    pipe.scheduler.step = step
    try:
        yield
    finally:
        del pipe.scheduler.step


def _cogvideox(rotary: bool) -> Any:
    def make(seed: int) -> CogVideoXPipeline:
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=16,
            num_layers=2,
            sample_width=16,
            sample_height=16,
            sample_frames=17,
            max_text_seq_length=8,
            use_rotary_positional_embeddings=rotary,
        ).eval()
        pipe = CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def _call_cogvideox(pipe: Any, prompt: int, seed: int, steps: int, **options: Any) -> torch.Tensor:
    text = torch.Generator().manual_seed(1000 + prompt)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=text),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **{"height": 128, "width": 128, **options},
    ).frames


def _opensora(seed: int) -> OpenSoraPipeline:
    torch.manual_seed(seed)
    transformer = STDiT3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        caption_channels=16,
        max_sequence_length=8,
        freq_dim=32,
    ).eval()
    pipe = OpenSoraPipeline(transformer, rectified_flow_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call_opensora(pipe: Any, prompt: int, seed: int, steps: int, **options: Any) -> torch.Tensor:
    """Five latent frames of 15x13, which are not whole patches."""
    text = torch.Generator().manual_seed(1000 + prompt)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=text),
        prompt_attention_mask=(torch.arange(8) < 5)[None],
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **{"height": 120, "width": 104, **options},
    ).frames


MAKERS = {
    "wan": lambda seed: pipeline_of(random_transformer(seed)),
    "wan_two": lambda seed: pipeline_of(random_transformer(seed), random_transformer(seed + 1), boundary_ratio=0.8),
    "wan_ti2v": lambda seed: pipeline_of(random_transformer(seed), expand_timesteps=True),
    "wan_video_to_video": _wan_video_to_video,
    "hunyuan": _hunyuan,
    "hunyuan_true_cfg": _hunyuan,
    "hunyuan15": _hunyuan15,
    "cogvideox_2b": _cogvideox(rotary=False),
    "cogvideox_5b": _cogvideox(rotary=True),
    "ltx2": small_ltx2_pipeline,
    "opensora": _opensora,
    "vchitect": small_pipeline,
}
CALLS = {
    "wan": call,
    "wan_two": call,
    "wan_ti2v": call,
    "wan_video_to_video": _call_wan_video_to_video,
    "hunyuan": _call_hunyuan(1.0),
    "hunyuan_true_cfg": _call_hunyuan(6.0),
    "hunyuan15": _call_hunyuan15,
    "cogvideox_2b": _call_cogvideox,
    "cogvideox_5b": _call_cogvideox,
    "ltx2": call_ltx2,
    "opensora": _call_opensora,
    "vchitect": call_small,
}
FAMILIES = {
    "wan": Family("wan", branches=2),
    "wan_two": Family("wan_two", branches=2),
    "wan_ti2v": Family("wan_ti2v", branches=2),
    "wan_video_to_video": Family("wan_video_to_video", branches=2),
    "hunyuan": Family("hunyuan"),
    "hunyuan_true_cfg": Family("hunyuan_true_cfg", branches=2, options={"guidance_scale": 6.0}),
    "hunyuan15": Family("hunyuan15", branches=2),
    "cogvideox_2b": Family("cogvideox_2b"),
    "cogvideox_5b": Family("cogvideox_5b"),
    "ltx2": Family("ltx2"),
    "opensora": Family("opensora"),
    "vchitect": Family("vchitect", branches=2),
}
# Few tokens, wider than high, for what is made thousands of times: on Wan and HunyuanVideo a third, where trials and
# their low frequencies are seen, on the others a tenth. Open-Sora's are not whole patches either, and LTX-2's pipeline
# takes whole 32 pixels only.
_SIZES = {"opensora": (40, 56), "ltx2": (32, 64)} | dict.fromkeys(("wan", "wan_ti2v", "hunyuan"), (64, 80))
FEW = 9  # steps; of so many, a strength of 0.75 leaves as many as it is asked for
SMALL = {
    name: replace(kind, size=dict(zip(("height", "width"), _SIZES.get(name, (32, 48)), strict=True)), steps=FEW)
    for name, kind in FAMILIES.items()
}
