"""DBCache through cache-dit: what cache-dit alone computes, truthfully traced, and gone without a trace."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from methods import apply
from methods.dbcache import CALIBRATORS, MASKS, DBCacheConfig
from methods.engine.anatomy import anatomy_of
from pcbench.cost.dry_run import rehearse
from pcbench.cost.macs import trace_macs

from .conftest import STEPS, call, pipeline_of, random_transformer
from .contract_parts import UNKNOWN_TO_CACHE_DIT
from .families import SMALL
from .plan_parts import run_of

SUPPORTED = sorted(SMALL.keys() - UNKNOWN_TO_CACHE_DIT)  # refused, with a reason

EAGER = {"fn_blocks": 1, "residual_diff_threshold": 0.25, "protect_first": 4}
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    )
}


@pytest.fixture
def cache_dit():
    return pytest.importorskip("cache_dit", reason='optional extra: pip install "pcbench[dbcache]"')


MASK = "FFrFrrFrrFrrrFrrrrrF"
BITS = [int(letter == "F") for letter in MASK]
# Fields of ours, and the same in cache-dit's words: of its cache config, and its calibrator's.
VARIANTS = {
    "plain": ({}, {}, None),
    "taylorseer": ({"calibrator": "taylorseer"}, {}, ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1})),
    "taylorseer_2": (
        {"calibrator": "taylorseer", "taylorseer_order": 2},
        {},
        ("TaylorSeerCalibratorConfig", {"taylorseer_order": 2}),
    ),
    "dmd": ({"calibrator": "dmd"}, {}, ("DMDCalibratorConfig", {"dmd_history": 6})),
    "foca": ({"calibrator": "foca"}, {}, ("FoCaCalibratorConfig", {})),
    "mask": ({"steps_computation_mask": MASK, "protect_first": 0}, {"steps_computation_mask": BITS}, None),
    "static": (
        {"steps_computation_mask": MASK, "steps_computation_policy": "static", "protect_first": 0, "calibrator": "dmd"},
        {"steps_computation_mask": BITS, "steps_computation_policy": "static"},
        ("DMDCalibratorConfig", {}),
    ),
}


@functools.cache
def uncached_of(family: str) -> tuple[Any, torch.Tensor]:
    """A pipeline, shared by the variants, and what it makes without a cache."""
    pipe = SMALL[family].pipeline()
    return pipe, SMALL[family].call(pipe, steps=20)


# cache-dit alone counts the steps of each of two transformers for itself; ours are counted over both.
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", [name for name in SUPPORTED if name != "wan_two"])
def test_equals_cache_dit_alone(cache_dit, family, variant):
    fields, words, calibrator = VARIANTS[variant]
    if variant != "plain" and family not in ("wan", "hunyuan", "cogvideox_2b"):
        pytest.skip("covered by one of each kind")
    kind = SMALL[family]
    pipe, uncached = uncached_of(family)
    with apply(pipe, DBCacheConfig(**{**EAGER, **fields}), **kind.options) as handle:
        ours = kind.call(pipe, steps=20)
        assert torch.equal(kind.call(pipe, steps=20), ours)
    assert torch.equal(kind.call(pipe, steps=20), uncached)
    official = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        residual_diff_threshold=0.25,
        max_warmup_steps=4,
        enable_separate_cfg=kind.branches == 2,
        **words,
    )
    name, options = calibrator or ("", {})
    calibrated = {"calibrator_config": getattr(cache_dit, name)(**options)} if calibrator else {}
    cache_dit.enable_cache(pipe, cache_config=official, **calibrated)
    try:
        alone = kind.call(pipe, steps=20)
        lists = [
            getattr(pipe.transformer, n, None) for n in ("blocks", "transformer_blocks", "single_transformer_blocks")
        ]
        cached = set().union(*(each._cached_steps + each._cfg_cached_steps for each in lists if each is not None))
    finally:
        cache_dit.disable_cache(pipe)
    assert torch.equal(ours, alone)
    assert not torch.equal(ours, uncached)
    assert {row.index for row in handle.trace.steps if row.action == "partial"} == cached
    assert 3 < len(cached) <= 16
    if variant == "static":
        assert cached == {index for index, letter in enumerate(MASK) if letter == "r"}
        return
    for row in (row for row in handle.trace.steps if row.index in cached):
        assert min(diff for lists in row.details["residual_diffs"].values() for diff in lists.values()) < 0.25


def test_a_calibrator_changes_what_is_reused_and_a_mask_when(cache_dit, pipe):
    def latents(**fields):
        with apply(pipe, DBCacheConfig(**{**EAGER, **fields})) as handle:
            return call(pipe, steps=20), "".join(row.action[0] for row in handle.trace.steps)

    found = [latents(calibrator=name) for name in CALIBRATORS]
    assert all(not torch.equal(a, b) for (a, _), (b, _) in itertools.combinations(found, 2))
    masked = {"steps_computation_mask": MASK, "steps_computation_policy": "static"}
    assert latents(**masked, protect_first=0)[1] == MASK.replace("r", "p").replace("F", "f")
    protected = latents(**masked, protect_first=5, protect_last=3)[1]
    assert protected == "fffffpfppfppp" + "fpppfff"


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("steps", [4, 8, 12, 28, 50])
def test_named_masks_are_cache_dits(cache_dit, name, steps):
    official = cache_dit.steps_mask(mask_policy=name, total_steps=steps)
    config = DBCacheConfig(protect_first=0, steps_computation_mask=name)
    assert config.official(True, steps)["cache_config"].steps_computation_mask == official
    later = config.official(True, steps, 2)["cache_config"].steps_computation_mask
    assert later == [1, *official[3:]]  # a context that begins in mid-call has nothing to reuse


@pytest.mark.parametrize(("preset", "tensors"), [("", 2), ("_taylorseer", 5), ("_foca", 5), ("_dmd", 11)])
def test_what_cache_dit_keeps_is_planned(cache_dit, preset, tensors):
    """On Wan-14B, for each branch: the first blocks' residual and the middle's, or what that is forecast from.

    Two differences now and before (TaylorSeer); these and six residuals (DMD); the last two residuals, computed or not
    (FoCa). Of the text's 512 tokens as of the video's 75,600.
    """
    held = rehearse(run_of("wan", f"dbcache{preset}", "method.fn_blocks=8").recipe).held
    assert held / (2 * 75600 * 5120 * 2) == pytest.approx(tensors, rel=0.01)


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_trace_prices_what_ran(cache_dit, family):
    kind = SMALL[family]
    pipe = kind.pipeline()
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with apply(pipe, DBCacheConfig(**EAGER), **kind.options) as handle, counter:
        kind.call(pipe)
    transformer = pipe.transformer
    priced = trace_macs(type(transformer), transformer.config, handle.trace)
    assert priced == pytest.approx(counter.get_total_flops() // 2, rel=1e-3)
    assert handle.trace.partial > 0


def state_of(transformer) -> list:
    return [(name, sorted(set(vars(m)) - {"_diffusers_hook"})) for name, m in transformer.named_modules()]


def test_nothing_is_left_behind_an_exception_included(cache_dit, pipe):
    uncached, before = call(pipe), state_of(pipe.transformer)
    with apply(pipe, DBCacheConfig(**EAGER)):
        expected = call(pipe)
        calls = []

        def fail(module, args):
            calls.append(1)
            if len(calls) == 13:
                raise RuntimeError("interrupted")

        broken = pipe.transformer.blocks[0].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            call(pipe)
        broken.remove()
        assert torch.equal(call(pipe), expected)
    assert state_of(pipe.transformer) == before
    assert torch.equal(call(pipe), uncached)
    with apply(pipe, DBCacheConfig(**EAGER)):  # and it can be attached again
        assert torch.equal(call(pipe), expected)


def test_a_forward_of_the_users_own_survives(cache_dit, pipe):
    original = pipe.transformer.forward

    def mine(*args, **kwargs):
        return original(*args, **kwargs)

    mine.__wrapped__ = original
    pipe.transformer.forward = mine
    with apply(pipe, DBCacheConfig(**EAGER)) as handle:
        call(pipe)
    assert handle.trace.partial > 0
    assert pipe.transformer.forward is mine


def test_two_transformers(cache_dit):
    pipe = pipeline_of(random_transformer(0), random_transformer(1), boundary_ratio=0.8)
    uncached = call(pipe, steps=20)
    config = DBCacheConfig(fn_blocks=1, residual_diff_threshold=0.5, protect_first=3)
    with apply(pipe, config) as handle:
        first, second = call(pipe, steps=20), call(pipe, steps=20)
    assert torch.equal(first, second)
    full = [row.index for row in handle.trace.steps if row.action == "full"]
    assert full[:3] == [0, 1, 2]
    assert len(full) > 3  # the two warm up together, but the second's blocks have nothing to reuse at its first step
    assert torch.equal(call(pipe, steps=20), uncached)


def test_protection_and_no_guidance(cache_dit, pipe):
    with apply(pipe, DBCacheConfig(**{**EAGER, "protect_first": 0.25, "protect_last": 2})) as handle:
        call(pipe, guidance_scale=1.0)
    actions = "".join(row.action[0] for row in handle.trace.steps)
    assert len(actions) == STEPS
    assert actions[:3] == "fff"
    assert actions[-2:] == "ff"
    assert "p" in actions


def test_what_does_not_fit_is_refused(cache_dit, pipe):
    with pytest.raises(ValueError, match=r"leave none of the 2 blocks"):
        apply(pipe, DBCacheConfig())
    with (
        apply(pipe, DBCacheConfig(**EAGER, separate_cfg=False)),
        pytest.raises(ValueError, match="separate_cfg=true"),
    ):
        call(pipe)
    with (
        apply(pipe, DBCacheConfig(**EAGER, separate_cfg=True)),
        pytest.raises(ValueError, match="separate_cfg=false"),
    ):
        call(pipe, guidance_scale=1.0)


def test_inert_is_bitwise_uncached(cache_dit, pipe):
    uncached = call(pipe)
    config = DBCacheConfig(**{**EAGER, "residual_diff_threshold": 0.0})
    with apply(pipe, config), pytest.warns(UserWarning, match="never hit"):
        assert torch.equal(call(pipe), uncached)


def test_without_the_package_the_extra_is_named(pipe, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pcbench\[dbcache\]"):
        DBCacheConfig().for_backbone(anatomy_of(pipe.transformer))


@pytest.mark.parametrize(
    "options",
    [
        {"fn_blocks": 0},
        {"bn_blocks": -1},
        {"residual_diff_threshold": 1.0},
        {"calibrator": "magic"},
        {"taylorseer_order": 0},
        {"dmd_history": 0},
        {"steps_computation_mask": "FFx"},
        {"steps_computation_mask": "rFF"},
        {"steps_computation_policy": "maybe"},
        {"steps_computation_policy": "static"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DBCacheConfig(**options)


def test_a_mask_that_does_not_fit_is_refused_before_the_first_step(cache_dit, pipe):
    for mask, steps, words in (("FFr", 12, "3 letters for 12 steps"), ("fast", 5, "no mask fast for 5 steps")):
        config = DBCacheConfig(**EAGER, steps_computation_mask=mask)
        with apply(pipe, config), pytest.raises(ValueError, match=words):
            call(pipe, steps=steps)
