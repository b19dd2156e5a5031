"""Controlled: its curvature is the second divided difference, and its bound is kept; nothing is computed besides."""

from __future__ import annotations

import pytest
import torch

from methods import ControlledConfig, apply
from methods.engine.core import HOOK_NAME

from .conftest import STEPS, call


def test_the_curvature_is_the_error_of_its_own_forecast_over_its_distances(pipe):
    """All steps computed, so that every prediction is known: the second divided difference, by hand."""
    seen: dict[int, torch.Tensor] = {}

    def keep(pipe, index, timestep, tensors):
        denoiser = pipe.transformer._diffusers_hook.get_hook(HOOK_NAME).denoiser
        seen[index] = denoiser.cached(denoiser.latent_size, "nearest-exact")
        return tensors

    with apply(pipe, ControlledConfig(tolerance=0.0)) as handle:
        call(pipe, callback_on_step_end=keep)
    rows = handle.trace.steps
    for k in range(3, STEPS):
        a, b, c = (row.sigma for row in rows[k - 3 : k])
        f, g, h = (seen[index].double() for index in range(k - 3, k))
        second = ((h - g) / (c - b) - (g - f) / (b - a)) / (c - a)
        assert rows[k].details["curvature"] == pytest.approx(float(second.square().mean().sqrt()), rel=1e-3)


@pytest.mark.parametrize("tolerance", [0.01, 0.1])
def test_reused_steps_stay_below_the_tolerance_and_the_next_would_not(pipe, tolerance):
    with apply(pipe, ControlledConfig(tolerance=tolerance)) as handle:
        call(pipe)
    rows = handle.trace.steps
    assert 0 < handle.trace.reused < STEPS - 3
    assert all(len(row.calls) == (0 if row.action == "reuse" else 2) for row in rows)  # two branches, no trial
    curvatures: list[float] = []
    for index, row in enumerate(rows):
        curvatures += [row.details["curvature"]] if "curvature" in row.details else []
        if index < 3:
            assert row.action == "full"
        else:
            b, a = [each.sigma for each in rows[:index] if each.action == "full"][-2:]
            error = max(curvatures[-2:]) * abs(row.sigma - a) * abs(row.sigma - b)
            assert row.indicator == pytest.approx(error, rel=1e-6)
            assert (row.action == "reuse") == (row.accumulated < tolerance)


def test_more_tolerance_computes_less(pipe):
    def computed(tolerance: float) -> int:
        with apply(pipe, ControlledConfig(tolerance=tolerance)) as handle:
            call(pipe)
        return STEPS - handle.trace.reused

    counts = [computed(tolerance) for tolerance in (0.0, 0.01, 0.03, 0.1, 1e9)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (STEPS, 3)


@pytest.mark.parametrize("fields", [{"tolerance": -1.0}, {"remembered": 0}, {"tolerance": float("nan")}])
def test_what_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        ControlledConfig(**fields)
