"""The conventions in use for fidelity, by name. "PSNR" (or SSIM, LPIPS) is a different number in each of them.

A metric's name is versioned: what it computes never changes under one name. `raw` is ours and has no prefix. The others
reproduce published evaluation code including its inputs, which are mp4 files of both videos; docs/fidelity.md compares
them and names the sources. What they leave to chance is fixed here: one encoder thread, and samples in their run's
order where upstream's batches depend on the order of files in a folder.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import psnr_ssim
from .lpips import lpips, why_unavailable
from .psnr_ssim import Values
from .sharpness import sharpness_ratio
from .sources import Frames, Latents, Mp4, Source
from .temporal import temporal_psnr

IDENTICAL = "identical to the reference"
INFINITE = "no finite value: the error, or the detail of the reference, is zero"
FRAMES, LATENTS = Frames(), Latents()
CRF_10, CRF_23 = Mp4(10), Mp4(23)  # imageio's quality 8, and imageio without a quality


def mean(values: Sequence[float | None]) -> float | None:
    """The plain mean; None if any value is infinite."""
    return statistics.fmean(v for v in values if v is not None) if None not in values else None


def mean_of_differing(values: Sequence[float | None]) -> float | None:
    """The mean over frames that differ from the reference; None if none does."""
    finite = [v for v in values if v is not None]
    return statistics.fmean(finite) if finite else None


def of_whole_video(values: Sequence[float | None]) -> float | None:
    """PSNR in dB of the mean squared error over all frames, from the PSNR of each frame; None if all are identical."""
    return psnr_ssim.decibels(statistics.fmean(0.0 if v is None else 10 ** (-v / 10) for v in values))


def middle_frame(
    measure: Callable[..., Values], video: np.ndarray, reference: np.ndarray, device: str = "cpu"
) -> Values:
    """A measure of the middle frame alone."""
    middle = slice(len(video) // 2, len(video) // 2 + 1)
    return measure(video[middle], reference[middle], device)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number per video.

    frames: function of two arrays and a device; a value for each frame, None where it would be infinite.
    source: what the two arrays are (sources.py).
    pool: combines the frames' values into the video's.
    batch: videos are averaged in batches of this size, and then the batches; None averages all videos equally.
    title, unit, digits: heading of its column, and number of digits after the decimal point.
    lower_is_better: whether a lower value means closer to the reference.
    ideal: the reference's own value, if values on either side of it are worse; None if one direction is better.
    shown: whether tables have a column for it.
    lacks: returns why it cannot be computed here, or None if it can.
    least: the height and width that frames must have at least.
    """

    frames: Callable[[np.ndarray, np.ndarray, str], Values]
    title: str
    unit: str = ""
    digits: int = 4
    lower_is_better: bool = False
    ideal: float | None = None
    shown: bool = True
    source: Source = FRAMES
    pool: Callable[[Sequence[float | None]], float | None] = mean
    batch: int | None = None
    lacks: Callable[[], str | None] = lambda: None
    least: int = 1

    @property
    def too_small(self) -> str:
        """Why smaller frames have no value."""
        return f"{self.title} needs frames of at least {self.least}x{self.least} pixels"

    @property
    def description(self) -> dict[str, Any]:
        """What a record says about the metric, for readers who only have records."""
        names = ("title", "unit", "digits", "lower_is_better", "shown", *(["ideal"] if self.ideal is not None else []))
        return {name: getattr(self, name) for name in names}

    def worst(self, values: Sequence[float]) -> float:
        """The value furthest from the reference."""
        if self.ideal is not None:
            return max(values, key=lambda value: abs(value - (self.ideal or 0.0)))
        return max(values) if self.lower_is_better else min(values)

    def over_videos(self, values: Sequence[float]) -> float:
        """The mean over videos as the convention computes it."""
        size = self.batch or len(values)
        return statistics.fmean(statistics.fmean(values[i : i + size]) for i in range(0, len(values), size))


PSNR = partial(Metric, title="PSNR", unit="dB", digits=2)
SSIM = partial(Metric, title="SSIM", least=11)
LPIPS = partial(Metric, title="LPIPS", lower_is_better=True, lacks=why_unavailable, least=31)  # AlexNet's last layer

_box = partial(psnr_ssim.ssim, window=[1 / 7] * 7, unbiased=True)
_spatial = partial(lpips, spatial=True)


def _easycache(name: str, source: Source) -> dict[str, Metric]:
    return {
        f"{name}.psnr@1": PSNR(frames=psnr_ssim.psnr_float32, source=source, pool=of_whole_video),
        f"{name}.ssim@1": SSIM(frames=psnr_ssim.ssim_torchmetrics, source=source, least=6),
        f"{name}.lpips@1": LPIPS(frames=_spatial, source=source),
    }


CONVENTIONS: dict[str, dict[str, Metric]] = {
    "raw": {
        "psnr@2": PSNR(frames=psnr_ssim.psnr, pool=mean_of_differing),
        "ssim@2": SSIM(frames=psnr_ssim.ssim),
        "lpips@1": LPIPS(frames=lpips),
        "latent_psnr@1": PSNR(frames=psnr_ssim.latent_psnr, source=LATENTS, title="latent PSNR", shown=False),
        "temporal_psnr@1": PSNR(frames=temporal_psnr, pool=mean_of_differing, title="temporal PSNR"),
        "sharpness@1": Metric(frames=sharpness_ratio, title="sharpness", digits=3, ideal=1.0, least=3),
    },
    "videosys": {
        "videosys.psnr@1": PSNR(frames=psnr_ssim.psnr_capped, source=CRF_23, batch=16),
        "videosys.ssim@1": SSIM(frames=psnr_ssim.ssim, source=CRF_23, batch=16),
        "videosys.lpips@1": LPIPS(frames=_spatial, source=CRF_23, batch=16),
    },
    "easycache": _easycache("easycache", CRF_10),
    "easycache_hunyuan": _easycache("easycache_hunyuan", CRF_23),
    "chitu": {
        "chitu.psnr@1": PSNR(frames=psnr_ssim.psnr, source=CRF_10),
        "chitu.ssim@1": SSIM(frames=_box, source=CRF_10, least=7),
        "chitu.lpips@1": LPIPS(frames=partial(middle_frame, partial(lpips, size=224)), source=CRF_10, least=1),
    },
}
METRICS: dict[str, Metric] = {name: metric for metrics in CONVENTIONS.values() for name, metric in metrics.items()}


def convention_of(metric: str) -> str:
    """The convention a metric's name belongs to."""
    return next(name for name, metrics in CONVENTIONS.items() if metric in metrics)


def identical_frames(video: np.ndarray, reference: np.ndarray) -> int:
    """How many frames (for latents: whole videos) are equal to the reference, bit for bit."""
    return sum(bool(np.array_equal(v, r)) for v, r in zip(video, reference, strict=True))


def note(value: float | None, identical: int, frames: int) -> str | None:
    """A remark for a score if frames are identical to the reference or there is no value (None: it would be infinite);
    else None."""
    if not identical:
        return INFINITE if value is None else None
    if identical == frames:
        return IDENTICAL
    return f"{identical} of {frames} frames are identical to the reference{'' if value is not None else ': infinite'}"
