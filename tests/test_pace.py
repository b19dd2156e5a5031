"""The pace of a machine, from its records."""

from __future__ import annotations

import pytest

from pcbench import cli
from pcbench.cost.pace import in_words, pace_of


def record(machine: str, seconds: float, videos: int, model: str = "tiny_wan") -> dict:
    return {
        "recipe": {"backbone": {"name": model}},
        "machine": {"name": machine},
        "samples": [{"seconds": seconds, "macs": 100}] * videos,
    }


def test_the_pace_is_this_machines_own_or_that_with_most_videos():
    records = [record("here", 2.0, 1), record("here", 4.0, 3), record("there", 1.0, 9), record("here", 9.0, 5, "other")]
    own = pace_of(records, "tiny_wan", "here")
    assert own is not None
    assert (own.seconds, own.videos, own.machine) == (pytest.approx(0.035), 4, "here")
    elsewhere = pace_of(records, "tiny_wan", "nowhere")
    assert elsewhere is not None
    assert elsewhere.machine == "there"
    assert pace_of(records, "unknown", "here") is None
    words = in_words({"tiny_wan": 12.3}, {"tiny_wan": own, "unknown": None})
    assert words.startswith("about 12 min of denoising at the pace of 4 videos on record from here")
    assert words.endswith("no pace known for unknown: no video on record")


def test_a_plan_says_the_minutes_before_and_after_a_video_was_made(tmp_path, capsys):
    words = ["model=tiny_wan", "method=none", "model.sampling.steps=4", "model.sampling.frames=5", "prompts.limit=1"]
    words += ["model.sampling.height=64", "model.sampling.width=64", "stages=[generate]", f"results={tmp_path}"]
    assert cli.main([*words, "plan=true"]) == 0
    assert "no pace known for tiny_wan" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert cli.main([*words[:-1], "prompts.limit=3", words[-1], "plan=true"]) == 0
    assert "min of denoising at the pace of 1 videos on record" in capsys.readouterr().out
