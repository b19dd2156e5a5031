"""Steps, branches and handles: what the frame does beneath every method. The methods' contract is test_contract.py."""

from __future__ import annotations

import pytest
import torch

from methods import NoCacheConfig, PreciseCacheConfig, ReplayConfig, UniformConfig, apply
from methods.engine.anatomy import anatomy_of

from .conftest import STEPS, call, pipeline_of, random_transformer
from .families import FAMILIES

METHODS = {
    "none": NoCacheConfig(),
    "uniform": UniformConfig(steps=6),
    "precisecache": PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2)),
}


@pytest.mark.parametrize("name", ["none", "precisecache", "uniform"])
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


def test_two_transformers_are_one_call():
    """Wan2.2: the second transformer takes over in mid-call; warm-up, threshold and sum go on, as do predictions."""
    pipe = pipeline_of(random_transformer(0), random_transformer(1), boundary_ratio=0.8)
    clean = call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2))) as handle:
        first, second = call(pipe), call(pipe)
    assert torch.equal(first, second)
    assert [len(trace.steps) for trace in handle.traces] == [STEPS, STEPS]
    assert [row.index for row in handle.trace.steps] == list(range(STEPS))
    assert [row.indicator is None for row in handle.trace.steps] == [True] + [False] * (STEPS - 1)
    assert len({row.threshold for row in handle.trace.steps[3:]}) == 1
    with apply(pipe, ReplayConfig(actions="FrFFFrrrrrrF")) as handle:
        call(pipe)
    assert [row.forwards for row in handle.trace.steps] == [2, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0, 2]
    assert torch.equal(call(pipe), clean)


def test_one_timestep_a_token_is_shrunk_with_the_latent():
    """Wan2.2-TI2V's way of passing timesteps."""
    pipe = pipeline_of(random_transformer(), expand_timesteps=True)
    uncached = call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=0.0)), pytest.warns(UserWarning, match="never hit"):
        assert torch.equal(call(pipe), uncached)
    with apply(pipe, METHODS["precisecache"]) as handle:
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


def test_a_guidance_scale_nobody_publishes_is_asked_for():
    """HunyuanVideo's true CFG: the scale is an argument of the call and kept nowhere."""
    family = FAMILIES["hunyuan_true_cfg"]
    pipe = family.pipeline()
    guided = PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2))
    with apply(pipe, guided), pytest.raises(ValueError, match=r"guidance_scale=…"):
        family.call(pipe)
    with apply(pipe, PreciseCacheConfig(alpha=5.0, downsample_factor=(2, 2, 2), guidance="cond")) as handle:
        family.call(pipe)
    assert handle.trace.reused


def test_calls_are_joined_only_where_all_their_arguments_can_be():
    anatomy = anatomy_of(FAMILIES["wan"].pipeline().transformer)
    table, latents = torch.ones(7, 3), [torch.randn(1, 4, 5, 8, 8), torch.randn(1, 4, 5, 8, 8)]
    calls = [
        {"hidden_states": latent, "timestep": torch.tensor([9.0]), "rotary": table, "flag": False} for latent in latents
    ]
    joined = anatomy.joined(calls)
    assert torch.equal(joined["hidden_states"], torch.cat(latents))
    assert joined["timestep"].tolist() == [9.0, 9.0]
    assert joined["rotary"] is table
    assert joined["flag"] is False
    for other in ({"flag": True}, {"rotary": table.clone()}, {"hidden_states": latents[0][..., :4]}, {"more": 1},
                  {"timestep": torch.tensor([9.0], dtype=torch.float64)}):  # fmt: skip
        assert anatomy.joined([calls[0], {**calls[1], **other}]) is None
