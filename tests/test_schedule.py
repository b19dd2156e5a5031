"""The controls: fewer steps and uniform skipping."""

from __future__ import annotations

import pytest
import torch

from methods import FewerStepsConfig, UniformConfig, apply

from .conftest import STEPS, call
from .families import FEW
from .families import SMALL as FAMILIES


@pytest.mark.parametrize("steps", [2, 5, FEW])
@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_steps_is_the_pipeline_asked_for_fewer(family, steps):
    """In everything that depends on the number of steps: the schedule, and a guidance scale that follows it."""
    kind = FAMILIES[family]
    pipe, dynamic = kind.pipeline(), {"use_dynamic_cfg": True} if family.startswith("cogvideox") else {}
    expected = kind.call(pipe, steps=steps, **dynamic)
    with apply(pipe, FewerStepsConfig(steps=steps), **kind.options) as handle:
        if family == "wan_video_to_video":
            with pytest.raises(ValueError, match="a strength below 1 takes a part of the schedule"):
                kind.call(pipe)
        else:
            assert torch.equal(kind.call(pipe, **dynamic), expected)
            assert len(handle.trace.steps) == steps
    kind.call(pipe)
    assert len(pipe.scheduler.timesteps) >= FEW


@pytest.mark.parametrize("given", [{"sigmas": [1.0, 0.5]}, {"timesteps": [999, 500]}])
def test_a_schedule_that_is_given_itself_is_not_shortened(given):
    kind = FAMILIES["hunyuan_true_cfg" if "sigmas" in given else "cogvideox_2b"]
    pipe = kind.pipeline()
    with apply(pipe, FewerStepsConfig(steps=4)), pytest.raises(ValueError, match="cannot shorten a schedule that is"):
        kind.call(pipe, **given)


def test_a_loop_of_ones_own_is_not_shortened(pipe):
    with apply(pipe, FewerStepsConfig(steps=4)), pytest.raises(ValueError, match="no loop of your own"):
        pipe.transformer(torch.zeros(1, 4, 5, 8, 8), torch.tensor([999.0]), torch.zeros(1, 8, 16))


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
        apply(pipe, config(steps=13)),
        pytest.raises(ValueError, match="13 computed steps are more than the 12"),
    ):
        call(pipe)


def test_a_budget_that_reuses_nothing_says_so(pipe):
    with apply(pipe, UniformConfig(steps=STEPS)), pytest.warns(UserWarning, match="the cache never hit"):
        call(pipe)
