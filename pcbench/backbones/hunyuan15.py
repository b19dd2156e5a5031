"""HunyuanVideo-1.5: loading, sizes, decoding. Guidance is a part of the pipeline, its guider, which makes two calls a
step; the lengths of the texts are the pipeline's, and always padded to."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

from methods.engine.anatomy import anatomy_for

from ..config import Recipe, Sampling
from . import shared, weights
from .family import HEAD
from .hunyuan import assembled, decode, set_timesteps

__all__ = [
    "ANATOMY", "BOUNDARY", "NARROW", "PIPELINE", "SPATIAL", "TEXT_ENCODERS", "TRANSFORMER", "arguments", "branches",
    "build", "call_arguments", "check", "decode", "embed", "guidance_scale", "latent_size", "load", "scheduler",
    "set_timesteps",
]  # fmt: skip

PIPELINE = HunyuanVideo15Pipeline
TRANSFORMER = HunyuanVideo15Transformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {})
NARROW = {**HEAD, "text_embed_dim": 8, "text_embed_2_dim": 8, "image_embed_dim": 8, "rope_axes_dim": (4, 6, 6)}
BOUNDARY: float | None = None
SPATIAL, TEMPORAL = 16, 4  # pixels per latent cell, which is a token; frames per latent frame
SHIFT = 5.0  # the timestep shift of the released 480p pipeline's scheduler
TEXT_TOKENS, GLYPH_TOKENS, IMAGE_TOKENS = 1000, 256, 729  # fixed in HunyuanVideo15Pipeline
TEXT_ENCODERS = (
    (
        Qwen2_5_VLTextModel,
        lambda: Qwen2_5_VLTextConfig(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        ),
        TEXT_TOKENS + 108,  # 108 tokens of the pipeline's prompt template
    ),
    (
        T5EncoderModel,
        lambda: T5Config(
            vocab_size=1510,
            d_model=1472,
            d_ff=3584,
            d_kv=64,
            num_heads=6,
            num_layers=12,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        ),
        GLYPH_TOKENS,
    ),
)  # the language model of Qwen2.5-VL-7B, and ByT5-small, for text in quotation marks; class, config, tokens


def load(source: str, recipe: Recipe) -> HunyuanVideo15Pipeline:
    """The pipeline with weights from a folder or the hub, at the recipe's dtype."""
    dtype, revision = getattr(torch, recipe.numerics.dtype), weights.revision(recipe.backbone)
    pipe = HunyuanVideo15Pipeline.from_pretrained(source, revision=revision, dtype=dtype)
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def build(recipe: Recipe, device: str) -> HunyuanVideo15Pipeline:
    """The same architecture with random weights and no text encoders."""
    guider = ClassifierFreeGuidance(guidance_scale=recipe.sampling.guidance_scale)
    return assembled(recipe, device, PIPELINE, TRANSFORMER, AutoencoderKLHunyuanVideo15, scheduler(), guider=guider)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler published with the released weights."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size that the pipeline would silently change."""
    shared.check_size(sampling, SPATIAL, TEMPORAL)


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, TEMPORAL)


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline does not tell it; this one's guider does, so None."""
    return None


def branches(recipe: Recipe) -> int:
    """Number of transformer calls per step: the guider makes 2, unless its scale is 1."""
    return 1 if math.isclose(recipe.sampling.guidance_scale, 1.0) else 2


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    return {
        "hidden_states": [1, transformer.get("in_channels", 65), *latent_size(recipe.sampling)],
        "timestep": [1],
        "encoder_hidden_states": [1, TEXT_TOKENS, transformer.get("text_embed_dim", 3584)],
        "encoder_attention_mask": [1, TEXT_TOKENS],
        "encoder_hidden_states_2": [1, GLYPH_TOKENS, transformer.get("text_embed_2_dim", 1472)],
        "encoder_attention_mask_2": [1, GLYPH_TOKENS],
        "image_embeds": [1, IMAGE_TOKENS, transformer.get("image_embed_dim", 1152)],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise; the guidance scale is the guider's."""
    arguments = {"negative_prompt": recipe.sampling.negative_prompt, **shared.call_arguments(recipe)}
    del arguments["guidance_scale"]
    return arguments


@torch.no_grad()
def embed(pipe: HunyuanVideo15Pipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    embeddings = _embeddings(pipe, prompt)
    if branches(recipe) == 2:
        negative = _embeddings(pipe, recipe.sampling.negative_prompt)
        embeddings |= {f"negative_{name}": value for name, value in negative.items()}
    return embeddings


def _embeddings(pipe: HunyuanVideo15Pipeline, prompt: str) -> dict[str, torch.Tensor]:
    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    if pipe.text_encoder is not None:
        return dict(zip(names, pipe.encode_prompt(prompt, dtype=pipe.transformer.dtype), strict=True))
    config, like = pipe.transformer.config, next(pipe.transformer.parameters())
    text = weights.random_embeddings(prompt, (1, TEXT_TOKENS, config.text_embed_dim), like)
    glyphs = torch.zeros(1, GLYPH_TOKENS, config.text_embed_2_dim).to(like)  # as of a prompt without quotation marks
    masks = torch.ones(1, TEXT_TOKENS).to(like), torch.zeros(1, GLYPH_TOKENS).to(like)
    return dict(zip(names, (text, masks[0], glyphs, masks[1]), strict=True))
