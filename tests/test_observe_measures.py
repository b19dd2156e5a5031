"""What is measured of a watched call, against the methods themselves and against a solver's own formula."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from methods import NoCacheConfig, PreciseCacheConfig, ReplayConfig, apply
from pcbench.observe import bound, change, impact, trial
from pcbench.observe.watch import Caller, Seen, compact, rms, stepping

from .conftest import STEPS, call
from .families import FAMILIES, Family

AT = 5
SIZE = (3, 8, 8)


class FamilyCaller(Caller):
    """Calls of a tiny random pipeline."""

    family: Family

    def call(self, method, after_step=None):
        kind = FAMILIES[self.run.family]
        with apply(self.pipe, method, **kind.options), stepping(self.pipe, after_step) as callback:
            return kind.call(self.pipe, **callback)


def caller_of(name: str, method=None, pipe=None) -> FamilyCaller:
    run = SimpleNamespace(family=name, recipe=SimpleNamespace(method=method or NoCacheConfig()))
    return FamilyCaller(pipe or FAMILIES[name].pipeline(), run, 0, {})


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@functools.cache
def watched(family: str) -> tuple[FamilyCaller, Seen]:
    """A family's caller, and its call as it is seen with trials of one size and with blocks: read it only."""
    caller = caller_of(family)
    return caller, caller.watch((size_of(family),), blocks=True)


def size_of(family: str) -> tuple[int, int, int]:
    """Of a trial by 2x2x2."""
    return {"opensora": (3, 6, 6), "hunyuan15": (3, 4, 4)}.get(family, SIZE)


def recorded(seen: Seen, until: int):
    return lambda index, branch: seen.moments[index].predictions[branch] if index < until else None


def test_a_call_begun_in_the_middle_ends_bit_for_bit_where_the_whole_one_does(family):
    caller, seen = watched(family)
    plain = FAMILIES[family].call(FAMILIES[family].pipeline())
    assert len(seen.moments) == len(seen.latents) == STEPS
    assert torch.equal(seen.latents[-1], plain)
    for until in (1, AT, STEPS):
        assert torch.equal(caller.again(recorded(seen, until)), plain)
    assert torch.equal(FAMILIES[family].call(caller.pipe), plain)


def test_the_whole_prediction_reused_is_what_a_replayed_schedule_does(family):
    caller, seen = watched(family)
    actions = "".join("r" if index == AT else "F" for index in range(STEPS))
    with apply(caller.pipe, ReplayConfig(actions=actions), **FAMILIES[family].options):
        replayed = FAMILIES[family].call(caller.pipe)
    again = caller.again(lambda index, branch: impact.reusing(seen, AT, "whole", index, branch))
    assert torch.equal(again, replayed)
    assert not torch.equal(again, seen.latents[-1])


def test_low_and_high_part_make_the_whole(family):
    _, seen = watched(family)
    for branch, current in seen.moments[AT].predictions.items():
        last = seen.moments[AT - 1].predictions[branch]
        low, high = (impact.reusing(seen, AT, name, AT, branch) for name in ("low", "high"))
        torch.testing.assert_close(low + high, last + current)
        torch.testing.assert_close(change.part(low, "low"), change.part(last, "low"), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(low - change.part(low, "low"), change.part(current, "high"), atol=1e-5, rtol=1e-4)
        assert impact.reusing(seen, AT, "low", AT + 1, branch) is None


def test_the_lfd_is_the_one_precisecache_decides_by(family):
    factor, size = (2, 2, 2), size_of(family)
    caller, seen = watched(family)
    found = change.resolution(seen, {"2x2x2": size})["2x2x2"]
    for reference, name in (("previous_trial", "adjacent"), ("cached_output", "literal")):
        method = PreciseCacheConfig(alpha=0.0, downsample_factor=factor, reference=reference)
        with apply(caller.pipe, method, **FAMILIES[family].options) as handle:
            FAMILIES[family].call(caller.pipe)
        assert handle.trace.steps[1].calls[0].size == size
        assert found[name][0] is None
        # Vchitect's guidance scale is another at each step, and PreciseCache guides its first trial by the second's
        first = 2 if (family, name) == ("vchitect", "adjacent") else 1
        assert found[name][first:] == pytest.approx([s.indicator for s in handle.trace.steps[first:]], rel=1e-4)


def test_the_ranking_of_blocks_is_blockcaches(family):
    caller, seen = watched(family)
    rate = 0.5
    method = PreciseCacheConfig(alpha=0.0, downsample_factor=(2, 2, 2), block_cache_rate=rate)
    with apply(caller.pipe, method, **FAMILIES[family].options) as handle:
        FAMILIES[family].call(caller.pipe)
    refresh = next(step for step in handle.trace.steps if step.details.get("blocks") == "refresh")
    for branch, cached in refresh.details["cached_blocks"].items():
        added = {path: of[0] for path, of in seen.moments[refresh.index].blocks[branch].items()}
        assert cached == sorted(sorted(added, key=added.__getitem__)[: round(rate * len(added))])
    found = change.blocks(seen)
    assert len(found["rms"]) == STEPS
    assert len(found["rms"][0]) == len(found["relative"][0]) == len(found["paths"]) == len(added)
    mean = sum(of[found["paths"][0]][1] for of in seen.moments[3].blocks.values()) / len(seen.moments[3].blocks)
    assert found["relative"][3][0] == pytest.approx(mean, rel=1e-4)


def test_parts_are_orthogonal_and_the_low_one_is_the_lfd(pipe):
    seen = caller_of("wan", pipe=pipe).watch()
    found = change.difference(seen)
    whole, low, high = (found[name]["rms"][1:] for name in change.PARTS)
    for w, a, b in zip(whole, low, high, strict=True):
        assert w**2 == pytest.approx(a**2 + b**2, rel=1e-3)
    full = change.resolution(seen, {"1x1x1": (5, 16, 16)})["1x1x1"]
    assert full["adjacent"][1:] == pytest.approx(low, rel=1e-4)
    predictions = seen.predictions()
    assert found["whole"]["relative"][AT] == pytest.approx(
        float((predictions[AT] - predictions[AT - 1]).norm() / predictions[AT - 1].norm()), rel=1e-4
    )


def test_sizes_that_are_not_legal_are_left_out():
    anatomy = caller_of("wan").watch().anatomy
    assert change.sizes(anatomy, (8, 16, 16)) == {
        "2x4x4": (4, 4, 4),
        "1x1x1": (8, 16, 16),
        "1x2x2": (8, 8, 8),
        "1x4x4": (8, 4, 4),
        "1x8x8": (8, 2, 2),
        "4x4x4": (2, 4, 4),
    }
    assert list(change.sizes(anatomy, (2, 8, 8))) == ["2x4x4", "1x1x1", "1x2x2", "1x4x4"]


def test_constants_of_eulers_method_are_its_steps(pipe):
    caller = caller_of("wan", pipe=pipe)
    seen = caller.watch((SIZE,))
    found = bound.constants(caller, seen, SIZE)
    sigmas = pipe.scheduler.sigmas
    steps = (sigmas[:-1] - sigmas[1:]).tolist()
    assert found["step_prediction"] == pytest.approx(steps, rel=1e-3)
    assert found["final_prediction"] == pytest.approx(steps, rel=1e-3)
    assert found["step_latent"][1:] == pytest.approx([1.0] * (STEPS - 1), rel=1e-4)
    factors = found["factors"]
    assert factors["C_Z_trial"] == pytest.approx(STEPS * max(steps) * max(found["c_trial"][1:]), rel=1e-3)
    assert factors["sum_full"] == pytest.approx(factors["c_full"] * factors["sum_final"], rel=1e-3)
    changes, lfds = (change.difference(seen)[name]["rms"][1:] for name in ("whole", "low"))
    assert found["c_full"][1:] == pytest.approx([a / b for a, b in zip(changes, lfds, strict=True)], rel=1e-3)


@pytest.mark.parametrize("name", [*FAMILIES, "wan, UniPC"])
def test_the_sum_over_steps_bounds_any_change_of_the_predictions(name):
    """The solver is affine: this holds for one with a memory too, whose step alone does not tell."""
    if name in FAMILIES:
        caller, seen = watched(name)
    else:
        pipe = FAMILIES["wan"].pipeline()
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        caller = caller_of("wan", pipe=pipe)
        seen = caller.watch()
    found = bound.constants(caller, seen, None)
    assert "c_trial" not in found
    noise = torch.Generator().manual_seed(1)
    like = next(iter(seen.moments[0].predictions.values()))
    pushes = [torch.randn(1, *like.shape[1:], generator=noise) for _ in seen.moments]
    moved = caller.again(lambda index, branch: seen.moments[index].predictions[branch] + pushes[index])
    sizes = [rms(seen.anatomy.as_video(push)) for push in pushes]
    most = sum(weight * size for weight, size in zip(found["final_prediction"], sizes, strict=True))
    assert 0 < rms(moved - seen.latents[-1]) <= most * (1 + 1e-3)
    one = caller.again(
        lambda index, branch: seen.moments[index].predictions[branch] + (pushes[AT] if index == AT else 0.0)
    )
    assert rms(one - seen.latents[-1]) == pytest.approx(found["final_prediction"][AT] * sizes[AT], rel=1e-3)


def test_a_run_with_a_cache_is_watched_doing_what_it_does(pipe):
    method = PreciseCacheConfig(alpha=1.0, downsample_factor=(2, 2, 2), protect_last=2)
    with apply(pipe, method) as handle:
        plain = call(pipe)
    reused = [step.index for step in handle.trace.steps if step.action == "reuse"]
    seen = caller_of("wan", method, pipe).watch()
    assert torch.equal(seen.latents[-1], plain)
    for index in reused:
        for branch, prediction in seen.moments[index].predictions.items():
            assert torch.equal(prediction, seen.moments[index - 1].predictions[branch])
    assert reused


def test_numbers_are_compact_and_what_is_none_is_none():
    assert compact([1.2345678, [None, float("inf")], float("nan"), 0]) == [1.2346, [None, None], None, 0.0]
    assert rms(torch.full((3, 5), -2.0)) == pytest.approx(2.0)


def test_the_map_of_trials_agrees_with_the_measure_of_one_and_with_itself():
    caller = caller_of("wan")
    sizes = {"1x1x1": (3, 16, 16), "1x2x2": (3, 8, 8), "1x4x4": (3, 4, 4)}
    seen = caller.watch(tuple(sizes.values())[1:])
    sizes["1x1x1"] = tuple(seen.predictions()[0].shape[-3:])
    known, found = change.resolution(seen, sizes), trial.settings(caller, seen, sizes)
    assert list(found) == list(sizes)
    for factor in sizes:
        mode = "none" if factor == "1x1x1" else "nearest-exact"
        for kind in ("adjacent", "literal"):
            assert found[factor][mode]["1/5"][kind][1:] == pytest.approx(known[factor][kind][1:], rel=2e-3)
        radii = [found[factor][mode][name]["adjacent"][AT] for name in trial.RADII]
        assert radii == sorted(radii)  # more frequencies, more difference
    plain = [rms(b - a) for a, b in itertools.pairwise(seen.predictions())]
    assert found["1x1x1"]["none"]["all"]["adjacent"][1:] == pytest.approx(plain, rel=2e-3)
    gap = [found[factor]["none" if factor == "1x1x1" else "area"]["all"]["gap"] for factor in sizes]
    assert all(len(series) == len(seen.moments) for series in gap)
    assert set(gap[0]) == {0.0}  # the full size is itself
    assert min(gap[1]) > 0
    operators = [found["1x2x2"][mode]["all"]["adjacent"][AT] for mode in trial.MODES]
    assert len(set(operators)) == len(operators)
