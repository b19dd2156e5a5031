"""The Wan2.1 and Wan2.2 families: loading, sizes, decoding. Bundled, local and hub weights load the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from methods.engine.anatomy import anatomy_for

from ..config import ConfigError, Recipe, Sampling
from . import shared, weights
from .family import HEAD

PIPELINE = WanPipeline
TRANSFORMER = WanTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": (1, 2, 2)})
SPATIAL, TEMPORAL, PATCH = 8, 4, 2  # pixels per latent cell; frames per latent frame; cells per token side
POSITIONS = 1024  # along each axis: rope_max_seq_len of WanTransformer3DModel
TEXT_TOKENS = 512  # WanPipeline's default max_sequence_length
NARROW = {**HEAD, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16}
BOUNDARY: float | None = 0.875  # share of the noise above which Wan2.2 uses its first transformer (wan_t2v_A14B.py)
TEXT_ENCODERS = (
    (
        UMT5EncoderModel,
        lambda: UMT5Config(
            vocab_size=256384, d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, dropout_rate=0.0
        ),
        TEXT_TOKENS,
    ),
)  # umt5-xxl; class, config, tokens


def load(source: str, recipe: Recipe, kind: Any = PIPELINE) -> Any:
    """The pipeline, of class `kind`, at the recipe's dtype; the VAE stays in float32, in which it decodes cleanly."""
    dtype, revision = getattr(torch, recipe.numerics.dtype), weights.revision(recipe.backbone)
    vae = AutoencoderKLWan.from_pretrained(source, subfolder="vae", revision=revision, dtype=torch.float32)
    pipe = kind.from_pretrained(source, vae=vae, revision=revision, dtype=dtype)
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def build(
    recipe: Recipe,
    device: str,
    vae: Mapping[str, Any] | None = None,
    kind: Any = PIPELINE,
    boundary: float | None = BOUNDARY,
    **parts: Any,
) -> Any:
    """The same architecture with random weights and no text encoder.

    vae: the VAE's config where no folder says it; None is the class's own. kind: the pipeline's class. boundary: as
    BOUNDARY. parts: further parts and config values of the pipeline.
    """
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        transformer = weights.built(TRANSFORMER, weights.config_of(recipe.backbone, "transformer"))
        second = None
        if _has_two_transformers(recipe):
            second = weights.built(TRANSFORMER, weights.config_of(recipe.backbone, "transformer"))
    with weights.at(device, torch.float32):
        decoder = weights.built(AutoencoderKLWan, weights.config_of(recipe.backbone, "vae") or dict(vae or {}))
    pipe = kind(
        tokenizer=None,
        text_encoder=None,
        vae=decoder,
        scheduler=scheduler(),
        transformer=transformer,
        transformer_2=second,
        boundary_ratio=boundary if second else None,
        **parts,
    )
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def scheduler() -> UniPCMultistepScheduler:
    """The scheduler published with the released weights."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def set_timesteps(scheduler: UniPCMultistepScheduler, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does."""
    scheduler.set_timesteps(sampling.steps)


def _has_two_transformers(recipe: Recipe) -> bool:
    return "guidance_scale_2" in recipe.backbone.call


def check(sampling: Sampling, spatial: int = SPATIAL) -> None:
    """Raise ConfigError for a size that the pipeline would silently change or the transformer has no positions for.

    spatial: pixels per latent cell.
    """
    token = spatial * PATCH
    shared.check_size(sampling, token, TEMPORAL)
    if max(sampling.height, sampling.width) > POSITIONS * token or latent_size(sampling)[0] > POSITIONS:
        most = f"{(POSITIONS - 1) * TEMPORAL + 1} frames of {POSITIONS * token} pixels a side"
        raise ConfigError(f"Wan has positions for {most}, not {sampling.frames}x{sampling.height}x{sampling.width}")


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, TEMPORAL)


def branches(recipe: Recipe) -> int:
    """Number of transformer calls per step: 2 with classifier-free guidance, else 1."""
    return 2 if recipe.sampling.guidance_scale > 1 else 1


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline has no such attribute; Wan's has, so None."""
    return None


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    channels = transformer.get("in_channels", 16)
    return {
        "hidden_states": [1, channels, *latent_size(recipe.sampling)],
        "timestep": [1],
        "encoder_hidden_states": [1, shared.text_tokens(recipe, TEXT_TOKENS), transformer.get("text_dim", 4096)],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise."""
    return {"negative_prompt": recipe.sampling.negative_prompt, **shared.call_arguments(recipe)}


@torch.no_grad()
def embed(pipe: WanPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    tokens, width = shared.text_tokens(recipe, TEXT_TOKENS), pipe.transformer.config.text_dim
    return shared.guided_embeddings(pipe, prompt, recipe.sampling, tokens, width, guided=branches(recipe) == 2)


@torch.no_grad()
def decode(pipe: WanPipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, C, T, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes."""
    vae = pipe.vae
    latents = latents.to(pipe._execution_device, vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents)
    scale = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents)
    return shared.frames_of(pipe, vae.decode(latents / scale + mean, return_dict=False)[0])
