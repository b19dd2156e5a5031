"""The oracle: its search finds what exhaustion finds, keeps its number of steps, resumes, and beats where it began."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from pcbench.oracle import __main__ as oracle
from pcbench.oracle.climb import Climb, neighbours

from .test_tune import SMALL


def test_neighbours_move_one_computed_step_and_never_the_first():
    assert sorted(neighbours("FrFr", random.Random(0))) == ["FFrr", "FrrF"]
    for actions in neighbours("FFFrFrrFrrrF", random.Random(0)):
        assert actions.count("F") == 6
        assert actions[0] == "F"
        assert sum(a != b for a, b in zip(actions, "FFFrFrrFrrrF", strict=True)) == 2


@pytest.mark.parametrize("seed", range(10))
def test_the_climb_finds_the_best_of_a_separable_cost(seed):
    draw = random.Random(seed)
    worth = [draw.random() for _ in range(10)]

    def cost(actions: str) -> float:
        return sum(value for value, letter in zip(worth, actions, strict=True) if letter == "r")

    choices = itertools.combinations(range(1, 10), 4)
    best = min(cost("F" + "".join("F" if step in chosen else "r" for step in range(1, 10))) for chosen in choices)
    climb = Climb(cost, {})
    assert cost(climb.find(["FFFFFrrrrr"], 1000)) == pytest.approx(best)
    again = Climb(lambda actions: pytest.fail("it was measured before"), climb.tried)
    assert cost(again.find(["FFFFFrrrrr"], 1000)) == pytest.approx(best)


def test_the_climb_measures_no_more_than_it_may():
    climb = Climb(lambda actions: float(hash(actions) % 97), {})
    climb.find(["F" * 10 + "r" * 10], 17)
    assert len(climb.tried) == 17


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "steps=: give a whole number"),
        (["steps=8"], "give from 2 to 7 of the 8"),
        (["steps=4", "method=uniform"], "it is schedules that are searched"),
        (["steps=4", "reuse=nothing"], "reuse"),
        (["steps=4", "evaluations=0"], "evaluations=0: give a whole number"),
        (["steps=4", "colour=red"], "unknown option"),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_anything_runs(words, message, tmp_path, capsys):
    assert oracle.main([*words, *SMALL, f"results={tmp_path / 'results'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


def test_a_search_beats_where_it_began_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    words = ["steps=4", *SMALL, "prompts.limit=2", f"results={tmp_path}"]
    assert oracle.main([*words, "evaluations=12"]) == 0
    (path,) = (tmp_path / "oracle").glob("tiny_wan-*-extrapolate-4.json")
    rows = json.loads(path.read_text())["schedules"]
    for number in range(2):
        reached = {kind: row["latent_db"][number] for kind, row in rows.items()}
        assert reached["best per prompt"] >= max(reached["uniform"], reached["planned"], reached["planned per prompt"])
        assert rows["best per prompt"]["actions"][number].count("F") == 4
    mean = {kind: sum(row["latent_db"]) for kind, row in rows.items()}
    assert mean["uniform"] <= mean["best for all"] <= mean["best per prompt"]
    tried = json.loads(path.with_suffix(".tried.json").read_text())
    monkeypatch.setattr("pcbench.oracle.best.final_latent", lambda *_: pytest.fail("it was measured before"))
    before = path.read_bytes()
    assert oracle.main([*words, "evaluations=12"]) == 0
    assert (path.read_bytes(), json.loads(path.with_suffix(".tried.json").read_text())) == (before, tried)
    assert "best for all" in capsys.readouterr().out


def test_errors_of_one_recipe_are_not_taken_for_anothers(tmp_path):
    words = ["steps=4", "evaluations=1", *SMALL, "prompts.limit=1", f"results={tmp_path}"]
    paths = {
        oracle.parse([*words, *more]).path
        for more in ([], ["model.sampling.frames=9"], ["model.sampling.guidance_scale=2"])
    }
    assert len(paths) == 3
