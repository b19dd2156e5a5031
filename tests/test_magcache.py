"""MagCache against its official forwards, its error model by hand, and where its ratios come from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from methods import apply, magcache
from methods.calibration import NotCalibratedError
from methods.engine.anatomy import anatomy_of
from methods.engine.anatomy.hunyuan import HunyuanVideoAnatomy
from methods.engine.anatomy.wan import WanAnatomy
from methods.magcache import MagCache, MagCacheConfig, nearest, official

from .conftest import STEPS
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "magcache.json").read_text())["cases"]


@pytest.fixture
def decisions(monkeypatch) -> list[str]:
    """One letter for each decision: F to compute, r to reuse."""
    made: list[str] = []
    decide = MagCache.decide

    def spy(self, denoiser, step):
        compute = decide(self, denoiser, step)
        made.append("F" if compute else "r")
        return compute

    monkeypatch.setattr(MagCache, "decide", spy)
    return made


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['ratio_set']}-{g['threshold']}-{g['max_skip']}")
def test_parity_with_the_official_code(golden, decisions):
    family = FAMILIES[golden["family"]]
    pipe = family.pipeline()
    settings = {name: golden[name] for name in ("ratio_set", "threshold", "max_skip")}
    with apply(pipe, MagCacheConfig(**settings)) as handle:
        latents = family.call(pipe, steps=golden["steps"])
    assert "".join(decisions) == golden["calls"]
    assert 4 <= handle.trace.reused <= golden["steps"] - 6
    by_branch = (golden["accumulated"][n :: family.branches] for n in range(family.branches))
    for step, *errors in zip(handle.trace.steps[:-1], *by_branch, strict=False):  # official code clears the last
        if step.action == "reuse":
            assert list(step.details["accumulated"].values()) == pytest.approx(errors, rel=1e-9)
    expected = torch.tensor(golden["latents"]["every_41st"])
    torch.testing.assert_close(latents.flatten()[::41], expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().abs().mean()) == pytest.approx(golden["latents"]["absmean"], rel=1e-5)


def run(decisions, steps=STEPS, name="hunyuan", **options) -> tuple[str, list]:
    family = FAMILIES[name]
    pipe = family.pipeline()
    with apply(pipe, MagCacheConfig(**options), **family.options) as handle:
        family.call(pipe, steps=steps)
    return "".join(decisions), handle.trace.steps


def test_errors_add_up_and_the_ratio_compounds(decisions):
    ratios = {"all": [1.0] * 3 + [0.9] * 9}
    made, steps = run(decisions, ratios=ratios, threshold=0.4, max_skip=9, protect_first=3)
    # 0.1, + 0.19 = 0.29, + 0.271 = 0.561: two steps in a row
    assert made == "FFF" + "rrF" * 3
    assert [step.accumulated for step in steps[3:6]] == pytest.approx([0.1, 0.29, 0.561])
    assert [step.indicator for step in steps[3:6]] == pytest.approx([0.1, 0.19, 0.271])
    assert steps[2].accumulated is None


def test_no_more_than_k_steps_in_a_row(decisions):
    made, _ = run(decisions, ratios={"all": [1.0] * 12}, threshold=0.1, max_skip=3, protect_first=1)
    assert made == "FrrrFrrrFrrr"


def test_an_error_equal_to_the_threshold_computes(decisions):
    made, _ = run(decisions, ratios={"all": [1.0, 0.5, 1.0] * 4}, threshold=0.5, max_skip=9, protect_first=1)
    assert made.startswith("FF")


def test_growth_counts_as_much_as_decay_unless_signed(decisions):
    growing = {"all": [1.0] + [1.1] * 11}
    made, _ = run(decisions, ratios=growing, threshold=0.2, max_skip=4, protect_first=1)
    assert made == "FrF" + "rF" * 4 + "r"
    decisions.clear()
    made, _ = run(decisions, ratios=growing, threshold=0.2, max_skip=4, protect_first=1, signed=True)
    assert made == "FrrrrFrrrrFr"


def test_the_root_of_the_ratios_reuses_longer(decisions):
    ratios = {"all": [1.0] + [0.81] * 11}
    made, _ = run(decisions, ratios=ratios, threshold=0.3, max_skip=9, protect_first=1, ratio_power=0.5)
    assert made == "F" + "rrF" * 3 + "rr"  # as with 0.9: 0.1, 0.29


def test_branches_decide_apart_on_wan(decisions):
    ratios = {"cond": [1.0] * 12, "uncond": [0.5] * 12}
    made, steps = run(decisions, name="wan", ratios=ratios, threshold=0.2, max_skip=20, protect_first=1)
    assert made == "FF" + "rF" * 11
    assert [step.action for step in steps] == ["full"] + ["partial"] * 11
    assert steps[5].details["accumulated"] == pytest.approx({"cond": 0.0, "uncond": 0.5})


def test_a_share_of_the_steps_is_protected_by_default(decisions):
    made, _ = run(decisions, steps=20, ratios={"all": [1.0] * 20}, threshold=0.1, max_skip=99)
    assert made == "FFFF" + "r" * 16


@pytest.mark.parametrize(("length", "total"), [(50, 50), (50, 30), (50, 12), (40, 57), (5, 2), (7, 1), (1, 4)])
def test_interpolation_is_to_the_nearest(length, total):
    row = list(np.random.default_rng(0).random(length))
    places = np.round(np.arange(total) * ((length - 1) / max(total - 1, 1))).astype(int)
    expected = [row[-1]] if total == 1 else [row[place] for place in places]
    assert [nearest(row, index, total) for index in range(total)] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_works_with_given_ratios(name, decisions):
    family = FAMILIES[name]
    made, steps = run(decisions, name=name, ratio_set="wan2.1-t2v-1.3b")
    assert len(made) == family.branches * STEPS
    assert "r" in made
    names = {"cond", "uncond", "cond_uncond", "pred_cond", "pred_uncond"}
    assert steps[3].details["accumulated"].keys() <= names


def anatomy(kind, family, layers, heads, width, channels):
    config = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width, "in_channels": channels}
    return kind(family, (1, 2, 2), config)


@pytest.mark.parametrize(
    ("backbone", "name", "threshold", "max_skip"),
    [
        ((WanAnatomy, "wan", 30, 12, 128, 16), "wan2.1-t2v-1.3b", 0.12, 2),
        ((WanAnatomy, "wan", 40, 40, 128, 16), "wan2.1-t2v-14b", 0.12, 2),
        ((WanAnatomy, "wan", 40, 40, 128, 36), "wan2.1-i2v-14b-720p", 0.12, 2),
        ((HunyuanVideoAnatomy, "hunyuanvideo", 20, 24, 128, 16), "hunyuanvideo-720p", 0.24, 6),
    ],
)
def test_a_published_backbone_gets_its_official_numbers(backbone, name, threshold, max_skip):
    filled = MagCacheConfig().for_backbone(anatomy(*backbone))
    assert filled.ratios == official()[name]["ratios"]
    assert (filled.threshold, filled.max_skip, filled.reuse, filled.protect_first) == (
        threshold,
        max_skip,
        "stack",
        0.2,
    )
    assert filled.for_backbone(anatomy(*backbone)) == filled


def test_a_named_set_wins_and_stays_named():
    hunyuan = anatomy(HunyuanVideoAnatomy, "hunyuanvideo", 20, 24, 128, 16)
    filled = MagCacheConfig(ratio_set="hunyuanvideo-544p").for_backbone(hunyuan)
    assert filled.ratios == official()["hunyuanvideo-544p"]["ratios"]
    assert filled.for_backbone(hunyuan) == filled


def test_the_official_sets_are_whole():
    steps = {name: {branch: len(row) for branch, row in each["ratios"].items()} for name, each in official().items()}
    assert steps == {
        "wan2.1-t2v-14b": {"cond": 50, "uncond": 50},
        "wan2.1-t2v-1.3b": {"cond": 50, "uncond": 50},
        "wan2.1-i2v-14b-720p": {"cond": 40, "uncond": 40},
        "wan2.1-i2v-14b-480p": {"cond": 40, "uncond": 40},
        "hunyuanvideo-720p": {"all": 50},
        "hunyuanvideo-544p": {"all": 50},
        "open-sora-1.2": {"all": 30},
    }
    assert all(row[0] == 1.0 for each in official().values() for row in each["ratios"].values())


def test_an_unknown_backbone_needs_a_calibration(tmp_path, monkeypatch):
    from methods import calibration

    monkeypatch.setattr(calibration, "FOLDER", tmp_path)
    tiny = anatomy_of(FAMILIES["cogvideox_2b"].pipeline().transformer)
    with pytest.raises(NotCalibratedError, match=r"magcache has no published numbers for cogvideox-2x32.*calibrate"):
        MagCacheConfig().for_backbone(tiny)
    data = {"signature": "cogvideox-2x32", "model": "mine", "ratios": {"all": [1.0, 0.9]}}
    (tmp_path / "magcache-mine.json").write_text(json.dumps(data))
    filled = MagCacheConfig().for_backbone(tiny)
    assert MagCacheConfig().for_backbone(replace(tiny, model="mine")) == filled
    with pytest.raises(NotCalibratedError, match=r"for yours .* \(there are some of mine, with other"):
        MagCacheConfig().for_backbone(replace(tiny, model="yours"))
    assert filled.ratios == {"all": [1.0, 0.9]}
    assert (filled.threshold, filled.max_skip) == (0.12, 2)


def test_the_number_of_steps_must_be_known():
    pipe = FAMILIES["wan"].pipeline()
    config = MagCacheConfig(ratios={"all": [1.0, 0.9]}, protect_first=1)
    call = torch.randn(1, 4, 5, 16, 16), torch.tensor([900]), torch.randn(1, 8, 16)
    with apply(pipe, config), pytest.raises(ValueError, match="how many steps"):
        pipe.transformer(*call)


def test_nothing_cached_yet_computes(decisions):
    made, steps = run(decisions, ratios={"all": [1.0] * 12}, threshold=0.1, max_skip=2, protect_first=0)
    assert made == "F" + "rrF" * 3 + "rr"
    assert steps[0].action == "full"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -0.1}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"max_skip": -1}, "max_skip must be"),
        ({"ratio_set": "wan"}, r"ratio_set must be one of wan2\.1-t2v-14b"),
        ({"ratios": {"cond": [1.0]}}, 'for "all" or for "cond" and "uncond"'),
        ({"ratios": {}}, 'for "all" or'),
        ({"ratios": {"all": []}}, "lists of finite numbers"),
        ({"ratios": {"all": [1.0, math.nan]}}, "finite number"),
        ({"ratios": {"all": [1.0, 0.0]}}, "lists of finite numbers"),
        ({"ratios": {"all": [1.0]}, "ratio_set": "hunyuanvideo-720p"}, "either ratios or ratio_set"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        MagCacheConfig(**options)


def test_the_sets_are_not_handed_out_to_be_changed():
    filled = MagCacheConfig(ratio_set="hunyuanvideo-720p").for_backbone(
        anatomy(HunyuanVideoAnatomy, "hunyuanvideo", 20, 24, 128, 16)
    )
    assert filled.ratios is not None
    filled.ratios["all"].append(0.0)
    assert len(magcache.official()["hunyuanvideo-720p"]["ratios"]["all"]) == 50
