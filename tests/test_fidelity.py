"""PSNR and SSIM against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from pcbench.fidelity import PSNR_CAP, psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(5), np.add.outer(np.arange(40), np.arange(48)))[..., None].repeat(3, -1)
    reference = (smooth * 2 + random.integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    noise = random.normal(0, np.arange(2, 12, 2)[:, None, None, None], smooth.shape)  # grows along the clip
    return (reference + noise).clip(0, 255).astype(np.uint8), reference


def test_psnr_is_the_mean_over_frames(pair):
    video, reference = pair
    expected = [peak_signal_noise_ratio(r, v, data_range=255) for v, r in zip(video, reference, strict=True)]
    assert psnr(video, reference) == pytest.approx(np.mean(expected), abs=1e-6)


def test_ssim_is_the_gaussian_windowed_one(pair):
    video, reference = pair
    expected = []
    for v, r in zip(video, reference, strict=True):
        _, full = structural_similarity(
            r, v, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        expected.append(full[5:-5, 5:-5].mean())  # the valid region of an 11x11 window
    assert ssim(video, reference) == pytest.approx(np.mean(expected), abs=1e-4)


def test_ssim_is_torchmetrics(pair):
    video, reference = (torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255 for frames in pair)
    _, image = structural_similarity_index_measure(video, reference, sigma=1.5, data_range=1.0, return_full_image=True)
    assert ssim(*pair) == pytest.approx(float(image[..., 5:-5, 5:-5].mean()), abs=1e-9)


def test_identical_videos(pair):
    video, _ = pair
    assert psnr(video, video) == PSNR_CAP
    assert ssim(video, video) == pytest.approx(1.0)
