"""Tiny Vchitect-2.0 parts with weights that follow from their names."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pcbench.backbones.vchitect import VchitectTransformer3DModel
from pcbench.backbones.vchitect.pipeline import VchitectPipeline

from .opensora_parts import fill

TRANSFORMER_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 10,
    "rope_scaling_factor": 1.5,
}
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_TOKENS, T5_TOKENS = 6, 8  # to which prompts are padded
# Latent (T, H, W), timestep, text tokens; a single frame has no attention along time.
CASES: dict[str, tuple[tuple[int, int, int], float, int]] = {
    "wide": ((5, 8, 12), 731.25, 7),
    "high": ((7, 12, 4), 999.0, 3),
    "the whole table": ((2, 20, 20), 40.5, 5),
    "one frame": ((1, 6, 10), 3.0, 9),
}


def transformer(**changes: Any) -> VchitectTransformer3DModel:
    """The table of positions is the class's own; all other weights are filled."""
    model = VchitectTransformer3DModel(**{**TRANSFORMER_CONFIG, **changes}).eval()
    positions = model.pos_embed.pos_embed.clone()
    fill(model)
    model.pos_embed.pos_embed.copy_(positions)
    return model


def inputs(name: str) -> dict[str, Any]:
    """A call of the transformer of one case."""
    size, timestep, tokens = CASES[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    config = TRANSFORMER_CONFIG
    return {
        "hidden_states": torch.randn(1, config["in_channels"], *size, generator=generator),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": torch.randn(1, tokens, config["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], generator=generator),
    }


def vae() -> AutoencoderKL:
    model = AutoencoderKL(**VAE_CONFIG).eval()
    fill(model)
    return model


def _tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Of eight words; a prompt begins with nothing and ends with a mark."""
    words = ["<pad>", "</s>", "<unk>", "a", "cat", "sunset", "over", "sea"]
    words_model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    words_model.pre_tokenizer = pre_tokenizers.Whitespace()
    words_model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words_model, model_max_length=length, **marks)


def text_parts() -> dict[str, Any]:
    """Three tokenizers and text encoders of one or two layers, which fit the transformer."""
    clip = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "projection_dim": 6, "num_attention_heads": 2}
    clip |= {"max_position_embeddings": CLIP_TOKENS, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    encoders = [
        *(CLIPTextModelWithProjection(CLIPTextConfig(**clip, num_hidden_layers=n)) for n in (2, 3)),
        T5EncoderModel(T5Config(vocab_size=8, d_model=20, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
    ]
    parts: dict[str, Any] = {}
    for number, encoder in enumerate(encoders, 1):
        fill(encoder)
        suffix = "" if number == 1 else f"_{number}"
        parts[f"text_encoder{suffix}"] = encoder.eval()
        parts[f"tokenizer{suffix}"] = _tokenizer(64 if number == 3 else CLIP_TOKENS)
    return parts


def pipeline(**parts: Any) -> VchitectPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = VchitectPipeline(**{"transformer": transformer(), "scheduler": scheduler, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Calls of the pipeline, and the noise they start from.
CALLS: dict[str, dict[str, Any]] = {
    "video": {
        "prompt": "a cat over sea",
        "negative_prompt": "sunset",
        "height": 64,
        "width": 96,
        "num_frames": 5,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
    },
    "image": {
        "prompt": "sunset",
        "negative_prompt": "",
        "height": 48,
        "width": 32,
        "num_frames": 1,
        "num_inference_steps": 7,
        "guidance_scale": 3.0,
    },
}


def noise(call: dict[str, Any]) -> torch.Tensor:
    shape = (1, TRANSFORMER_CONFIG["in_channels"], call["num_frames"], call["height"] // 8, call["width"] // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(call["height"]))


def small_pipeline(seed: int) -> VchitectPipeline:
    """Of tests/families.py: a random pipeline without text encoders and VAE."""
    torch.manual_seed(seed)
    transformer = VchitectTransformer3DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()
    pipe = VchitectPipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_small(pipe: Any, prompt: int, seed: int, steps: int, **options: Any) -> torch.Tensor:
    """Of tests/families.py: one generation's final latents."""
    text = torch.Generator().manual_seed(1000 + prompt)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=text),
        pooled_prompt_embeds=torch.randn(1, 8, generator=text),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        negative_pooled_prompt_embeds=torch.zeros(1, 8),
        num_frames=5,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **{"height": 128, "width": 128, **options},
    ).frames
