"""VBench's formula against published totals; the prompt suites; the table of dimensions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcbench.config import ConfigError, Prompts
from pcbench.vbench import formula
from pcbench.vbench.dimensions import DIMENSIONS, GROUPS, VBENCH, expand
from pcbench.vbench.suites import SUITES, prompts_hash, suite_hash, suite_name

ROOT = Path(__file__).parents[1]
PUBLISHED = json.loads((ROOT / "tests" / "golden" / "vbench_published.json").read_text())
ROUNDING = 0.011  # of two decimals in, through the ranges, and of two decimals out


@pytest.mark.parametrize("model", PUBLISHED["models"])
def test_published_totals_follow_from_published_dimensions(model):
    row = PUBLISHED["models"][model]
    raw = {name: value / 100 for name, value in zip(PUBLISHED["dimensions"], row["raw"], strict=True)}
    assert 100 * formula.group(raw, "quality") == pytest.approx(row["quality"], abs=ROUNDING)
    assert 100 * formula.group(raw, "semantic") == pytest.approx(row["semantic"], abs=ROUNDING)
    assert 100 * formula.total(raw, VBENCH) == pytest.approx(row["total"], abs=ROUNDING)


def test_an_incomplete_set_has_no_score_and_says_what_it_lacks():
    raw = dict.fromkeys(DIMENSIONS, 0.5)
    del raw["scene"], raw["color"]
    assert 0 < formula.group(raw, "quality") < 1
    for score in (lambda: formula.group(raw, "semantic"), lambda: formula.total(raw, VBENCH)):
        with pytest.raises(ValueError, match="no score without color, scene"):
            score()
    del raw["dynamic_degree"]
    with pytest.raises(ValueError, match="no score without dynamic_degree"):
        formula.group(raw, "quality")


def test_ends_of_the_ranges_and_the_halved_weight():
    best = {name: dimension.high for name, dimension in DIMENSIONS.items()}
    assert formula.total(best, VBENCH) == pytest.approx(1)
    assert formula.group(best | {"dynamic_degree": 0}, "quality") == pytest.approx(6 / 6.5)
    assert formula.group(best | {"aesthetic_quality": 0}, "quality") == pytest.approx(5.5 / 6.5)
    assert formula.normalised("motion_smoothness", 0.5) < 0  # not clipped
    worst = best | dict.fromkeys(GROUPS["semantic"], 0.0)
    assert formula.total(worst, VBENCH) == pytest.approx((4 + formula.group(worst, "semantic")) / 5)


def test_short_names():
    assert [d.name for d in expand(["vbench2", "all", "i2v_subject"])] == list(DIMENSIONS)
    assert len(expand(["all"])) == 16
    assert len(GROUPS["quality"]) == 7
    assert len(GROUPS["semantic"]) == 9
    assert [d.name for d in expand(["scene", "quality", "scene"])] == [*GROUPS["quality"], "scene"]
    with pytest.raises(ConfigError, match=r"unknown VBench dimension 'temporal_flicker'; did you mean 'temporal_fl"):
        expand(["temporal_flicker"])


def read(name: str) -> list[str]:
    return Prompts(file=f"{name}.txt").read(ROOT / "conf" / "prompts")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vbench", 944),
        ("vbench_quality", 326),
        ("mlperf248", 248),
        ("smoke", 11),
        ("vbench2", 1013),
        ("vbench2_diversity", 10),
    ],
)
def test_suites_are_what_scores_name_them_by(name, count):
    prompts = read(name)
    assert len(prompts) == count
    assert prompts_hash(prompts) == SUITES[name]
    assert suite_name(prompts) == name
    assert suite_name(prompts[:-1]) is None
    assert set(prompts) <= set(read("vbench2" if name.startswith("vbench2") else "vbench"))


def test_vbench2s_names_fit_a_file_and_are_told_apart():
    names = {f"{prompt[:180]}-19.mp4" for prompt in read("vbench2")}
    assert len(names) == 1013
    assert all(len(name.encode()) < 255 and "/" not in name for name in names)


def test_the_whole_list_stands_as_vbench_has_it():
    lines = (ROOT / "conf" / "prompts" / "vbench.txt").read_text().splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert len(entries) == 946
    twice = {prompt for prompt in entries if entries.count(prompt) > 1}
    assert len(twice) == 2
    assert all(len(f"{prompt}-4.mp4".encode()) < 255 and "/" not in prompt for prompt in entries)


def test_a_suite_is_prompts_and_seeds_in_order():
    assert suite_hash(["a", "b"], [0]) == suite_hash(("a", "b"), (0,))
    assert len({suite_hash(p, s) for p, s in ((["a", "b"], [0]), (["b", "a"], [0]), (["a", "b"], [0, 1]))}) == 3
