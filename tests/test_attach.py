"""One transformer in several hands: other pipelines, threads, copies, other schedulers, other hooks."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.hooks import HookRegistry, ModelHook

from methods import FewerStepsConfig, NoCacheConfig, PreciseCacheConfig, UniformConfig, apply

from .conftest import STEPS, call, pipeline_of, random_transformer
from .families import FAMILIES

TRIALS = PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2))


def twin_of(pipe: WanPipeline) -> WanPipeline:
    """Another pipeline on the same transformer, with a scheduler of its own."""
    return pipeline_of(pipe.transformer)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0, 9.0])
def test_the_pipeline_that_calls_tells_its_guidance_steps_and_noise(pipe, guidance_scale):
    other = twin_of(pipe)
    with apply(other, TRIALS) as handle:
        expected = call(other, guidance_scale=guidance_scale, steps=10)
    rows = handle.trace.to_dict()["steps"]
    call(pipe, guidance_scale=6.0 if guidance_scale == 1.0 else 1.0, steps=20)  # which must not be taken for it
    with apply(pipe, TRIALS) as handle:
        assert torch.equal(call(other, guidance_scale=guidance_scale, steps=10), expected)
        call(pipe)
    for row, known in zip(handle.traces[0].to_dict()["steps"], rows, strict=True):
        assert {**row, "milliseconds": 0} == {**known, "milliseconds": 0}


def test_a_pipeline_called_in_the_middle_of_anothers_call_is_refused(pipe):
    other, tried = twin_of(pipe), []

    def call_the_other(pipe: Any, index: int, timestep: Any, kwargs: dict) -> dict:
        if index == 4:
            with pytest.raises(RuntimeError, match=r"middle of a call.*cannot be called inside that call"):
                call(other)
            tried.append(index)
        return kwargs

    with apply(pipe, TRIALS) as handle:
        expected = call(pipe)
        assert torch.equal(call(pipe, callback_on_step_end=call_the_other), expected)
        assert tried
        assert torch.equal(call(other), expected)
    assert [len(trace.steps) for trace in handle.traces] == [STEPS] * 3


def test_a_call_that_failed_leaves_the_turn_to_the_next_pipeline(pipe):
    other = twin_of(pipe)

    def fail(pipe: Any, index: int, timestep: Any, kwargs: dict) -> dict:
        raise KeyboardInterrupt

    with apply(pipe, TRIALS):
        expected = call(other)
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=fail)
        assert torch.equal(call(other), expected)


def test_a_second_thread_is_refused_and_the_first_call_is_right(pipe):
    """The second comes at every point of the first: between its branches, its steps, and inside its transformer."""
    other, outcomes, go = twin_of(pipe), [], threading.Event()

    def second() -> None:
        go.wait()
        for _ in range(30):
            try:
                call(other, guidance_scale=9.0)
                outcomes.append("ran")
            except RuntimeError as error:
                outcomes.append(str(error))

    with apply(pipe, TRIALS) as handle:
        expected = call(pipe)
        thread = threading.Thread(target=second)
        thread.start()
        begun = pipe.transformer.register_forward_pre_hook(lambda *_: go.set())
        assert torch.equal(call(pipe), expected)
        thread.join()
        begun.remove()
        refused = [each for each in outcomes if each != "ran"]
        assert refused
        assert all("cannot be called by another thread" in each for each in refused)
        assert torch.equal(call(pipe), expected)
    assert all(len(trace.steps) == STEPS for trace in handle.traces)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_is_taken_only_where_the_pipeline_does_not_tell_its_own(family):
    pipe = FAMILIES[family].pipeline()
    refused = pytest.raises(ValueError, match="tells its own scale of guidance")
    with contextlib.nullcontext() if family.startswith("hunyuan") and family != "hunyuan15" else refused:
        apply(pipe, TRIALS, guidance_scale=6.0).remove()
    apply(pipe, TRIALS).remove()


def test_a_scale_given_for_one_pipeline_is_not_anothers():
    kind = FAMILIES["hunyuan_true_cfg"]
    pipe = kind.pipeline()
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    with apply(pipe, TRIALS, **kind.options), pytest.raises(ValueError, match="apply the method to the one"):
        kind.call(other)


def test_a_shortened_pipeline_takes_another_scheduler_and_a_copy_is_itself_again_with_it(pipe):
    expected, clean = call(pipe, steps=4), call(pipe)
    with apply(pipe, FewerStepsConfig(steps=4)):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        copied = copy.copy(pipe)
        assert torch.equal(call(pipe), expected)
        assert torch.equal(call(copied), expected)
    assert torch.equal(call(pipe), clean)
    assert torch.equal(call(copied), clean)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_is_hooked_is_neither_copied_nor_pickled(pipe, copied):
    with apply(pipe, PreciseCacheConfig(block_cache_rate=0.4)):
        for what in (pipe.transformer, pipe.transformer.blocks[0]):
            with pytest.raises(RuntimeError, match=r"remove\(\) the handle"):
                copied(what)
    copied(pipe.transformer)


def test_what_is_saved_while_attached_is_the_plain_model(pipe, tmp_path):
    clean = call(pipe)
    with apply(pipe, TRIALS):
        pipe.transformer.save_pretrained(tmp_path)
    saved = type(pipe.transformer).from_pretrained(tmp_path)
    assert torch.allclose(call(pipeline_of(saved)), clean, atol=1e-5)


def test_diffusers_own_switch_turns_it_off():
    pipe = pipeline_of(random_transformer(0), random_transformer(1), boundary_ratio=0.8)
    clean = call(pipe)
    handle = apply(pipe, UniformConfig(steps=6))
    assert pipe.transformer.is_cache_enabled
    with pytest.raises(ValueError, match="already been enabled"):
        pipe.transformer.enable_cache(object())
    pipe.transformer_2.disable_cache()
    assert not pipe.transformer.is_cache_enabled
    assert torch.equal(call(pipe), clean)
    handle.remove()
    apply(pipe, NoCacheConfig()).remove()


class _Counting(ModelHook):
    """As diffusers' block caches are: a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.fn_ref.original_forward(*args, **kwargs)


def _hook(module: Any) -> Any:
    hook = _Counting()
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "counting")
    return lambda: hook.calls, lambda: module._diffusers_hook.remove_hook("counting")


def _accelerate(module: Any) -> Any:
    hooks = pytest.importorskip("accelerate").hooks
    calls = []

    class Counting(hooks.ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return args, kwargs

    hooks.add_hook_to_module(module, Counting())
    return lambda: len(calls), lambda: hooks.remove_hook_from_module(module)


def _own_forward(module: Any) -> Any:
    calls, before = [], module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return before(*args, **kwargs)

    module.forward = forward
    return lambda: len(calls), lambda: None


@pytest.mark.parametrize("wrap", [_hook, _accelerate, _own_forward])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_removal_leaves_what_was_attached_later_at_work(pipe, wrap, first):
    clean = call(pipe)
    handle = apply(pipe, UniformConfig(steps=6))
    calls, remove = wrap(pipe.transformer)
    call(pipe)
    assert calls() == 2 * STEPS
    (handle.remove if first == "ours" else remove)()
    before = calls()
    latents = call(pipe)
    if first == "ours":
        assert torch.equal(latents, clean)
        assert calls() == before + 2 * STEPS
    (remove if first == "ours" else handle.remove)()
    assert torch.equal(call(pipe), clean)


def test_a_transformer_put_in_place_of_the_hooked_one_is_noticed(pipe):
    handle = apply(pipe, PreciseCacheConfig())
    pipe.transformer = random_transformer(seed=1)
    with pytest.warns(UserWarning, match="transformer was replaced while the method was attached"):
        handle.remove()
