"""Planned: errors from the Gram matrix are errors measured, the schedule is the best of all, any number of steps."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from methods import PlannedConfig, apply, calibration
from methods.calibration import NotCalibratedError
from methods.engine.anatomy import anatomy_of
from methods.planned import best_schedule, calibrated, errors_by, fingerprint, forecast_errors, gain, plan
from pcbench import cli
from pcbench.calibrate import __main__ as calibrate
from pcbench.config import ConfigError

from .conftest import STEPS, call

LEVELS = (1.0, 0.9, 0.75, 0.6, 0.4, 0.3, 0.1)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Random predictions at LEVELS, and the fingerprint of their calibration, which is that of the test transformer."""
    monkeypatch.setattr(calibration, "FOLDER", tmp_path)
    forecast_errors.cache_clear()
    predictions = torch.randn(len(LEVELS), 50, generator=torch.Generator().manual_seed(0)).cumsum(0).numpy()
    differences = np.diff(predictions.astype(float), axis=0)
    gram = differences @ differences.T / predictions.shape[1]
    data = {"model": "mine", "signature": "wan-2x24", "levels": list(LEVELS)}
    data["gram"] = [row[: n + 1].tolist() for n, row in enumerate(gram)]
    (tmp_path / "planned-mine.json").write_text(json.dumps(data))
    yield predictions, fingerprint(data)
    forecast_errors.cache_clear()


def error(predictions: np.ndarray, levels: tuple[float, ...], k: int, a: int, b: int, damping: float) -> float:
    line = predictions[a].astype(float)
    if a != b:
        slope = (predictions[a] - predictions[b]) / (levels[a] - levels[b])
        line = line + damping * slope * (levels[k] - levels[a])
    return float(np.sqrt(np.mean((predictions[k] - line) ** 2)))


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_errors_follow_from_the_matrix_alone(measured, damping):
    predictions, name = measured
    errors = forecast_errors(name, LEVELS, LEVELS, damping)
    for k, a, b in itertools.product(range(len(LEVELS)), repeat=3):
        if b <= a:
            assert errors[k, a, b] == pytest.approx(error(predictions, LEVELS, k, a, b, damping), rel=1e-4, abs=1e-5)
        else:
            assert errors[k, a, b] == np.inf


def test_between_calibrated_levels_and_beyond_predictions_bend_as_they_do_around():
    """What is a parabola in the level is known everywhere."""
    coefficients = np.random.default_rng(0).standard_normal((3, 50))

    def predicted(levels) -> np.ndarray:
        return np.vander(levels, 3) @ coefficients

    differences = np.diff(predicted(LEVELS), axis=0)
    gram = differences @ differences.T / 50
    known = {"levels": list(LEVELS), "gram": [row[: n + 1].tolist() for n, row in enumerate(gram)]}
    levels = (0.97, 0.95, 0.92, 0.91, 0.5, 0.35, 0.08, 0.05, 0.02)
    errors = errors_by(known, levels, levels, 1.0)
    for k, a, b in itertools.product(range(len(levels)), repeat=3):
        if b <= a:
            found, expected = errors[k, a, b], error(predicted(levels), levels, k, a, b, 1.0)
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert k in (a, b) or found > 1e-4  # reuse costs something, also within one piece


def cost(actions: str, errors: np.ndarray, weights: np.ndarray) -> float:
    total, computed = 0.0, []
    for k, action in enumerate(actions):
        if action == "F":
            computed.append(k)
        else:
            total += weights[k] * errors[k, computed[-1], computed[-2] if len(computed) > 1 else computed[-1]]
    return total


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan", "tiny_opensora", "tiny_cogvideox"])
def test_a_plan_by_fewer_levels_is_nearly_as_good(model, every):
    """In two or three times as many steps as were calibrated, by the errors that a calibration in all of them tells."""
    known = calibrated(model)
    levels, number = known["levels"], len(known["levels"])
    lower = np.array([row + [0.0] * (number - 1 - len(row)) for row in known["gram"]])
    gram, starts = lower + np.tril(lower, -1).T, range(0, number, every)
    summed = np.zeros((len(starts) - 1, number - 1))  # a difference over several levels is the sum of theirs
    for row, start in enumerate(starts[:-1]):
        summed[row, start : start + every] = 1
    coarse = summed @ gram @ summed.T
    few = known | {"levels": levels[::every], "gram": [row[: n + 1].tolist() for n, row in enumerate(coarse)]}
    config, weights = PlannedConfig(steps=number // 2), np.abs(np.diff([*levels, 0.0])) * gain(known, levels)
    by_few, by_all = (
        cost(plan(config, levels, data), errors_by(known, levels, levels, 1.0), weights) for data in (few, known)
    )
    assert by_few < 1.4 * by_all


@pytest.mark.parametrize("steps", range(1, 8))
@pytest.mark.parametrize("forced", [[0], [0, 1], [0, 6], [0, 1, 5, 6]])
def test_the_schedule_is_the_best_of_all(steps, forced):
    number, generator = 7, np.random.default_rng(steps)
    errors, weights = generator.random((number, number, number)), generator.random(number)
    if steps < len(forced):
        with pytest.raises(ValueError, match="protected, more than"):
            best_schedule(errors, weights, steps, forced)
        return
    found = best_schedule(errors, weights, steps, forced)
    assert found.count("F") == steps
    assert all(found[step] == "F" for step in forced)
    every = (
        "".join("F" if step in chosen else "r" for step in range(number))
        for chosen in map(set, itertools.combinations(range(number), steps))
        if chosen.issuperset(forced)
    )
    assert cost(found, errors, weights) == pytest.approx(min(cost(each, errors, weights) for each in every))


@pytest.mark.parametrize("steps", [STEPS, 7])
def test_so_many_steps_are_computed_as_asked_whatever_was_calibrated(pipe, measured, steps):
    config = PlannedConfig(steps=5, protect_last=1)
    with apply(pipe, config) as handle:
        call(pipe, steps=steps)
    actions = [row.action for row in handle.trace.steps]
    assert len(actions) == steps
    assert actions.count("full") == 5
    assert actions[0] == actions[-1] == "full"


@pytest.mark.parametrize("protected", [{"protect_first": STEPS + 3}, {"protect_last": STEPS + 3}])
def test_more_protected_steps_than_there_are_protect_all(pipe, measured, protected):
    config = PlannedConfig(steps=STEPS, calibration=measured[1], **protected)
    with apply(pipe, config) as handle, pytest.warns(UserWarning, match="the cache never hit"):
        call(pipe)
    assert all(row.action == "full" for row in handle.trace.steps)


def test_it_is_planned_for_what_a_reused_step_answers(pipe, measured):
    def planned(**fields) -> str:
        with apply(pipe, PlannedConfig(steps=5, **fields)) as handle:
            call(pipe)
        return "".join(row.action[0] for row in handle.trace.steps)

    plans = {planned(reuse="prediction"), planned(), planned(damping=0.5), planned(reuse="taylorseer")}
    assert len(plans) > 2
    assert planned(damping=0.0) == planned(reuse="prediction")
    assert planned(reuse="second_difference") == planned()
    assert planned(reuse="chebyshev") == planned(reuse="taylorseer")
    assert planned(reuse="hermite", taylor_order=0) == planned(reuse="prediction") == planned(reuse="mean_velocity")


def test_what_cannot_be_planned_is_refused(pipe, measured, tmp_path):
    with pytest.raises(ValueError, match=r"9 computed steps are more than the 7"), apply(pipe, PlannedConfig(steps=9)):
        call(pipe, steps=7)
    with pytest.raises(ValueError, match="no calibration 'abc'"), apply(pipe, PlannedConfig(calibration="abc")):
        pass
    (tmp_path / "planned-mine.json").unlink()
    with pytest.raises(NotCalibratedError, match=r"pcbench.calibrate method=planned"):
        PlannedConfig().for_backbone(anatomy_of(pipe.transformer))
    with pytest.raises(ConfigError, match=r"pcbench.calibrate method=planned model=wan"):
        cli.run_from(["model=wan", "method=planned", "plan=true"])


def test_the_command_measures_what_is_planned_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "FOLDER", tmp_path / "calibrations")
    forecast_errors.cache_clear()
    small = ["model.sampling.steps=6", "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64"]
    words = ["model=tiny_wan", *small, "prompts=training", "prompts.limit=2", f"results={tmp_path}"]
    assert calibrate.main(["method=planned", *words]) == 0
    out = capsys.readouterr().out
    assert "[2/2]" in out
    assert "a line through the last two" in out
    data = json.loads((tmp_path / "calibrations" / "planned-tiny_wan.json").read_text())
    assert len(data["levels"]) == 6
    assert [len(row) for row in data["gram"]] == [1, 2, 3, 4, 5]
    run = cli.run_from(["method=planned", "method.steps=3", *words])
    assert run.recipe.method.calibration == fingerprint(data)
    forecast_errors.cache_clear()


def test_the_plan_of_what_is_not_calibrated_is_that_of_its_calibration(tmp_path, capsys):
    assert cli.main(["model=wan_1_3b", "method=planned", "plan=true", f"results={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "python -m pcbench.calibrate method=planned model=wan_1_3b" in out
    assert "a calibration takes 6 videos without a cache" in out
    assert cli.main(["model=wan_1_3b", "method=planned", f"results={tmp_path}"]) == 2
