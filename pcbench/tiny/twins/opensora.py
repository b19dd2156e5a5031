"""Tiny Open-Sora 1.2: width 192, four blocks over space and four over time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...backbones.opensora.pipeline import OpenSoraPipeline
from ...backbones.opensora.scheduler import rectified_flow_scheduler
from ...backbones.opensora.transformer import STDiT3Transformer3DModel
from ...backbones.opensora.vae import AutoencoderOpenSora
from .base import LATENT_CHANNELS, MAX_PROMPT_TOKENS, TEXT_WIDTH, Batch, Twin, t5_encoder

FPS = 12.0  # as in model=tiny_opensora
CELL = 8  # pixels per latent cell


class OpenSoraTwin(Twin):
    """Our OpenSoraPipeline; one call per step with both guidance branches in its batch."""

    NAME: ClassVar = "opensora"
    CODED_FRAMES: ClassVar = 29  # a padded block of 17 and a whole one of 12, as group norms see the padding's zeros

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = t5_encoder(len(self.tokenizer))
        self.transformer = STDiT3Transformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=2 * LATENT_CHANNELS,
            num_layers=4,
            caption_channels=TEXT_WIDTH,
            max_sequence_length=MAX_PROMPT_TOKENS,
            freq_dim=64,
            input_sq_size=128,
        )

    @staticmethod
    def new_vae() -> AutoencoderOpenSora:
        return AutoencoderOpenSora(
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=2,
            temporal_width=32,
            temporal_multipliers=(1, 2, 2),
            temporal_downsample=(True, True),
            temporal_layers=1,
            temporal_norm_groups=2,
            spatial_scale=1.0,
            shift=(0.0,) * LATENT_CHANNELS,
            scale=(1.0,) * LATENT_CHANNELS,
            micro_batch_size=32,
        )

    @staticmethod
    def encode(vae: Any, clips: torch.Tensor) -> Any:
        return vae.encode(clips, sample_images=False).latent_dist

    @staticmethod
    def decode(vae: Any, latents: torch.Tensor, frames: int) -> torch.Tensor:
        return vae.decode(latents, num_frames=frames, return_dict=False)[0]

    @classmethod
    def taught(
        cls, vae: Any, clips: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As in the base class; the image VAE is also separate from the temporal VAE, by hand-made image latents."""
        images = image_latents(clips)
        blurred = images + noise.std() * torch.randn_like(images)
        moments, log_variance = vae.encode_time(blurred).chunk(2, dim=1)
        pairs = (
            (vae.encode_images(clips, sample=False), images),
            (vae.decode_time(latents + noise, clips.shape[2]), images),
            (moments, latents),
        )
        error = sum((output.float() - target).pow(2).mean() for output, target in pairs)
        return error, log_variance, vae.decode_images(blurred)

    @staticmethod
    def note_statistics(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
        vae.register_to_config(shift=mean.tolist(), scale=std.tolist())

    @staticmethod
    def normalise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The latents as they are: this VAE's are already normalised."""
        return latents

    def embed(self, prompts: list[str]) -> Batch:
        """Embeddings (B, MAX_PROMPT_TOKENS, width) and mask (B, MAX_PROMPT_TOKENS).

        As in the pipeline, a dropped prompt is the null caption with another prompt's mask.
        """
        ids, mask = self.tokens(prompts)
        embeds = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        dropped = torch.tensor([not prompt for prompt in prompts], device=self.device)[:, None]
        mask = torch.where(dropped, mask.roll(1, 0), mask)
        embeds = torch.where(dropped[..., None], self.transformer.null_caption.to(embeds), embeds)
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rectified flow with a velocity that points towards the video, as upstream's does."""
        noised, timestep, velocity = super().noisy(latents, noise, generator)
        return noised, timestep, -velocity

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        def full(value: float) -> torch.Tensor:
            return torch.full((len(noisy),), float(value), device=noisy.device)

        sizes = {"fps": full(FPS), "height": full(CELL * noisy.shape[-2]), "width": full(CELL * noisy.shape[-1])}
        inputs = {"hidden_states": noisy, "timestep": timestep, **self.embed(prompts), **sizes}
        return self.transformer(**inputs, return_dict=False)[0][:, : noisy.shape[1]]

    def pipeline(self, vae: Any) -> OpenSoraPipeline:
        return OpenSoraPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder.half(),
            vae=vae.half(),
            transformer=self.transformer.half(),
            scheduler=rectified_flow_scheduler(),
        )


def image_latents(clips: torch.Tensor) -> torch.Tensor:
    """Hand-made image latents (B, 8, F, H / 8, W / 8) of clips (B, 3, F, H, W).

    For each 8x8 pixels: the mean colour (3), each colour's change from left to right (3), and the change of brightness
    from top to bottom and towards the middle (2).
    """
    batch, colours, frames, height, width = clips.shape
    blocks = clips.reshape(batch, colours, frames, height // CELL, CELL, width // CELL, CELL)
    across = (blocks[..., CELL // 2 :] - blocks[..., : CELL // 2]).mean((4, 6))
    grey = blocks.mean(1, keepdim=True)
    down = (grey[:, :, :, :, CELL // 2 :] - grey[:, :, :, :, : CELL // 2]).mean((4, 6))
    middle = (grey[:, :, :, :, 2:-2, :, 2:-2]).mean((4, 6)) - grey.mean((4, 6))
    return torch.cat([blocks.mean((4, 6)), across, down, middle], 1)
