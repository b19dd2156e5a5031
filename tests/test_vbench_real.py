"""VBench itself, in the environment that `python -m pcbench.vbench setup` built; skipped where there is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from pcbench.config import ConfigError, Prompts
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.vbench import environment, process, results, stage, tasks
from pcbench.vbench.dimensions import DIMENSIONS, VBENCH, members
from pcbench.vbench.suites import read_entries

from .vbench_parts import OTHER, STOP, make_samples, run_of

try:
    FOUND = environment.load()
except ConfigError as missing:
    pytest.skip(str(missing), allow_module_level=True)

FLICKER = "temporal_flickering"
PROMPTS = Path(__file__).parents[1] / "conf" / "prompts"


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch) -> Path:
    """A weights folder that is empty, and that the test may write to."""
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    return tmp_path / "weights"


def flickering(video: Path) -> float:
    """The definition: one less the mean absolute difference of neighbouring frames, of 255."""
    frames = iio.imread(video).astype(np.float64)
    return float((255 - np.abs(np.diff(frames, axis=0)).mean()) / 255)


@pytest.mark.parametrize("prompts", [[STOP], [OTHER, STOP]], ids=["standard", "custom"])
def test_temporal_flickering_is_what_its_definition_says(tmp_path, monkeypatch, prompts):
    run = run_of(tmp_path / "out", prompts, FLICKER, seeds=(0, 5))
    make_samples(run)
    said: list[str] = []
    stage.score(job_of(run), said.append)
    values = results.per_sample(job_of(run).place.folder)
    assert len(values) == len(run.samples)
    for prompt, seed in run.samples:
        files = job_of(run).place.sample(sample_key(prompt, seed))
        assert values[files.stem.name][FLICKER] == pytest.approx(flickering(files.video), abs=1e-6)
    (suite,) = results.summary(job_of(run).place.folder)
    told = suite["dimensions"][FLICKER]
    assert told["score"] == pytest.approx(np.mean([value[FLICKER] for value in values.values()]), abs=1e-12)
    assert told["mode"] == ("vbench_standard" if prompts == [STOP] else "custom_input")

    monkeypatch.setattr(process, "run", lambda *_: pytest.fail("scored again"))
    stage.score(job_of(run), said.append)
    assert len(said) == 1


def test_a_broken_video_which_vbench_passes_over_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "is_whole_mp4", lambda data: True)  # which would have stopped it earlier
    content = b"not a video"
    run = run_of(tmp_path / "out", [STOP, OTHER], FLICKER)
    make_samples(run)
    broken = job_of(run).place.sample(sample_key(OTHER, 0))
    broken.video.write_bytes(content)
    with pytest.raises(RuntimeError, match=f"scored 1 of 2 videos and said nothing; .*{broken.stem.name}"):
        stage.score(job_of(run), lambda line: None)
    job_of(run).place.sample(sample_key(STOP, 0)).video.write_bytes(content)
    with pytest.raises(RuntimeError, match="scored 0 of 2 videos"):  # VBench: exit code 0 and NaN
        stage.score(job_of(run), lambda line: None)


def test_weights_that_do_not_load_are_an_error_with_vbenchs_words(tmp_path, weights):
    amt = weights / DIMENSIONS["motion_smoothness"].weights[0].path
    amt.parent.mkdir(parents=True)
    amt.write_bytes(b"0" * 13_000_000)
    run = run_of(tmp_path / "out", [OTHER], "motion_smoothness")
    make_samples(run)
    with pytest.raises(RuntimeError, match="motion_smoothness: UnpicklingError"):
        stage.score(job_of(run), lambda line: None)
    (kept,) = job_of(run).place.folder.rglob("*.error.txt")
    assert "Traceback" in kept.read_text()


def test_our_prompts_and_counts_are_those_of_the_installed_vbench():
    entries = read_entries(FOUND.suite)
    listed = [line for line in (PROMPTS / "vbench.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == [entry["prompt_en"] for entry in entries]
    counts = Counter(name for entry in entries for name in entry["dimension"])
    assert counts == {name: DIMENSIONS[name].prompts for name in members(VBENCH)}
    of = {name: {e["prompt_en"] for e in entries if name in e["dimension"]} for name in members(VBENCH)}
    quality = set().union(*(of[name] for name in members(VBENCH, "quality")))
    assert set(Prompts(file="vbench_quality.txt").read(PROMPTS)) == quality
    mlperf = ("subject_consistency", "motion_smoothness", "dynamic_degree", "scene", "appearance_style")
    assert set(Prompts(file="mlperf248.txt").read(PROMPTS)) == set().union(*(of[name] for name in mlperf))
    smoke = set(Prompts(file="smoke.txt").read(PROMPTS))
    assert all(of[name] & smoke for name in of)
