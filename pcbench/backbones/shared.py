"""What several families of backbones have in common: sizes, arguments, prompts, schedulers, frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import T5Config

from ..config import ConfigError, Recipe, Sampling
from . import weights


def check_size(sampling: Sampling, side: int, temporal: int) -> None:
    """Raise ConfigError for a size that a pipeline would refuse or silently change.

    side: pixels per token along height and width. temporal: frames must be a multiple of it plus one.
    """
    if sampling.height % side or sampling.width % side:
        raise ConfigError(f"height and width must be multiples of {side}, not {sampling.height}x{sampling.width}")
    if sampling.frames % temporal != 1:
        raise ConfigError(f"frames must be a multiple of {temporal} plus one, not {sampling.frames}")


def latent_size(sampling: Sampling, spatial: int, temporal: int) -> tuple[int, int, int]:
    """(T, H, W), in cells, of the latent of a causal VAE, which codes the first frame on its own."""
    return (sampling.frames - 1) // temporal + 1, sampling.height // spatial, sampling.width // spatial


def text_tokens(recipe: Recipe, default: int) -> int:
    """How many tokens prompts are padded to; `default` is the pipeline's own."""
    return recipe.backbone.call.get("max_sequence_length", default)


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments that every family has, except prompts and noise."""
    sampling = recipe.sampling
    return {
        "height": sampling.height,
        "width": sampling.width,
        "num_frames": sampling.frames,
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **recipe.backbone.call,
    }


def guided_embeddings(
    pipe: Any, prompt: str, sampling: Sampling, tokens: int, width: int, guided: bool
) -> dict[str, torch.Tensor]:
    """Embeddings (1, tokens, width) of the prompt and the negative prompt; random if there is no text encoder."""
    if pipe.text_encoder is None:
        like = next(pipe.transformer.parameters())
        positive, negative = (weights.random_embeddings(text, (1, tokens, width), like) for text in (prompt, ""))
    else:
        positive, negative = pipe.encode_prompt(
            prompt, sampling.negative_prompt, do_classifier_free_guidance=guided, max_sequence_length=tokens
        )
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def shift_flow(pipe: Any, shift: float | None) -> None:
    """Give the pipeline's flow-matching scheduler this timestep shift; None keeps its own."""
    if shift is None:
        return
    name = "flow_shift" if "flow_shift" in pipe.scheduler.config else "shift"
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{name: shift})


def frames_of(pipe: Any, video: torch.Tensor) -> np.ndarray:
    """A decoded video (1, 3, frames, height, width) in [-1, 1] as frames (frames, height, width, 3) in uint8."""
    frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
    return (frames * 255).round().astype(np.uint8)


def t5_xxl() -> T5Config:
    """The config of t5-v1_1-xxl's encoder."""
    return T5Config(
        vocab_size=32128,
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_heads=64,
        num_layers=24,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
