"""Open-Sora 1.2's VAE: an image VAE frame by frame, then a causal VAE over time; 17 frames become 5 latent frames.

Computes what opensora/models/vae/{vae,vae_temporal}.py of https://github.com/hpcaitech/Open-Sora do at tag v1.2.0
(17cce90); `convert.py` maps its weights. Layout is (B, C, T, H, W) throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn


def latent_size(
    frames: int, height: int, width: int, micro_frame_size: int = 17, temporal_factor: int = 4, spatial_factor: int = 8
) -> tuple[int, int, int]:
    """(T, H, W), in cells, of the latent of a video; pixels beyond the last whole cell are lost, as upstream."""
    blocks, rest = divmod(frames, micro_frame_size)
    count = blocks * -(-micro_frame_size // temporal_factor) + -(-rest // temporal_factor)
    return count, height // spatial_factor, width // spatial_factor


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that sees no later frame; `time_stride` is a stride along time alone."""

    def __init__(self, inputs: int, outputs: int, kernel: int, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride=(time_stride, 1, 1), bias=bias)
        side = kernel // 2
        self.margins = (side, side, side, side, kernel - time_stride, 0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(hidden, self.margins))


class ResBlock(nn.Module):
    """Two normalised convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = CausalConv3d(inputs, outputs, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = CausalConv3d(outputs, outputs, 3, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else CausalConv3d(inputs, outputs, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        new = self.conv1(F.silu(self.norm1(hidden)))
        new = self.conv2(F.silu(self.norm2(new)))
        return new + self.shortcut(hidden)


def _res_blocks(inputs: int, outputs: int, count: int, groups: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(outputs if index else inputs, outputs, groups) for index in range(count)))


class DoubleTime(nn.Module):
    """Doubles the number of frames: a convolution to twice the channels, which are then laid out in time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels, 3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # channel 2c + k becomes frame 2t + k of channel c
        return self.conv(hidden).unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)


class TemporalEncoder(nn.Module):
    """Image latents (B, C, T, H, W) to features (B, outputs, T / factor, H, W); level 0 is the finest in time."""

    def __init__(
        self, inputs: int, outputs: int, widths: list[int], halve: tuple[bool, ...], count: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(inputs, widths[0], 3, bias=False)
        self.levels, self.resamplers = nn.ModuleList(), nn.ModuleList()
        for width, before, halved in zip(widths, [widths[0], *widths], (*halve, False), strict=False):
            self.levels.append(_res_blocks(before, width, count, groups))
            self.resamplers.append(CausalConv3d(width, width, 3, time_stride=2) if halved else nn.Identity())
        self.mid = _res_blocks(widths[-1], widths[-1], count, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], outputs, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(hidden)
        for level, resample in zip(self.levels, self.resamplers, strict=True):
            hidden = resample(level(hidden))
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class TemporalDecoder(nn.Module):
    """Features (B, inputs, T, H, W) to image latents (B, outputs, T · factor, H, W); runs from the last level to 0."""

    def __init__(
        self, inputs: int, outputs: int, widths: list[int], double: tuple[bool, ...], count: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(inputs, widths[-1], 3)
        self.mid = _res_blocks(widths[-1], widths[-1], count, groups)
        self.levels, self.resamplers = nn.ModuleList(), nn.ModuleList()
        for width, before, doubled in zip(widths, [*widths[1:], widths[-1]], (False, *double), strict=True):
            self.levels.append(_res_blocks(before, width, count, groups))
            self.resamplers.append(DoubleTime(width) if doubled else nn.Identity())
        self.norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], outputs, 3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.mid(self.conv_in(hidden))
        for index in reversed(range(len(self.levels))):
            hidden = self.resamplers[index](self.levels[index](hidden))
        return self.conv_out(F.silu(self.norm_out(hidden)))


class AutoencoderOpenSora(ModelMixin, ConfigMixin):
    """Open-Sora 1.2's VAE; the defaults are the published model's.

    Latents are normalised, (z - shift) / scale per channel, on both sides of this class: `encode` returns what the
    transformer sees, and `decode` takes it. Time is coded in independent blocks of `micro_frame_size` frames; a block
    that is not a multiple of the temporal factor is padded with zeros in front. Images are coded `micro_batch_size` at
    a time. Gradients flow through both methods.

    spatial_scale: factor applied to the image latents; 0.18215 upstream, although the image VAE is SDXL's.
    temporal_downsample: whether time is halved between one level of the temporal VAE and the next, for each such step.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        temporal_width: int = 128,
        temporal_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        temporal_layers: int = 4,
        temporal_norm_groups: int = 32,
        spatial_scale: float = 0.18215,
        shift: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98),
        scale: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06),
        micro_frame_size: int = 17,
        micro_batch_size: int = 4,
    ) -> None:
        super().__init__()
        if len(temporal_downsample) != len(temporal_multipliers) - 1:
            raise ValueError("temporal_downsample needs one entry fewer than temporal_multipliers")
        if not len(shift) == len(scale) == latent_channels:
            raise ValueError(f"shift and scale need one entry for each of the {latent_channels} latent channels")
        levels = len(block_out_channels)
        self.spatial = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
        )
        widths = [temporal_width * multiplier for multiplier in temporal_multipliers]
        shared = (widths, tuple(temporal_downsample), temporal_layers, temporal_norm_groups)
        self.encoder = TemporalEncoder(latent_channels, 2 * latent_channels, *shared)
        self.quant_conv = CausalConv3d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = CausalConv3d(latent_channels, latent_channels, 1)
        self.decoder = TemporalDecoder(latent_channels, latent_channels, *shared)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, within a block of time."""
        return 2 ** sum(self.config.temporal_downsample)

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(T, H, W), in cells, of the latent of a video of this many frames and pixels."""
        return latent_size(
            frames, height, width, self.config.micro_frame_size, self.temporal_factor, self.spatial_factor
        )

    def enable_tiling(self) -> None:
        """Code images tile by tile, for sizes that do not fit in memory; seams are blended."""
        self.spatial.enable_tiling()

    def disable_tiling(self) -> None:
        """Code images whole."""
        self.spatial.disable_tiling()

    @apply_forward_hook
    def encode(
        self,
        video: torch.Tensor,
        sample_images: bool = True,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior of the normalised latents (B, 4, T', H / 8, W / 8) of a video (B, 3, T, H, W) in [-1, 1].

        The image latents in between are drawn from their own posterior, as upstream; with `sample_images=False` they
        are its mean.
        """
        mean, log_variance = self.encode_time(self.encode_images(video, sample_images, generator)).chunk(2, dim=1)
        shift, scale = self._statistics(mean)
        # normalises a Gaussian; upstream clamps before that too
        log_variance = log_variance.clamp(-30.0, 20.0) - 2 * scale.log()
        posterior = DiagonalGaussianDistribution(torch.cat([(mean - shift) / scale, log_variance], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def encode_images(
        self, video: torch.Tensor, sample: bool = True, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Image latents (B, 4, T, H / 8, W / 8) of a video, frame by frame: drawn from their posterior, or its mean."""
        images = []
        for chunk in video.transpose(1, 2).flatten(0, 1).split(self.config.micro_batch_size):
            posterior = self.spatial.encode(chunk).latent_dist
            images.append(posterior.sample(generator) if sample else posterior.mode())
        return torch.cat(images).unflatten(0, (len(video), -1)).transpose(1, 2) * self.config.spatial_scale

    def encode_time(self, images: torch.Tensor) -> torch.Tensor:
        """Raw moments (B, 2 * 4, T', H / 8, W / 8) of image latents, one block of time after another."""
        blocks = []
        for block in images.split(self.config.micro_frame_size, dim=2):
            missing = -block.shape[2] % self.temporal_factor
            blocks.append(self.quant_conv(self.encoder(F.pad(block, (0, 0, 0, 0, missing, 0)))))
        return torch.cat(blocks, dim=2)

    @apply_forward_hook
    def decode(
        self, latents: torch.Tensor, num_frames: int | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """The video (B, 3, num_frames, H, W) of normalised latents (B, 4, T', H / 8, W / 8); not clamped.

        With `num_frames` None, as many frames as the latents can hold. Raises ValueError if it does not fit T'.
        """
        shift, scale = self._statistics(latents)
        video = self.decode_images(self.decode_time(latents * scale + shift, num_frames))
        return DecoderOutput(sample=video) if return_dict else (video,)

    def decode_time(self, latents: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        """Image latents (B, 4, num_frames, H / 8, W / 8) of raw latents; raises as `decode` does."""
        micro, factor = self.config.micro_frame_size, self.temporal_factor
        blocks = latents.split(-(-micro // factor), dim=2)
        if num_frames is None:
            num_frames = sum(min(micro, block.shape[2] * factor) for block in blocks)
        if self.latent_size(num_frames, 0, 0)[0] != latents.shape[2]:
            raise ValueError(f"{num_frames} frames do not have {latents.shape[2]} latent frames")
        decoded = []
        for index, block in enumerate(blocks):
            images = self.decoder(self.post_quant_conv(block))
            wanted = min(micro, num_frames - index * micro)
            decoded.append(images[:, :, images.shape[2] - wanted :])  # the padding is in front
        return torch.cat(decoded, dim=2)

    def decode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The video (B, 3, T, H, W) of image latents, frame by frame."""
        flat = images.transpose(1, 2).flatten(0, 1) / self.config.spatial_scale
        chunks = [self.spatial.decode(chunk).sample for chunk in flat.split(self.config.micro_batch_size)]
        return torch.cat(chunks).unflatten(0, (len(images), -1)).transpose(1, 2)

    def forward(self, video: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A video, encoded, sampled and decoded."""
        posterior = self.encode(video, generator=generator).latent_dist
        return self.decode(posterior.sample(generator), num_frames=video.shape[2]).sample

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, scale = (
            torch.tensor(values).to(latents).view(1, -1, 1, 1, 1) for values in (self.config.shift, self.config.scale)
        )
        return shift, scale
