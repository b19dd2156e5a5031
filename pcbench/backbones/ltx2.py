"""LTX-2: loading, sizes, decoding of its video. The sound is generated with it, as the model does, and not decoded.

Guidance is classifier-free alone: further kinds (`stg_scale`, `modality_scale`) work in a pipeline of your own, but add
calls of other sizes, which the prices here do not know.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from transformers import Gemma3TextConfig, Gemma3TextModel

from methods.engine.anatomy import anatomy_for

from ..config import ConfigError, Recipe, Sampling
from . import shared, weights
from .family import HEAD

PIPELINE = LTX2Pipeline
TRANSFORMER = LTX2VideoTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {})
NARROW = {
    **HEAD, "cross_attention_dim": 16, "caption_channels": 8, "audio_num_attention_heads": 1,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 8, "rope_double_precision": False,
}  # fmt: skip
BOUNDARY: float | None = None
SPATIAL, TEMPORAL = 32, 8  # pixels per latent cell, which is a token; frames per latent frame
TOKENS_OF_SOUND = 25  # per second: 16,000 samples, 160 of them a column of the spectrogram, 4 columns a token
FRAME_RATE = 24.0  # the pipeline's own
TEXT_TOKENS = 1024
TEXT_ENCODERS = (
    (
        Gemma3TextModel,
        lambda: Gemma3TextConfig(
            vocab_size=262208,
            hidden_size=3840,
            intermediate_size=15360,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
        ),
        TEXT_TOKENS,
    ),
)  # the language model of Gemma-3-12B; class, config, tokens
OFF = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}


def load(source: str, recipe: Recipe) -> LTX2Pipeline:
    """The pipeline with weights from a folder or the hub, at the recipe's dtype."""
    dtype, revision = getattr(torch, recipe.numerics.dtype), weights.revision(recipe.backbone)
    return LTX2Pipeline.from_pretrained(source, revision=revision, dtype=dtype)


def build(recipe: Recipe, device: str) -> LTX2Pipeline:
    """The same architecture with random weights and no text encoder."""
    transformer = weights.config_of(recipe.backbone, "transformer")
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        parts = {
            "transformer": weights.built(TRANSFORMER, transformer),
            "vae": weights.built(AutoencoderKLLTX2Video, weights.config_of(recipe.backbone, "vae")),
            "audio_vae": weights.built(AutoencoderKLLTX2Audio, weights.config_of(recipe.backbone, "audio_vae")),
            "connectors": weights.built(LTX2TextConnectors, _connectors(recipe, transformer)),
        }
    return LTX2Pipeline(**parts, **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")), scheduler=scheduler())


def _connectors(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, Any]:
    """The config of what adapts a text for both streams: its folder's, else of the transformer's text width."""
    width = transformer.get("caption_channels", 3840)
    heads = {f"{stream}_connector_num_attention_heads": max(width // 128, 1) for stream in ("video", "audio")}
    sizes = {f"{stream}_connector_attention_head_dim": min(width, 128) for stream in ("video", "audio")}
    named = {"caption_channels": width, "text_proj_in_factor": _layers(transformer), **heads, **sizes}
    return weights.config_of(recipe.backbone, "connectors") or named


def _layers(transformer: dict[str, Any]) -> int:
    """How many layers' states of the text encoder are a prompt's embedding: all of Gemma's and their input."""
    return 49 if transformer.get("caption_channels", 3840) == 3840 else 1


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler published with the released weights."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def set_timesteps(scheduler: FlowMatchEulerDiscreteScheduler, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does: the shift grows with the number of tokens."""
    frames, height, width = latent_size(sampling)
    names = (
        ("base_image_seq_len", 1024),
        ("max_image_seq_len", 4096),
        ("base_shift", 0.95),
        ("max_shift", 2.05),
    )
    mu = calculate_shift(frames * height * width, *(scheduler.config.get(name, own) for name, own in names))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / sampling.steps, sampling.steps).tolist(), mu=mu)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size that the pipeline would silently change or its VAE, which pads by reflection, cannot
    decode, and for a shift that the pipeline would not take."""
    shared.check_size(sampling, SPATIAL, TEMPORAL)
    if min(sampling.height, sampling.width) < 2 * SPATIAL:
        raise ConfigError(f"height and width must be at least {2 * SPATIAL}, not {sampling.height}x{sampling.width}")
    if sampling.flow_shift is not None:
        raise ConfigError(
            "LTX-2's timestep shift follows from the video's size: leave model.sampling.flow_shift at null"
        )


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the video's latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, TEMPORAL)


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline does not tell it; this one does, so None."""
    return None


def branches(recipe: Recipe) -> int:
    """Number of transformer calls per step: one, which holds both guidance branches. Raises ConfigError for more."""
    for name, off in OFF.items():
        if recipe.backbone.call.get(name, off) != off:
            raise ConfigError(f"model.backbone.call.{name} adds calls of a size that is not priced here: leave it away")
    return 1


def _batch(recipe: Recipe) -> int:
    sound = inspect.signature(LTX2Pipeline.__call__).parameters["audio_guidance_scale"].default
    scales = recipe.sampling.guidance_scale, recipe.backbone.call.get("audio_guidance_scale", sound) or 0.0
    return 2 if max(scales) > 1 else 1


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the tensor arguments of one transformer call, and its latent's size."""
    batch, tokens = _batch(recipe), shared.text_tokens(recipe, TEXT_TOKENS)
    (frames, height, width), channels = latent_size(recipe.sampling), transformer.get("in_channels", 128)
    rate = recipe.backbone.call.get("frame_rate", FRAME_RATE)
    sound = round(recipe.sampling.frames / rate * TOKENS_OF_SOUND)
    text = [batch, tokens, transformer.get("caption_channels", 3840)]
    return {
        "hidden_states": [batch, frames * height * width, channels],
        "audio_hidden_states": [batch, sound, transformer.get("audio_in_channels", 128)],
        "encoder_hidden_states": text,
        "audio_encoder_hidden_states": text,
        "timestep": [batch],
        "sigma": [batch],
        "encoder_attention_mask": [batch, tokens],
        "audio_encoder_attention_mask": [batch, tokens],
        "num_frames": frames,
        "height": height,
        "width": width,
        "video_coords": [batch, 3, frames * height * width, 2],
        "audio_coords": [batch, 1, sound, 2],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise; its own defaults have all kinds of guidance."""
    own = {"negative_prompt": recipe.sampling.negative_prompt, "spatio_temporal_guidance_blocks": None, **OFF}
    return own | shared.call_arguments(recipe)


@torch.no_grad()
def embed(pipe: LTX2Pipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    tokens = shared.text_tokens(recipe, TEXT_TOKENS)
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    if pipe.text_encoder is not None:
        guided = _batch(recipe) == 2
        made = pipe.encode_prompt(
            prompt, recipe.sampling.negative_prompt, do_classifier_free_guidance=guided, max_sequence_length=tokens
        )
        return {name: value for name, value in zip(names, made, strict=True) if value is not None}
    like, width = next(pipe.transformer.parameters()), pipe.connectors.config.caption_channels
    shape = 1, tokens, width * pipe.connectors.config.text_proj_in_factor
    positive, negative = (weights.random_embeddings(text, shape, like) for text in (prompt, ""))
    mask = torch.ones(1, tokens, dtype=torch.int64, device=like.device)
    return dict(zip(names, (positive, mask, negative, mask), strict=True))


@torch.no_grad()
def decode(pipe: LTX2Pipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, C, T, H, W), in the VAE's range, to frames (frames, height, width, 3) in uint8."""
    video = pipe.vae.decode(latents.to(pipe._execution_device, pipe.vae.dtype), None, return_dict=False)[0]
    return shared.frames_of(pipe, video)
