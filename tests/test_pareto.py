"""Curves of quality against speed: equal speed, equal quality, and pairs, from records with known numbers."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import figures, pareto
from analysis.load import benches
from analysis.tables import choices, tables
from methods import PreciseCacheConfig

from .analysis_parts import record, write


def bench(tmp_path, seeds=1):
    found = [
        record("uniform", 1.4, 40.0, seeds=seeds, reuse="prediction", steps=36),
        record("uniform", 3.0, 30.0, seeds=seeds, reuse="prediction", steps=17),
        record("uniform", 1.4, 45.0, seeds=seeds, reuse="extrapolate", damping=0.5, steps=36),
        record("uniform", 3.0, 35.0, seeds=seeds, reuse="extrapolate", damping=0.5, steps=17),
        record("teacache", 1.9, 39.0, seeds=seeds, reuse="stack", threshold=0.1, retention_steps=False),
        record("teacache", 2.1, 37.0, seeds=seeds, reuse="stack", threshold=0.2, retention_steps=False),
        record("teacache", 1.8, 33.0, seeds=seeds, reuse="stack", threshold=0.1, retention_steps=True),
    ]
    return benches(write(tmp_path, record("none", seeds=seeds), *found))


def cells(table, block=0):
    return {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.blocks[block].rows}


@pytest.mark.parametrize("seeds", [1, 2])
def test_scores_at_equal_speed(tmp_path, seeds):
    speed, _ = pareto.tables("x", bench(tmp_path, seeds))
    found = cells(speed)
    assert set(found) == {
        "uniform prediction",
        "uniform extrapolate damping 0.5",
        "teacache stack",
        "teacache stack retention steps True",
    }
    assert found["teacache stack"]["at 1.5×"].missing  # no setting that slow: nothing is extrapolated
    between = 39 - 2 * (1 / 1.9 - 1 / 2) / (1 / 1.9 - 1 / 2.1)
    assert found["teacache stack"]["at 2×"].value == pytest.approx(between + 1.5)  # prompt i has i dB more
    apart = found["uniform extrapolate damping 0.5"]["difference at 2×"]
    assert (apart.value, apart.low, apart.high) == pytest.approx((5, 5, 5))
    assert found["uniform prediction"]["difference at 2×"].missing
    assert speed.blocks[0].heading.endswith("PSNR dB at equal MACs, 4 prompts")
    assert len(speed.blocks) == 5  # two metrics, by MACs and by latency; and the worst prompt


def test_the_worst_prompt_at_equal_speed(tmp_path):
    """Prompt i has i dB more, so the worst is 1.5 dB below the mean."""
    speed, _ = pareto.tables("x", bench(tmp_path))
    mean, worst = cells(speed), cells(speed, 4)
    assert speed.blocks[4].heading.endswith("PSNR dB of the worst prompt at equal MACs, 4 prompts")
    for name in ("teacache stack", "uniform prediction"):
        assert worst[name]["at 2×"].value == pytest.approx(mean[name]["at 2×"].value - 1.5)
    assert worst["teacache stack"]["at 1.5×"].missing
    assert worst["uniform extrapolate damping 0.5"]["difference at 2×"].value == pytest.approx(5)
    assert worst["uniform prediction"]["difference at 2×"].missing


def identical_where_gentle(root, prompt, coarse):
    """A line of two settings: the gentle one leaves a video as it is, which has this PSNR at the coarse one."""
    gentle, rough = (
        record("fora", speedup, psnr, reuse="stack", interval=interval)
        for speedup, psnr, interval in ((1.5, 50.0, 2), (3.0, 40.0, 4))
    )
    gentle["samples"][prompt]["fidelity"]["psnr@2"], rough["samples"][prompt]["fidelity"]["psnr@2"] = None, coarse
    (made,) = benches(write(root, record("none"), gentle, rough))
    return made, pareto.curves(made)[0]["fora stack"]


def test_a_prompt_identical_at_the_gentler_setting_may_be_the_worst(tmp_path):
    """Between the settings it is no worse than at the coarser one; elsewhere it is as it is."""
    made, curve = identical_where_gentle(tmp_path, prompt=2, coarse=20.0)
    assert list(pareto.at_least(curve, "psnr@2", 2.0)) == pytest.approx([45.0, 46.0, 20.0, 48.0])
    assert list(pareto.at_least(curve, "psnr@2", 1.5)) == pytest.approx([50.0, 51.0, np.nan, 53.0], nan_ok=True)
    assert list(pareto.at_least(curve, "psnr@2", 3.0)) == pytest.approx([40.0, 41.0, 20.0, 43.0])
    assert np.isnan(pareto.at_least(curve, "psnr@2", 3.1)).all()
    speed, _ = pareto.tables("x", [made])
    (worst,) = [number for number, block in enumerate(speed.blocks) if "worst prompt" in block.heading]
    assert cells(speed, worst)["fora stack"]["at 2×"].value == pytest.approx(20.0)


def test_a_choice_may_gain_least_where_the_usual_one_was_identical(tmp_path):
    usual = [record("precisecache", 1.5, 50.0, reuse="prediction", alpha=0.1)]
    usual.append(record("precisecache", 3.0, 40.0, reuse="prediction", alpha=1.0))
    usual[0]["samples"][1]["fidelity"]["psnr@2"] = None
    other = record("precisecache", 2.0, 46.0, reuse="prediction", alpha=0.7, norm="l2")
    other["samples"][1]["fidelity"]["psnr@2"] = 31.0
    (made,) = benches(write(tmp_path / "ambiguities", record("none"), *usual, other))
    (choice,) = choices.choices(*pareto.curves(made))
    assert choice.lowest_gains["psnr@2"] == pytest.approx(31 - 41)


def test_speed_at_equal_quality(tmp_path):
    _, quality = pareto.tables("x", bench(tmp_path))
    found, level = cells(quality), pareto.qualities(pareto.curves(bench(tmp_path)[0])[0], "psnr@2")[1]
    mine = found["uniform prediction"]["at middle quality"].value
    cost = np.interp(level, [31.5, 41.5], [1 / 3.0, 1 / 1.4])
    assert mine == pytest.approx(1 / cost)
    assert "/ 38 /" in quality.blocks[0].heading
    assert level == 38


def test_the_difference_may_be_to_any_curve(tmp_path):
    speed, _ = pareto.tables("x", bench(tmp_path), "uniform extrapolate damping 0.5")
    assert cells(speed)["uniform prediction"]["difference at 2×"].value == pytest.approx(-5)
    with pytest.raises(ValueError, match="no curve 'magic' in x; there are: teacache"):
        pareto.tables("x", bench(tmp_path), "magic")


def test_prompts_that_not_all_have_are_left_out(tmp_path):
    fewer = record("pab", 1.5, 30.0, spatial_range=2)
    fewer["samples"] = fewer["samples"][1:3]
    write(tmp_path, fewer)
    found, prompts = pareto.curves(bench(tmp_path)[0])
    assert prompts == 2
    assert list(found["uniform prediction"].scores["psnr@2"][0]) in ([41.0, 42.0], [31.0, 32.0])


def test_nothing_to_compare_is_no_table(tmp_path):
    apart = record("pab", 1.5, 30.0, spatial_range=2)
    apart["samples"] = [one | {"prompt": f"other {one['prompt']}"} for one in apart["samples"]]
    write(tmp_path, apart)
    assert pareto.tables("x", bench(tmp_path)) == []  # no prompt in common
    write(tmp_path / "single", record("none"), record("pab", 1.5, 30.0))
    assert pareto.tables("x", benches(tmp_path / "single")) == []  # no method at two settings


def test_a_video_without_a_score_is_left_out_of_the_mean():
    scores = np.array([[30.0, np.nan, 50.0], [np.nan] * 3])
    assert pareto.mean_score(scores)[0] == 40
    assert np.isnan(pareto.mean_score(scores)[1])


def chosen(tmp_path, worse=0.0):
    """LFCache and Flash at several α, and choices beside them: better (but for one prompt), worse, too fast."""
    flash = {"reuse": "prediction", "block_cache_rate": 0.4}
    found = [
        record("precisecache", 1.5, 45.0, reuse="prediction", alpha=0.1),
        record("precisecache", 2.0, 40.0, reuse="prediction", alpha=0.5),
        record("precisecache", 4.0, 30.0, reuse="prediction", alpha=1.0),
        record("precisecache", 3.0, 25.0, **flash, alpha=0.5),
        record("precisecache", 5.0, 20.0, **flash, alpha=1.0),
        record("precisecache", 2.0, 43.0, reuse="prediction", alpha=0.7, norm="l2"),
        record("precisecache", 4.0, 28.0, reuse="prediction", alpha=0.7, accumulate=False),
        record("precisecache", 6.0, 28.0, reuse="prediction", alpha=0.7, max_reused=9),
        record("precisecache", 5.0, 21.0, reuse="prediction", alpha=0.7, block_cache_rate=0.6),
    ]
    found[5]["samples"][2]["fidelity"]["psnr@2"] -= worse
    (made,) = benches(write(tmp_path / "ambiguities", record("none"), *found))
    return made


def test_a_choice_is_read_against_the_usual_ones_at_equal_macs(tmp_path):
    found = {choice.changed: choice for choice in choices.choices(*pareto.curves(chosen(tmp_path)))}
    gains = {name: choice.gains["psnr@2"].value for name, choice in found.items()}
    assert gains == pytest.approx(
        {"norm l2": 3, "accumulate False": -2, "max reused 9": np.nan, "block cache rate 0.6": 1}, nan_ok=True
    )
    assert {name for name, choice in found.items() if "block cache" in choice.usual} == {"block cache rate 0.6"}
    gained = found["norm l2"].gains["psnr@2"]
    assert (gained.low, gained.high) == pytest.approx((3, 3))  # in every prompt
    assert found["norm l2"].lowest_gains["psnr@2"] == pytest.approx(3)
    bench = chosen(tmp_path / "one_prompt_worse", worse=7)
    (choice,) = [each for each in choices.choices(*pareto.curves(bench)) if each.changed == "norm l2"]
    assert choice.lowest_gains["psnr@2"] == pytest.approx(3 - 7)


def test_the_usual_choices_are_the_configs_defaults():
    """They are written out for the sake of tables without torch."""
    usual = pareto.kind_of({"name": "precisecache", "reuse": "prediction"})
    defaults = {
        name: getattr(PreciseCacheConfig(), name) for name in usual.keys() - {"name", "retention_steps", "variant"}
    }
    assert {name: usual[name] for name in defaults} == defaults


def test_choices_have_a_table_and_are_not_drawn_as_one_line(tmp_path):
    chosen(tmp_path)
    made = {table.name: table for table in tables(tmp_path)}
    assert set(made) == {"ambiguities", "ambiguities-choices", "ambiguities-worst"}
    assert cells(made["ambiguities-choices"])["norm l2"]["PSNR dB, gained"].words()[0] == "+3.00"
    drawn, _ = figures.drawings(tmp_path)
    (drawing,) = drawn
    assert drawing.name == "ambiguities-tiny_wan"
    for words in ("Gain, in dB of PSNR: norm l2 3 [3, 3]", "Lose, in dB of PSNR: accumulate False -2", "max reused 9"):
        assert words in drawing.caption


def test_replayed_schedules_are_no_line(tmp_path):
    found = [record("replay", speed, 40.0, reuse="prediction", steps=speed) for speed in (1.5, 2.5)]
    (made,) = benches(write(tmp_path, record("none"), *found, record("teacache", 2.0, 40.0)))
    assert set(pareto.curves(made)[0]) == {"teacache"}


def test_an_older_version_of_a_method_is_another_line_and_says_so(tmp_path):
    """The same fields once meant something else."""
    new = [
        record("precisecache", s, 40.0, alpha=a, reuse="prediction") for s, a in ((1.5, 0.3), (2.0, 0.5), (2.5, 0.7))
    ]
    for data in new:
        data["recipe"]["method"]["version"] = 2
    old = record("precisecache", 3.0, 30.0, alpha=0.9, reuse="prediction")
    write(tmp_path / "methods", record("none"), *new, old)
    (bench,) = benches(tmp_path)
    found, _ = pareto.curves(bench)
    assert {name: len(curve.labels) for name, curve in found.items()} == {
        "precisecache prediction": 3,
        "precisecache prediction version 1": 1,
    }
    assert "precisecache alpha=0.9 version=1" in set(bench.records["label"])


@pytest.mark.parametrize(("speedup", "compared"), [(1.5, True), (2.0, False)])
def test_no_claim_rests_on_where_other_prompts_would_have_no_setting(tmp_path, speedup, compared):
    """As at a budget: the settings' mean cost is the target's, so that half of the resamples lie outside."""
    found = [
        record(method, speed, 40.0, reuse=reuse, steps=round(speed * 10))
        for method, reuse in (("precisecache", "prediction"), ("teacache", "stack"))
        for speed in (speedup, 2.4)
    ]
    for data in found:
        for number, sample in enumerate(data["samples"]):
            sample["macs"] += (number - 1.5) * 1e13
    (made,) = benches(write(tmp_path, record("none"), *found))
    drawing = figures.pareto.pareto(made)
    assert [claim.found.value for claim in drawing.claims] == ([0.0] if compared else [])
    assert ("Not compared" in drawing.caption) is not compared
