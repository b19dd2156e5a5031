"""First-block cache against diffusers' own hook on the same pipelines, and its edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig as DiffusersConfig

from methods import apply
from methods.engine.anatomy import anatomy_of
from methods.first_block_cache import FirstBlockCache, FirstBlockCacheConfig

from .conftest import STEPS
from .families import FAMILIES

THRESHOLDS = {
    "wan": 0.06,
    "wan_ti2v": 0.06,
    "hunyuan": 0.2,
    "hunyuan_true_cfg": 0.2,
    "hunyuan15": 0.3,
    "cogvideox_2b": 0.1,
    "cogvideox_5b": 0.1,
    "opensora": 0.1,
}


def blocks_of(pipe) -> list:
    return [block.module for block in anatomy_of(pipe.transformer).blocks(pipe.transformer)]


def calls_of(pipe, family, steps=STEPS) -> tuple[torch.Tensor, list[str]]:
    """Final latents and, for each transformer call, F if the rest of the blocks ran and r if not."""
    calls: list[str] = []
    first, second, *_ = blocks_of(pipe)
    undo = []
    for block, note in ((first, lambda: calls.append("r")), (second, lambda: calls.__setitem__(-1, "F"))):
        norm = next(block.children())
        undo.append(norm.register_forward_pre_hook(lambda *_, note=note: note()))
    latents = family.call(pipe, steps=steps)
    for hook in undo:
        hook.remove()
    return latents, calls


# diffusers' own looks at one transformer alone, takes each guidance branch for a step where none is announced, does not
# know of the list that Vchitect's last block is in, and takes the text of LTX-2 for its second stream.
@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if name not in ("wan_two", "wan_video_to_video", "vchitect", "ltx2")]
)
def test_parity_with_diffusers(name):
    family, threshold = FAMILIES[name], THRESHOLDS[name]
    pipe = family.pipeline()
    pipe.transformer.enable_cache(DiffusersConfig(threshold=threshold))
    expected, schedule = calls_of(pipe, family, steps=16)
    pipe = family.pipeline()
    with apply(pipe, FirstBlockCacheConfig(threshold=threshold), **family.options) as handle:
        latents, calls = calls_of(pipe, family, steps=16)
    assert calls == schedule
    assert calls.count("r") >= 4
    assert calls.count("F") >= 4
    torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-6)
    per_step = ["".join(calls[i : i + family.branches]) for i in range(0, len(calls), family.branches)]
    names = {"F": "full", "r": "reuse"}
    assert [step.action for step in handle.trace.steps] == [
        names[letters[0]] if len(set(letters)) == 1 else "partial" for letters in per_step
    ]


@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox_5b", "opensora", "vchitect"])
def test_a_reused_step_runs_the_first_block_alone_and_is_priced_so(name):
    family = FAMILIES[name]
    pipe = family.pipeline()
    with apply(pipe, FirstBlockCacheConfig(threshold=1e9)) as handle:
        family.call(pipe)
    trace = handle.trace
    assert [step.action for step in trace.steps] == ["full"] + ["reuse"] * (STEPS - 1)
    rest = len(blocks_of(pipe)) - 1
    for step in trace.steps[1:]:
        assert step.forwards == family.branches
        assert all(sum(call.skipped.values()) == rest for call in step.calls)
    assert not any(call.skipped for call in trace.steps[0].calls)


def test_both_streams_end_where_they_would():
    """On the very same call, the reused blocks give what they computed: video and text, through both kinds of block."""
    pipe = FAMILIES["hunyuan"].pipeline()
    tail = blocks_of(pipe)[-1]
    call = {
        "hidden_states": torch.randn(1, 4, 5, 16, 16),
        "encoder_hidden_states": torch.randn(1, 8, 16),
        "encoder_attention_mask": torch.ones(1, 8, dtype=torch.long),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([6000.0]),
        "timestep": torch.tensor([500]),
    }
    seen = []
    with torch.no_grad(), apply(pipe, FirstBlockCacheConfig(threshold=1e-3)) as handle:
        forward = tail.forward

        def spy(*args, **kwargs):
            output = forward(*args, **kwargs)
            seen.append(output)
            return output

        tail.forward = spy
        for _ in range(2):
            with pipe.transformer.cache_context("cond"):
                pipe.transformer(**call)
        tail.forward = forward
    assert [step.action for step in handle.trace.steps] == ["full", "reuse"]
    (video, text), (video_again, text_again) = seen
    torch.testing.assert_close(video_again, video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_again, text, rtol=1e-5, atol=1e-5)


def test_the_reference_is_the_last_computed_step():
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    residuals = []
    with apply(pipe, FirstBlockCacheConfig(threshold=0.12)) as handle:
        visit = FirstBlockCache._near

        def spy(self, denoiser, residual, reference):
            near = visit(self, denoiser, residual, reference)
            if denoiser.branch.name == "cond":
                residuals.append((residual, reference, near))
            return near

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FirstBlockCache, "_near", spy)
            family.call(pipe)
    assert {near for *_, near in residuals} == {True, False}
    for (before, old, near), (_, reference, _) in itertools.pairwise(residuals):
        assert reference is (old if near else before)
    distance = [float((r - ref).abs().mean() / ref.abs().mean()) for r, ref, _ in residuals]
    assert [step.details["difference"]["cond"] for step in handle.trace.steps[1:]] == pytest.approx(distance)


def test_protected_steps_compute_and_renew_the_reference():
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with apply(pipe, FirstBlockCacheConfig(threshold=1e9, protect_first=3, protect_last=2)) as handle:
        family.call(pipe)
    actions = [step.action for step in handle.trace.steps]
    assert actions == ["full"] * 3 + ["reuse"] * (STEPS - 5) + ["full"] * 2


@pytest.mark.filterwarnings("ignore:.*never hit")
def test_nan_never_skips(monkeypatch):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    uncached = family.call(pipe)
    near = FirstBlockCache._near
    monkeypatch.setattr(FirstBlockCache, "_near", lambda self, d, r, ref: near(self, d, r * math.nan, ref))
    with apply(pipe, FirstBlockCacheConfig(threshold=1e9)), pytest.warns(UserWarning, match="NaN"):
        assert torch.equal(family.call(pipe), uncached)


def test_threshold_zero_is_bitwise_uncached():
    family = FAMILIES["cogvideox_5b"]
    pipe = family.pipeline()
    uncached = family.call(pipe)
    with apply(pipe, FirstBlockCacheConfig(threshold=0.0)), pytest.warns(UserWarning, match="never hit"):
        assert torch.equal(family.call(pipe), uncached)


def test_defaults_are_diffusers():
    assert FirstBlockCacheConfig().threshold == DiffusersConfig().threshold
    assert (FirstBlockCacheConfig().protect_first, FirstBlockCacheConfig().protect_last) == (1, 0)


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_bad_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be (at least 0|a finite number)"):
        FirstBlockCacheConfig(threshold=threshold)
