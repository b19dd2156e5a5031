"""The Wan2.1 family: loading, sizes, decoding. Bundled, local and hub weights take the same path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from methods.anatomy import anatomy_for

from ..config import ConfigError, Recipe, Sampling

TRANSFORMER = WanTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": (1, 2, 2)})
SPATIAL, TEMPORAL, PATCH = 8, 4, 2  # pixels per latent cell; frames per latent frame; cells per token side
TEXT_TOKENS = 512  # WanPipeline's default max_sequence_length


def load(source: str, recipe: Recipe, device: str) -> WanPipeline:
    """The pipeline at the recipe's dtype; the VAE stays in float32, where Wan's decodes cleanly."""
    dtype = getattr(torch, recipe.numerics.dtype)
    revision = None if recipe.backbone.source.startswith("bundled:") else recipe.backbone.revision
    vae = AutoencoderKLWan.from_pretrained(source, subfolder="vae", revision=revision, dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(source, vae=vae, revision=revision, dtype=dtype).to(device)
    if recipe.sampling.flow_shift is not None:
        name = "flow_shift" if "flow_shift" in pipe.scheduler.config else "shift"
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{name: recipe.sampling.flow_shift})
    return pipe


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size the pipeline would silently change."""
    side = SPATIAL * PATCH
    if sampling.height % side or sampling.width % side:
        raise ConfigError(f"height and width must be multiples of {side}, not {sampling.height}x{sampling.width}")
    if sampling.frames % TEMPORAL != 1:
        raise ConfigError(f"frames must be a multiple of {TEMPORAL} plus one, not {sampling.frames}")


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent."""
    return (sampling.frames - 1) // TEMPORAL + 1, sampling.height // SPATIAL, sampling.width // SPATIAL


def branches(sampling: Sampling) -> int:
    """Transformer calls a step makes."""
    return 2 if sampling.guidance_scale > 1 else 1


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    tokens = recipe.backbone.call.get("max_sequence_length", TEXT_TOKENS)
    text, channels = transformer.get("text_dim", 4096), transformer.get("in_channels", 16)
    return {
        "hidden_states": [1, channels, *latent_size(recipe.sampling)],
        "timestep": [1],
        "encoder_hidden_states": [1, tokens, text],
    }


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments, prompt and noise apart."""
    sampling = recipe.sampling
    return {
        "negative_prompt": sampling.negative_prompt,
        "height": sampling.height,
        "width": sampling.width,
        "num_frames": sampling.frames,
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **recipe.backbone.call,
    }


def embed(pipe: WanPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    positive, negative = pipe.encode_prompt(
        prompt,
        recipe.sampling.negative_prompt,
        do_classifier_free_guidance=branches(recipe.sampling) == 2,
        max_sequence_length=recipe.backbone.call.get("max_sequence_length", TEXT_TOKENS),
    )
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


@torch.no_grad()
def decode(pipe: WanPipeline, latents: torch.Tensor) -> np.ndarray:
    """Final latents (1, C, T, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes."""
    vae = pipe.vae
    latents = latents.to(vae.device, vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents)
    scale = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents)
    video = vae.decode(latents / scale + mean, return_dict=False)[0]
    frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
    return (frames * 255).round().astype(np.uint8)
