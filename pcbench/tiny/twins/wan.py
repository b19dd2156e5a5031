"""Tiny and small Wan2.1: width 192, six blocks (3.9 M parameters)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from transformers import UMT5Config, UMT5EncoderModel

from .base import END, LATENT_CHANNELS, PAD, TEXT_WIDTH, Batch, Kind, Twin, flow_scheduler


class WanTwin(Twin):
    """diffusers' WanPipeline; two calls per step."""

    NAME: ClassVar = "wan"

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(self.tokenizer),
                d_model=TEXT_WIDTH,
                d_kv=16,
                num_heads=4,
                d_ff=128,
                num_layers=2,
                dropout_rate=0.0,
                pad_token_id=PAD,
                eos_token_id=END,
            )
        )
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            ffn_dim=768,
            num_layers=6,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        )

    @staticmethod
    def new_vae() -> AutoencoderKLWan:
        return AutoencoderKLWan(
            base_dim=16,
            decoder_base_dim=24,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latents_mean=[0.0] * LATENT_CHANNELS,
            latents_std=[1.0] * LATENT_CHANNELS,
        )

    @staticmethod
    def decode(vae: AutoencoderKLWan, latents: torch.Tensor, frames: int) -> torch.Tensor:
        """`vae.decode` without its final clamp, which passes no gradient where it saturates."""
        vae.clear_cache()
        hidden, pieces = vae.post_quant_conv(latents), []
        for index in range(hidden.shape[2]):
            vae._conv_idx = [0]
            frame = hidden[:, :, index : index + 1]
            pieces.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
        vae.clear_cache()
        return unpatchify(torch.cat(pieces, 2), vae.config.patch_size)

    @staticmethod
    def note_statistics(vae: AutoencoderKLWan, mean: torch.Tensor, std: torch.Tensor) -> None:
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    @staticmethod
    def normalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
        statistics = vae.config.latents_mean, vae.config.latents_std
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in statistics)
        return (latents - mean.to(latents)) / std.to(latents)

    def embed(self, prompts: list[str]) -> Batch:
        """Embeddings (B, MAX_PROMPT_TOKENS, width), zero after the end mark."""
        ids, mask = self.tokens(prompts)
        return {"encoder_hidden_states": self.text_encoder(ids, mask).last_hidden_state * mask[..., None]}

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.transformer(noisy, timestep=timestep, **self.embed(prompts), return_dict=False)[0]

    def pipeline(self, vae: Any) -> WanPipeline:
        return WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder.half(),
            vae=vae.half(),
            scheduler=flow_scheduler(self.SHIFT),
            transformer=self.transformer.half(),
        )


class SmallWanTwin(WanTwin):
    """The same classes and width on larger frames of the lit world: four times the tokens per frame, half the frames.

    Its latent is 4 x 32 x 32: PreciseCache's trial, 2 x 4 x 4 times smaller, keeps 8 x 8 cells of it. The last kind of
    training latent has the trial's size and shows the whole clip in half the frames.
    """

    NAME: ClassVar = "small_wan"
    FRAMES: ClassVar = 13
    SIDE: ClassVar = 256
    LIT: ClassVar = True
    SHIFT: ClassVar = 5.0
    LEAST_SHIFT: ClassVar = 2.0
    KINDS: ClassVar = (
        Kind("full", 1500, 256, 6, 0.10, 0.60),
        Kind("half", 6000, 128, 16, 0.70, 0.20),
        Kind("quarter", 3000, 64, 48, 0.10, 0.10),
        Kind("trial", 3000, 64, 64, 0.10, 0.10, frames=7, stride=2),
    )

    @classmethod
    def model(cls) -> str:
        return cls.NAME

    @classmethod
    def shift(cls, latent: torch.Size) -> float:
        """The shift of Stable Diffusion 3 (arXiv 2403.03206, eq. 23), which grows with the root of the token count."""
        full = (cls.FRAMES + 3) // 4 * (cls.SIDE // 8) ** 2
        return max(cls.LEAST_SHIFT, cls.SHIFT * math.sqrt(latent[2:].numel() / full))
