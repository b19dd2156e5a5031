"""Downsampling, the low-pass mask and the low-frequency difference: PreciseCache's equations (2)-(4), as functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# How a latent may be resized. The trial's input is noise at a level the timestep announces: "nearest-exact" keeps that
# level, averaging ("area", "trilinear") lowers it (std 1.00, 0.13 and 0.47 of unit noise at a factor of (2, 4, 4)).
DOWNSAMPLE_MODES = ("nearest-exact", "nearest", "trilinear", "area")


def downsample(latent: torch.Tensor, size: tuple[int, int, int], mode: str = "nearest-exact") -> torch.Tensor:
    """Equation (4): `latent` (B, C, T, H, W) at the explicit `size` (T', H', W')."""
    return F.interpolate(latent, size=size, mode=mode)


def low_pass_mask(height: int, width: int, radius_ratio: float = 0.2) -> torch.Tensor:
    """Boolean (height, width) disk around the zero frequency of a shifted spectrum.

    The radius is `radius_ratio * min(height, width)` frequency bins (section 4.1: one fifth), not rounded.
    """
    y = torch.arange(height) - height // 2
    x = torch.arange(width) - width // 2
    distance = torch.hypot(y[:, None].float(), x[None, :].float())
    return distance <= radius_ratio * min(height, width)


def low_frequency(prediction: torch.Tensor, radius_ratio: float = 0.2) -> torch.Tensor:
    """Equation (2): the low part of the 2-D spatial spectrum of each frame and channel of (..., H, W); complex.

    The transform is orthonormal, so norms are those of the low-passed pixels.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(prediction.float(), norm="ortho"), dim=(-2, -1))
    height, width = prediction.shape[-2:]
    mask = low_pass_mask(height, width, radius_ratio).to(prediction.device)
    return spectrum * mask


def low_frequency_difference(a: torch.Tensor, b: torch.Tensor, radius_ratio: float = 0.2) -> torch.Tensor:
    """Equation (3): the LFD of two predictions of the same shape; a scalar, left on its device.

    Divided by the square root of the number of elements. Every threshold is relative to other LFDs of the same shape,
    so decisions are those of the plain L2 norm, while values compare across resolutions.
    """
    difference = low_frequency(a - b, radius_ratio)  # the transform is linear
    return torch.linalg.vector_norm(difference) / a.numel() ** 0.5
