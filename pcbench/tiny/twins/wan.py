"""Tiny and small Wan2.1: width 192, six blocks (3.9 M parameters)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from transformers import UMT5Config, UMT5EncoderModel

from .base import END, LATENT_CHANNELS, PAD, TEXT_WIDTH, Batch, Twin, flow_scheduler
from .small import SmallTwin


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


class SmallWanTwin(SmallTwin, WanTwin):
    """Wan2.1 on larger frames."""

    NAME: ClassVar = "small_wan"
