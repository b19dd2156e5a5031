"""Train a tiny VAE: `python -m pcbench.tiny.train_vae --family wan --folder runs/wan-vae`.

With `--start FOLDER` it continues from another VAE's weights instead: small_wan's began as tiny_wan's.

It trains on clips of several resolutions, because PreciseCache's trial uses latents of a quarter of the width.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .data import random_clip, random_collage
from .loop import Schedule, train
from .twins import TWINS, Twin
from .vae_init import start_as_block_average

# (clip, batch, frames, drawn at, cropped to): crops of full-size videos, and whole small ones. For a twin of more than
# 128 pixels a side, clips are drawn proportionally larger.
CLIPS = (
    (random_collage, 4, 9, 128, 64),
    (random_clip, 4, 9, 128, 64),
    (random_clip, 4, 9, 64, 64),
    (random_clip, 4, 9, 128, 64),
    (random_collage, 4, 9, 64, 64),
    (random_clip, 8, 17, 32, 32),
)
LATENT_NOISE, PRIOR_WEIGHT = 0.05, 1e-4
LOG_VARIANCE = 2 * math.log(LATENT_NOISE)


def vae_loss(twin: type[Twin], vae: Any, step: int, generator: torch.Generator, taught: bool = False) -> torch.Tensor:
    """Reconstruction loss on one batch of clips: L1 and L2, with more weight on the coloured shape than on the grey
    background.

    The latent noise is fixed and small, and the posterior's variance is tied to it: with a learned posterior, the
    early, blurred decoder would teach the encoder that noise is cheap.

    taught: encoder and decoder learn separately, from `block_latents`, so that neither waits for the other.
    """
    draw, batch, frames, size, crop = CLIPS[step % len(CLIPS)]
    if frames < twin.CODED_FRAMES:
        batch, frames = -(-batch * frames // twin.CODED_FRAMES), twin.CODED_FRAMES
    device = vae.device
    size = size * twin.SIDE // 128
    clips = torch.stack([draw(frames, size, crop, generator, twin.LIT) for _ in range(batch)]).to(device)
    latents = block_latents(clips)
    noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        if taught:
            prior, log_variance, video = twin.taught(vae, clips, latents, noise)
        else:
            posterior = twin.encode(vae, clips)
            prior, log_variance = PRIOR_WEIGHT * posterior.mean.float().pow(2).mean(), posterior.logvar
            video = twin.decode(vae, posterior.mean + noise, frames)
    video = video.float()
    saturation = clips.amax(1, keepdim=True) - clips.amin(1, keepdim=True)
    error = (video - clips).abs() * (1 + 2 * saturation)
    variance_penalty = PRIOR_WEIGHT * (log_variance.float() - LOG_VARIANCE).pow(2).mean()
    return error.mean() + (video - clips).pow(2).mean() + prior + variance_penalty


def block_latents(clips: torch.Tensor) -> torch.Tensor:
    """Hand-made latents (B, 8, (F + 3) / 4, H / 8, W / 8) of clips (B, 3, F, H, W).

    For each block of 4 frames and 8x8 pixels (the first frame is a block of its own): each colour's mean in the first
    and in the second half of the time, and the change of brightness from left to right and from top to bottom.
    """
    video = torch.cat([clips[:, :, :1]] * 3 + [clips], 2)
    batch, colours, frames, height, width = video.shape
    blocks = video.reshape(batch, colours, frames // 4, 2, 2, height // 8, 8, width // 8, 8)
    halves = blocks.mean((4, 6, 8)).transpose(2, 3).reshape(batch, 2 * colours, frames // 4, height // 8, width // 8)
    grey = blocks.mean((1, 3, 4))  # batch, time, rows, 8, columns, 8
    across = (grey[..., 4:] - grey[..., :4]).mean((3, 5))
    down = (grey[:, :, :, 4:] - grey[:, :, :, :4]).mean((3, 5))
    return torch.cat([halves, across[:, None], down[:, None]], 1)


@torch.no_grad()
def measure_latents(
    twin: type[Twin], vae: Any, count: int = 32, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Per-channel mean and standard deviation (C,) of full clips' raw latents, and the decoded clips' PSNR in dB."""
    generator = torch.Generator().manual_seed(seed)
    latents, error = [], 0.0
    for _ in range(count):
        clip = random_clip(twin.FRAMES, twin.SIDE, twin.SIDE, generator, twin.LIT)[None].to(vae.device)
        latents.append(twin.encode(vae, clip).mode())
        error += float(F.mse_loss(twin.decode(vae, latents[-1], twin.FRAMES).clamp(-1, 1), clip)) / count
    flat = torch.cat(latents).transpose(0, 1).flatten(1)
    return flat.mean(1), flat.std(1), 10 * math.log10(4.0 / error)


def main() -> None:
    """Train, measure the latent statistics, and save in diffusers' format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=TWINS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a VAE of the same form whose weights to begin with")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--taught", type=int, default=500, help="first steps, in which the latents are made by hand")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Muon; AdamW takes a third; not for Wan")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    twin = TWINS[args.family]
    vae = twin.new_vae().to(args.device)
    schedule = Schedule(steps=args.steps, learning_rate=8e-4, warmup=100, ema_decay=0.998, log_every=30)
    taught = 0 if args.start else args.taught
    if args.start:
        vae.load_state_dict(type(vae).from_pretrained(args.start, torch_dtype=torch.float32).state_dict())
        schedule.learning_rate /= 2
    elif args.family == "wan":
        start_as_block_average(vae, LOG_VARIANCE)
        taught = 0
    else:  # from random weights, AdamW alone has not learned colours after a thousand steps
        schedule.learning_rate, schedule.muon_learning_rate = args.learning_rate / 3, args.learning_rate
    train(vae, lambda step, generator: vae_loss(twin, vae, step, generator, step < taught), schedule, args.folder)
    mean, std, psnr = measure_latents(twin, vae)
    twin.note_statistics(vae, mean, std)
    vae.save_pretrained(args.folder / "vae")
    print(f"reconstruction PSNR {psnr:.2f} dB over 32 unseen full-size clips; latent std {std.tolist()}")


if __name__ == "__main__":
    main()
