"""The benchmark of a step's parts: what it times is what happened, and bad words are one line."""

from __future__ import annotations

import json

import pytest

from pcbench import benchmark

SMALL = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.frames=13"]


def test_every_part_is_timed_and_kept(tmp_path, capsys):
    assert benchmark.main(["model=tiny_wan", "rounds=2", f"results={tmp_path}", *SMALL]) == 0
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "benchmarks").rglob("*.json")
    record = json.loads(path.read_text())
    seconds = record["seconds"]
    assert {name: len(values) for name, values in seconds.items()} == {
        "full step": 4,
        "reused step": 2,
        "trial": 6,
        "BlockCache, refreshing step": 4,
        "BlockCache, cached step": 6,
        "VAE decoding": 2,
        "text encoders": 2,
    }
    assert min(seconds["full step"]) > max(seconds["reused step"]) > 0
    assert record["peak_process_bytes"] > 1e8
    assert record["sampling"] == [64, 64, 13]
    for name in seconds:
        assert f"| {name} |" in printed
    assert str(path) in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tiny_wan", "rounds=0"], "rounds must be a whole number of at least 1, not '0'"),
        (["model=tiny_wan", "method=pab"], "'method=pab' is no option here"),
        (["model=nope"], "unknown model 'nope'"),
        (["model=tiny_wan", "model.backbone.source=/no/such"], "no such folder"),
    ],
)
def test_bad_words_are_one_line(words, message, capsys):
    assert benchmark.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
