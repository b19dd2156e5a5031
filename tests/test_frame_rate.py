"""Scores of encoded videos depend on the frame rate: a record never averages those of two."""

from __future__ import annotations

from pathlib import Path

from pcbench import cli, record
from pcbench.fidelity.metrics import CONVENTIONS

from .launch_parts import TINY, jobs

WORDS = [*TINY, "method=fora"]
MP4 = next(iter(CONVENTIONS["videosys"]))


def scored(results: Path, *more: str) -> tuple[list[float | None], list[float | None]]:
    """Run a line; the videos' scores of an encoded metric and of one that is not, as the record has them."""
    assert cli.main([*WORDS, *more, f"results={results}"]) == 0
    (job,) = jobs([*WORDS, *more], results)
    samples = record.read(job)["samples"]
    return [each["fidelity"].get(MP4) for each in samples], [each["fidelity"].get("psnr@2") for each in samples]


def test_a_record_has_scores_of_one_frame_rate(tmp_path):
    both = "fidelity=[raw,videosys]"
    slow, plain = scored(tmp_path, both, "model.fps=16")
    mixed, also = scored(tmp_path, both, "model.fps=4", "prompts.limit=1")
    assert None not in slow
    assert sum(value is None for value in mixed) == 1
    assert also == plain
    assert not set(mixed) & set(slow)
    fast, _ = scored(tmp_path, both, "model.fps=4")
    assert set(fast) > set(mixed) - {None}
    assert None not in fast


def test_a_run_that_scores_nothing_at_another_rate_leaves_the_scores(tmp_path):
    slow, _ = scored(tmp_path, "fidelity=[raw,videosys]", "model.fps=16")
    assert scored(tmp_path, "fidelity=raw", "model.fps=4")[0] == slow
