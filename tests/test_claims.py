"""A claim's answer follows from its interval, and the interval from the prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.figures import measures
from analysis.figures.claims import ABOVE_ZERO, Claim, at_least, over_prompts
from analysis.stats import Interval


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.8, 0.71, 0.9), "yes"),
        ((0.5, 0.4, 0.69), "no"),
        ((0.7, 0.6, 0.8), "undecided"),
        ((0.9, math.nan, 1), "undecided"),
    ],
)
def test_the_answer_is_the_intervals(interval, expected):
    claim = Claim("Q?", "p", "m", Interval(*interval), at_least(0.7), 8)
    assert claim.answer == expected
    assert f"Here: {expected}." in claim.text


def test_no_difference_is_not_better():
    assert Claim("Q?", "p", "m", Interval(0, 0, 0), ABOVE_ZERO, 8).answer == "no"


def test_two_prompts_decide_nothing():
    claim = Claim("Q?", "p", "m", Interval(1, 1, 1), at_least(0.7), 2)
    assert claim.answer == "undecided"
    assert "n = 2 prompts, fewer than the 3 it takes" in claim.text


def test_seeds_of_a_prompt_are_one_cluster():
    found, count = over_prompts([1.0, 3.0, 5.0, math.nan], ["a", "a", "b", "c"])
    assert (found.value, count) == (3.0, 2)
    assert (found.low, found.high) == (2.0, 5.0)


def test_rank_correlation_of_ties_and_gaps():
    a, b = np.array([np.nan, 1, 2, 2, 4]), np.array([9, 1, 3, 3, 8.0])
    assert measures.spearman(a, b) == pytest.approx(1)
    assert measures.spearman(a, -b) == pytest.approx(-1)
    assert measures.spearman(np.array([1, 2, 3, 4.0]), np.array([1, 3, 2, 4.0])) == pytest.approx(0.8)
    assert math.isnan(measures.spearman(a, np.ones(5)))


def test_lines_and_powers():
    x = np.array([1.0, 2, 4, 8])
    assert measures.through_zero(x, 3 * x) == pytest.approx(1)
    assert measures.through_zero(x, np.array([5, 5, 5, 5.1])) < 0
    assert measures.power(x, 2 * x**1.7) == pytest.approx(1.7)
    assert measures.ratio(np.array([2, 8, 0.0]), np.array([1, 1, 1.0])) == pytest.approx(4)
    assert measures.quarters(np.array([np.nan, 4, 4, 1, 1, 1, 1, 1, 8])) == pytest.approx(4.5 / 4)
