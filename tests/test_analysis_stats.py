"""Intervals, interpolation and fronts against numbers reckoned by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.stats import at_quality, at_speedup, bootstrap, mean_interval, weights, worst


def test_interpolation_is_linear_in_the_cost_left():
    speedups, scores = np.array([1.0, 2.0, 4.0]), np.array([50.0, 40.0, 20.0])
    assert at_speedup(speedups, scores, 2.0) == 40
    assert at_speedup(speedups, scores, 4 / 3) == pytest.approx(45)  # three quarters of the cost, half way to one half
    assert np.isnan(at_speedup(speedups, scores, 5.0))
    assert np.isnan(at_speedup(speedups, scores, 0.9))
    assert at_speedup(np.array([2.0, 2.0, 1.0]), np.array([30.0, 33.0, 50.0]), 2.0) == 33
    assert at_speedup(np.array([2.0]), np.array([30.0]), 2.0) == 30
    assert np.isnan(at_speedup(np.array([2.0]), np.array([30.0]), 1.9))


def test_of_equally_fast_settings_the_best_is_on_the_line_from_either_side():
    speedups, scores = np.array([1.0, 2.0, 2.0, 4.0]), np.array([50.0, 40.0, 10.0, 20.0])
    assert at_speedup(speedups, scores, 4 / 3) == pytest.approx(45)
    assert at_speedup(speedups, scores, 8 / 3) == pytest.approx(30)


def test_speed_at_a_quality_undoes_quality_at_a_speed():
    speedups, scores = np.array([4.0, 1.0, 2.0]), np.array([20.0, 50.0, 40.0])
    for speed in (1.0, 1.3, 2.0, 3.1, 4.0):
        assert at_quality(speedups, scores, at_speedup(speedups, scores, speed)) == pytest.approx(speed)
    assert np.isnan(at_quality(speedups, scores, 50.1))
    assert np.isnan(at_quality(speedups, scores, 19.9))


def test_where_quality_goes_up_and_down_the_fastest_counts():
    speedups, scores = np.array([1.0, 2.0, 4.0]), np.array([40.0, 20.0, 40.0])
    assert at_quality(speedups, scores, 40.0) == 4
    assert at_quality(speedups, scores, 30.0) == pytest.approx(1 / 0.375)


def test_many_resamples_at_once_are_as_one_by_one():
    generator = np.random.default_rng(0)
    speedups, scores = generator.uniform(1, 4, (50, 6)), generator.normal(40, 5, (50, 6))
    scores[3, 2] = np.nan
    for measure, target in ((at_speedup, 2.0), (at_quality, 40.0)):
        one_by_one = [measure(a, b, target) for a, b in zip(speedups, scores, strict=True)]
        np.testing.assert_array_equal(measure(speedups, scores, target), one_by_one)


def test_interpolation_is_numpys():
    generator = np.random.default_rng(1)
    for _ in range(50):
        costs, scores = np.sort(generator.uniform(0.2, 1, 5)), generator.normal(40, 5, 5)
        target = generator.uniform(costs[0], costs[-1])
        assert at_speedup(1 / costs, scores, 1 / target) == pytest.approx(np.interp(target, costs, scores))


def test_the_interval_covers_the_mean_and_shrinks_with_prompts():
    generator = np.random.default_rng(1)
    widths = []
    for prompts in (16, 256):
        values = generator.normal(30, 2, prompts)
        mean, low, high = bootstrap(lambda p, v=values: v[p].mean(-1), prompts)
        assert low < mean < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / prompts**0.5, rel=0.15)
        quick = mean_interval(pd.Series(values), pd.Series(range(prompts)))
        assert quick.value == pytest.approx(mean)
        assert (quick.low, quick.high) == pytest.approx((low, high), abs=0.1 * (high - low))
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_seeds_of_a_prompt_are_drawn_together():
    values = pd.Series(np.random.default_rng(0).normal(30, 2, 8))
    apart = mean_interval(values.repeat(10), pd.Series(np.arange(80), index=values.repeat(10).index))
    together = mean_interval(values.repeat(10), pd.Series(np.repeat(np.arange(8), 10), index=values.repeat(10).index))
    assert together.high - together.low > 2.5 * (apart.high - apart.low)  # ten copies of a prompt tell nothing new


def test_one_prompt_has_no_interval():
    assert np.isnan(mean_interval(pd.Series([1.0, 2.0]), pd.Series(["a", "a"]))[1:]).all()
    assert np.isnan(bootstrap(lambda p: 1.0, 1)[1:]).all()
    assert np.isnan(mean_interval(pd.Series([np.nan]), pd.Series(["a"]))).all()


def test_weights_are_counts_of_prompts():
    drawn = weights(5, resamples=100)
    assert drawn.shape == (101, 5)
    assert (drawn.sum(1) == 5).all()
    assert (drawn[0] == 1).all()


def test_the_worst_come_first():
    samples = pd.DataFrame({"prompt": list("abcd"), "x": [3.0, 1.0, np.nan, 2.0]})
    assert list(worst(samples, "x", 2)["prompt"]) == ["b", "d"]
    assert list(worst(samples, "x", 9, lower_is_better=True)["prompt"]) == ["a", "d", "b"]


def test_the_best_of_equally_fast_settings_may_be_known_from_elsewhere():
    """One prompt's scores are read at the setting that is the better one over all prompts."""
    speedups, scores = np.array([1.0, 2.0, 2.0]), np.array([50.0, 30.0, 40.0])
    assert at_speedup(speedups, scores, 2.0) == 40
    assert at_speedup(speedups, scores, 2.0, better=np.array([9.0, 8.0, 7.0])) == 30
    assert at_speedup(speedups, scores, 4 / 3, better=np.array([9.0, np.nan, 7.0])) == 45
