"""CogVideoX (1.0, 2B and 5B): loading, sizes, decoding. One transformer call per step holds both guidance branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from transformers import T5EncoderModel

from methods.engine.anatomy import anatomy_for

from ..config import ConfigError, Recipe, Sampling
from . import shared, weights
from .family import HEAD

PIPELINE = CogVideoXPipeline
TRANSFORMER = CogVideoXTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": 2, "patch_size_t": None})
NARROW = {**HEAD, "time_embed_dim": 8, "text_embed_dim": 8}
BOUNDARY: float | None = None
SPATIAL, TEMPORAL, PATCH = 8, 4, 2  # pixels per latent cell; frames per latent frame; cells per token side
FRAMES = 8  # the VAE decodes latent frames in pairs after the first: 8 N + 1 frames
TEXT_TOKENS = 226  # CogVideoXPipeline's default max_sequence_length
TEXT_ENCODERS = ((T5EncoderModel, shared.t5_xxl, TEXT_TOKENS),)  # class, config, tokens


def load(source: str, recipe: Recipe) -> CogVideoXPipeline:
    """The pipeline at the recipe's dtype, with the repository's scheduler."""
    dtype, revision = getattr(torch, recipe.numerics.dtype), weights.revision(recipe.backbone)
    return CogVideoXPipeline.from_pretrained(source, revision=revision, dtype=dtype)


def build(recipe: Recipe, device: str) -> CogVideoXPipeline:
    """The same architecture with random weights and no text encoder."""
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        transformer = weights.built(TRANSFORMER, weights.config_of(recipe.backbone, "transformer"))
        vae = weights.built(AutoencoderKLCogVideoX, weights.config_of(recipe.backbone, "vae"))
    return CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler())


def scheduler() -> CogVideoXDDIMScheduler:
    """The scheduler published with the released weights."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def set_timesteps(scheduler: CogVideoXDDIMScheduler, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does."""
    scheduler.set_timesteps(sampling.steps)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size the pipeline refuses or silently changes, and for a shift it has no use for."""
    shared.check_size(sampling, SPATIAL * PATCH, FRAMES)
    if sampling.flow_shift is not None:
        raise ConfigError("CogVideoX does not sample a flow: leave model.sampling.flow_shift at null")


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, TEMPORAL)


def branches(recipe: Recipe) -> int:
    """Transformer calls per step: one, which holds both guidance branches."""
    return 1


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline has no such attribute; CogVideoX's has, so None."""
    return None


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the tensor arguments of one transformer call; the rotary table has two tensors, so two shapes."""
    batch = 2 if recipe.sampling.guidance_scale > 1 else 1
    frames, height, width = latent_size(recipe.sampling)
    shapes: dict[str, Any] = {
        "hidden_states": [batch, frames, transformer.get("in_channels", 16), height, width],
        "encoder_hidden_states": [
            batch,
            shared.text_tokens(recipe, TEXT_TOKENS),
            transformer.get("text_embed_dim", 4096),
        ],
        "timestep": [batch],
    }
    if transformer.get("use_rotary_positional_embeddings", False):
        tokens = frames * (height // PATCH) * (width // PATCH)
        shapes["image_rotary_emb"] = [[tokens, transformer.get("attention_head_dim", 64)]] * 2
    return shapes


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise."""
    return {"negative_prompt": recipe.sampling.negative_prompt, **shared.call_arguments(recipe)}


@torch.no_grad()
def embed(pipe: CogVideoXPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    tokens, width = shared.text_tokens(recipe, TEXT_TOKENS), pipe.transformer.config.text_embed_dim
    return shared.guided_embeddings(
        pipe, prompt, recipe.sampling, tokens, width, guided=recipe.sampling.guidance_scale > 1
    )


@torch.no_grad()
def decode(pipe: CogVideoXPipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, T, C, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes."""
    latents = latents.to(pipe._execution_device, pipe.vae.dtype)
    return shared.frames_of(pipe, pipe.decode_latents(latents))
