"""How close a video is to the uncached reference: PSNR and SSIM on raw uint8 frames, never on compressed video.

Names carry a version of the definition:
psnr@1  per frame over RGB, values in [0, 1], mean over frames; 100 dB where the squared error is below 1e-10
ssim@1  per frame and channel, Gaussian 11x11 window of sigma 1.5, valid region, mean; torchmetrics
Both follow the evaluation code shared by VideoSys, TeaCache and MagCache (there on mp4 files).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from .config import Run
from .generate import frames_of, place
from .identity import recipe_id, sample_key
from .store import read_json, write_json

PSNR_CAP = 100.0


def _tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean over frames of the PSNR in dB of two uint8 videos (T, H, W, 3)."""
    error = (_tensor(video) - _tensor(reference)).pow(2).mean(dim=(1, 2, 3))
    per_frame = torch.where(error < 1e-10, PSNR_CAP, -10 * torch.log10(error.clamp(min=1e-10)))
    return float(per_frame.mean())


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean SSIM of two uint8 videos (T, H, W, 3)."""
    score = structural_similarity_index_measure(_tensor(video), _tensor(reference), sigma=1.5, data_range=1.0)
    assert isinstance(score, torch.Tensor)
    return float(score)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"psnr@1": psnr, "ssim@1": ssim}


def score(run: Run, say: Callable[[str], None]) -> None:
    """Score every sample of the run against the reference sample of the same prompt, seed and machine."""
    if run.recipe.method.NAME == "none":
        return
    here, there = place(run), place(run.reference)
    against = recipe_id(run.recipe.reference)
    for prompt, seed in run.samples:
        files, reference = here.sample(sample_key(prompt, seed)), there.sample(sample_key(prompt, seed))
        done = read_json(files.fidelity) or {}
        if done.get("reference") == against and set(METRICS) <= set(done["scores"]):
            continue
        if not (files.complete and reference.complete):
            which = "reference" if files.complete else "sample"
            say(f"{run.label}  not scored, its {which} was not generated: {prompt!r} seed {seed}")
            continue
        pair = frames_of(run, files), frames_of(run, reference)
        scores = {name: metric(*pair) for name, metric in METRICS.items()}
        write_json(files.fidelity, {"reference": against, "scores": scores})
