"""Tiny HunyuanVideo: width 192, two dual-stream and four single-stream blocks, guidance as an input."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from .base import END, LATENT_CHANNELS, MAX_PROMPT_TOKENS, PAD, TEXT_WIDTH, Batch, Twin, flow_scheduler, tokenizer

SKIPPED_LAYERS = 2  # the pipeline reads the language model two layers before its end
CLIP_TOKENS = 77  # the length to which the pipeline pads
GUIDANCE = 6.0  # as in model=tiny_hunyuan


class HunyuanTwin(Twin):
    """diffusers' HunyuanVideoPipeline; one call per step.

    The released model is distilled from one with classifier-free guidance. This one is trained without guidance: its
    guidance input is always the same number, and its prompts are never dropped.
    """

    NAME: ClassVar = "hunyuan"
    DROP_PROMPTS: ClassVar = False

    def __init__(self) -> None:
        super().__init__()
        self.clip_tokenizer = tokenizer(CLIP_TOKENS)
        self.text_encoder = LlamaModel(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=128,
                num_hidden_layers=2 + SKIPPED_LAYERS,
                num_attention_heads=4,
                max_position_embeddings=128,
                pad_token_id=PAD,
                bos_token_id=None,
                eos_token_id=END,
            )
        )
        self.text_encoder_2 = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=128,
                projection_dim=TEXT_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=CLIP_TOKENS,
                pad_token_id=PAD,
                bos_token_id=None,
                eos_token_id=END,
            )
        )
        self.transformer = HunyuanVideoTransformer3DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_attention_heads=6,
            attention_head_dim=32,
            num_layers=2,
            num_single_layers=4,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            rope_axes_dim=(8, 12, 12),
        )

    @staticmethod
    def new_vae() -> AutoencoderKLHunyuanVideo:
        return AutoencoderKLHunyuanVideo(
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=1.0,
        )

    def embed(self, prompts: list[str]) -> Batch:
        ids, mask = self.tokens(prompts)
        states = self.text_encoder(ids, mask, output_hidden_states=True).hidden_states
        clip = self.clip_tokenizer(prompts, padding="max_length", max_length=CLIP_TOKENS, return_tensors="pt")
        pooled = self.text_encoder_2(clip.input_ids.to(self.device)).pooler_output
        return {
            "encoder_hidden_states": states[-(SKIPPED_LAYERS + 1)],
            "encoder_attention_mask": mask,
            "pooled_projections": pooled,
        }

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        guidance = torch.full((len(noisy),), GUIDANCE * 1000, device=noisy.device)
        inputs = self.embed(prompts) | {"guidance": guidance}
        return self.transformer(noisy, timestep=timestep, **inputs, return_dict=False)[0]

    def pipeline(self, vae: Any) -> HunyuanVideoPipeline:
        return HunyuanVideoPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder.half(),
            tokenizer_2=self.clip_tokenizer,
            text_encoder_2=self.text_encoder_2.half(),
            vae=vae.half(),
            scheduler=flow_scheduler(self.SHIFT),
            transformer=self.transformer.half(),
        )


assert MAX_PROMPT_TOKENS < CLIP_TOKENS
