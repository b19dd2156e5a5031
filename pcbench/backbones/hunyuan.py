"""HunyuanVideo: loading, sizes, decoding. Guidance is an input of the transformer, so a step is one call; with
`backbone.call.true_cfg_scale` above 1 there is a second call for the negative prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from methods.engine.anatomy import anatomy_for

from ..config import Recipe, Sampling
from . import shared, weights
from .family import HEAD

PIPELINE = HunyuanVideoPipeline
TRANSFORMER = HunyuanVideoTransformer3DModel
ANATOMY = anatomy_for(TRANSFORMER, {"patch_size": 2, "patch_size_t": 1})
NARROW = {**HEAD, "text_embed_dim": 8, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)}
BOUNDARY: float | None = None
SPATIAL, TEMPORAL, PATCH = 8, 4, 2  # pixels per latent cell; frames per latent frame; cells per token side
TEXT_TOKENS = 256  # HunyuanVideoPipeline's default max_sequence_length
SHIFT = 7.0  # the timestep shift of the released pipeline's scheduler
TEXT_ENCODERS = (
    (
        LlamaModel,
        lambda: LlamaConfig(
            vocab_size=128320,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        TEXT_TOKENS + 95,  # 95 tokens of the pipeline's prompt template
    ),
    (
        CLIPTextModel,
        lambda: CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12
        ),
        77,
    ),
)  # the language model of llava-llama-3-8b, and CLIP-L; class, config, tokens


def load(source: str, recipe: Recipe) -> HunyuanVideoPipeline:
    """The pipeline as its model card loads it: if the transformer is in bfloat16, everything else is in float16."""
    dtype, revision = getattr(torch, recipe.numerics.dtype), weights.revision(recipe.backbone)
    transformer = TRANSFORMER.from_pretrained(source, subfolder="transformer", revision=revision, dtype=dtype)
    rest = torch.float16 if dtype == torch.bfloat16 else dtype
    pipe = HunyuanVideoPipeline.from_pretrained(source, transformer=transformer, revision=revision, dtype=rest)
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def build(recipe: Recipe, device: str) -> HunyuanVideoPipeline:
    """The same architecture with random weights and no text encoders."""
    return assembled(recipe, device, PIPELINE, TRANSFORMER, AutoencoderKLHunyuanVideo, scheduler())


def assembled(
    recipe: Recipe, device: str, pipeline: type, transformer: type, vae: type, scheduler: Any, **parts: Any
) -> Any:
    """A pipeline of these classes with random weights and no text encoders. parts: what else it is made of."""
    with weights.at(device, getattr(torch, recipe.numerics.dtype)):
        parts["transformer"] = weights.built(transformer, weights.config_of(recipe.backbone, "transformer"))
        parts["vae"] = weights.built(vae, weights.config_of(recipe.backbone, "vae"))
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = pipeline(**nothing, **parts, scheduler=scheduler)
    shared.shift_flow(pipe, recipe.sampling.flow_shift)
    return pipe


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler published with the released weights."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def set_timesteps(scheduler: FlowMatchEulerDiscreteScheduler, sampling: Sampling) -> None:
    """Set the scheduler's steps as the pipeline's call does: noise levels evenly spaced from 1 towards 0, without 0."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, sampling.steps + 1)[:-1].tolist())


def check(sampling: Sampling) -> None:
    """Raise ConfigError for a size the pipeline refuses or silently changes."""
    shared.check_size(sampling, SPATIAL * PATCH, TEMPORAL)


def latent_size(sampling: Sampling) -> tuple[int, int, int]:
    """(T, H, W) of the latent, in cells."""
    return shared.latent_size(sampling, SPATIAL, TEMPORAL)


def guidance_scale(recipe: Recipe) -> float | None:
    """The scale of true classifier-free guidance, which the pipeline has no attribute for; 1 means no guidance."""
    return recipe.backbone.call.get("true_cfg_scale", 1.0)


def branches(recipe: Recipe) -> int:
    """Number of transformer calls per step: 2 with true classifier-free guidance, else 1."""
    return 2 if recipe.backbone.call.get("true_cfg_scale", 1.0) > 1 else 1


def arguments(recipe: Recipe, transformer: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the tensor arguments of one transformer call."""
    tokens, channels = shared.text_tokens(recipe, TEXT_TOKENS), transformer.get("in_channels", 16)
    shapes = {
        "hidden_states": [1, channels, *latent_size(recipe.sampling)],
        "timestep": [1],
        "encoder_hidden_states": [1, tokens, transformer.get("text_embed_dim", 4096)],
        "encoder_attention_mask": [1, tokens],
        "pooled_projections": [1, transformer.get("pooled_projection_dim", 768)],
    }
    return {**shapes, "guidance": [1]} if transformer.get("guidance_embeds", True) else shapes


def call_arguments(recipe: Recipe) -> dict[str, Any]:
    """The pipeline call's arguments except prompt and noise."""
    return {"negative_prompt": recipe.sampling.negative_prompt, **shared.call_arguments(recipe)}


@torch.no_grad()
def embed(pipe: HunyuanVideoPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Prompt embeddings as pipeline arguments, for timing the denoising loop alone."""
    embeddings = _embeddings(pipe, prompt, recipe)
    if branches(recipe) == 2:
        negative = _embeddings(pipe, recipe.sampling.negative_prompt, recipe)
        embeddings |= {f"negative_{name}": value for name, value in negative.items()}
    return embeddings


def _embeddings(pipe: HunyuanVideoPipeline, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    tokens = shared.text_tokens(recipe, TEXT_TOKENS)
    if pipe.text_encoder is None:
        config, like = pipe.transformer.config, next(pipe.transformer.parameters())
        embeds = weights.random_embeddings(prompt, (1, tokens, config.text_embed_dim), like)
        pooled = weights.random_embeddings(prompt, (1, config.pooled_projection_dim), like)
        return dict(zip(names, (embeds, pooled, torch.ones(1, tokens).to(like)), strict=True))
    template = {name: recipe.backbone.call[name] for name in ("prompt_template",) if name in recipe.backbone.call}
    return dict(zip(names, pipe.encode_prompt(prompt, max_sequence_length=tokens, **template), strict=True))


@torch.no_grad()
def decode(pipe: HunyuanVideoPipeline, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
    """Final latents (1, C, T, H, W) to frames (frames, height, width, 3) in uint8, as the pipeline itself decodes."""
    vae = pipe.vae
    latents = latents.to(pipe._execution_device, vae.dtype) / vae.config.scaling_factor
    return shared.frames_of(pipe, vae.decode(latents, return_dict=False)[0])
