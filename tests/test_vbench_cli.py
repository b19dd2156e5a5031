"""VBench from the command line: generating and scoring, what a user can get wrong, what the set-up refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pcbench import cli
from pcbench.vbench import build
from pcbench.vbench.__main__ import main
from pcbench.vbench.dimensions import DIMENSIONS

from .vbench_parts import fake_environment

SMALL = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.frames=13", "model.sampling.steps=8"]
PAIR = ["method=fewer_steps", "method.steps=4", "prompts.limit=2", *SMALL]  # it, and its reference


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PCBENCH_VBENCH", str(tmp_path / "home"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("PCBENCH_VBENCH2", str(tmp_path / "home2"))
    monkeypatch.setenv("VBENCH2_CACHE_DIR", str(tmp_path / "weights"))
    monkeypatch.setattr(sys, "argv", ["pcbench"])
    return tmp_path / "home"


def records(results: Path) -> dict[str, dict]:
    return {path.stem.split("-")[0]: json.loads(path.read_text()) for path in results.rglob("records/**/*.json")}


def test_a_run_is_generated_then_scored_alone_then_left_alone(home, tmp_path, capfd):
    calls = fake_environment(home)
    results = tmp_path / "results"
    assert cli.main([*PAIR, "stages=[generate]", f"results={results}"]) == 0
    assert all(record["vbench"] == [] for record in records(results).values())
    videos = {path: path.stat().st_mtime_ns for path in results.rglob("*.mp4")}
    capfd.readouterr()

    words = [*PAIR, "stages=[score]", "score.vbench=[temporal_flickering]", f"results={results}"]
    assert cli.main(words) == 0
    assert "VBench temporal_flickering 0.5000  2 videos" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.mp4")} == videos
    told = records(results)
    assert set(told) == {"none", "fewer_steps"}
    for record in told.values():
        (suite,) = record["vbench"]
        assert suite["dimensions"]["temporal_flickering"]["score"] == 0.5
        assert [sample["vbench"] for sample in record["samples"]] == [{"temporal_flickering": 0.5}] * 2
    asked = calls.read_text()
    before = {p: p.stat().st_mtime_ns for room in ("records", "samples") for p in (results / room).rglob("*.*")}

    assert cli.main(words) == 0
    assert "VBench" not in capfd.readouterr().out
    assert calls.read_text() == asked
    assert {p: p.stat().st_mtime_ns for room in ("records", "samples") for p in (results / room).rglob("*.*")} == before


def test_a_dimension_that_fails_fails_the_run_and_the_record_says_why(home, tmp_path, capfd):
    fake_environment(home, 'reply["score"] = float("nan")')
    results = tmp_path / "results"
    words = ["method=none", "prompts.limit=1", *SMALL, "stages=[generate,score]", "score.vbench=temporal_flickering"]
    assert cli.main([*words, f"results={results}"]) == 1
    assert "temporal_flickering: not a number: the score" in capfd.readouterr().err
    (record,) = records(results).values()
    assert record["status"] == "failed"
    told = record["vbench"][0]["dimensions"]["temporal_flickering"]
    assert (told["score"], told["reason"]) == (None, "not a number: the score")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("score.vbench=[flicker]", "unknown VBench dimension 'flicker'; there are all, "),
        ("score.vbench=[temporal_flickering]", "has no environment in "),
        ("score.vbench_timeout=0", "score.vbench_timeout must be from"),
        ("score.vbenhc=[all]", "unknown option 'vbenhc' of Score: did you mean 'vbench'?"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_generated(home, tmp_path, capfd, words, line):
    assert cli.main(["method=none", words, f"results={tmp_path / 'results'}"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (said,) = captured.err.splitlines()
    assert line in said
    assert not list((tmp_path / "results").rglob("*.*"))


def test_a_plan_needs_no_environment(home, tmp_path, capfd):
    words = ["method=none", "prompts=vbench", "score.vbench=[all,Human_Anatomy]", "plan=true", f"results={tmp_path}"]
    assert cli.main(words) == 0
    out = capfd.readouterr().out
    assert "4720 videos to make" in out
    assert "VBench then scores 6810 videos, each once for every dimension: 12 hours of an H100" in out
    assert "VBench-2.0 then scores 360 videos" in out


def test_status_without_anything_names_every_file_and_the_command(home, tmp_path, capsys):
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    for dimension in DIMENSIONS.values():
        assert dimension.name in out
        for weights in dimension.weights:
            assert f"needs {tmp_path / 'weights' / weights.path}" in out
            assert weights.url in out
    assert "make one with python -m pcbench.vbench setup" in out


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("echo 3 12", "are for Python 3.11, and {python} is 3.12: name one with --python PATH"),
        ("exit 1", "{python} does not run as a Python interpreter"),
    ],
)
def test_set_up_refuses_an_interpreter_it_has_no_packages_for(home, tmp_path, capsys, program, line):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    assert main(["setup", "--python", str(python)]) == 2
    assert line.format(python=python) in capsys.readouterr().err
    assert not home.exists()


def test_a_step_that_fails_is_one_line_and_a_log(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr(build, "PIP", "pip-that-is-not==1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert main(["setup"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2/5 pip"
    (said,) = captured.err.splitlines()
    assert "setup failed at 'pip': ERROR: No matching distribution found for pip-that-is-not==1" in said
    assert "pip-that-is-not" in (home / "setup.log").read_text()
    assert not (home / "environment.json").exists()


def test_torchvision_is_the_release_of_this_torch(monkeypatch):
    for torch, vision in (("2.13.0+cpu", "0.28.0"), ("2.7.1", "0.22.1")):
        monkeypatch.setattr(build.metadata, "version", lambda name, torch=torch: torch)
        assert build._torch(full=False) == ["--no-deps", f"torchvision=={vision}"]
        assert build._torch(full=True) == [f"torch=={torch.split('+')[0]}", f"torchvision=={vision}"]


def test_every_requirement_is_pinned():
    for path in (build.REQUIREMENTS, build.DETECTRON2):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) > 20
        assert all("==" in line for line in lines)
