"""Wan2.2-TI2V-5B from text: Wan's classes, with one timestep per token, and a VAE of 48 channels with cells twice as
large. Without an image all timesteps of a call are equal."""

from __future__ import annotations

import math
from typing import Any

from ..config import Recipe, Sampling
from . import shared, wan
from .wan import (
    ANATOMY,
    NARROW,
    PIPELINE,
    TEXT_ENCODERS,
    TRANSFORMER,
    branches,
    call_arguments,
    decode,
    embed,
    guidance_scale,
    load,
    scheduler,
    set_timesteps,
)

__all__ = [
    "ANATOMY", "BOUNDARY", "NARROW", "PIPELINE", "SPATIAL", "TEXT_ENCODERS", "TRANSFORMER", "arguments", "branches",
    "build", "call_arguments", "check", "decode", "embed", "guidance_scale", "latent_size", "load", "scheduler",
    "set_timesteps",
]  # fmt: skip

SPATIAL = 16  # pixels per latent cell
BOUNDARY: float | None = None
CHANNELS = 48
# Of Wan2.2's own VAE (wan/modules/vae2_2.py), but for the latents' mean and deviation: random weights have none.
VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": CHANNELS,
    "latents_mean": [0.0] * CHANNELS,
    "latents_std": [1.0] * CHANNELS,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": SPATIAL,
}


def build(recipe: Recipe, device: str) -> Any:
    """The same architecture with random weights and no text encoder."""
    return wan.build(recipe, device, VAE, expand_timesteps=True)


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size that the pipeline would silently change or the transformer has no positions for."""
    wan.check(sampling, SPATIAL)


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, wan.TEMPORAL)


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    shapes, size = wan.arguments(recipe, transformer), latent_size(recipe.sampling)
    shapes["hidden_states"][2:] = size
    return {**shapes, "timestep": [1, math.prod(ANATOMY.token_grid(size))]}
