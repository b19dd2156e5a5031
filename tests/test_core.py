"""The contract every method gets for free: reversible, one decision a step, nothing survives a call."""

from __future__ import annotations

import copy

import pytest
import torch

from methods import FewerStepsConfig, NoCacheConfig, PreciseCacheConfig, UniformConfig, apply

from .conftest import STEPS, call, pipeline_of, random_transformer

METHODS = {
    "none": NoCacheConfig(),
    "fewer_steps": FewerStepsConfig(steps=6),
    "uniform": UniformConfig(steps=6),
    "previous_trial": PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2)),
    "cached_output": PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2), reference="cached_output"),
    "anchor_trial": PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 4, 4), reference="anchor_trial"),
    "cond": PreciseCacheConfig(alpha=5.0, downsample_factor=(1, 4, 4), guidance="cond"),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def state_of(pipe) -> tuple:
    """All that apply() could have left behind: attributes of the modules, weights, the scheduler's own."""
    modules = {
        name: sorted(k for k in vars(m) if k != "_diffusers_hook") for name, m in pipe.transformer.named_modules()
    }
    hooks = getattr(pipe.transformer, "_diffusers_hook", None)
    return modules, list(hooks.hooks) if hooks else [], sorted(vars(pipe.scheduler)), pipe.transformer.is_cache_enabled


@each_method
def test_removed_handle_leaves_the_pipeline_bitwise_as_it_was(pipe, method):
    before = call(pipe)
    weights = copy.deepcopy(pipe.transformer.state_dict())
    state = state_of(pipe)
    with apply(pipe, method):
        call(pipe)
    assert state_of(pipe) == state
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), pipe.transformer.state_dict().values(), strict=True))
    assert torch.equal(call(pipe), before)


@each_method
@pytest.mark.parametrize("at_call", [0, 1, 9])
def test_an_exception_in_mid_call_leaves_nothing_behind(pipe, method, at_call):
    clean = call(pipe)
    state = state_of(pipe)
    with apply(pipe, method) as handle:
        expected = call(pipe)
        rows = [step.action for step in handle.trace.steps]
        broken = {"left": at_call}

        def fail(module, args, kwargs):
            broken["left"] -= 1
            if broken["left"] < 0:
                raise RuntimeError("interrupted")

        hook = pipe.transformer.blocks[1].register_forward_pre_hook(fail, with_kwargs=True)
        with pytest.raises(RuntimeError, match="interrupted"):
            call(pipe)
        hook.remove()
        assert torch.equal(call(pipe), expected)
        assert [step.action for step in handle.trace.steps] == rows
    assert state_of(pipe) == state
    assert torch.equal(call(pipe), clean)


@each_method
def test_calls_in_a_row_equal_fresh_ones(pipe, method):
    with apply(pipe, method) as handle:
        in_a_row = [call(pipe, prompt, seed) for prompt, seed in ((0, 0), (1, 5), (0, 0))]
    assert len(handle.traces) == 3
    for (prompt, seed), latents in zip(((0, 0), (1, 5), (0, 0)), in_a_row, strict=True):
        fresh = pipeline_of(random_transformer())
        with apply(fresh, method):
            assert torch.equal(call(fresh, prompt, seed), latents)


@each_method
def test_one_row_a_step_and_every_call_counted(pipe, method):
    calls = {"full": 0, "small": 0}
    original = pipe.transformer.forward

    def counting(hidden_states, **kwargs):
        calls["full" if hidden_states.shape[-1] == 16 else "small"] += 1
        return original(hidden_states=hidden_states, **kwargs)

    counting.__wrapped__ = original
    pipe.transformer.forward = counting
    with apply(pipe, method) as handle:
        call(pipe)
    rows = handle.trace.steps
    assert [row.index for row in rows] == list(range(6 if method.NAME == "fewer_steps" else STEPS))
    assert calls == {"full": sum(r.forwards for r in rows), "small": sum(r.trials for r in rows)}
    assert all(r.forwards == (2 if r.action == "full" else 0) for r in rows)


@each_method
def test_an_aggressive_setting_hits(pipe, method):
    with apply(pipe, method) as handle:
        latents = call(pipe)
    if method.EXPECTS_REUSE:
        assert 0 < handle.trace.reused < STEPS
    if method.NAME != "none":
        assert not torch.equal(latents, call(pipe))


@pytest.mark.parametrize("name", ["none", "previous_trial", "uniform"])
def test_without_guidance_there_is_one_branch(pipe, name):
    with apply(pipe, METHODS[name]) as handle:
        call(pipe, guidance_scale=1.0)
    assert all(row.forwards == (1 if row.action == "full" else 0) for row in handle.trace.steps)


def test_branches_reuse_their_own_prediction(pipe):
    """A reused step gives each branch what that branch computed last, not the other's."""
    seen = []
    with apply(pipe, UniformConfig(steps=6)):
        forward = pipe.transformer.forward

        def spy(*args, **kwargs):
            out = forward(*args, **kwargs)
            seen.append(out[0])
            return out

        pipe.transformer.forward = spy
        call(pipe)
        pipe.transformer.forward = forward
    cond, uncond = seen[0::2], seen[1::2]
    for step in range(1, STEPS, 2):
        assert torch.equal(cond[step], cond[step - 1])
        assert torch.equal(uncond[step], uncond[step - 1])
    assert not torch.equal(cond[0], uncond[0])


def test_two_transformers_each_keep_their_own_state():
    """Wan2.2: the second transformer takes over in mid-call, with its own warm-up and its own cache."""
    pipe = pipeline_of(random_transformer(0), random_transformer(1), boundary_ratio=0.8)
    clean = call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2))) as handle:
        first, second = call(pipe), call(pipe)
    assert torch.equal(first, second)
    assert [len(trace.steps) for trace in handle.traces] == [STEPS, STEPS]
    assert [row.index for row in handle.trace.steps] == list(range(STEPS))
    switch = next(i for i in range(1, STEPS) if handle.trace.steps[i].indicator is None)
    assert all(row.action == "full" for row in handle.trace.steps[switch : switch + 3])
    assert torch.equal(call(pipe), clean)


def test_one_timestep_a_token_is_shrunk_with_the_latent():
    """Wan2.2-TI2V's way of passing timesteps."""
    pipe = pipeline_of(random_transformer(), expand_timesteps=True)
    uncached = call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=0.0)), pytest.warns(UserWarning, match="never hit"):
        assert torch.equal(call(pipe), uncached)
    with apply(pipe, METHODS["previous_trial"]) as handle:
        call(pipe)
    assert handle.trace.arguments["timestep"] == [1, 5 * 8 * 8]
    assert 0 < handle.trace.reused < STEPS


def test_a_forward_of_the_users_own_survives(pipe):
    calls = []
    original = pipe.transformer.forward

    def mine(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    pipe.transformer.forward = mine
    with apply(pipe, UniformConfig(steps=6)):
        call(pipe)
    assert len(calls) == 12
    assert pipe.transformer.forward is mine


def test_a_second_cache_is_refused(pipe):
    with apply(pipe, NoCacheConfig()), pytest.raises(ValueError, match="already has a cache"):
        apply(pipe, UniformConfig())
    from diffusers.hooks import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="already has a cache"):
        apply(pipe, UniformConfig())


def test_an_unsupported_pipeline_is_named():
    class Other(torch.nn.Module):
        pass

    with pytest.raises(TypeError, match=r"Other.*WanTransformer3DModel"):
        apply(type("Pipe", (), {"transformer": Other()})(), NoCacheConfig())
    with pytest.raises(TypeError, match="no transformer"):
        apply(object(), NoCacheConfig())


def test_a_trace_before_any_call_says_so(pipe):
    with apply(pipe, NoCacheConfig()) as handle, pytest.raises(LookupError, match="no pipeline call"):
        _ = handle.trace


def test_without_a_cache_context_every_call_is_a_step(pipe):
    """Pipelines that announce nothing: a falling timestep goes on, a rising one is a new generation."""
    latents, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    with apply(pipe, NoCacheConfig()) as handle:
        for timestep in (900, 600, 300, 950, 500):
            pipe.transformer(latents, torch.tensor([timestep]), text)
    assert [len(trace.steps) for trace in handle.traces] == [3, 2]
