"""Wan from an image, its first frame: Wan2.1, where the image is in further channels and in CLIP's tokens, and Wan2.2's
14B, where it is in the channels alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging

from ..config import Recipe
from . import wan, weights
from .wan import (
    ANATOMY,
    NARROW,
    SPATIAL,
    TEXT_ENCODERS,
    TRANSFORMER,
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


def _classes() -> tuple[Any, Any]:
    """The pipeline's class and its image processor's, without transformers' warning on every start of a command that
    it does without torchvision."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        from diffusers import WanImageToVideoPipeline
        from transformers import CLIPImageProcessor
    finally:
        logging.set_verbosity(level)
    return WanImageToVideoPipeline, CLIPImageProcessor


PIPELINE, IMAGE_PROCESSOR = _classes()
BOUNDARY: float | None = 0.9  # share of the noise above which Wan2.2 uses its first transformer (wan_i2v_A14B.py)
PATCH = 14  # pixels a side of a patch of the image encoder, CLIP's ViT-H/14
SIDE = 224  # pixels to which it resizes an image
IMAGE_TOKENS = (SIDE // PATCH) ** 2 + 1


def load(source: str, recipe: Recipe) -> Any:
    """The pipeline at the recipe's dtype; its VAE stays in float32."""
    return wan.load(source, recipe, PIPELINE)


def build(recipe: Recipe, device: str) -> Any:
    """The same architecture with random weights, no text encoder, and a small stand-in for the image encoder."""
    config = weights.config_of(recipe.backbone, "transformer")
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        parts = {} if config.get("image_dim") is None else image_encoder(config["image_dim"])
    return wan.build(recipe, device, kind=PIPELINE, boundary=BOUNDARY, **parts)


def image_encoder(width: int) -> dict[str, Any]:
    """The pipeline's parts that turn an image into IMAGE_TOKENS tokens of this width, with random weights."""
    size = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = CLIPVisionConfig(**size, image_size=SIDE, patch_size=PATCH)
    side = {"shortest_edge": SIDE}
    processor = IMAGE_PROCESSOR(size=side, crop_size={"height": SIDE, "width": SIDE})
    return {"image_encoder": CLIPVisionModel(config).eval().requires_grad_(False), "image_processor": processor}


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    shapes = wan.arguments(recipe, transformer)
    if (width := transformer.get("image_dim")) is not None:
        shapes["encoder_hidden_states_image"] = [1, IMAGE_TOKENS, width]
    return shapes
