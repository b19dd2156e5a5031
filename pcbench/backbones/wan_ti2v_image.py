"""Wan2.2-TI2V-5B from an image: its first frame, whose tokens stay at timestep 0 while the others are denoised."""

from __future__ import annotations

from typing import Any

from ..config import Recipe
from . import wan, wan_i2v
from .wan_i2v import PIPELINE
from .wan_ti2v import (
    ANATOMY,
    BOUNDARY,
    NARROW,
    SPATIAL,
    TEXT_ENCODERS,
    TRANSFORMER,
    VAE,
    arguments,
    branches,
    call_arguments,
    check,
    decode,
    embed,
    guidance_scale,
    latent_size,
    scheduler,
    set_timesteps,
)

__all__ = [
    "ANATOMY", "BOUNDARY", "NARROW", "PIPELINE", "SPATIAL", "TEXT_ENCODERS", "TRANSFORMER", "arguments", "branches",
    "build", "call_arguments", "check", "decode", "embed", "guidance_scale", "latent_size", "load", "scheduler",
    "set_timesteps",
]  # fmt: skip

load = wan_i2v.load


def build(recipe: Recipe, device: str) -> Any:
    """The same architecture with random weights and no text encoder."""
    return wan.build(recipe, device, VAE, kind=PIPELINE, expand_timesteps=True)
