"""PSNR and SSIM of two videos, one value per frame.

Videos are uint8 arrays (frames, height, width, 3), whose values are scaled to [0, 1]. A few planes are processed at a
time, so memory does not grow with the length; the same code runs on a CPU and on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

Values = Sequence[float | None]  # one per frame; None if infinite, because the frame is identical to its reference

CAP = 100.0  # dB
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # SSIM's constants for values up to 255
CHUNK = 480 * 640  # pixels of the planes processed at once; about what a processor's cache holds


def gaussian(size: int = 11, sigma: float = 1.5) -> list[float]:
    """The `size` taps of the usual SSIM window, which sum to 1."""
    taps = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [tap / sum(taps) for tap in taps]


def psnr(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """PSNR in dB from the exact squared error over RGB; None where a frame is identical."""
    squares = (np.square(v.astype(np.int32) - r).sum(dtype=np.int64) for v, r in zip(video, reference, strict=True))
    return [decibels(int(total) / (reference[0].size * 255**2)) for total in squares]


def psnr_float32(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """`psnr` of frames divided by 255 in single precision, which changes it by up to 1e-5 dB."""
    return [decibels(error) for error in _errors_float32(video, reference)]


def psnr_capped(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """`psnr_float32`, but 100 dB where the squared error is below 1e-10: identical frames, or nearly so."""
    return [CAP if error < 1e-10 else decibels(error) for error in _errors_float32(video, reference)]


def decibels(error: float) -> float | None:
    """PSNR in dB from the mean squared error of values in [0, 1]; None for no error."""
    return -10 * math.log10(error) if error else None


def _errors_float32(video: np.ndarray, reference: np.ndarray) -> Iterator[float]:
    for v, r in zip(video, reference, strict=True):
        difference = v.astype(np.float32) / np.float32(255) - r.astype(np.float32) / np.float32(255)
        yield float(np.square(difference).mean(dtype=np.float64))


def ssim(
    video: np.ndarray,
    reference: np.ndarray,
    device: str = "cpu",
    *,
    window: list[float] | None = None,
    unbiased: bool = False,
) -> Values:
    """SSIM of each frame: mean over channels and over the region where the window fits (Wang et al. 2004, eq. 13).

    window: taps of a separable, symmetric window; by default the Gaussian of 11 taps and sigma 1.5.
    unbiased: multiply variances and covariance by n/(n-1), with n the window's number of pixels.

    Computed in single precision, which is within 1e-6 of double and more than twice as fast.
    Raises ValueError if a frame is smaller than the window.
    """
    taps = window or gaussian()
    frames, height, width, _ = video.shape
    if min(height, width) < len(taps):
        raise ValueError(f"frames of {height}x{width} are smaller than SSIM's window of {len(taps)}")
    c2 = C2 * (1 - 1 / len(taps) ** 2) if unbiased else C2  # equivalent to n/(n-1) on all variances
    x, y = _planes(video), _planes(reference)
    step = max(1, CHUNK // (height * width))
    buffers = _Buffers(taps, min(step, len(x)), height, width, device)
    maps = (_ssim_map(x[i : i + step], y[i : i + step], buffers, c2) for i in range(0, len(x), step))
    means = torch.cat([ssim_map.mean(dim=(-2, -1), dtype=torch.float64) for ssim_map in maps])
    return means.reshape(frames, 3).mean(1).tolist()


def _planes(video: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(video.transpose(0, 3, 1, 2))).flatten(0, 1)


def _ssim_map(x: torch.Tensor, y: torch.Tensor, buffers: _Buffers, c2: float) -> torch.Tensor:
    """SSIM around every pixel of uint8 planes (n, height, width).

    Both factors of SSIM are one minus a share that vanishes with the difference d = x - y:

        (1 - mean(d)^2 / (mean(x)^2 + mean(y)^2 + C1)) (1 - var(d) / (var(x) + var(y) + C2))

    which is the usual form rearranged. It takes four filters, and loses far fewer digits where the videos are close.
    Where they are flat, variances are differences of large numbers; so planes are centred on their median.
    """
    stack = buffers.stack[:, : len(x)]
    plane, difference, squares, d_squares = stack
    centre = y[:, ::8, ::8].flatten(1).median(dim=1).values[:, None, None].to(plane)
    difference.copy_(x).sub_(plane.copy_(y))
    plane.sub_(centre)
    torch.add(plane, difference, out=squares).square_().addcmul_(plane, plane)
    torch.mul(difference, difference, out=d_squares)

    mean_y, mean_d, squares, d_squares = buffers.filtered(len(x))
    mean_x = torch.add(mean_y, mean_d, out=buffers.spare(len(x)))
    variances = squares.addcmul_(mean_x, mean_x, value=-1).addcmul_(mean_y, mean_y, value=-1)
    d_mean_squared = mean_d.square_()
    d_variance = d_squares.sub_(d_mean_squared)
    means_squared = mean_x.add_(centre).square_().add_(mean_y.add_(centre).square_())
    luminance = d_mean_squared.div_(means_squared.add_(C1)).neg_().add_(1)
    return luminance.mul_(d_variance.div_(variances.add_(c2)).neg_().add_(1))


class _Buffers:
    """A separable window and its working memory; on a CPU, allocating anew would take as much time as the sums."""

    def __init__(self, taps: list[float], planes: int, height: int, width: int, device: str) -> None:
        self.taps = taps
        valid_height, valid_width = height - len(taps) + 1, width - len(taps) + 1
        self.stack = torch.empty(4, planes, height, width, device=device)
        self._rows = torch.empty(4, planes, valid_height, width, device=device)
        self._means = torch.empty(4, planes, valid_height, valid_width, device=device)
        self._pair = torch.empty_like(self._rows)

    def spare(self, planes: int) -> torch.Tensor:
        """Unused memory for this many filtered planes."""
        return self._pair[0, :planes, :, : self._means.shape[-1]]

    def filtered(self, planes: int) -> torch.Tensor:
        """The first planes of the stack, filtered where the window fits: (4, planes, valid height, valid width).

        Computed as sums of shifted copies, which on a CPU is much faster than a convolution.
        """
        half = len(self.taps) // 2
        for axis, values, total in ((-2, self.stack, self._rows), (-1, self._rows, self._means)):
            values, total = values[:, :planes], total[:, :planes]
            size, pair = total.shape[axis], self._pair[:, :planes, :, : total.shape[-1]]
            torch.mul(values.narrow(axis, half, size), self.taps[half], out=total)
            for i in range(half):  # opposite taps are equal; equal values add up without rounding
                torch.add(values.narrow(axis, i, size), values.narrow(axis, 2 * half - i, size), out=pair)
                total.add_(pair, alpha=self.taps[i])
        return self._means[:, :planes]


def ssim_torchmetrics(video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """Torchmetrics' SSIM by default (1.4.3 and later): float32, the reflected border included, variances clamped.

    Its rounding error alone is 1e-6 to 1e-4, so no other code reproduces it. Many times slower than `ssim` on a CPU.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    values: list[float] = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for v, r in zip(video, reference, strict=True):
            x, y = (torch.from_numpy(f).to(device).permute(2, 0, 1)[None].float() / 255 for f in (v, r))
            values.append(float(structural_similarity_index_measure(x, y, data_range=1.0)))
    return values


def latent_psnr(latent: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Values:
    """One value: PSNR in dB of a whole latent; the peak is the reference's range (maximum - minimum)."""
    reference = reference.astype(np.float64)
    error = float(np.square(latent.astype(np.float64) - reference).mean())
    return [decibels(error / float(np.ptp(reference)) ** 2)]
