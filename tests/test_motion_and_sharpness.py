"""Temporal PSNR and sharpness: by their definitions, in records of older scores, and in tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.metrics import metric_of
from analysis.tables import tables
from pcbench import cli
from pcbench.fidelity import metrics
from pcbench.fidelity import stage as fidelity
from pcbench.fidelity.metrics import CONVENTIONS, INFINITE, METRICS
from pcbench.fidelity.stage import measure
from pcbench.store import read_json, records

NEW = {"temporal_psnr@1", "sharpness@1"}


@pytest.fixture
def reference() -> np.ndarray:
    random = np.random.default_rng(0)
    texture = random.integers(60, 190, (24, 32, 3))
    return np.stack([np.roll(texture, 2 * t, axis=1) for t in range(6)]).astype(np.uint8)


def test_temporal_psnr_is_the_psnr_of_frame_differences(reference):
    video = (reference + np.random.default_rng(1).normal(0, 6, reference.shape)).clip(0, 255).astype(np.uint8)
    differences = [np.diff(x.astype(np.float64) / 255, axis=0) for x in (video, reference)]
    errors = np.square(differences[0] - differences[1]).mean(axis=(1, 2, 3))
    found = measure("temporal_psnr@1", video, reference)
    assert found["frames"] == pytest.approx(-10 * np.log10(errors), abs=1e-9)
    assert found["value"] == pytest.approx(np.mean(found["frames"]), abs=1e-9)
    plain = measure("psnr@2", video, reference)["value"]
    assert found["value"] == pytest.approx(plain - 10 * math.log10(2), abs=0.1)  # the errors are independent


def test_a_constant_error_does_not_move_and_flicker_does(reference):
    shifted, flickering = reference + 7, reference.copy()
    flickering[::2] += 7
    still = measure("temporal_psnr@1", shifted, reference)
    assert (still["value"], still["note"]) == (None, INFINITE)
    assert measure("psnr@2", shifted, reference)["value"] == measure("psnr@2", flickering, reference)["value"]
    assert measure("temporal_psnr@1", flickering, reference)["value"] == pytest.approx(20 * math.log10(255 / 7))


def test_one_frame_has_no_motion(reference):
    found = measure("temporal_psnr@1", reference[:1] + 1, reference[:1])
    assert (found["value"], found["frames"], found["note"]) == (None, [None], INFINITE)
    assert fidelity.settled("temporal_psnr@1", found)


def test_sharpness_is_the_ratio_of_mean_laplacian_variances(reference):
    video = reference // 2 + 60
    luma = [(x.astype(np.float64) @ [0.299, 0.587, 0.114]) for x in (video, reference)]
    variances = []
    for frames in luma:
        laplacians = [
            f[:-2, 1:-1] + f[2:, 1:-1] + f[1:-1, :-2] + f[1:-1, 2:] - 4 * f[1:-1, 1:-1] for f in frames
        ]  # fmt: skip
        variances.append(np.mean([laplacian.var() for laplacian in laplacians]))
    found = measure("sharpness@1", video, reference)
    assert found["value"] == pytest.approx(variances[0] / variances[1], rel=1e-5)
    assert len(found["frames"]) == len(video)
    assert found["value"] == pytest.approx(0.25, abs=0.01)  # half the contrast


def test_blur_is_below_one_noise_above_and_a_flat_reference_has_none(reference):
    blurred = np.mean([np.roll(reference, shift, axis=2) for shift in (-1, 0, 1)], axis=0).astype(np.uint8)
    noisy = (reference + np.random.default_rng(2).normal(0, 25, reference.shape)).clip(0, 255).astype(np.uint8)
    low, high = (measure("sharpness@1", video, reference)["value"] for video in (blurred, noisy))
    assert low < 0.7 < 1 < high
    assert METRICS["sharpness@1"].worst([0.9, 1.05, 1.3]) == 1.3
    assert METRICS["sharpness@1"].worst([0.6, 1.05, 1.3]) == 0.6
    flat = np.full_like(reference, 9)
    assert measure("sharpness@1", reference, flat)["note"] == INFINITE
    assert measure("sharpness@1", flat, reference)["value"] == 0.0


def test_a_size_that_the_official_writer_changes_is_said_and_recorded(tmp_path, capsys):
    words = [
        "model=tiny_opensora", "method=uniform", "method.steps=2", "prompts=held_out", "prompts.limit=1",
        "model.sampling.steps=3", "model.sampling.frames=17", "model.sampling.height=72", "model.sampling.width=64",
        "fidelity=[raw,videosys]", "stages=[generate,score]", f"results={tmp_path}",
    ]  # fmt: skip
    assert cli.main(words) == 0
    line = "videosys compares at 80x64: its official writer rescales to multiples of 16"
    assert capsys.readouterr().out.count(line) == 1
    cached = next(record for record in records(tmp_path) if record["recipe"]["method"]["name"] == "uniform")
    assert cached["fidelity"]["videosys.psnr@1"]["compared_at"] == [80, 64]
    assert "compared_at" not in cached["fidelity"]["psnr@2"]
    assert "Compared at 80×64: its official writer" in tables(tmp_path, "videosys")[0].markdown()
    assert "Compared at" not in tables(tmp_path)[0].markdown()


def test_only_the_new_ones_are_computed_for_older_scores_and_shown_everywhere(tmp_path, monkeypatch, capsys):
    words = [
        "method=uniform", "method.steps=2", "prompts=held_out", "prompts.limit=1", "model.sampling.steps=3",
        "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64", f"results={tmp_path}",
    ]  # fmt: skip
    older = {name: metric for name, metric in CONVENTIONS["raw"].items() if name not in NEW}
    with monkeypatch.context() as before:
        before.setitem(metrics.CONVENTIONS, "raw", older)
        assert cli.main([*words, "stages=[generate,score]"]) == 0
    capsys.readouterr()
    (path,) = tmp_path.rglob("*.fidelity.json")
    first = read_json(path)
    assert not NEW & set(first["metrics"])
    assert not any(NEW & set(record["fidelity"]) for record in records(tmp_path))
    assert "sharpness" not in " ".join(tables(tmp_path)[0].columns)

    computed: list[str] = []
    measured = fidelity.measure
    monkeypatch.setattr(fidelity, "measure", lambda name, *rest: computed.append(name) or measured(name, *rest))
    assert cli.main([*words, "stages=[score]"]) == 0
    assert set(computed) == NEW
    printed = capsys.readouterr().out
    assert "temporal PSNR dB" in printed
    assert "sharpness" in printed
    cached = next(record for record in records(tmp_path) if record["recipe"]["method"]["name"] == "uniform")
    assert cached["fidelity"]["sharpness@1"]["ideal"] == 1.0
    assert "ideal" not in cached["fidelity"]["psnr@2"]
    headings = tables(tmp_path)[0].columns
    assert "sharpness → 1" in headings
    assert "temporal PSNR (dB) ↑" in headings
    assert metric_of("sharpness@1", [cached]).ideal == 1.0
