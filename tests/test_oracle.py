"""The oracle: its search finds what exhaustion finds, keeps its number of steps, resumes, and beats where it began."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from analysis.searches import searches
from pcbench.job import job_of
from pcbench.oracle import __main__ as oracle
from pcbench.oracle import best, report
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
    assert cost(Climb(cost).find(["FFFFFrrrrr"], 1000)) == pytest.approx(best)


def test_the_climb_measures_no_more_than_it_may():
    climb = Climb(lambda actions: float(hash(actions) % 97))
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
    (path,) = (tmp_path / "oracle").glob("*/tiny_wan-*-extrapolate-4.json")
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


@dataclass
class Guessed:
    """A sample whose errors are random numbers, each schedule's always the same."""

    caller: str
    seen: None
    reuse: str
    tried: dict[str, float]

    def error(self, actions: str) -> float:
        return self.tried.setdefault(actions, random.Random(f"{self.caller} {actions}").uniform(0.001, 1.0))


@pytest.fixture
def guessed(monkeypatch, tmp_path):
    """A search over four samples with guessed errors, 6 of 12 steps, of which every call goes on with one file."""
    caller = SimpleNamespace(of=lambda run, prompt, seed: Callers(f"{seed} {prompt}"))
    monkeypatch.setattr(best, "Caller", caller)
    monkeypatch.setattr(best, "Sample", Guessed)
    monkeypatch.setattr(best.Best, "_starts", lambda *_: {"uniform": "FrFrFrFrFrFr"})
    run = SimpleNamespace(samples=[(f"prompt {number}", 0) for number in range(4)])
    path = tmp_path / "search.tried.json"

    def search(evaluations: int) -> dict[str, list[tuple[str, float]]]:
        return best.Best(run, 6, "extrapolate", path, print).search(evaluations)

    return search, path


class Callers(str):
    def watch(self) -> None:
        return None


def test_a_samples_best_schedule_is_the_best_of_all_that_were_tried_for_it(guessed):
    """The search for all samples together tries more of them, after the sample's own."""
    search, path = guessed
    found = search(20)
    least = [min(tried.values()) for tried in json.loads(path.read_text()).values()]
    assert [error for _, error in found["best per prompt"]] == least
    kinds = zip(*([error for _, error in each] for each in found.values()), strict=True)
    assert all(min(errors) == errors[list(found).index("best per prompt")] for errors in kinds)


def test_the_same_search_finds_the_same_again_whatever_was_tried_before(guessed):
    search, path = guessed
    first = search(20)
    assert search(20) == first
    path.unlink()
    search(5)
    assert search(20) == first


def test_identical_latents_and_videos_have_a_summary(guessed, tmp_path, monkeypatch):
    """Their PSNR and the decibels of their latents are infinite."""
    search, _ = guessed
    monkeypatch.setattr(best, "EVERY", 0.0)
    monkeypatch.setattr(Guessed, "error", lambda self, actions: self.tried.setdefault(actions, 0.0))
    found = search(3)
    run = oracle.parse(["steps=4", *SMALL, "prompts.limit=4", f"results={tmp_path}"]).run
    monkeypatch.setattr(report.stages, "execute", lambda *_: None)
    samples = [{"prompt": prompt, "seed": seed, "fidelity": {report.PSNR: None}} for prompt, seed in run.samples]
    monkeypatch.setattr(report, "read", lambda job: {"samples": samples})
    path = tmp_path / "summary.json"
    lines = list(report.report(run, path, "extrapolate", found))
    assert sum("240.00  every video is identical" in line for line in lines) == 3
    (read,) = searches(tmp_path)
    assert (read.machine, read.reference) == (job_of(run).place.machine, job_of(run).id)
    assert read.samples == tuple(run.samples)


def test_errors_on_one_machine_are_not_taken_for_anothers(tmp_path, monkeypatch):
    question = oracle.parse(["steps=4", *SMALL, f"results={tmp_path}"])
    before = question.path
    monkeypatch.setattr("pcbench.provenance.torch.get_num_threads", lambda: 77)
    assert question.path != before


def test_errors_of_one_recipe_are_not_taken_for_anothers(tmp_path):
    words = ["steps=4", "evaluations=1", *SMALL, "prompts.limit=1", f"results={tmp_path}"]
    paths = {
        oracle.parse([*words, *more]).path
        for more in ([], ["model.sampling.frames=9"], ["model.sampling.guidance_scale=2"])
    }
    assert len(paths) == 3
