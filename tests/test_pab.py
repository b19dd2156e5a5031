"""Pyramid Attention Broadcast: its counter and window, and parity with VideoSys and with diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

from methods import apply
from methods.pab import PABConfig

from .conftest import call
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "pab.json").read_text())["runs"]


def broadcast(handle) -> list[str]:
    return [",".join(step.details["broadcast"]) for step in handle.trace.steps]


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_official_implementation(name):
    run = GOLDEN[name]
    family = FAMILIES[run["family"]]
    pipe = family.pipeline()
    with apply(pipe, PABConfig(**run["settings"])) as handle:
        latents = family.call(pipe, steps=run["steps"])
    assert broadcast(handle) == run["broadcast"]
    expected = torch.tensor(run["output"]["slice"])
    assert torch.allclose(latents[0, 1, 1, ::5, ::5].flatten(), expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().norm()) == pytest.approx(run["output"]["norm"], rel=1e-5)
    assert float(latents.double().mean()) == pytest.approx(run["output"]["mean"], abs=1e-6)


@pytest.mark.parametrize("name", ["cogvideox_2b", "cogvideox_5b", "hunyuan"])
def test_equals_diffusers_where_one_call_is_one_step(name):
    """On Wan diffusers' own shares one counter and one memory between the guidance branches."""
    family = FAMILIES[name]
    theirs, ours = family.pipeline(), family.pipeline()
    theirs.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=3,
            spatial_attention_timestep_skip_range=(100, 850),
            current_timestep_callback=lambda: theirs.current_timestep,
        )
    )
    expected = family.call(theirs, steps=20)
    with apply(ours, PABConfig(spatial_range=3)) as handle:
        assert torch.equal(family.call(ours, steps=20), expected)
    assert handle.trace.partial >= 5


def test_each_kind_has_its_range_and_each_branch_its_memory(pipe):
    """Range 2 for self-, 3 for cross-attention, in all of the schedule; the trace counts what was not run."""
    with apply(pipe, PABConfig(spatial_range=2, cross_range=3, window=(-1, 1001))) as handle:
        ran = {kind: [] for kind in ("attn1", "attn2")}
        for kind, calls in ran.items():
            pipe.transformer.blocks[1].get_submodule(kind).to_q.register_forward_hook(lambda *_, c=calls: c.append(1))
        call(pipe, steps=6)
    assert broadcast(handle) == ["", "cross,self", "cross", "self", "cross", "cross,self"]
    assert len(ran["attn1"]) == 2 * 3
    assert len(ran["attn2"]) == 2 * 2
    for step in handle.trace.steps:
        skipped = {"self": "blocks.*.attn1", "cross": "blocks.*.attn2"}
        expected = {skipped[kind]: 2 for kind in step.details["broadcast"]}
        assert [each.skipped for each in step.calls] == [expected, expected]  # both branches, two blocks


def test_the_window_is_open_and_in_timesteps():
    """CogVideoX's twelve timesteps are 83 apart: 913, 830, ... 83, 0."""
    family = FAMILIES["cogvideox_2b"]
    pipe = family.pipeline()
    timesteps = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: timesteps.append(int(kwargs["timestep"][0])), with_kwargs=True
    )
    family.call(pipe)
    with apply(pipe, PABConfig(spatial_range=2, window=(timesteps[9], timesteps[1]))) as handle:
        family.call(pipe)
    used = [index for index, kinds in enumerate(broadcast(handle)) if kinds]
    assert used == [3, 5, 7]  # neither 1 nor 9: their timesteps are the window's ends


def test_protected_steps_go_on_counting(pipe):
    with apply(pipe, PABConfig(window=(-1, 1001), cross_range=1, protect_first=4, protect_last=1)) as handle:
        call(pipe, steps=8)
    assert broadcast(handle) == ["", "", "", "", "", "self", "", ""]


def test_an_mlp_is_kept_from_its_timestep_on(pipe):
    with apply(pipe, PABConfig(spatial_range=1, cross_range=1, mlp_timesteps=(1000,), mlp_blocks=(1,))) as handle:
        call(pipe, steps=5)
    assert broadcast(handle) == ["", "mlp", "mlp", "", ""]
    assert [step.calls[0].skipped for step in handle.trace.steps[:2]] == [{}, {"blocks.*.ffn": 1}]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("wan", (2, 1, 6, (100, 850), ())),
        ("hunyuan", (2, 1, 1, (100, 850), ())),
        ("cogvideox_5b", (2, 1, 1, (100, 850), ())),
        ("opensora", (2, 4, 6, (450, 930), (676, 788, 864))),
        ("vchitect", (2, 4, 6, (100, 800), ())),
    ],
)
def test_what_is_not_given_becomes_the_value_of_the_backbone(family, expected):
    pipe = FAMILIES[family].pipeline()
    with apply(pipe, PABConfig()) as handle:
        got = handle.method
    assert (got.spatial_range, got.temporal_range, got.cross_range, got.window, got.mlp_timesteps) == expected


@pytest.mark.parametrize(
    ("family", "option", "what"),
    [
        ("wan", "temporal_range", "temporal"),
        ("cogvideox_2b", "cross_range", "cross"),
        ("hunyuan", "cross_range", "cro"),
    ],
)
def test_a_range_for_what_the_family_lacks_is_refused(family, option, what):
    with pytest.raises(ValueError, match=f"has no {what}.*{option}"):
        apply(FAMILIES[family].pipeline(), PABConfig(**{option: 4}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spatial_range": 0}, "spatial_range must be at least 1"),
        ({"window": (850, 100)}, "the lower first"),
        ({"window": (850,)}, "two timesteps"),
        ({"mlp_skip_count": 0}, "mlp_skip_count must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PABConfig(**options)
