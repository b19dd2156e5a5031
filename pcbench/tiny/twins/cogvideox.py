"""Tiny CogVideoX: width 192, six blocks, v-prediction, the 5B's rotary positions.

With the 2B's sin-cos positions it learned everything except shapes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from .base import LATENT_CHANNELS, MAX_PROMPT_TOKENS, TEXT_WIDTH, Batch, Twin, t5_encoder

SIDE = 16  # latent cells along a full clip's side


class CogVideoXTwin(Twin):
    """diffusers' CogVideoXPipeline; one call per step with both guidance branches in its batch."""

    NAME: ClassVar = "cogvideox"
    FRAMES: ClassVar = 25  # the VAE codes 8 N + 1 frames

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = t5_encoder(len(self.tokenizer))
        self.transformer = CogVideoXTransformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            time_embed_dim=128,
            text_embed_dim=TEXT_WIDTH,
            num_layers=6,
            sample_width=SIDE,
            sample_height=SIDE,
            sample_frames=self.FRAMES,
            max_text_seq_length=MAX_PROMPT_TOKENS,
            spatial_interpolation_scale=1.0,
            use_rotary_positional_embeddings=True,
        )
        self.scheduler = CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
            clip_sample=False,
        )

    @staticmethod
    def new_vae() -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX(
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            sample_height=128,
            sample_width=128,
            scaling_factor=1.0,
        )

    def embed(self, prompts: list[str]) -> Batch:
        """Embeddings (B, MAX_PROMPT_TOKENS, width); like the pipeline, without an attention mask."""
        ids, _ = self.tokens(prompts)
        return {"encoder_hidden_states": self.text_encoder(ids).last_hidden_state}

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Variance-preserving noise at a uniform timestep; the target is the velocity of v-prediction."""
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        alpha = self.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1, 1).float()
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return noised, steps.float(), alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        inputs = {"hidden_states": noisy.transpose(1, 2), "timestep": timestep, **self.embed(prompts)}
        rotary = self.rotary(*noisy.shape[-3:])
        return self.transformer(**inputs, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2)

    def rotary(self, frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pipeline's rotary table for this many latent cells, stretched to a full clip's positions."""
        head = self.transformer.config.attention_head_dim
        region = ((0, 0), (SIDE // 2, SIDE // 2))
        return get_3d_rotary_pos_embed(head, region, (height // 2, width // 2), frames, device=self.device)

    def pipeline(self, vae: Any) -> CogVideoXPipeline:
        return CogVideoXPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder.half(),
            vae=vae.half(),
            scheduler=self.scheduler,
            transformer=self.transformer.half(),
        )
