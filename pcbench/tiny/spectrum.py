"""How much of a world's variance lies at low frequencies, which a trial keeps, and how much at high ones.

`python -m pcbench.tiny.spectrum --family small_wan`

Low frequencies are those that a grid of a quarter of the latent's side can hold: up to side / 8 cycles per frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from methods.frequency import low_pass_mask

from .data import random_clip
from .publish import WEIGHTS
from .twins import TWINS, Twin

CELL, TRIAL = 8, 4  # pixels per latent cell; the factor by which a trial has fewer cells along each side


def shares(videos: torch.Tensor, cycles: int) -> dict[str, float]:
    """Shares of the spatial variance of videos (N, C, T, H, W) about each channel's mean.

    mean: the frames' means. low: frequencies up to `cycles` per frame, without the mean. high: the rest.
    """
    centred = videos.float() - videos.float().mean((0, 2, 3, 4), keepdim=True)
    power = torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(-2, -1)).abs().square().mean((0, 1, 2))
    height, width = power.shape
    low = low_pass_mask(height, width, cycles / min(height, width))
    whole, mean, within = float(power.sum()), float(power[height // 2, width // 2]), float(power[low].sum())
    return {"mean": mean / whole, "low": (within - mean) / whole, "high": 1 - within / whole}


@torch.no_grad()
def world_shares(twin: type[Twin], vae: Any, count: int = 32, seed: int = 2) -> dict[str, dict[str, float]]:
    """`shares` of the pixels, and of the normalised latents, of random clips from a twin's world."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.stack([random_clip(twin.FRAMES, twin.SIDE, twin.SIDE, generator, twin.LIT) for _ in range(count)])
    latents = torch.cat([twin.normalise(vae, twin.encode(vae, clip[None]).mode()) for clip in clips])
    cycles = twin.SIDE // CELL // TRIAL // 2
    return {"pixels": shares(clips, cycles), "latents": shares(latents, cycles)}


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=TWINS, required=True)
    parser.add_argument("--vae", type=Path, help="its folder; the bundled one if left out")
    args = parser.parse_args()
    twin = TWINS[args.family]
    vae = type(twin.new_vae()).from_pretrained(args.vae or WEIGHTS / twin.model() / "vae").eval()
    for kind, kind_shares in world_shares(twin, vae).items():
        print(kind, "  ".join(f"{name} {share:.0%}" for name, share in kind_shares.items()))


if __name__ == "__main__":
    main()
