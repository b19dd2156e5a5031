"""TaylorSeer and FORA: equal to the official code step by step, the schedule, the differences, the price."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from methods import apply
from methods.taylorseer import ForaConfig, TaylorSeerConfig, _expand
from pcbench.cost.macs import trace_macs

from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "taylorseer.json").read_text())


def schedule(trace) -> str:
    return "".join("F" if row.details["fresh"] else "t" for row in trace.steps)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['family']}-{c['interval']}-{c['max_order']}")
def test_equals_the_official_code(case):
    """Final latents and schedule against the official blocks run on the same weights."""
    family = FAMILIES[case["family"]]
    pipe = family.pipeline()
    config = {name: case[name] for name in ("interval", "max_order", "protect_first")}
    with apply(pipe, TaylorSeerConfig(**config), **family.options) as handle:
        latents = family.call(pipe, steps=case["steps"])
    assert schedule(handle.trace) == case["fresh"]
    official = torch.tensor(case["latents"])
    assert torch.allclose(latents[0, 0, 0, ::2, :4], official, rtol=0, atol=1e-5 * float(latents.abs().max()))
    assert case["change"] > 100e-5  # the cache changes far more than the tolerance


@pytest.mark.parametrize("family", ["hunyuan", "hunyuan_true_cfg"])
def test_equals_diffusers_where_it_means_the_same(family):
    """diffusers' TaylorSeer, held to attention of the double stream, float32 and an interval where schedules agree."""
    from diffusers import TaylorSeerCacheConfig

    @dataclass(kw_only=True)
    class AttentionOnly(TaylorSeerConfig):
        NAME: ClassVar[str] = "attention_only"

        def modules(self, anatomy, transformer):
            return [
                p for p in super().modules(anatomy, transformer) if p.startswith("transformer_blocks.") and "attn" in p
            ]

    kind = FAMILIES[family]
    pipe = kind.pipeline()
    with apply(pipe, AttentionOnly(interval=2), **kind.options) as handle:
        ours = kind.call(pipe, steps=12)
    assert schedule(handle.trace) == "FtFtFtFtFtFt"
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=1,
            max_order=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"transformer_blocks\.\d+\.attn"],
        )
    )
    theirs = kind.call(pipe, steps=12)
    pipe.transformer.disable_cache()
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_line_is_forecast_exactly_and_fora_repeats():
    line = [torch.tensor(3.0), torch.tensor(0.5)]
    assert _expand(line, 4) == 5.0
    assert _expand([*line, torch.tensor(2.0)], 2) == 3 + 0.5 * 2 + 2 * 4 / 2
    assert _expand(line[:1], 4) == 3.0
    video, text = _expand([(torch.ones(2), torch.zeros(1)), (torch.ones(2), torch.ones(1))], 3)
    assert video.tolist() == [4, 4]
    assert text.tolist() == [3]


def test_fora_is_order_zero(pipe):
    from .conftest import call

    with apply(pipe, ForaConfig(interval=3)) as handle:
        fora = call(pipe)
    with apply(pipe, TaylorSeerConfig(interval=3, max_order=0)):
        assert torch.equal(call(pipe), fora)
    assert schedule(handle.trace) == "FttFttFttFtt"


# Of one transformer, over as many steps as are asked for.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("wan_two", "wan_video_to_video")])
def test_every_attention_and_mlp_is_skipped_and_priced(family):
    """A forecast step costs little but norms, embeddings and head; no attention and no MLP runs."""
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    ran = []
    for name, module in pipe.transformer.named_modules():
        if name.startswith(("blocks.", "transformer_blocks.", "single_")) and name.endswith(
            ("attn", "attn1", "attn2", "_attn", "ff", "ffn", "ff_context", "proj_mlp", "proj_out")
        ):
            forward = module.forward
            module.forward = lambda *a, _f=forward, _n=name, **k: (ran.append(_n), _f(*a, **k))[1]
    with apply(pipe, TaylorSeerConfig(interval=4), **kind.options) as handle:
        kind.call(pipe, steps=8)
    rows = handle.trace.steps
    assert schedule(handle.trace) == "FtttFttt"
    assert [row.action for row in rows] == ["full", *["partial"] * 3] * 2
    assert len(ran) == 2 * kind.branches * len(set(ran))
    transformer = pipe.transformer
    arguments = handle.trace.arguments
    costs = [
        trace_macs(type(transformer), transformer.config, {"arguments": arguments, "steps": [step]})
        for step in handle.trace.to_dict()["steps"]
    ]
    assert costs[0] == costs[4]
    little = 0.3 if family == "hunyuan15" else 0.2  # whose glyphs' embedding is 2048 wide in any model
    assert 0 < costs[1] < little * costs[0]


def test_protection_shifts_the_schedule(pipe):
    from .conftest import call

    with apply(pipe, TaylorSeerConfig(interval=4, protect_first=3, protect_last=1)) as handle:
        call(pipe)
    assert schedule(handle.trace) == "FFFtttFtttFF"
    assert [row.indicator for row in handle.trace.steps[:5]] == [None, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: TaylorSeerConfig(interval=0), "interval"),
        (lambda: TaylorSeerConfig(max_order=-1), "max_order"),
        (lambda: ForaConfig(max_order=1), "max_order"),
    ],
)
def test_bad_options_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()
