"""The contract's part about steps, branches and calls: what every method owes in every kind of pipeline.

A pipeline may announce its steps and branches or not, have two transformers, switch guidance off, fail anywhere. The
other part is test_contract.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import math
import warnings
import weakref
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

from methods import PreciseCacheConfig, ReplayConfig, apply
from methods.engine.core import HOOK_NAME
from methods.engine.method import StepwiseRule
from methods.engine.reuse import STRATEGIES

from .conftest import call
from .contract_parts import (
    DISTINCT,
    PRESETS,
    STEPS,
    STEPWISE,
    Counter,
    Outcome,
    fewer,
    outcome,
    state_of,
    uncached,
    working,
)
from .families import SMALL as FAMILIES

# One call a branch; both in one; two transformers.
KINDS = ["cogvideox_2b", "hunyuan_true_cfg", "wan", "wan_two"]
ANNOUNCE_STEPS = {"wan", "wan_two", "wan_ti2v", "opensora", "vchitect"}  # by cache_context(name, step_index=…)


def ran(preset: str, family: str) -> Outcome:
    result = outcome(preset, family)
    if isinstance(result, str):
        pytest.skip(f"refused: {result}")
    return result


def rows(trace) -> list[tuple]:
    return [(row.index, row.sigma, row.action, row.indicator, row.forwards, row.trials) for row in trace.steps]


@contextlib.contextmanager
def quiet(pipe: Any, names: bool):
    """The transformers announce nothing, or with `names` the guidance branches alone (image to video)."""
    modules = [each for each in (pipe.transformer, getattr(pipe, "transformer_2", None)) if each is not None]
    for module in modules:
        context = type(module).cache_context
        module.cache_context = (
            (lambda name, _m=module, _c=context, **_: _c(_m, name))
            if names
            else lambda *_, **__: contextlib.nullcontext()
        )
    try:
        yield
    finally:
        for module in modules:
            del module.cache_context


@pytest.mark.parametrize(("preset", "family"), working())
def test_what_a_pipeline_does_not_announce_is_found_out(preset, family):
    """Steps, branches and noise levels are the same whether it announces all, the branches alone, or nothing."""
    known = ran(preset, family)
    for names in (True, False) if family in ANNOUNCE_STEPS else (False,):  # others' own way is the branches alone
        with warnings.catch_warnings(), quiet(known.pipe, names):
            warnings.simplefilter("ignore")
            with apply(known.pipe, known.method, **known.family.options) as handle:
                latents = known.family.call(known.pipe)
        assert len(handle.traces) == 1
        assert rows(handle.trace) == rows(known.trace)
        assert torch.equal(latents, known.latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_which_pipelines_announce_steps(family):
    pipe, _ = uncached(family)
    context, announced = pipe.transformer.cache_context, set()

    def listening(name: str, **more: Any) -> Any:
        announced.update(more)
        return context(name, **more)

    pipe.transformer.cache_context = listening
    try:
        FAMILIES[family].call(pipe)
    finally:
        del pipe.transformer.cache_context
    assert ("step_index" in announced) == (family in ANNOUNCE_STEPS)


def interrupted(at: int, error: type[BaseException]) -> Any:
    """A forward pre-hook that raises at the so many-th call."""
    calls = []

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise error("interrupted")

    return fail


class StoppedError(Exception):
    """Raised by a callback."""


def stop(at: int) -> Any:
    """A callback that raises after the step of this index."""

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == at:
            raise StoppedError
        return tensors

    return callback


@pytest.mark.parametrize(("preset", "family"), working())
def test_a_call_that_failed_or_was_stopped_leaves_the_next_as_a_first(preset, family):
    """In a branch of the first step or a later one, at another size of schedule, by a callback; and nothing of it stays
    alive."""
    known = ran(preset, family)
    pipe, state = known.pipe, state_of(known.pipe)
    other = STEPS if known.method.NAME in ("replay", "planned", "searched") else 30  # their actions are for so many
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = apply(pipe, known.method, **known.family.options)
        hook = pipe.transformer._diffusers_hook.get_hook
        for at, steps, error in ((1, other, RuntimeError), (2, other, KeyboardInterrupt), (2, STEPS, RuntimeError)):
            failing = pipe.transformer.proj_out.register_forward_pre_hook(interrupted(at, error), with_kwargs=True)
            try:
                with pytest.raises(error, match="interrupted"):
                    known.family.call(pipe, steps=steps)
            finally:
                failing.remove()
            assert hook(HOOK_NAME).rule is None
        with pytest.raises(StoppedError):
            known.family.call(pipe, callback_on_step_end=stop(4))
        assert rows(handle.trace) == rows(known.trace)[:5]
        assert torch.equal(known.family.call(pipe), known.latents)
        assert rows(handle.trace) == rows(known.trace)
        with pytest.raises(StoppedError):
            known.family.call(pipe, callback_on_step_end=stop(1))
        rule = hook(HOOK_NAME).rule
        gone = None if rule is None else weakref.ref(rule)
        del rule
        handle.remove()
        if gone is not None and gone() is not None:  # a cycle; to collect takes a second
            gc.collect()
        assert gone is None or gone() is None
    assert state_of(pipe) == state


def guidance(scales: dict[int, float]) -> Any:
    def set_scale(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = scales.get(index, pipe._guidance_scale)
        return tensors

    return set_scale


@pytest.mark.parametrize(
    ("preset", "family"),
    # which ends before guidance is switched off
    working((name for name, method in DISTINCT.items() if method.NAME != "fewer_steps"), ["wan", "wan_two"]),
)
def test_guidance_may_be_switched_off_and_on_in_mid_call(preset, family):
    """Only branches that are called are computed and tried; to 0 or to 1 is the same; the next call is as a first."""
    known = ran(preset, family)
    with warnings.catch_warnings(), apply(known.pipe, known.method, **known.family.options) as handle:
        warnings.simplefilter("ignore")
        for off in (0.0, 1.0):
            refused = pytest.raises(ValueError, match="switched on in mid-call")
            with refused if known.method.NAME == "dbcache" else contextlib.nullcontext():
                known.family.call(known.pipe, callback_on_step_end=guidance({4: off, 6: 4.0}))
        assert torch.equal(known.family.call(known.pipe), known.latents)
    to_zero, to_one, _ = handle.traces
    assert rows(to_zero) == rows(to_one)
    assert all(row.forwards <= 1 and row.trials <= 1 for row in to_zero.steps[5:7])


@pytest.mark.parametrize("preset", DISTINCT)
def test_a_solver_of_second_order_is_at_a_noise_level_twice(preset):
    """Between the two visits there is nothing to measure a slope over."""
    method, pipe = ran(preset, "wan").method, FAMILIES["wan"].pipeline()
    if actions := getattr(method, "actions", None):
        method = dataclasses.replace(method, actions="".join(2 * action for action in actions)[1:])
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with warnings.catch_warnings(), apply(pipe, method) as handle:
        warnings.simplefilter("ignore")
        latents = FAMILIES["wan"].call(pipe)
    assert latents.isfinite().all()
    measured = [value for row in handle.trace.steps for value in row.details.values() if isinstance(value, float)]
    assert all(abs(value) < 1e4 for value in measured)


def test_a_compiled_second_transformer_is_guided_by_its_own_scale():
    traces = []
    for wrapped in (lambda module: module, torch.compile):
        pipe = FAMILIES["wan_two"].pipeline()
        pipe.transformer_2 = wrapped(pipe.transformer_2)
        with torch.compiler.set_stance("force_eager"), apply(pipe, PRESETS["precisecache"]) as handle:
            call(pipe, guidance_scale_2=1.5)
        traces.append(rows(handle.trace))
    assert traces[0] == traces[1]


def test_a_branch_that_comes_back_is_computed():
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with apply(pipe, ReplayConfig(actions="FFrrrrrrr")) as handle:
        family.call(pipe, callback_on_step_end=guidance({3: 1.0, 6: 4.0}))
    assert [row.forwards for row in handle.trace.steps] == [2, 2, 0, 0, 0, 0, 0, 2, 0]


@pytest.mark.parametrize("family", ["wan", "wan_two"])
@pytest.mark.parametrize("reuse", STRATEGIES)
@pytest.mark.parametrize("preset", sorted(STEPWISE))
def test_what_is_computed_was_decided_to_be(preset, reuse, family, monkeypatch):
    """Where nothing is kept, too: at another transformer's first step, and where a guidance branch comes back."""
    decide, computed = StepwiseRule.decide_together, set()

    def recorded(rule: StepwiseRule, denoiser: Any, step: Any) -> bool:
        compute = decide(rule, denoiser, step)
        computed.update({step.index} if compute else ())
        return compute

    monkeypatch.setattr(StepwiseRule, "decide_together", recorded)
    try:
        method = dataclasses.replace(STEPWISE[preset], reuse=reuse)
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    pipe = FAMILIES[family].pipeline()
    with warnings.catch_warnings(), apply(pipe, method) as handle:
        warnings.simplefilter("ignore")
        FAMILIES[family].call(pipe, callback_on_step_end=guidance({3: 1.0, 6: 4.0}))
    assert handle.trace.steps[7].action == "full"
    assert {row.index for row in handle.trace.steps if row.action != "reuse"} == computed


def test_guidance_fixed_at_the_start_is_not_read_from_what_becomes_of_the_scale():
    """Wan combines with the scale it was called with, whatever a callback writes later."""
    family, method = FAMILIES["wan"], PreciseCacheConfig(alpha=0.0, downsample_factor=(1, 2, 2))
    pipe, traces = family.pipeline(), []
    for scales in ({}, {3: 2.0}):
        with warnings.catch_warnings(), apply(pipe, method) as handle:
            warnings.simplefilter("ignore")
            family.call(pipe, callback_on_step_end=guidance(scales))
        traces.append(rows(handle.trace))
    assert traces[0] == traces[1]


@functools.cache
def uncached_waits(family: str) -> list[int]:
    """Waits in each transformer call of a generation without a method."""
    pipe, counter = uncached(family)[0], Counter()
    with counter.calls_of(pipe) as calls, counter:
        FAMILIES[family].call(pipe)
    return [waits for _, waits in calls]


@pytest.mark.parametrize(
    ("preset", "family"),
    # cache-dit's own waits are not ours
    working((name for name, method in DISTINCT.items() if method.NAME != "dbcache"), KINDS),
)
def test_the_host_waits_for_no_more_than_an_indicator(preset, family):
    """After a call's first step, at most once in each transformer call, and in a control never.

    BlockCache ranks its blocks beside the LFD; PAB reads this timestep and the next, on the host where the pipeline
    follows its scheduler.
    """
    known = ran(preset, family)
    method, own, found = known.method, uncached_waits(family), known.waits
    first = len(own) // STEPS
    controls = ("none", "fewer_steps", "uniform", "replay", "planned", "searched", "magcache", "taylorseer", "fora")
    allowed = 0 if method.NAME in controls else 1
    allowed = 2 if getattr(method, "block_cache_rate", 0) or method.NAME == "pab" else allowed
    assert max(found[first:]) <= max(own[first:]) + allowed


@pytest.mark.parametrize(("preset", "family"), working())
def test_nan_never_skips_and_its_trace_is_plain_data(preset, family, monkeypatch):
    """With a broken prediction every step whose measure is not a number is computed, and the user is warned."""
    known = ran(preset, family)
    original, left = type(known.pipe.scheduler).step, [4]

    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        left[0] -= 1
        return result if left[0] > 0 else (result[0] * math.nan, *result[1:])

    monkeypatch.setattr(type(known.pipe.scheduler), "step", step)  # LTX-2 copies its scheduler for the sound
    with (
        warnings.catch_warnings(record=True) as caught,
        apply(known.pipe, known.method, **known.family.options) as handle,
    ):
        warnings.simplefilter("always")
        known.family.call(known.pipe, steps=fewer(known.method))
    data = json.loads(json.dumps(handle.trace.to_dict(), allow_nan=False))
    broken = [row.index for row in handle.trace.steps if row.indicator is not None and math.isnan(row.indicator)]
    assert [row["index"] for row in data["steps"] if "indicator" in row.get("not_finite", [])] == broken
    assert all(data["steps"][index]["action"] == "full" for index in broken)
    assert bool(broken) == any("indicator was NaN" in str(each.message) for each in caught)
