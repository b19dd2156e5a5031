"""Sharpness against the reference: a cache that blurs loses fine detail, which PSNR and VBench hardly notice."""

from __future__ import annotations

import numpy as np

from .psnr_ssim import Values

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601, as OpenCV turns RGB into grey


def sharpness_ratio(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """The variance of each frame's Laplacian over the mean of the reference frames' variances.

    Both videos are uint8 (frames, height, width, 3). The mean of the values is thus the ratio of the two videos' mean
    variances: 1 for equally sharp videos, below 1 for a blurred one, above 1 for added noise or ringing. All values are
    None if the reference is flat.
    """
    level = float(np.mean([laplacian_variance(frame) for frame in reference]))
    return [laplacian_variance(frame) / level if level else None for frame in video]


def laplacian_variance(frame: np.ndarray) -> float:
    """The variance of the Laplacian of a frame's luma (Pech-Pacheco et al. 2000), for values up to 255.

    The frame is uint8 (height, width, 3); the Laplacian is the sum of the four neighbours minus four times the pixel,
    where all of them are in the frame.
    """
    luma = frame @ LUMA
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))
