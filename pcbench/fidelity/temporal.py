"""Temporal fidelity: whether a video moves and flickers as its reference does, whatever its pictures look like."""

from __future__ import annotations

import numpy as np

from .psnr_ssim import Values, decibels


def temporal_psnr(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """PSNR in dB of frame differences: how close v[t] - v[t-1] is to r[t] - r[t-1], for t = 1 … frames - 1.

    Both videos are uint8 (frames, height, width, 3). The squared error is exact, its mean over RGB and pixels; the peak
    is 255, as for the frames themselves. None where the two differences are identical, which frames that are off by the
    same picture at both times have too. A single frame has no differences, so its one value is None.
    """
    if len(video) == 1:
        return [None]
    errors = (v.astype(np.int32) - r for v, r in zip(video, reference, strict=True))
    before, values = next(errors), []
    for error in errors:
        total = np.square(error - before).sum(dtype=np.int64)
        values.append(decibels(int(total) / (error.size * 255**2)))
        before = error
    return values
