"""What VBench cannot score here is refused in one line before anything is generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcbench.config import ConfigError
from pcbench.vbench import environment, process
from pcbench.vbench.dimensions import DIMENSIONS, VBENCH
from pcbench.vbench.tasks import require

from .vbench_parts import BICYCLE, OTHER, STOP, fake_environment, run_of

FLICKER = "temporal_flickering"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where the environment is to be; weights are nowhere."""
    monkeypatch.setenv("PCBENCH_VBENCH", str(tmp_path / "home"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    return tmp_path / "home"


def test_no_environment_names_the_command_that_builds_it(home, tmp_path):
    with pytest.raises(ConfigError, match=r"no environment in .*: make one with python -m pcbench.vbench setup"):
        require(run_of(tmp_path / "out", [STOP], FLICKER))


@pytest.mark.parametrize(
    ("prompts", "seeds", "dimensions", "reason"),
    [
        ([OTHER, STOP], 1, ["scene"], "VBench's scene is defined on VBench's own prompts alone; 1 of the run's"),
        ([OTHER], 1, ["human_action"], "human_action is defined on VBench's own prompts alone"),
        ([STOP], 1, ["scene"], "VBench's scene has none of its 86 prompts among the run's"),
        ([STOP], 6, [FLICKER], "takes at most 5 samples of a prompt, and the run has 6 seeds"),
        ([OTHER], 1, ["dynamic_degree"], r"dynamic_degree needs .*weights/raft_model/models/raft-things.pth \(21 MB"),
        ([OTHER], 1, ["subject_consistency"], r"needs .*pretrain.pth .*https.*needs .*dino_main/hubconf.py"),
        ([BICYCLE], 1, ["color"], "color cannot be imported: .*detectron2.*setup --with-detectron2 SOURCE"),
        ([OTHER], 1, ["motion_smoothness"], "motion_smoothness cannot be imported: RuntimeError: .*nms does not exist"),
        ([OTHER], 1, ["quality"], "subject_consistency needs .*; nor can background_consistency, .* be scored: python"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_early_in_one_line(home, tmp_path, prompts, seeds, dimensions, reason):
    broken = {
        "color": "ModuleNotFoundError: No module named 'detectron2'",
        "motion_smoothness": "RuntimeError: operator torchvision::nms does not exist",
    }
    fake_environment(home, imports=broken)
    with pytest.raises(ConfigError, match=reason) as error:
        require(run_of(tmp_path / "out", prompts, *dimensions, seeds=tuple(range(seeds))))
    assert "\n" not in str(error.value)


def test_a_half_downloaded_file_is_not_weights(home, tmp_path):
    raft = tmp_path / "weights" / "raft_model" / "models" / "raft-things.pth"
    raft.parent.mkdir(parents=True)
    raft.write_bytes(b"0" * 1000)
    (line,) = environment.lacking(DIMENSIONS["dynamic_degree"])
    assert line.startswith(f"has only 0.001 MB of {raft} (21 MB or more, https://")
    with raft.open("wb") as file:
        file.truncate(22_000_000)
    assert environment.lacking(DIMENSIONS["dynamic_degree"]) == []


def test_the_worker_is_told_what_pickles_and_downloads_need(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    env = process.worker_environment(VBENCH, tmp_path, "1")
    assert env["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"  # amt-s.pth
    assert env["HF_HUB_OFFLINE"] == env["TRANSFORMERS_OFFLINE"] == "1"
    assert env["VBENCH_CACHE_DIR"] == str(tmp_path / "weights")
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert "PYTHONPATH" not in env
