"""Corrected: planned's expected errors times what the video shows, and the gain, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from methods import CorrectedConfig, apply
from methods.planned import calibrated, errors_by, gain

from .conftest import STEPS, call

MODEL = "tiny_wan"


@pytest.mark.parametrize("gain_power", [0.0, 1.0])
def test_the_decision_is_that_of_the_formula(pipe, gain_power):
    tolerance = 0.02
    with apply(pipe, CorrectedConfig(tolerance=tolerance, calibration=MODEL, gain_power=gain_power)) as handle:
        call(pipe)
    rows, known = handle.trace.steps, calibrated(MODEL)
    assert 0 < handle.trace.reused < STEPS - 3
    corrections: list[float] = []
    for index, row in enumerate(rows):
        corrections += [row.details["correction"]] if "correction" in row.details else []
        if index < 3:
            assert row.action == "full"
            continue
        b, a = [each.sigma for each in rows[:index] if each.action == "full"][-2:]
        levels = (b, a, row.sigma)
        expected = errors_by(known, levels, levels, 1.0)[2, 1, 0]
        assert row.indicator == pytest.approx(max(corrections[-2:]) * expected, rel=1e-6)
        assert (row.action == "reuse") == (row.accumulated < tolerance)
        if rows[index - 1].action == "full":
            following = rows[index + 1].sigma if index + 1 < STEPS else 0.0
            weight = gain(known, [row.sigma])[0] ** gain_power
            assert row.accumulated == pytest.approx(weight * row.indicator * abs(row.sigma - following), rel=1e-6)


def test_a_calibration_is_named_by_its_model_or_its_fingerprint_and_kept_by_fingerprint(pipe):
    with apply(pipe, CorrectedConfig(calibration=MODEL)) as handle:
        fingerprint = handle.method.calibration
    assert fingerprint != MODEL
    assert calibrated(fingerprint) == calibrated(MODEL)
    with pytest.raises(ValueError, match="there is no calibration 'nowhere'"):
        apply(pipe, CorrectedConfig(calibration="nowhere"))


def test_the_gain_is_read_off_between_its_levels_and_is_one_where_none_was_measured():
    known = {"gain": {"levels": [1.0, 0.5, 0.25], "values": [4.0, 1.0, 0.25]}}
    found = gain(known, [1.0, 0.75, 0.5, 0.1])
    assert np.allclose(found, [4.0, 2.0, 1.0, 0.25])
    assert np.allclose(gain({}, [0.9, 0.1]), 1.0)
