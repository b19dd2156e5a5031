"""Open-Sora's rectified-flow sampling: Euler steps of diffusers' flow matching at timesteps that depend on the size.

Upstream (opensora/schedulers/rf of https://github.com/hpcaitech/Open-Sora, branch opensora/v1.2) starts from the times
1, …, 1 / steps, maps each with t' = r t / (1 + (r - 1) t), and takes Euler steps. So does diffusers'
`FlowMatchEulerDiscreteScheduler` at noise levels t'; only the sign of the velocity differs, which the pipeline flips.
Discrete timesteps and sampling without the transform, which upstream also has, are off in its 1.2 configurations and
left out here. All arithmetic is in float32 and in upstream's order: the transformer turns a timestep into an angle, so
rounding would show.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

BASE_PIXELS = 512 * 512
FRAMES_PER_BLOCK, LATENT_FRAMES_PER_BLOCK = 17, 5  # the VAE's; upstream counts whole blocks only


def rectified_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of Open-Sora 1.2: 1000 training steps, no shift of its own (`set_timesteps` below shifts)."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def timestep_shift(height: int, width: int, num_frames: int) -> np.float32:
    """The factor r of upstream's `timestep_transform` for a video of this size in pixels and frames.

    Raises ValueError for 2 to 16 frames: upstream's formula counts no latent frame there, and every step would be 0.
    """
    latent_frames = 1 if num_frames == 1 else num_frames // FRAMES_PER_BLOCK * LATENT_FRAMES_PER_BLOCK
    if latent_frames < 1:
        raise ValueError(f"num_frames must be 1 or at least {FRAMES_PER_BLOCK}, not {num_frames}")
    return np.sqrt(np.float32(height * width) / np.float32(BASE_PIXELS)) * np.sqrt(np.float32(latent_frames))


def set_timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    height: int,
    width: int,
    num_frames: int,
    device: torch.device | str | None = None,
) -> None:
    """Set upstream's timesteps for a video of this size in pixels and frames. Raises ValueError as `timestep_shift`."""
    shift = timestep_shift(height, width, num_frames)
    times = ((1.0 - np.arange(num_inference_steps) / num_inference_steps) * 1000).astype(np.float32) / np.float32(1000)
    scheduler.set_timesteps(sigmas=shift * times / (1 + (shift - 1) * times), device=device)
