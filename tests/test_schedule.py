"""The controls: fewer steps and uniform skipping."""

from __future__ import annotations

import pytest
import torch

from methods import FewerStepsConfig, UniformConfig, apply

from .conftest import STEPS, call


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_fewer_steps_is_the_pipeline_asked_for_fewer(pipe, steps):
    expected = call(pipe, steps=steps)
    with apply(pipe, FewerStepsConfig(steps=steps)):
        assert torch.equal(call(pipe, steps=STEPS), expected)
    assert len(pipe.scheduler.timesteps) == steps
    call(pipe)
    assert len(pipe.scheduler.timesteps) == STEPS


def test_a_pipelines_own_noise_levels_keep_their_curve(pipe):
    with apply(pipe, FewerStepsConfig(steps=4)):
        pipe.scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
        shortened = pipe.scheduler.sigmas.clone()
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(shortened, pipe.scheduler.sigmas)


@pytest.mark.parametrize("steps", [1, 4, 5, 7, 11])
def test_uniform_computes_as_many_as_told_and_the_first(pipe, steps):
    with apply(pipe, UniformConfig(steps=steps)) as handle:
        call(pipe)
    computed = [row.index for row in handle.trace.steps if row.action == "full"]
    assert len(computed) == steps
    assert computed[0] == 0
    gaps = [b - a for a, b in zip(computed, [*computed[1:], STEPS], strict=True)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("config", [FewerStepsConfig, UniformConfig])
def test_impossible_budgets_are_refused(pipe, config):
    with pytest.raises(ValueError, match="at least 1"):
        config(steps=0)
    with (
        apply(pipe, UniformConfig(steps=13)),
        pytest.raises(ValueError, match="13 computed steps are more than the 12"),
    ):
        call(pipe)


def test_a_budget_that_reuses_nothing_says_so(pipe):
    with apply(pipe, UniformConfig(steps=STEPS)), pytest.warns(UserWarning, match="the cache never hit"):
        call(pipe)
