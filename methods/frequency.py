"""Downsampling, the low-pass mask and the low-frequency difference: PreciseCache's equations (2)-(4), as functions."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

# How a latent may be resized. The trial's input is noise at a level the timestep announces: "nearest-exact" keeps that
# level, averaging ("area", "trilinear") lowers it (std 1.00, 0.13 and 0.47 of unit noise at a factor of (2, 4, 4)).
DOWNSAMPLE_MODES = ("nearest-exact", "nearest", "trilinear", "area")
SPECTRA = ("spatial", "volume")
NORMS = ("rms", "l2", "relative")


def downsample(latent: torch.Tensor, size: tuple[int, int, int], mode: str = "nearest-exact") -> torch.Tensor:
    """Equation (4): `latent` (B, C, T, H, W) at the explicit `size` (T', H', W')."""
    return F.interpolate(latent, size=size, mode=mode)


def low_pass_mask(height: int, width: int, radius_ratio: float = 0.2, whole_bins: bool = False) -> torch.Tensor:
    """Boolean (height, width) disk around the zero frequency of a shifted spectrum.

    The radius is `radius_ratio * min(height, width)` frequency bins (section 4.1: one fifth), rounded down if
    `whole_bins` (FasterCache's helper, which the paper's sentence resembles).
    """
    return low_pass_ball(1, height, width, radius_ratio, whole_bins)[0]


def low_pass_ball(
    frames: int, height: int, width: int, radius_ratio: float = 0.2, whole_bins: bool = False
) -> torch.Tensor:
    """Boolean (frames, height, width): the disk extended over time, all frequencies in cycles per sample."""
    side = min(height, width)
    radius = radius_ratio * side
    t, y, x = ((torch.arange(n) - n // 2).float() for n in (frames, height, width))
    t = t * (side / frames)
    distance = (t[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()
    return distance <= (math.floor(radius) if whole_bins else radius)


def low_frequency(
    prediction: torch.Tensor, radius_ratio: float = 0.2, whole_bins: bool = False, spectrum: str = "spatial"
) -> torch.Tensor:
    """Equation (2): the low part of the spectrum of (..., T, H, W); complex, shifted.

    spectrum: "spatial" transforms each frame and channel, "volume" time as well. The transform is orthonormal, so norms
    are those of the low-passed pixels (Parseval).
    """
    dims = (-2, -1) if spectrum == "spatial" else (-3, -2, -1)
    frequencies = torch.fft.fftshift(torch.fft.fftn(prediction.float(), dim=dims, norm="ortho"), dim=dims)
    frames, height, width = prediction.shape[-3:]
    size = (1 if spectrum == "spatial" else frames, height, width)
    return frequencies * _mask_on(prediction.device, size, radius_ratio, whole_bins)


@functools.lru_cache(maxsize=8)
def _mask_on(device: torch.device, size: tuple[int, int, int], radius_ratio: float, whole_bins: bool) -> torch.Tensor:
    """The ball on a device; kept there, since copying it from the host makes the device wait."""
    return low_pass_ball(*size, radius_ratio, whole_bins).to(device)


def low_passed(
    prediction: torch.Tensor, radius_ratio: float = 0.2, whole_bins: bool = False, spectrum: str = "spatial"
) -> torch.Tensor:
    """The prediction with its high frequencies removed, in pixels."""
    dims = (-2, -1) if spectrum == "spatial" else (-3, -2, -1)
    kept = low_frequency(prediction, radius_ratio, whole_bins, spectrum)
    return torch.fft.ifftn(torch.fft.ifftshift(kept, dim=dims), dim=dims, norm="ortho").real


def low_frequency_difference(
    a: torch.Tensor,
    b: torch.Tensor,
    radius_ratio: float = 0.2,
    whole_bins: bool = False,
    spectrum: str = "spatial",
    norm: str = "rms",
) -> torch.Tensor:
    """Equation (3): the LFD of two predictions of the same shape; a scalar, left on its device.

    norm: "l2" is the paper's. "rms" divides it by the square root of the number of elements: every threshold is
    relative to other LFDs of the same shape, so decisions are the same, while values compare across resolutions.
    "relative" divides by the norm of `b`.
    """
    difference = torch.linalg.vector_norm(low_frequency(a - b, radius_ratio, whole_bins, spectrum))  # it is linear
    if norm == "l2":
        return difference
    if norm == "rms":
        return difference / a.numel() ** 0.5
    return difference / torch.linalg.vector_norm(low_frequency(b, radius_ratio, whole_bins, spectrum))
