"""AdaCache: equal to the official code step by step; the codebook, the schedule, the motion, every family."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from methods import apply
from methods.adacache import CODEBOOKS, AdaCacheConfig, AdaptiveCaching, Sums
from methods.engine.clock import Clock
from methods.engine.denoiser import Denoiser
from methods.engine.trace import Step
from pcbench.cost.macs import trace_macs

from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "adacache.json").read_text())
BOOK = {0.1: 4, 0.2: 3, 1.0: 1}


def computed(trace) -> str:
    return "".join("F" if row.action == "full" else "r" for row in trace.steps)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_equals_the_official_code(case):
    """Decisions, measures and final latents against the official blocks run on the same weights."""
    config = {**case["config"], "codebook": dict(case["config"]["codebook"])}
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with apply(pipe, AdaCacheConfig(**config)) as handle:
        latents = family.call(pipe, steps=case["steps"])
    assert computed(handle.trace) == case["computed"]
    measured = {
        row.index: row.indicator / row.details.get("moreg", 1.0)
        for row in handle.trace.steps
        if row.indicator is not None
    }
    assert measured == {index: pytest.approx(value, rel=1e-4) for index, value in case["measure"]}
    official = torch.tensor(case["latents"])
    assert torch.allclose(latents[0, 0, 0, ::2, :4], official, rtol=0, atol=1e-5 * float(latents.abs().max()))
    assert case["change"] > 100e-5  # the cache changes far more than the tolerance


def test_the_codebook_is_the_nearest_and_its_last_entry_is_open():
    slow, fast = AdaCacheConfig(), AdaCacheConfig(codebook="fast")
    assert [slow.steps_after(0.05, steps) for steps in (30, 50, 64, 66, 100)] == [3, 3, 3, 8, 8]
    assert [fast.steps_after(d, 30) for d in (0.0, 0.08, 0.2, 0.3, 0.35, 0.5, 7.0)] == [6, 5, 4, 3, 2, 1, 1]
    assert fast.steps_after(0.05, 100) == 6
    assert slow.steps_after(7.0, 100) == 3
    assert slow.steps_after(math.nan, 100) == 1
    assert all(list(book) == sorted(book) for books in CODEBOOKS.values() for book in books.values())


def norms(**of: float) -> Sums:
    return Sums({name: [torch.tensor(value, dtype=torch.float64)] for name, value in of.items()})


def test_the_schedule_by_hand():
    """Measures 0.3, 0.15 (3 steps), 0.05 (4 steps): computed at 0, 1, 2, 5, 9, and protected at the end."""
    rule = AdaptiveCaching(AdaCacheConfig(codebook=BOOK))
    rule.residuals["cond"] = torch.zeros(1)
    measures = {1: 0.3, 2: 0.15, 5: 0.05 * 3, 9: 0.05 * 4}
    seen = []
    for index in range(12):
        denoiser = Denoiser.__new__(Denoiser)
        denoiser.index, denoiser.num_steps, denoiser.must_compute = index, 12, index in (0, 10, 11)
        denoiser.step, denoiser.clock = Step(index), Clock(None)
        if rule.decide(denoiser, denoiser.step):
            seen.append(index)
            if index in measures:
                rule.sums = norms(change=measures[index], before=1.0)
                rule.observe(denoiser, torch.zeros(1))
    assert seen == [0, 1, 2, 5, 9, 10, 11]


def test_motion_by_hand():
    """A residual that does not move is regularised away; the gradient counts in both directions."""
    config = AdaCacheConfig(codebook=BOOK, moreg=True, moreg_steps=(1, 9), moreg_scale=0.5, moreg_power=2, mograd=10)
    rule = AdaptiveCaching(config)
    denoiser = Denoiser.__new__(Denoiser)
    denoiser.num_steps, denoiser.step, denoiser.clock = 12, Step(4), Clock(None)
    rule.last_rate = 2
    rule.sums = norms(change=0.4, before=1.0)  # motion 1/4, (.25 / .5)^2 = 1/4, gradient 10 (1/4 - 1) / 2
    rule.sums.norms |= {("between", 1): [torch.tensor(1.0).double()], ("frames", 1): [torch.tensor(4.0).double()]}
    rule.observe(denoiser, torch.zeros(1))
    assert denoiser.step.details["moreg"] == pytest.approx(0.25 + 3.75)
    assert denoiser.step.indicator == pytest.approx(0.2 * 4.0)
    denoiser.step = Step(9)  # step 10 is beyond the window
    rule.last_moreg = 1.0
    rule.observe(denoiser, torch.zeros(1))
    assert denoiser.step.details["moreg"] == 1.0


def test_the_window_of_motion_is_scaled():
    config = AdaCacheConfig(moreg=True)
    inside = {steps: [i for i in range(1, steps + 1) if config.in_moreg_window(i, steps)] for steps in (30, 60, 100)}
    assert {steps: (at[0], at[-1]) for steps, at in inside.items()} == {30: (4, 26), 60: (8, 52), 100: (10, 90)}


@pytest.mark.parametrize(("block", "moreg"), [(None, False), (0, True)])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "ltx2"])
def test_every_family_measures_and_skips(family, block, moreg):
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    # HunyuanVideo's block 0 has two streams, its middle one
    config = AdaCacheConfig(codebook={5e3: 3, 9e3: 2}, metric_block=block, moreg=moreg)
    with apply(pipe, config, **kind.options) as handle:
        latents = kind.call(pipe, steps=12)
    assert latents.isfinite().all()
    rows = handle.trace.steps
    assert computed(handle.trace)[:2] + computed(handle.trace)[-2:] == "FFFF"
    assert "rr" in computed(handle.trace)
    unmeasured = [row.index for row in rows if (row.indicator is not None) != (row.action == "full")]
    assert len(unmeasured) == (2 if family == "wan_two" else 1)  # the first step of each transformer
    assert all(row.indicator > 0 for row in rows[1:] if row.indicator is not None)
    trace, transformer = handle.trace.to_dict(), pipe.transformer
    price = [trace_macs(type(transformer), transformer.config, {**trace, "steps": [s]}) for s in trace["steps"]]
    assert all(
        cost == price[0] if row.action == "full" else cost < price[0] / 2 for cost, row in zip(price, rows, strict=True)
    )


def test_the_measure_is_of_the_gated_attention(pipe):
    """The Wan residual against what the block really adds to the stream at its self-attention."""
    from .conftest import call

    block, stream, added = pipe.transformer.blocks[1], [], []
    block.register_forward_pre_hook(lambda m, args: stream.append(args[0]))
    block.norm2.register_forward_pre_hook(lambda m, args: added.append(args[0] - stream[-1]))
    with apply(pipe, AdaCacheConfig(codebook={0.0: 1, 1.0: 1})) as handle, pytest.warns(UserWarning, match="never hit"):
        call(pipe, steps=4)
    both = [torch.cat(added[2 * i : 2 * i + 2]) for i in range(4)]
    expected = [(b - a).abs().sum() / a.abs().sum() for a, b in itertools.pairwise(both)]
    assert [row.indicator for row in handle.trace.steps[1:]] == pytest.approx([float(e) for e in expected], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"codebook": "medium"}, "slow, fast"),
        ({"codebook": {0.2: 3, 0.1: 2}}, "rising"),
        ({"codebook": {0.2: 0}}, "at least 1"),
        ({"codebook": {}}, "rising"),
        ({"metric_block": -1}, "metric_block"),
        ({"moreg_strides": ()}, "moreg_strides"),
        ({"moreg_scale": 0.0}, "moreg_scale"),
    ],
)
def test_bad_options_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        AdaCacheConfig(**options)


def test_what_the_model_cannot_do_is_refused(pipe):
    from .conftest import call

    with pytest.raises(ValueError, match="beyond the last of 2 blocks"):
        apply(pipe, AdaCacheConfig(metric_block=2))
    with apply(pipe, AdaCacheConfig(moreg=True, moreg_strides=(1, 5))), pytest.raises(ValueError, match="longer video"):
        call(pipe)
