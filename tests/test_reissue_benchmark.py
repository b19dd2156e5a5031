"""The benchmark of a finished sweep's bookkeeping measures bookkeeping: nothing of what it fills in is made again."""

from __future__ import annotations

from pcbench import cli

from . import reissue_benchmark as benchmark

TINY = [
    "prompts=held_out", "prompts.limit=2", "stages=[generate,score]", "model.sampling.steps=3",
    "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64",
]  # fmt: skip


def test_what_is_filled_in_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SMALL", TINY)
    first, second = benchmark.alphas(2)
    words = ["method=precisecache", *TINY, f"results={tmp_path}"]
    assert cli.main([*words, f"method.alpha={first}"]) == 0
    benchmark.fill(tmp_path, 2)
    capsys.readouterr()
    assert cli.main(["-m", *words, f"method.alpha={first},{second}"]) == 0
    said = capsys.readouterr().out
    assert "set aside" not in said
    assert "sample 1/" not in said
