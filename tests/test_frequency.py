"""Equations (2)-(4) on signals whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch

from methods.frequency import DOWNSAMPLE_MODES, downsample, low_frequency, low_frequency_difference, low_pass_mask


def wave(cycles: int, height: int = 20, width: int = 32) -> torch.Tensor:
    x = torch.arange(width) / width
    return torch.cos(2 * math.pi * cycles * x).expand(1, 2, 3, height, width)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (22, 40), (15, 20), (4, 4)])
def test_the_mask_is_a_centred_disk(height, width):
    mask = low_pass_mask(height, width)
    for v in range(height):
        for u in range(width):
            inside = math.hypot(v - height // 2, u - width // 2) <= 0.2 * min(height, width)
            assert bool(mask[v, u]) is inside


def test_the_trial_of_the_tiny_backbone_keeps_its_mean_alone():
    assert low_pass_mask(4, 4).sum() == 1


def test_low_waves_pass_and_high_ones_do_not():
    nothing = torch.zeros_like(wave(1))
    # radius 0.2 * 20 = 4 bins
    for cycles in (0, 1, 4):
        rms = wave(cycles).pow(2).mean().sqrt()
        assert low_frequency_difference(wave(cycles), nothing) == pytest.approx(float(rms), rel=1e-5)
    for cycles in (5, 9):
        assert low_frequency_difference(wave(cycles), nothing) < 1e-6


def test_it_is_the_distance_of_the_low_parts():
    a, b = torch.randn(2, 1, 4, 3, 22, 40)
    apart = (low_frequency(a) - low_frequency(b)).abs().pow(2).mean().sqrt()
    assert low_frequency_difference(a, b) == pytest.approx(float(apart), rel=1e-5)
    assert low_frequency_difference(a, a) == 0
    everything = low_frequency_difference(a, b, radius_ratio=10.0)
    assert everything == pytest.approx(float((a - b).pow(2).mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("mode", DOWNSAMPLE_MODES)
def test_downsampling_reaches_the_size_asked_for(mode):
    assert downsample(torch.randn(1, 4, 21, 90, 160), (11, 22, 40), mode).shape == (1, 4, 11, 22, 40)


def test_only_strided_downsampling_keeps_the_noise_level():
    noise = torch.randn(1, 4, 21, 90, 160, generator=torch.Generator().manual_seed(0))
    level = {mode: float(downsample(noise, (11, 22, 40), mode).std()) for mode in DOWNSAMPLE_MODES}
    assert level["nearest-exact"] == pytest.approx(1.0, abs=0.02)
    assert level["area"] < 0.25
    assert level["trilinear"] < 0.7


def test_low_precision_predictions_are_measured_in_float32():
    a, b = torch.randn(2, 1, 4, 3, 16, 16)
    exact = low_frequency_difference(a.bfloat16().float(), b.bfloat16().float())
    assert low_frequency_difference(a.bfloat16(), b.bfloat16()) == pytest.approx(float(exact), rel=2e-2)
