"""Searched schedules: LeMiCa's path and BudCache's search against every path and mask, and where they come from."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods import ReplayConfig, apply
from methods import calibration as calibrations
from methods.calibration import NotCalibratedError, signature
from methods.engine.anatomy import anatomy_for, anatomy_of
from methods.engine.reuse import STRATEGIES
from methods.searched import PUBLISHED, SearchedConfig, edges, path
from pcbench.calibrate import __main__ as calibrate
from pcbench.calibrate import search as searching
from pcbench.calibrate.search import Sample, Search
from pcbench.config import ConfigError

from .conftest import STEPS
from .families import FAMILIES
from .test_observe_measures import caller_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "searched.json").read_text())["cases"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['source']}-{g['actions']}")
def test_parity_with_the_official_code(golden):
    family, actions = FAMILIES["wan"], golden["actions"]
    pipe = family.pipeline()
    with apply(pipe, SearchedConfig(actions=actions)) as handle:
        latents = family.call(pipe, steps=len(actions))
    made = "".join("r" if step.action == "reuse" else "F" for step in handle.trace.steps)
    assert "".join(letter * 2 for letter in made) == golden["calls"]
    expected = torch.tensor(golden["latents"]["every_41st"])
    torch.testing.assert_close(latents.flatten()[::41], expected, rtol=1e-5, atol=1e-5)
    if golden["source"] == "budcache":
        kept = max(1, int(actions.count("F") * 0.3))
        near = searching.neighbours(actions, kept, 4000, random.Random(0))
        assert len(near) == golden["exchanges"]
        assert {searching.swapped(actions, kept, random.Random(seed)) for seed in range(2000)} <= set(near)


@pytest.mark.parametrize("steps", [3, 4, 5, 12])
@pytest.mark.parametrize("words", [[], ["search.longest=2"], ["search.longest=2", "search.start=lemica"]])
def test_what_is_searched_of_few_steps_can_be_described(words, steps, monkeypatch):
    """After the work is done, nothing may fail that could be known before."""
    words = [*words, "search.iterations=2", "search.rounds=1"]
    search = Search.of(words, steps)
    sample = Sample(SimpleNamespace(pipe=None), [None] * steps, torch.ones(2))
    monkeypatch.setattr(Sample, "of", lambda caller: sample)
    monkeypatch.setattr(Sample, "difference", lambda self, actions, reuse: torch.full((2,), float(actions.count("r"))))
    data = searching.measure([None], search, lambda line: None) | {"steps": steps}
    lines = searching.describe(data)
    assert len(lines) == 2 * len(search.budgets_of(steps)) or words[0] == "search.longest=2"
    assert all(line.partition(": ")[2].startswith("F") for line in lines)


def steps_of(actions: str) -> list[int]:
    return [step for step, letter in enumerate(actions) if letter == "F"]


def costs_of(errors: np.ndarray, nodes) -> tuple[float, ...]:
    return tuple(sorted((errors[a, c] for a, c in itertools.pairwise(nodes)), reverse=True))


@pytest.mark.parametrize(("number", "budget"), [(9, 4), (10, 6), (8, 3), (11, 5), (7, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_lexicographically_least_of_all(number, budget, seed):
    """With few distinct errors, so that the second worst decides often."""
    rng = np.random.default_rng(seed)
    errors = np.triu(rng.integers(1, 4, (number, number)).astype(float), 2)
    errors[np.tril_indices(number)] = np.inf
    for a in range(number):
        errors[a, a + 5 :] = np.inf
    every = ((0, *middle, number - 1) for middle in itertools.combinations(range(1, number - 1), budget - 2))
    least = min(costs_of(errors, nodes) for nodes in every)
    actions = path(errors, budget)
    assert costs_of(errors, steps_of(actions)) == least
    assert actions.count("F") == budget
    assert len(actions) == number


def test_a_budget_without_a_path_is_refused():
    errors = edges({"starts": [0, 5], "lengths": [2, 3], "errors": [[0.1, 0.2], [0.1, 0.2]]}, 10)
    assert path(errors, 4) == "FrrFrrFrrF"
    for budget in (1, 3, 11):
        with pytest.raises(ValueError, match=f"schedules of 4 to 10 computed steps here, none of {budget}"):
            path(errors, budget)


def test_edges_between_measured_ones_lie_on_a_power_law():
    law = lambda a, length: 0.01 * 0.9**a * length**1.5  # noqa: E731
    starts, lengths = [0, 1, 4, 8], [2, 4, 6]
    rows = [[law(a, length) if a + length < 10 else None for length in lengths] for a in starts]
    errors = edges({"starts": starts, "lengths": lengths, "errors": rows}, 10)
    for a, c in itertools.product(range(10), range(10)):
        if c == a + 1:
            assert errors[a, c] == 0
        elif a + 2 <= c <= a + 6 and (a <= 1 or (a <= 4 and c <= a + 4)):
            assert errors[a, c] == pytest.approx(law(a, c - a))
        elif not a + 2 <= c <= a + 6:
            assert np.isinf(errors[a, c])


@pytest.mark.parametrize(("model", "wanted"), [("wan-30x1536", 30), ("wan-40x5120", 40)])
def test_published_schedules_are_wans(model, wanted):
    heads = int(model.partition("x")[2]) // 128
    config = {"num_layers": wanted, "num_attention_heads": heads, "attention_head_dim": 128}
    kind = type(FAMILIES["wan"].pipeline().transformer)
    anatomy = anatomy_for(kind, config)
    for steps, actions in PUBLISHED[model].items():
        assert len(actions) == 50
        assert actions.count("F") == steps
        filled = SearchedConfig(steps=steps).for_backbone(anatomy)
        assert filled.schedule() == actions
        assert filled.for_backbone(anatomy) == filled
        with pytest.raises(NotCalibratedError):  # image to video has other channels, and schedules of its own
            SearchedConfig(steps=steps).for_backbone(
                anatomy_for(kind, {**config, "in_channels": 36, "out_channels": 16})
            )
    for other in (SearchedConfig(steps=22), SearchedConfig(steps=20, objective="budcache")):
        with pytest.raises(NotCalibratedError, match="calibrate method=searched"):
            other.for_backbone(anatomy)


@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox_2b", "opensora"])
@pytest.mark.parametrize("reuse", STRATEGIES)
def test_a_schedule_is_followed_as_replay_does(name, reuse):
    family, actions = FAMILIES[name], "FFFrFrrFrrrF"
    pipe = family.pipeline()
    with apply(pipe, SearchedConfig(actions=actions, reuse=reuse), **family.options) as handle:
        latents = family.call(pipe)
    assert "".join("r" if step.action == "reuse" else "F" for step in handle.trace.steps) == actions
    with apply(pipe, ReplayConfig(actions=actions, reuse=reuse), **family.options):
        assert torch.equal(family.call(pipe), latents)


def test_protected_steps_come_on_top():
    pipe = FAMILIES["wan"].pipeline()
    with apply(pipe, SearchedConfig(actions="Frrrrrrrrrrr", protect_first=3, protect_last=1)) as handle:
        FAMILIES["wan"].call(pipe)
    assert [step.action for step in handle.trace.steps] == ["full"] * 3 + ["reuse"] * 8 + ["full"]


def test_edges_are_errors_of_one_stretch_alone():
    caller = caller_of("wan")
    samples = [Sample.of(caller), Sample.of(caller_of("wan"))]
    found = searching.graph(samples, "stack", Search(stride=4, longest=5), lambda _: None)
    assert (found["starts"], found["lengths"]) == ([0, 1, 2, 4, 8], [2, 3, 5])
    uncached = FAMILIES["wan"].call(caller.pipe)
    for start, row in zip(found["starts"], found["errors"], strict=True):
        for length, error in zip(found["lengths"], row, strict=True):
            if start + length >= STEPS:
                assert error is None
                continue
            letters = ["r" if start < step < start + length else "F" for step in range(STEPS)]
            with apply(caller.pipe, ReplayConfig(actions="".join(letters), reuse="stack")):
                latent = FAMILIES["wan"].call(caller.pipe)
            assert error == pytest.approx(float((latent - uncached).abs().mean() / uncached.abs().mean()), rel=1e-3)


def test_annealing_and_climbing_find_the_best_mask_and_keep_its_beginning():
    weights = np.random.default_rng(1).random(10)
    cost = lambda actions: sum(w for w, letter in zip(weights, actions, strict=True) if letter == "r")  # noqa: E731
    search = Search(iterations=200, rounds=5, neighbours=20)
    found = searching.anneal(cost, 10, 5, None, search, random.Random(0))
    masks = (
        "".join("F" if i in {0, *more} else "r" for i in range(10)) for more in itertools.combinations(range(1, 10), 4)
    )
    assert found["mse"] == pytest.approx(min(cost(mask) for mask in masks))
    assert found["mse"] == pytest.approx(cost(found["actions"]))
    assert 1 + 200 + 5 * 10 < found["runs"] <= 1 + 200 + 5 * 20
    kept = searching.anneal(cost, 10, 7, None, search, random.Random(0))["actions"]
    assert kept.startswith("FF")
    assert kept.count("F") == 7


def test_neighbours_are_one_exchange_away():
    actions = "FFFrrFrrrrFrFrrr"
    found = searching.neighbours(actions, 2, 12, random.Random(0))
    assert len(set(found)) == len(found) == 12
    for each in found:
        changed = [i for i, (old, new) in enumerate(zip(actions, each, strict=True)) if old != new]
        assert len(changed) == 2
        assert min(changed) >= 2
        assert each.count("F") == actions.count("F")
    assert searching.neighbours("FFrr", 2, 5, random.Random(0)) == []


def test_a_search_begun_at_lemicas_schedule_is_never_worse():
    callers = [caller_of("wan")]
    search = Search(budgets=[6], start="lemica", stride=4, longest=4, iterations=6, rounds=1, neighbours=4)
    found = searching.measure(callers, search, lambda _: None)["searches"]["stack"]
    one = found["budcache"]["6"]
    first = path(edges(found["lemica"], STEPS), 6)
    error = Sample.of(callers[0]).difference
    assert one["first_mse"] == pytest.approx(float(error(first, "stack").square().mean()), rel=1e-4)
    assert one["mse"] == pytest.approx(float(error(one["actions"], "stack").square().mean()), rel=1e-4)
    assert one["mse"] <= one["first_mse"]


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """A calibration made by the command on a random Wan transformer."""
    pipe = FAMILIES["wan"].pipeline()
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path / "calibrations")
    monkeypatch.setattr(calibrate.backbones, "load", lambda recipe, device, offload: pipe)
    monkeypatch.setattr(calibrate.Caller, "of", lambda run, prompt, seed: caller_of("wan", pipe=pipe))
    words = ["method=searched", f"model.sampling.steps={STEPS}", "prompts.limit=1", f"results={tmp_path}"]
    words += ["search.budgets=[6]", "search.reuse=[stack,extrapolate]", "search.stride=5", "search.longest=4"]
    assert calibrate.main([*words, "search.iterations=3", "search.rounds=1", "search.neighbours=2"]) == 0
    return pipe, json.loads((tmp_path / "calibrations" / "searched-tiny_wan.json").read_text())


def test_the_command_writes_what_the_method_reads(calibrated):
    pipe, data = calibrated
    assert any(line.startswith("extrapolate, budcache 6: F") for line in searching.describe(data))
    assert data["search"]["iterations"] == 3
    anatomy = anatomy_of(pipe.transformer)
    for reuse, searched_with in (("stack", "stack"), ("extrapolate", "extrapolate"), ("prediction", "stack")):
        search = data["searches"][searched_with]
        found = SearchedConfig(steps=6, objective="budcache", reuse=reuse).for_backbone(anatomy)
        assert found.schedule() == search["budcache"]["6"]["actions"]
        assert found.for_backbone(anatomy) == found
        for steps in (4, 6, 9):
            config = SearchedConfig(steps=steps, reuse=reuse).for_backbone(anatomy)
            assert config.schedule() == path(edges(search["lemica"], STEPS), steps)
            assert replace(SearchedConfig(steps=7, reuse=reuse).for_backbone(anatomy), steps=steps) == config  # as tune
    with apply(pipe, SearchedConfig(steps=6)) as handle:
        FAMILIES["wan"].call(pipe)
    assert (handle.trace.computed, handle.trace.reused) == (6, STEPS - 6)
    with pytest.raises(ValueError, match=r"schedules of 6 steps .* not of 5: .*search\.budgets=\[5\]"):
        SearchedConfig(steps=5, objective="budcache").for_backbone(anatomy)
    with (
        apply(pipe, SearchedConfig(steps=6)),
        pytest.raises(ValueError, match=r"of 12 steps, not of 9: calibrate with"),
    ):
        FAMILIES["wan"].call(pipe, steps=9)


def test_an_objective_that_was_not_searched_is_named(tmp_path, monkeypatch):
    pipe = FAMILIES["wan"].pipeline()
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    data = {"signature": signature(anatomy_of(pipe.transformer)), "model": "a", "steps": STEPS}
    data["searches"] = {"extrapolate": {"lemica": None, "budcache": {"6": {"actions": "FrFrFrFrFrFr"}}}}
    (tmp_path / "searched-a.json").write_text(json.dumps(data))
    found = SearchedConfig(steps=6, objective="budcache").for_backbone(anatomy_of(pipe.transformer))
    assert found.schedule() == "FrFrFrFrFrFr"
    with pytest.raises(ValueError, match="lemica has schedules of no steps for a"):
        SearchedConfig(steps=6).for_backbone(anatomy_of(pipe.transformer))
    with pytest.raises(ValueError, match=r"there is no calibration 'b', but [0-9a-f]{12}, wan-30x1536"):
        SearchedConfig(calibration="b").for_backbone(anatomy_of(pipe.transformer))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.budgets=[1]", "search.budgets holds 1: give numbers from 2 to 49"),
        ("search.budgets=[50]", "search.budgets holds 50"),
        ("search.budgets=25", "search.budgets cannot be '25'"),
        ("search.reuse=[nothing]", "search.reuse cannot be 'nothing'"),
        ("search.reuse=[]", "search.reuse is empty"),
        ("search.objectives=[golden]", "search.objectives cannot be 'golden'"),
        ("search.start=best", "search.start cannot be 'best'"),
        ("search.iterations=-1", "search.iterations must be"),
        ("search.iterations=true", "search.iterations cannot be 'True'"),
        ("search.itterations=3", "did you mean 'iterations'"),
        ("search.budgets=[", "cannot read"),
    ],
)
def test_mistakes_in_a_search_are_one_line_and_exit_code_2(word, message, capsys):
    assert calibrate.main(["method=searched", word]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    with pytest.raises(ConfigError, match="an option of method=searched alone"):
        calibrate.parse(["method=magcache", word])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"objective": "best"}, "objective must be one of lemica, budcache"),
        ({"actions": "rF"}, "begin with F"),
        ({"reuse": "all"}, "reuse must be one of"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        SearchedConfig(**options)
