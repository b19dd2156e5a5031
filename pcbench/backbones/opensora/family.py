"""The Open-Sora 1.2 family: loading, sizes, decoding. One transformer call per step holds both guidance branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import is_bs4_available
from transformers import T5EncoderModel

from methods.engine.anatomy import anatomy_for

from ...config import ConfigError, Recipe, Sampling
from .. import shared, weights
from ..family import HEAD
from . import scheduler as schedule
from . import vae
from .pipeline import OpenSoraPipeline
from .scheduler import rectified_flow_scheduler as scheduler
from .scheduler import timestep_shift
from .transformer import STDiT3Transformer3DModel

PIPELINE = OpenSoraPipeline
TRANSFORMER = STDiT3Transformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": (1, 2, 2)})
NARROW = {**HEAD, "caption_channels": 8}
BOUNDARY: float | None = None
SPATIAL = 8  # pixels per latent cell
TEXT_TOKENS = 300  # model_max_length of upstream's configs/opensora-v1-2/inference/sample.py
TEXT_ENCODERS = ((T5EncoderModel, shared.t5_xxl, TEXT_TOKENS),)  # class, config, tokens
OF_PROMPT = ("aesthetic_score", "motion_score", "camera_motion", "clean_caption")


def load(source: str, recipe: Recipe) -> OpenSoraPipeline:
    """The pipeline at the recipe's dtype, VAE and T5 included, as VideoSys runs it (upstream keeps T5 in float32).

    Raises ConfigError if `source` is not a converted folder, or if prompts cannot be cleaned as in training.
    """
    if not (Path(source) / weights.INDEX).exists():
        raise ConfigError(
            f"{source} is no diffusers pipeline folder: make one of Open-Sora's published checkpoints with"
            " python -m pcbench.backbones.opensora.convert and give it as model.backbone.source"
        )
    if recipe.backbone.call.get("clean_caption", True) and not is_bs4_available():
        raise ConfigError("Open-Sora's prompts are cleaned with beautifulsoup4: pip install 'pcbench[opensora]'")
    return OpenSoraPipeline.from_pretrained(source, dtype=getattr(torch, recipe.numerics.dtype))


def build(recipe: Recipe, device: str) -> OpenSoraPipeline:
    """The same architecture with random weights and no text encoder."""
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        transformer = weights.built(TRANSFORMER, weights.config_of(recipe.backbone, "transformer"))
        autoencoder = weights.built(vae.AutoencoderOpenSora, weights.config_of(recipe.backbone, "vae"))
    return OpenSoraPipeline(transformer=transformer, scheduler=scheduler(), vae=autoencoder)


def set_timesteps(scheduler: Any, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does, shifted for the video's size."""
    schedule.set_timesteps(scheduler, sampling.steps, sampling.height, sampling.width, sampling.frames)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a request that the pipeline cannot carry out.

    Sizes need not be multiples of anything (upstream's own table has 480x854): the latent has whole cells only, so
    pixels beyond the last one are not generated.
    """
    if min(sampling.height, sampling.width) < SPATIAL:
        raise ConfigError(f"height and width must be at least {SPATIAL}, not {sampling.height}x{sampling.width}")
    if sampling.flow_shift is not None:
        raise ConfigError("Open-Sora's timestep shift follows from the size: leave model.sampling.flow_shift out")
    if sampling.negative_prompt:
        raise ConfigError("Open-Sora has no negative prompt: leave model.sampling.negative_prompt out")
    try:
        timestep_shift(sampling.height, sampling.width, sampling.frames)
    except ValueError as error:
        raise ConfigError(str(error).replace("num_frames", "frames")) from error


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return vae.latent_size(sampling.frames, sampling.height, sampling.width)


def branches(recipe: Recipe) -> int:
    """Transformer calls per step: one, which holds both guidance branches."""
    return 1


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of classifier-free guidance if the pipeline has no such attribute; Open-Sora's has, so None."""
    return None


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    batch, tokens = 2 if recipe.sampling.guidance_scale > 1 else 1, shared.text_tokens(recipe, TEXT_TOKENS)
    return {
        "hidden_states": [batch, transformer.get("in_channels", 4), *latent_size(recipe.sampling)],
        "timestep": [batch],
        "encoder_hidden_states": [batch, tokens, transformer.get("caption_channels", 4096)],
        "encoder_attention_mask": [batch, tokens],
        "fps": [batch],
        "height": [batch],
        "width": [batch],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise."""
    return shared.call_arguments(recipe)


@torch.no_grad()
def embed(pipe: OpenSoraPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    if pipe.text_encoder is None:
        config, like = pipe.transformer.config, next(pipe.transformer.parameters())
        shape = (1, shared.text_tokens(recipe, TEXT_TOKENS), config.caption_channels)
        return {"prompt_embeds": weights.random_embeddings(prompt, shape, like)}
    options = {name: recipe.backbone.call[name] for name in OF_PROMPT if name in recipe.backbone.call}
    embeds, mask = pipe.encode_prompt(prompt, max_sequence_length=shared.text_tokens(recipe, TEXT_TOKENS), **options)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


@torch.no_grad()
def decode(pipe: OpenSoraPipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, C, T, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes.

    The number of frames comes from the recipe, as latents do not determine it (192 to 195 frames have 57 latent ones).
    """
    latents = latents.to(pipe._execution_device, pipe.vae.dtype)
    return shared.frames_of(pipe, pipe.vae.decode(latents, recipe.sampling.frames, return_dict=False)[0])
