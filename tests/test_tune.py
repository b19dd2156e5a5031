"""Tuning: the search hits its target with few evaluations, or says what is reachable; its preset is a method."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace

import pytest
import yaml

from pcbench import cli, compose
from pcbench import target as targets
from pcbench.calibrate import __main__ as calibrate
from pcbench.config import ConfigError
from pcbench.cost.dry_run import rehearse
from pcbench.store import records
from pcbench.tune import __main__ as tune
from pcbench.tune.budget import Budgets
from pcbench.tune.evidence import Bench, search_on
from pcbench.tune.search import MOST, Search, UnreachableError

from .contract_parts import CLASSES, PRESETS

SMALL = [
    "model.sampling.steps=8", "model.sampling.frames=5", "model.sampling.height=32", "model.sampling.width=32",
    "prompts=training",
]  # fmt: skip


@pytest.mark.parametrize("start", [1e-4, 0.3, 50.0])
@pytest.mark.parametrize("rises", [True, False])
def test_a_smooth_measure_is_hit_within_a_percent(start, rises):
    measured = []

    def measure(value: float) -> float:
        measured.append(value)
        share = value / (value + 0.2)
        return 1 + 3 * (share if rises else 1 - share)

    search = Search(measure, 1e-5, 100.0, rises)
    value = search.find(2.5, start)
    assert search.tried[value] == pytest.approx(2.5, rel=0.01)
    assert len(measured) == len(set(measured)) <= 16


@pytest.mark.parametrize("target", range(1, 51))
def test_whole_values_are_hit_exactly(target):
    search = Search(lambda value: 50 / value, 1, 50, rises=False, values=range(1, 51))
    value = search.find(50 / target, 25)
    assert search.tried[value] == pytest.approx(50 / target, rel=0.01)
    assert len(search.tried) <= 12


@pytest.mark.parametrize("start", [14, 17, 25, 40])
@pytest.mark.parametrize(("target", "found"), [(14, 14), (16, 17), (20, 20), (22, 20), (30, 25), (40, 40)])
def test_only_what_the_method_accepts_is_tried(start, target, found):
    values = (14.0, 17.0, 20.0, 25.0, 40.0)
    search = Search(lambda value: 50 / value, 14, 40, rises=False, values=values)
    assert search.find(50 / target, start) == found
    assert set(search.tried) <= set(values)


@pytest.mark.parametrize("target", [10, 50])
def test_the_reachable_range_is_that_of_what_the_method_accepts(target):
    search = Search(lambda value: 50 / value, 14, 40, rises=False, values=(14.0, 20.0, 40.0))
    with pytest.raises(UnreachableError, match=r"from 1\.25 to 3\.571 is"):
        search.find(50 / target, 20)


@pytest.mark.parametrize("preset", [name for name, method in PRESETS.items() if method.TRADEOFF is not None])
def test_a_method_accepts_all_that_is_searched(preset):
    """From one end of the range to the other, in a dozen steps."""
    tradeoff = PRESETS[preset].TRADEOFF
    for limit in tradeoff.limits(12):
        changed = replace(PRESETS[preset], **{tradeoff.field: limit})
        assert getattr(changed, tradeoff.field) == limit


PROTECTED = ["method.protect_first=6", "method.protect_last=3"]
WHOLE = [name for name, method in CLASSES.items() if method.TRADEOFF is not None and method.TRADEOFF.whole]


@pytest.mark.parametrize("protection", [[], PROTECTED], ids=["plain", "protected"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_setting_that_is_searched_can_be_rehearsed(name, protection, tmp_path):
    words = [f"method={name}", "model=tiny_wan", "prompts=smoke", f"results={tmp_path}"]
    words += protection if hasattr(CLASSES[name], "protect_first") else []
    if name != "searched":  # whose schedules are of 50 steps
        words += ["model.sampling.steps=20", *(["method.steps=10"] if hasattr(CLASSES[name], "steps") else [])]
    run = compose.run_from(words)
    bench = Bench(run, targets.parse("2x"), run.prompts, print, print)
    assert len(bench.values) > 1
    assert bench.limits == (bench.values[0], bench.values[-1])
    for value in {*bench.values[:10], *bench.values[-2:]}:
        rehearse(bench.with_setting(value).recipe)


def test_what_a_method_refuses_is_out_of_reach_in_one_line(tmp_path, capsys):
    words = ["method=planned", *PROTECTED, "method.steps=10", "model.sampling.steps=12", *SMALL[1:], "prompts.limit=2"]
    assert tune.main([*words, "target=8x", f"results={tmp_path}"]) == 2
    assert "cannot be reached by planned" in (said := capsys.readouterr().err)
    assert "to 1.333 is reachable" in said


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_no_setting_is_measured_twice_on_the_same_few_prompts(prompts, tmp_path, monkeypatch):
    run = compose.run_from(["method=teacache", "model=tiny_wan", "prompts=training", f"results={tmp_path}"])
    bench = Bench(run, targets.parse("2x"), run.prompts[:prompts], lambda line: None, print)
    asked = []
    monkeypatch.setattr(bench, "measure", lambda value, on: (asked.append((value, len(on))) or 1 + value, 0.1))
    assert search_on(bench).find(2.0, 0.1) == pytest.approx(1.0, rel=0.02)
    assert len(asked) == len(set(asked))
    assert (prompts > 2) == any(on > 2 for _, on in asked)


def test_steps_in_a_measure_give_the_nearest():
    search = Search(lambda value: float(math.floor(value * 10)), 0.01, 10.0, rises=True)
    assert search.tried[search.find(7.4, 0.1)] == 7


@pytest.mark.parametrize("seed", range(20))
def test_a_measure_with_noise_is_hit_as_closely_as_the_noise_allows(seed):
    draw = random.Random(seed)
    search = Search(lambda value: (1 + 3 * value / (value + 0.2)) * draw.uniform(0.97, 1.03), 1e-5, 100.0, rises=True)
    value = search.find(2.5, draw.choice([1e-4, 0.2, 50.0]))
    assert 1 + 3 * value / (value + 0.2) == pytest.approx(2.5, rel=0.05)
    assert len(search.tried) <= MOST + 2


def test_what_is_close_is_measured_better_before_it_is_taken():
    asked: list[float] = []

    def exact(value: float) -> float:
        asked.append(value)
        return 1 + value

    search = Search(lambda value: (1 + value) * 1.1, 1e-3, 100.0, rises=True, confirm=exact)
    value = search.find(2.5, 0.5)
    assert value in asked
    assert 1 + value == pytest.approx(2.5, rel=0.01)


def test_a_jump_of_few_prompts_is_not_narrowed():
    """Two prompts may change by four steps at once where sixteen change one by one."""
    few: list[float] = []

    def jump(value: float) -> float:
        few.append(value)
        return 1.8 if value < 0.57 else 2.2

    search = Search(jump, 1e-3, 100.0, rises=True, confirm=lambda value: 1.8 + 4 * max(0, value - 0.56))
    value = search.find(2.0, 0.2)
    assert search.tried[value] == pytest.approx(2.0, rel=0.01)
    assert value == pytest.approx(0.61, rel=0.01)
    assert len(few) <= 5


def test_a_plateau_is_left_in_one_stride():
    search = Search(lambda value: min(1 + value, 1.2), 1e-5, 100.0, rises=True)
    with pytest.raises(UnreachableError, match=r"from 1 to 1\.2 is"):
        search.find(2.0, 0.5)
    assert len(search.tried) == 4


@pytest.mark.parametrize(("target", "rises"), [(5.0, True), (0.5, True), (5.0, False)])
def test_what_is_out_of_reach_is_refused_with_the_range(target, rises):
    search = Search(lambda value: 1 + (value if rises else 1 - value), 0.001, 1.0, rises)
    with pytest.raises(UnreachableError, match=r"from 1\.001 to 2 is|from 1 to 1\.999 is"):
        search.find(target, 0.1)


@pytest.mark.parametrize("start", [0.01, 0.9, 1.5, 20.0])
def test_less_than_a_psnr_will_not_do_however_close_it_is(start):
    """At 2 % below, or at a jump right below the target."""
    search = Search(lambda value: 60 - value, 1e-3, 60.0, rises=False, at_least=True)
    value = search.find(45.0, start)
    assert 45 <= search.tried[value] <= 45 * 1.01
    jump = Search(lambda value: 60.0 if value < 1 else 44.9, 1e-3, 60.0, rises=False, at_least=True)
    assert jump.tried[jump.find(45.0, start)] == 60
    most = Search(lambda value: 44.9 - value, 1e-3, 30.0, rises=False, at_least=True)
    with pytest.raises(UnreachableError, match=r"from 14\.9 to 44\.9 is reachable"):
        most.find(45.0, start)


def test_of_what_is_no_good_the_nearest_is_still_the_nearest():
    """For a budget out of reach."""
    search = Search(float, 1.0, 9.0, rises=True, at_least=True, tried={2.0: 44.0, 3.0: 43.0})
    assert search.best(45.0) == 2.0
    search.tried[4.0] = 50.0
    assert search.best(45.0) == 4.0


def sample(prompt: str, macs: float, computed: int, psnr: float | None) -> dict:
    return {"prompt": prompt, "macs": macs, "computed": computed, "fidelity": {targets.PSNR: psnr}}


def test_seeds_of_a_prompt_are_no_further_prompts():
    """Ten videos of each prompt that are alike tell no more than one of each."""
    one = [sample("a", 2, 20, 40.0), sample("b", 4, 24, 44.0), sample("c", 3, 25, None)]
    for text in ("2x", "25steps"):
        target = targets.parse(text)
        assert target.error(one * 10, 10.0) == pytest.approx(target.error(one, 10.0))
    assert targets.safe_psnr(one * 10, 10.0) == pytest.approx(targets.safe_psnr(one, 10.0)) == 42 - 1.96 * 2
    assert targets.safe_psnr(one[:1] * 10, 10.0) == 40
    assert targets.parse("2x").error(one[:1] * 10, 10.0) == float("inf")


def test_targets():
    samples = [sample(prompt, 2, 20, 40.0) for prompt in "abc"] + [sample("d", 4, 24, 44.0)]
    for text, measured in {"2x": 4.0, "25steps": 21.0, "45 dB": 41 - 1.96 * 2 / 2}.items():
        assert targets.parse(text).measure(samples, 10.0) == pytest.approx(measured)
    for text in ("", "2", "x2", "0x", "-1x", "2X", "nanx"):
        with pytest.raises(ConfigError, match="give a speedup"):
            targets.parse(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=none", "target=2x"], "no single field"),
        (["method=replay", "method.actions=FFrFrrFF", "target=2x"], "no single field"),
        (["method=uniform"], "say what to tune to"),
        (["method=uniform", "target=2x", "target=3x"], "say what to tune to"),
        (["method=uniform", "method.steps=2", "target=2x", "prompts.limit=1"], "two prompts"),
        (["-m", "method=uniform,pab", "target=2x"], "no option here"),
        (["method=nowhere.yaml", "target=2x"], "no preset of a method"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_before_anything_runs(words, message, tmp_path, capsys):
    assert tune.main([*words, *SMALL, f"results={tmp_path / 'results'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


def test_a_preset_of_another_recipe_is_not_overwritten(tmp_path):
    """Of another size, or with another payload, tuned to the same target; tuned once more it keeps its name."""
    words = ["method=uniform", "method.steps=2", "target=2x", "prompts.limit=2", f"results={tmp_path}", *SMALL]
    variants = [[], ["model.sampling.frames=9"], ["method.reuse=residual"]]
    for _ in range(2):
        for more in variants:
            assert tune.main([*words, *more]) == 0
    found = sorted(path.name for path in (tmp_path / "presets").iterdir())
    assert len(found) == len(variants)
    assert found[-1] == "uniform-tiny_wan-2x.yaml"


@pytest.mark.parametrize("command", [tune, calibrate])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("methods.calibration.FOLDER", tmp_path / "file" / "calibrations")
    (tmp_path / "file").write_text("")
    words = ["method=uniform", "method.steps=2", "target=2x"] if command is tune else ["method=magcache"]
    assert command.main([*words, *SMALL, f"results={tmp_path / 'file' / 'results'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_method_is_tuned_checked_resumed_and_used(tmp_path, capsys):
    words = ["method=uniform", "method.steps=2", "method.reuse=extrapolate", *SMALL, "prompts.limit=3"]
    words.append(f"results={tmp_path}")
    assert tune.main([*words, "target=2x"]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "presets" / "uniform-tiny_wan-2x.yaml"
    assert yaml.safe_load(path.read_text()) == {"defaults": ["_uniform", "_self_"], "reuse": "extrapolate", "steps": 4}
    assert "2.000 ± 0.000x on the 2 prompts tuned on, 2.000x on 1 others" in out
    before = {each: os.stat(each).st_mtime_ns for each in tmp_path.rglob("*.safetensors")}
    assert tune.main([*words, "target=2x"]) == 0  # nothing is made again
    assert before == {each: os.stat(each).st_mtime_ns for each in tmp_path.rglob("*.safetensors")}
    run = cli.run_from([f"method={path}", *SMALL, "method.damping=0.5"])
    assert (run.recipe.method.steps, run.recipe.method.reuse, run.recipe.method.damping) == (4, "extrapolate", 0.5)
    assert tune.main([*words, "target=9x"]) == 2
    assert "cannot be reached by uniform" in capsys.readouterr().err


def test_runs_with_a_budget_are_tuned_first_and_resumed(tmp_path, capsys):
    words = ["-m", "method=uniform,pab", "budget=1.5x,2x", *SMALL, "prompts.limit=2", "stages=[generate]"]
    words.append(f"results={tmp_path}")
    assert cli.main([*words, "plan=true"]) == 0
    assert "set to 2x first" in capsys.readouterr().out
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    speedups = {record["recipe"]["method"]["name"]: record["macs"]["speedup"] for record in records(tmp_path)}
    steps = [record["recipe"]["method"].get("steps") for record in records(tmp_path)]
    assert sorted(filter(None, steps)) == [4, 5]  # of 8; one record of pab, which reaches neither budget
    assert out.count("out of reach, the nearest setting instead: tiny_wan pab: ") == 2
    assert 1.1 < speedups["pab"] < 1.5
    before = {each: os.stat(each).st_mtime_ns for each in tmp_path.rglob("*.safetensors")}
    assert cli.main(words) == 0
    assert before == {each: os.stat(each).st_mtime_ns for each in tmp_path.rglob("*.safetensors")}


@pytest.mark.parametrize("words", [["method=replay", "method.actions=FFrFrrFF"], ["method=none"]])
def test_a_method_without_a_tradeoff_has_no_budget(words, tmp_path, capsys):
    assert cli.main([*words, "budget=2x", *SMALL, f"results={tmp_path / 'results'}"]) == 2
    assert "no single field" in capsys.readouterr().err
    assert cli.main(["method=uniform", "budget=2", *SMALL, f"results={tmp_path / 'results'}"]) == 2
    assert "give a speedup" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "numbers", [{"teacache": "coefficients=[1.0,0.0]"}, {"magcache": "ratios={all:[1.0,0.9,0.9]}"}]
)
def test_numbers_given_by_hand_are_in_the_preset(numbers, tmp_path, monkeypatch):
    """Where the method has none of its own for the backbone."""
    monkeypatch.setattr("methods.calibration.FOLDER", tmp_path)
    ((name, given),) = numbers.items()
    words = ["model=tiny_wan", f"method={name}", f"method.{given}", f"results={tmp_path}", "model.sampling.steps=3"]
    recipe = compose.run_from(words).recipe
    found = tune.differences(recipe.method, tune.plain_of(recipe.method, tune.anatomy_of(recipe.backbone)))
    assert given.partition("=")[0] in found


def test_prompts_sorted_by_kind_are_in_both_halves():
    assert tune.halves(["dog 1", "dog 2", "cat 1", "cat 2", "owl"]) == (["dog 1", "cat 1", "owl"], ["dog 2", "cat 2"])


@pytest.mark.parametrize(
    ("error", "prompts", "needed"),
    [(0.0, 8, None), (float("inf"), 8, None), (0.01, 8, None), (0.04, 8, "tune on 62 prompts"), (0.02, 16, "on 31")],
)
def test_more_prompts_are_asked_for_where_others_could_differ(error, prompts, needed):
    lines = tune.too_few(targets.parse("2x"), (2.0, error), prompts)
    assert (lines == []) if needed is None else needed in lines[0]


def test_runs_without_a_budget_are_all_carried_out(tmp_path):
    """A sweep's runs may differ in nothing but where they go and what is done with their samples."""
    run = compose.run_from([*SMALL, "method=uniform", "method.steps=4", f"results={tmp_path}"])
    changes = {
        "results": tmp_path / "other", "stages": ("generate",), "fidelity": ("videosys",), "offload": "group",
        "observe": ("difference",), "fps": 8, "label": "another",
    }  # fmt: skip
    runs = [run, *(replace(run, **{name: value}) for name, value in changes.items()), run]
    budgets = Budgets(pytest.fail)
    assert budgets.settle(runs) == runs
    tuned = [replace(run, budget="2x", label=label) for label in ("one", "other")]
    budgets._settled = lambda run: replace(run, budget=None, label=f"{run.label} tuned")
    assert budgets.settle([*runs, *tuned]) == runs  # it is there already
    elsewhere = [replace(each, results=tmp_path / "third") for each in tuned]
    assert [each.label for each in budgets.settle(elsewhere)] == ["one tuned"]
