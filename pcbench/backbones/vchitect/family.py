"""The Vchitect-2.0 family: loading, sizes, decoding. A step is a transformer call for each guidance branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5EncoderModel

from methods.engine.anatomy import anatomy_for

from ...config import ConfigError, Recipe, Sampling
from .. import shared, weights
from ..family import HEAD
from .pipeline import SPATIAL, VchitectPipeline
from .transformer import VchitectTransformer3DModel

PIPELINE = VchitectPipeline
TRANSFORMER = VchitectTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": 2})
NARROW = {**HEAD, "joint_attention_dim": 8, "pooled_projection_dim": 8}
BOUNDARY: float | None = None
PATCH, LARGEST = 2, 192  # cells per token side; tokens a side of the released table of positions
CLIP_TOKENS, T5_TOKENS = 77, 256  # the official pipeline's
SHIFT = 3.0  # the timestep shift of Stable Diffusion 3's scheduler
VAE = {  # Stable Diffusion 3's, one of images
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def _clip(width: int, layers: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=activation,
    )


TEXT_ENCODERS = (  # class, config, tokens
    (CLIPTextModelWithProjection, lambda: _clip(768, 12, "quick_gelu"), CLIP_TOKENS),  # CLIP-L
    (CLIPTextModelWithProjection, lambda: _clip(1280, 32, "gelu"), CLIP_TOKENS),  # OpenCLIP bigG
    (T5EncoderModel, shared.t5_xxl, T5_TOKENS),
)


def load(source: str, recipe: Recipe) -> VchitectPipeline:
    """The pipeline at the recipe's dtype, VAE and text encoders included, as VideoSys runs it (officially those are in
    float32). Raises ConfigError if `source` is not a converted folder."""
    if not (Path(source) / weights.INDEX).exists():
        raise ConfigError(
            f"{source} is no diffusers pipeline folder: make one of Vchitect-2.0's published checkpoint with"
            " python -m pcbench.backbones.vchitect.convert and give it as model.backbone.source"
        )
    pipe = VchitectPipeline.from_pretrained(source, dtype=getattr(torch, recipe.numerics.dtype))
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def build(recipe: Recipe, device: str) -> VchitectPipeline:
    """The same architecture with random weights and no text encoders."""
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        transformer = weights.built(TRANSFORMER, weights.config_of(recipe.backbone, "transformer"))
        vae = weights.built(AutoencoderKL, {**VAE, **weights.config_of(recipe.backbone, "vae")})
    pipe = VchitectPipeline(transformer=transformer, scheduler=scheduler(), vae=vae)
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def set_timesteps(scheduler: FlowMatchEulerDiscreteScheduler, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does."""
    scheduler.set_timesteps(sampling.steps)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size that the pipeline refuses. Any number of frames will do."""
    side = SPATIAL * PATCH
    if sampling.height % side or sampling.width % side:
        raise ConfigError(f"height and width must be multiples of {side}, not {sampling.height}x{sampling.width}")
    if max(sampling.height, sampling.width) > side * LARGEST:
        raise ConfigError(f"height and width must be at most {side * LARGEST}, not {sampling.height}x{sampling.width}")


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells: the VAE codes each frame on its own."""
    return shared.latent_size(sampling, SPATIAL, 1)


def branches(recipe: Recipe) -> int:
    """Transformer calls per step."""
    return 2 if recipe.sampling.guidance_scale > 1 else 1


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline has no such attribute; this one has, so None."""
    return None


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    tokens = CLIP_TOKENS + shared.text_tokens(recipe, T5_TOKENS)
    return {
        "hidden_states": [1, transformer.get("in_channels", 16), *latent_size(recipe.sampling)],
        "timestep": [1],
        "encoder_hidden_states": [1, tokens, transformer.get("joint_attention_dim", 4096)],
        "pooled_projections": [1, transformer.get("pooled_projection_dim", 2048)],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise."""
    return {"negative_prompt": recipe.sampling.negative_prompt, **shared.call_arguments(recipe)}


@torch.no_grad()
def embed(pipe: VchitectPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    negative, tokens = recipe.sampling.negative_prompt, shared.text_tokens(recipe, T5_TOKENS)
    if pipe.text_encoder is not None:
        return dict(zip(EMBEDS, pipe.encode_prompt(prompt, negative, True, tokens), strict=True))
    config, like = pipe.transformer.config, next(pipe.transformer.parameters())
    shapes = (1, CLIP_TOKENS + tokens, config.joint_attention_dim), (1, config.pooled_projection_dim)
    made = [weights.random_embeddings(text, shape, like) for shape in shapes for text in (prompt, negative)]
    return dict(zip(EMBEDS, made, strict=True))


@torch.no_grad()
def decode(pipe: VchitectPipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, C, T, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes."""
    return shared.frames_of(pipe, pipe.decode_latents(latents.to(pipe._execution_device)))
