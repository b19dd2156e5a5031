"""Tiny and small HunyuanVideo: width 192, two dual-stream and four single-stream blocks, guidance as an input."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from .base import END, LATENT_CHANNELS, MAX_PROMPT_TOKENS, PAD, TEXT_WIDTH, Batch, Kind, Twin, flow_scheduler, tokenizer
from .small import SmallTwin

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
    INPUT: ClassVar[float] = GUIDANCE  # the guidance input in training

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
                # The pipeline reads these states before the last norm. With the library's 0.02 their size is 0.03, not
                # 1, and all words look alike beside the projection's bias: directions were never learned.
                initializer_range=TEXT_WIDTH**-0.5,
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
        return self._predict(noisy, timestep, prompts, self.INPUT)

    def _predict(
        self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str], guidance: float
    ) -> torch.Tensor:
        inputs = self.embed(prompts) | {"guidance": torch.full((len(noisy),), guidance * 1000, device=noisy.device)}
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


class SmallHunyuanTwin(SmallTwin, HunyuanTwin):
    """HunyuanVideo on larger frames, its guidance distilled as in the released model: with the guidance input 1 it is
    trained as a model with prompts and without, with `GUIDANCE` to predict what both together say.

    A fifth kind of training latent is of single images: a prompt that is attended to together with the video is learned
    late, and images are many for their price.
    """

    NAME: ClassVar = "small_hunyuan"
    DROP_PROMPTS: ClassVar = True
    DISTILLED: ClassVar = 0.25
    INPUT: ClassVar = 1.0
    GUIDANCE: ClassVar = 4.0  # as in model=small_hunyuan
    KINDS: ClassVar = (Kind("image", 6000, 128, 48, 0.40, 0.05, frames=1), *SmallTwin.KINDS)

    def guided(
        self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            asked = self._predict(noisy, timestep, prompts, self.INPUT)
            null = self._predict(noisy, timestep, [""] * len(prompts), self.INPUT)
        return self._predict(noisy, timestep, prompts, self.GUIDANCE), null + self.GUIDANCE * (asked - null)


assert MAX_PROMPT_TOKENS < CLIP_TOKENS
