"""Train the tiny Wan VAE: `python -m pcbench.backbones.tiny.train_vae --folder runs/vae`.

Clips of several resolutions, because the method's trial looks at latents of a quarter of the width. The loss goes
through the decoder itself: `AutoencoderKLWan.decode` clamps its output, and where it saturates no gradient returns.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from .data import random_clip, random_collage
from .loop import Schedule, train
from .vae_init import start_as_block_average

VAE_CONFIG = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
}
# (clip, batch, frames, drawn at, cropped to): crops of the full size, and whole small videos
CLIPS = (
    (random_collage, 4, 9, 128, 64),
    (random_clip, 4, 9, 128, 64),
    (random_clip, 4, 9, 64, 64),
    (random_clip, 4, 9, 128, 64),
    (random_collage, 4, 9, 64, 64),
    (random_clip, 8, 13, 32, 32),
)
LATENT_NOISE, PRIOR_WEIGHT = 0.05, 1e-4
LOG_VARIANCE = 2 * math.log(LATENT_NOISE)


def decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode` without its final clamp, so that gradients flow everywhere. (B, C, T, H, W) -> video."""
    vae.clear_cache()
    hidden, frames = vae.post_quant_conv(latents), []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        frame = hidden[:, :, index : index + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(frames, 2), vae.config.patch_size)


def vae_loss(vae: AutoencoderKLWan, step: int, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction (L1 and L2, the coloured shape weighing more than its grey background) on one batch of clips.

    The latent noise is fixed and small: with a learned posterior the early, blurred decoder teaches the encoder that
    noise is cheap. The posterior's variance is tied to that noise.
    """
    draw, batch, frames, size, crop = CLIPS[step % len(CLIPS)]
    device = vae.device
    clips = torch.stack([draw(frames, size, crop, generator) for _ in range(batch)]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        posterior = vae.encode(clips).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        video = decode_unclamped(vae, posterior.mean + LATENT_NOISE * noise).float()
    saturation = clips.amax(1, keepdim=True) - clips.amin(1, keepdim=True)
    error = (video - clips).abs() * (1 + 2 * saturation)
    prior = posterior.mean.float().pow(2).mean() + (posterior.logvar.float() - LOG_VARIANCE).pow(2).mean()
    return error.mean() + (video - clips).pow(2).mean() + PRIOR_WEIGHT * prior


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, count: int = 32, seed: int = 1) -> tuple[list[float], list[float], float]:
    """Per-channel mean and standard deviation of the latents of full-size clips, and the PSNR of their decoding."""
    generator = torch.Generator().manual_seed(seed)
    latents, error = [], 0.0
    for _ in range(count):
        clip = random_clip(29, 128, 128, generator)[None].to(vae.device)
        latents.append(vae.encode(clip).latent_dist.mode())
        error += float(F.mse_loss(vae.decode(latents[-1]).sample, clip)) / count
    flat = torch.cat(latents).transpose(0, 1).flatten(1)
    psnr = 10 * float(torch.log10(torch.tensor(4.0 / error)))
    return flat.mean(1).tolist(), flat.std(1).tolist(), psnr


def main() -> None:
    """Train, measure the latent statistics, save in diffusers' format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/vae"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**VAE_CONFIG).to(args.device)
    start_as_block_average(vae, LOG_VARIANCE)
    schedule = Schedule(steps=args.steps, learning_rate=8e-4, warmup=100, ema_decay=0.998, log_every=30)
    train(vae, lambda step, generator: vae_loss(vae, step, generator), schedule, args.folder)
    mean, std, psnr = measure_latents(vae)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    vae.save_pretrained(args.folder / "vae")
    print(f"reconstruction PSNR {psnr:.2f} dB over 32 unseen full-size clips; latent std {std}")


if __name__ == "__main__":
    main()
