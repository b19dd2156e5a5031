"""Curves of quality against speed: interpolation and intervals by hand, and a figure from records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import pareto
from analysis.stats import at_speedup, bootstrap


def test_interpolation_is_linear_in_the_cost_left():
    speedups, scores = np.array([1.0, 2.0, 4.0]), np.array([50.0, 40.0, 20.0])
    assert at_speedup(speedups, scores, 2.0) == 40
    assert at_speedup(speedups, scores, 4 / 3) == pytest.approx(45)  # three quarters of the cost, half way to one half
    assert np.isnan(at_speedup(speedups, scores, 5.0))
    assert at_speedup(np.array([2.0, 2.0, 1.0]), np.array([30.0, 33.0, 50.0]), 2.0) == 33


def test_the_interval_covers_the_mean_and_shrinks_with_prompts():
    generator = np.random.default_rng(1)
    widths = []
    for prompts in (16, 256):
        values = generator.normal(30, 2, prompts)
        mean, low, high = bootstrap(lambda p, v=values: float(v[p].mean()), prompts)
        assert low < mean < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / prompts**0.5, rel=0.15)
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_pairs_that_always_differ_by_one_have_no_spread():
    a = np.random.default_rng(0).normal(30, 5, 16)
    assert bootstrap(lambda p: float((a + 1)[p].mean() - a[p].mean()), 16) == pytest.approx((1, 1, 1))


def write(results: Path, name: str, settings: dict[float, float], **fields: object) -> None:
    for speedup, psnr in settings.items():
        samples = [
            {"prompt": f"p{i}", "seed": 0, "steps": 50, "computed": 20, "macs": 1e12 / speedup, "seconds": 1.0}
            | {"fidelity": {"psnr@2": psnr + i, "ssim@2": psnr / 50}}
            for i in range(4)
        ]
        record = {
            "id": f"{name}{fields}{speedup}",
            "reference": "none",
            "status": "ok",
            "recipe": {"backbone": {"name": "tiny"}, "method": {"name": name, "version": 1, **fields}},
            "machine": {"name": "m"},
            "macs": {"peta_per_video": 1e-3 / speedup, "reference_peta_per_video": 1e-3, "speedup": speedup},
            "latency": None,
            "samples": samples,
        }
        path = results / "records" / "m" / "tiny" / f"{abs(hash(record['id']))}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))


def test_standings_and_figure_from_records(tmp_path, capsys, monkeypatch):
    write(tmp_path, "uniform", {1.4: 40.0, 3.0: 30.0}, reuse="prediction")
    write(tmp_path, "uniform", {1.4: 45.0, 3.0: 35.0}, reuse="extrapolate", damping=0.5)
    write(tmp_path, "teacache", {1.9: 39.0, 2.1: 37.0}, reuse="stack", threshold=0.1, retention_steps=False)
    write(tmp_path, "teacache", {1.8: 33.0, 2.2: 31.0}, reuse="stack", threshold=0.1, retention_steps=True)
    monkeypatch.setattr("sys.argv", ["pareto", str(tmp_path), "tiny", "--figure", str(tmp_path / "f" / "x.png")])
    assert pareto.main() == 0
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("| ")}
    assert set(rows) >= {
        "uniform prediction",
        "uniform extrapolate damping 0.5",
        "teacache stack",
        "teacache stack retention steps True",
    }
    assert (tmp_path / "f" / "x.png").stat().st_size > 10_000
    found, prompts = pareto.curves(tmp_path, "tiny")
    table = pareto.standings(found, prompts, "psnr@2", latency=False).set_index("method")
    assert table.loc["teacache stack", "1.5×"] == "–"  # no setting that slow: nothing is extrapolated
    assert table.loc["teacache stack", "2×"].startswith("39.4")
    assert table.loc["uniform extrapolate damping 0.5", "− uniform at 2×"] == "+5.00 [5.00, 5.00]"


def test_nothing_to_show_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pareto", str(tmp_path), "tiny"])
    assert pareto.main() == 2
    assert capsys.readouterr().err == f"analysis: no records of tiny under {tmp_path}\n"


def test_a_video_without_a_score_is_left_out_of_the_mean():
    scores = np.array([[30.0, np.nan, 50.0], [np.nan] * 3])
    assert pareto.mean_score(scores)[0] == 40
    assert np.isnan(pareto.mean_score(scores)[1])
