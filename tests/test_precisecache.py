"""LFCache against Algorithm 1 written out by hand, and its edges."""

from __future__ import annotations

import math

import pytest
import torch

from methods import PreciseCacheConfig, apply
from methods.engine.anatomy import anatomy_of
from methods.frequency import downsample, low_frequency_difference, low_pass_mask
from methods.precisecache import radius_ratio

from .conftest import STEPS, call

FACTOR = (2, 2, 2)


def algorithm_1(pipe, alpha, reference, seed=0, scale=4.0, warmup=3):
    """The paper's loop on post-guidance predictions F, with no hook and none of the project's decision code."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    text = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1000))
    scheduler.set_timesteps(STEPS)
    z = torch.randn(1, 4, 5, 16, 16, generator=torch.Generator().manual_seed(seed))

    def predict(latent, t):
        cond, uncond = (
            transformer(hidden_states=latent, timestep=t[None], encoder_hidden_states=e, return_dict=False)[0]
            for e in (text, torch.zeros_like(text))
        )
        return uncond + scale * (cond - uncond)

    size = (3, 8, 8)
    actions, lfds, error, largest, f = [], [], 0.0, 0.0, None
    previous = anchor = None
    for i, t in enumerate(scheduler.timesteps):
        trial = predict(downsample(z, size), t)
        if i == 0:
            compute = True
        else:
            if reference == "cached_output":
                against = downsample(f, size)
            else:
                against = previous if reference == "previous_trial" else anchor
            lfd = float(low_frequency_difference(trial, against))
            lfds.append(lfd)
            if i < warmup:
                largest, compute = max(largest, lfd), True
            else:
                error += lfd
                compute = not error < alpha * largest
        if compute:
            f, error, anchor = predict(z, t), 0.0, trial
        previous = trial
        actions.append("full" if compute else "reuse")
        z = scheduler.step(f, t, z, return_dict=False)[0]
    return z, actions, lfds


@torch.no_grad()
@pytest.mark.parametrize("reference", ["cached_output", "previous_trial", "anchor_trial"])
@pytest.mark.parametrize("alpha", [0.7, 1.5, 3.0])
def test_it_is_algorithm_1(pipe, reference, alpha):
    expected, actions, lfds = algorithm_1(pipe, alpha, reference)
    with apply(pipe, PreciseCacheConfig(alpha=alpha, downsample_factor=FACTOR, reference=reference)) as handle:
        latents = call(pipe)
    assert [row.action for row in handle.trace.steps] == actions
    assert [row.indicator for row in handle.trace.steps[1:]] == pytest.approx(
        lfds, rel=1e-5
    )  # both branches are one call
    assert torch.equal(latents, expected)


def test_alpha_zero_is_bitwise_uncached_and_says_so(pipe):
    uncached = call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=0.0)), pytest.warns(UserWarning, match="the cache never hit, all 12"):
        assert torch.equal(call(pipe), uncached)


def test_nan_never_skips(pipe, monkeypatch):
    nan = torch.tensor(math.nan)
    uncached = call(pipe)
    monkeypatch.setattr("methods.precisecache.low_frequency_difference", lambda *a: nan)
    with apply(pipe, PreciseCacheConfig(alpha=50.0)) as handle, pytest.warns(UserWarning, match="NaN"):
        assert torch.equal(call(pipe), uncached)
    assert handle.trace.reused == 0


@pytest.mark.parametrize("bad_step", [1, 2])
def test_one_nan_in_the_warm_up_is_not_forgotten(pipe, monkeypatch, bad_step):
    values = iter([math.nan if step == bad_step else 1e-3 for step in range(1, STEPS)])
    monkeypatch.setattr("methods.precisecache.low_frequency_difference", lambda *a: next(values))
    with apply(pipe, PreciseCacheConfig(alpha=50.0)) as handle, pytest.warns(UserWarning, match="NaN"):
        call(pipe)
    assert handle.trace.reused == 0


def test_the_threshold_is_strict_and_the_error_is_reset(pipe, monkeypatch):
    values = iter([1.0, 2.0, 0.5, 0.4, 0.1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    monkeypatch.setattr("methods.precisecache.low_frequency_difference", lambda *a: next(values))
    with apply(pipe, PreciseCacheConfig(alpha=0.5)) as handle:
        call(pipe)
    # threshold 1.0: .5 .9 reuse, 1.0 is not below it; .5 reuse, 1.0 computes; .5 .75 reuse, 1.0 computes; .25 reuses
    assert [row.action[0] for row in handle.trace.steps] == list("fffrrfrfrrfr")
    assert all(row.threshold == 1.0 for row in handle.trace.steps[3:])


def test_without_accumulation_the_latest_lfd_decides(pipe, monkeypatch):
    values = iter([1.0, 2.0, *[0.9] * 5, *[1.1] * 4])
    monkeypatch.setattr("methods.precisecache.low_frequency_difference", lambda *a: next(values))
    with apply(pipe, PreciseCacheConfig(alpha=0.5, accumulate=False)) as handle:
        call(pipe)
    assert [row.action[0] for row in handle.trace.steps] == list("fffrrrrrffff")


def test_the_radius_may_be_of_the_latents_side(pipe):
    """A fifth of 16 cells of the latent is 3.2 bins of a trial of 4x4: all of them (question 31)."""
    config = PreciseCacheConfig(downsample_factor=(2, 4, 4), radius_of="latent")
    assert radius_ratio(config, (5, 16, 16), (3, 4, 4)) == pytest.approx(0.8)
    assert radius_ratio(config, (5, 16, 16), (5, 16, 16)) == pytest.approx(0.2)
    assert low_pass_mask(4, 4, 0.8).float().mean() == 1.0
    assert 0.83 < low_pass_mask(22, 40, radius_ratio(config, (21, 90, 160), (11, 22, 40))).float().mean() < 0.84
    indicators = {}
    for of, ratio in (("latent", 0.2), ("trial", 0.8), ("trial", 0.2)):
        method = PreciseCacheConfig(alpha=0.0, downsample_factor=(2, 4, 4), radius_of=of, radius_ratio=ratio)
        with apply(pipe, method) as handle:
            call(pipe)
        indicators[of, ratio] = [step.indicator for step in handle.trace.steps[1:]]
    assert indicators["latent", 0.2] == indicators["trial", 0.8] != indicators["trial", 0.2]


def test_warm_up_steps_are_computed(pipe):
    with apply(pipe, PreciseCacheConfig(alpha=99.0, warmup_steps=5)) as handle:
        call(pipe)
    assert [row.action for row in handle.trace.steps] == ["full"] * 5 + ["reuse"] * (STEPS - 5)


def test_trials_are_counted_with_their_size(pipe):
    with apply(pipe, PreciseCacheConfig(downsample_factor=(2, 4, 4), reference="previous_trial")) as handle:
        call(pipe)
    # the first step's trial is made up for at the second
    assert [row.trials for row in handle.trace.steps] == [0, 4, *[2] * (STEPS - 2)]
    assert {call.size for row in handle.trace.steps for call in row.calls if call.trial} == {(3, 4, 4)}
    with apply(pipe, PreciseCacheConfig(guidance="cond")) as handle:
        call(pipe)
    assert [row.trials for row in handle.trace.steps] == [0, *[1] * (STEPS - 1)]


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((21, 90, 160), (2, 4, 4), (11, 22, 40)),
        ((21, 60, 104), (2, 4, 4), (11, 14, 26)),
        ((8, 16, 16), (2, 4, 4), (4, 4, 4)),
        ((8, 16, 16), (1, 8, 8), (8, 2, 2)),
        ((21, 90, 160), (1, 1, 1), (21, 90, 160)),
    ],
)
def test_the_trial_has_a_legal_size(pipe, size, factor, expected):
    assert anatomy_of(pipe.transformer).trial_size(size, factor) == expected


@pytest.mark.parametrize("factor", [(9, 1, 1), (1, 9, 1), (1, 1, 16)])
def test_a_factor_larger_than_the_latent_is_refused(pipe, factor):
    with pytest.raises(ValueError, match="too large for a latent"):
        anatomy_of(pipe.transformer).trial_size((8, 16, 16), factor)
    with apply(pipe, PreciseCacheConfig(downsample_factor=factor)), pytest.raises(ValueError, match="too large"):
        call(pipe)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -0.1),
        ("alpha", math.nan),
        ("warmup_steps", 1),
        ("downsample_factor", (2, 4)),
        ("downsample_factor", (0, 4, 4)),
        ("downsample_mode", "bicubic"),
        ("radius_ratio", 0.0),
        ("reference", "previous"),
        ("radius_of", "image"),
        ("guidance", "uncond"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        PreciseCacheConfig(**{field: value})
