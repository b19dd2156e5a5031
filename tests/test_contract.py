"""The contract every method gets for free, over every preset in conf/method and every transformer family.

A preset that refuses a family must say why in one line; anything else must keep the whole contract. The matrix is
printed at the end of the test run. Settings come from the method's own `EAGER` (reuses within a dozen steps on random
weights) and `INERT` (never reuses), those for twelve steps cut to the nine that are generated here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods import Cache, apply
from methods.engine.anatomy import anatomy_of
from methods.engine.reuse import STRATEGIES
from pcbench.cost.macs import trace_macs

from .conftest import MATRIX
from .contract_parts import (
    DISTINCT,
    PRESETS,
    REFUSED,
    SHORT,
    STEPS,
    STEPWISE,
    Outcome,
    distinct,
    fewer,
    outcome,
    shortened,
    state_of,
    uncached,
    untouched,
    working,
)
from .families import SMALL as FAMILIES

# What a transformer's call takes beside latent, timestep and text.
MASK = torch.ones(1, 8, dtype=torch.bool)
EXTRA: dict[str, dict[str, torch.Tensor]] = {
    "HunyuanVideoTransformer3DModel": {
        "pooled_projections": torch.ones(1, 8),
        "encoder_attention_mask": MASK,
        "guidance": torch.tensor([6000.0]),
    },
    "HunyuanVideo15Transformer3DModel": {
        "encoder_attention_mask": MASK,
        "encoder_hidden_states_2": torch.ones(1, 8, 8),
        "encoder_attention_mask_2": MASK,
        "image_embeds": torch.zeros(1, 1, 8),
    },
    "VchitectTransformer3DModel": {"pooled_projections": torch.ones(1, 8)},
}


WORKING = pytest.mark.parametrize(("preset", "family"), working())
BOTH_BRANCHES = [name for name, kind in FAMILIES.items() if kind.branches == 2]
HAVE_INERT = {name: method for name, method in DISTINCT.items() if method.INERT is not None}
INERT = distinct({name: dataclasses.replace(each, **shortened(each.INERT)) for name, each in HAVE_INERT.items()})
# On Wan all, on the other families one of each kind.
DECISIONS = [*working(STEPWISE, ["wan"]), *working(["uniform", "precisecache"], sorted({*FAMILIES} - {"wan"}))]


@pytest.fixture
def ran(preset: str, family: str) -> Outcome:
    result = outcome(preset, family)
    if isinstance(result, str):
        pytest.skip(f"refused: {result}")
    return result


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_works_or_is_refused_with_a_reason(preset, family):
    result = outcome(preset, family)
    refused = isinstance(result, str)
    MATRIX.setdefault(preset, {})[family] = f"refused: {result}" if refused else "works"
    if PRESETS[preset].NAME == "dbcache" and importlib.util.find_spec("cache_dit") is None:
        pytest.skip("refused: cache-dit is not installed")
    assert refused == (family in REFUSED.get(preset, set())), result if refused else "works, but REFUSED says otherwise"
    if refused:
        assert len(result) > 20
        assert "\n" not in result
    elif PRESETS[preset].EXPECTS_REUSE:
        assert result.trace.reused + result.trace.partial > 0, "silently does nothing"
        assert not torch.equal(result.latents, result.uncached)


@WORKING
def test_two_calls_equal_two_fresh_ones_and_detached_the_model_is_bitwise_what_it_was(ran):
    weights = {name: value.clone() for name, value in ran.pipe.transformer.state_dict().items()}
    state = state_of(ran.pipe)
    with apply(ran.pipe, ran.method, **ran.family.options) as handle:
        other = ran.family.call(ran.pipe, prompt=1, seed=5, steps=fewer(ran.method))
        after_other = ran.family.call(ran.pipe)
    assert state_of(ran.pipe) == state
    assert all(torch.equal(weights[name], value) for name, value in ran.pipe.transformer.state_dict().items())
    assert torch.equal(ran.family.call(ran.pipe, steps=SHORT), untouched(ran.family.name, SHORT))
    assert len(handle.traces) == 2
    assert torch.equal(after_other, ran.latents)  # which were a fresh handle's
    assert not torch.equal(other, ran.latents)


@WORKING
def test_another_pipeline_of_the_transformer_is_answered_as_itself(ran):
    """It is the calling pipeline that tells guidance, scheduler and steps; what was applied to says nothing of use."""
    names = {"boundary_ratio", "expand_timesteps"} & ran.pipe.config.keys()
    of_its_own = {name: ran.pipe.config[name] for name in names}
    other = type(ran.pipe)(**ran.pipe.components, **of_its_own)
    other.set_progress_bar_config(disable=True)
    before = {name: getattr(ran.pipe, name, None) for name in ("_guidance_scale", "_num_timesteps")}
    ran.pipe._guidance_scale, ran.pipe._num_timesteps = 1.0, 3
    try:
        with apply(ran.pipe, ran.method, **ran.family.options) as handle:
            # a scale given by hand, or a number of steps, was for the other one
            if ran.family.options or ran.method.NAME == "fewer_steps":
                with pytest.raises(ValueError, match="apply the method to the one that is called"):
                    ran.family.call(other)
                return
            assert torch.equal(ran.family.call(other), ran.latents)
    finally:
        vars(ran.pipe).update(before)
    assert [row.action for row in handle.trace.steps] == [row.action for row in ran.trace.steps]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", INERT)
def test_inert_is_bitwise_uncached(preset, family):
    inert, pipe = INERT[preset], uncached(family)[0]
    steps = shortened(inert.INERT).get("steps", fewer(inert))
    try:
        handle = apply(pipe, inert, **FAMILIES[family].options)
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    with handle, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latents = FAMILIES[family].call(pipe, steps=steps)
    assert torch.equal(latents, untouched(family, steps))
    assert any("never hit" in str(warning.message) for warning in caught) == inert.EXPECTS_REUSE


@WORKING
def test_one_row_a_step_that_prices_the_counted_macs(ran):
    steps = 6 if ran.method.NAME == "fewer_steps" else STEPS
    assert [row.index for row in ran.trace.steps] == list(range(steps))
    transformer = ran.pipe.transformer
    assert trace_macs(type(transformer), transformer.config, ran.trace) == pytest.approx(ran.macs, rel=1e-3)
    assert all(row.action in ("full", "partial", "reuse") for row in ran.trace.steps)


@pytest.mark.parametrize(
    ("preset", "family"), working(name for name, method in DISTINCT.items() if isinstance(method, Cache))
)
def test_protected_steps_are_computed(ran):
    method = dataclasses.replace(ran.method, protect_first=5, protect_last=2)
    with warnings.catch_warnings(), apply(ran.pipe, method, **ran.family.options) as handle:
        warnings.simplefilter("ignore")
        ran.family.call(ran.pipe, steps=fewer(method))
    actions = [row.action for row in handle.trace.steps]
    assert actions[:5] + actions[-2:] == ["full"] * 7


@pytest.mark.parametrize(
    ("preset", "family"),
    # which shortens a pipeline's call, and this is none
    working((name for name, method in DISTINCT.items() if method.NAME != "fewer_steps"), BOTH_BRANCHES),
)
def test_branches_are_isolated(ran):
    """What the conditional branch is answered does not depend on the unconditional prompt, decisions apart."""

    def answers(negative: float) -> tuple[list[torch.Tensor], list[str]]:
        transformer, generator = ran.pipe.transformer, torch.Generator().manual_seed(3)
        latents = torch.randn(steps, 1, 4, 5, 8, 10, generator=generator).cumsum(0)
        text, seen = torch.randn(1, 8, 16, generator=generator), []
        extra, behind = EXTRA.get(type(transformer).__name__, {}), transformer.config.in_channels - 4
        ran.pipe._guidance_scale, ran.pipe._num_timesteps = 4.0, steps
        ran.pipe.scheduler.set_timesteps(steps)
        with warnings.catch_warnings(), torch.no_grad(), apply(ran.pipe, method, **ran.family.options) as handle:
            warnings.simplefilter("ignore")
            for index in range(steps):
                at = {"step_index": index, "num_inference_steps": steps, "sigma": 1 - index / steps}
                timestep = torch.tensor([1000.0 * (1 - index / steps)])
                for name, words in (("cond", text), ("uncond", torch.full_like(text, negative))):
                    with transformer.cache_context(name, **at):
                        hidden = F.pad(latents[index], (0, 0, 0, 0, 0, 0, 0, behind))
                        out = transformer(hidden, timestep, words, return_dict=False, **extra)[0]
                    if name == "cond":
                        seen.append(out)
        return seen, [row.action for row in handle.trace.steps]

    method, steps = ran.method, fewer(ran.method)
    if hasattr(method, "guidance"):
        method = dataclasses.replace(method, guidance="cond")
    if hasattr(method, "block_sets"):
        method = dataclasses.replace(method, block_sets="apart")
    (a, actions), (b, others) = answers(0.0), answers(0.1)
    assert actions == others
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("reuse", STRATEGIES)
@pytest.mark.parametrize(("preset", "family"), DECISIONS)
def test_every_reuse_strategy_works_with_every_decision(preset, reuse, family):
    try:
        method = dataclasses.replace(STEPWISE[preset], reuse=reuse, damping=0.5)
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    pipe, steps = uncached(family)[0], fewer(method)
    with warnings.catch_warnings(), apply(pipe, method, **FAMILIES[family].options) as handle:
        warnings.simplefilter("ignore")
        latents = FAMILIES[family].call(pipe, steps=steps)
    assert handle.trace.reused > 0
    assert latents.isfinite().all()
    assert not torch.equal(latents, untouched(family, steps))


@pytest.fixture(scope="module")
def compiled():
    """Of a family's name a pipeline with compiled blocks. To trace them takes seconds, so each is traced once, and
    for each size of the latent by itself: to trace for all sizes takes thrice as long. Nor is garbage collected after
    each, or the speed of its guards measured. After all methods it does without a cache what it did before."""
    pipes: dict[str, Any] = {}

    def pipeline(family: str) -> Any:
        if family not in pipes:
            pipe = pipes[family] = FAMILIES[family].pipeline()
            for block in anatomy_of(pipe.transformer).blocks(pipe.transformer):
                block.module.compile(backend="eager")
        return pipes[family]

    config = {"fail_on_recompile_limit_hit": True, "automatic_dynamic_shapes": False, "run_gc_after_compile": False}
    with torch._dynamo.config.patch(recompile_limit=1000, **config), pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *args: 0.0, raising=False)
        yield pipeline
        for family, pipe in pipes.items():
            assert torch.allclose(FAMILIES[family].call(pipe), uncached(family)[1], atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("preset", "family"), working(families=["wan", "hunyuan", "cogvideox_5b", "opensora", "vchitect"])
)
def test_compiled_blocks_behave(ran, compiled):
    """Decisions and pixels are the same with blocks that were compiled before."""
    pipe = compiled(ran.family.name)
    with apply(pipe, ran.method, **ran.family.options) as handle:
        latents = ran.family.call(pipe)
    assert [row.action for row in handle.trace.steps] == [row.action for row in ran.trace.steps]
    assert torch.allclose(latents, ran.latents, atol=1e-5)


@pytest.mark.parametrize(("preset", "family"), working(families=["wan"]))
def test_offload_comes_after_the_cache(preset, family):
    """accelerate would drop a hook registered after its own at the end of a video: refused, with the way out."""
    accelerate = pytest.importorskip("accelerate")
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    accelerate.hooks.add_hook_to_module(pipe.transformer, accelerate.hooks.ModelHook())
    with pytest.raises(ValueError, match="apply the cache first"):
        apply(pipe, PRESETS[preset])
    accelerate.hooks.remove_hook_from_module(pipe.transformer)
    with apply(pipe, PRESETS[preset]) as handle:
        accelerate.hooks.add_hook_to_module(pipe.transformer, accelerate.hooks.ModelHook())
        for _ in range(2):
            latents = kind.call(pipe)
        assert len(handle.traces) == 2
        accelerate.hooks.remove_hook_from_module(pipe.transformer)
    assert torch.equal(latents, outcome(preset, family).latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_all_methods_the_model_is_what_it_was(family):
    pipe, before = uncached(family)
    assert torch.equal(FAMILIES[family].call(pipe), before)
