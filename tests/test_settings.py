"""Figures of settings of one method: what differs in one setting alone is on one line, and no record hides another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.figures import style
from analysis.figures.quality import alpha
from analysis.figures.strips import fig7
from analysis.load import benches

from . import figure_parts as parts
from . import report_parts

USUAL = {"version": 2, "block_cache_rate": 0.0, "reuse": "prediction"}


def line(root: Path, alphas: tuple[float, ...], psnr: float, **changes: Any) -> None:
    for number, value in enumerate(alphas):
        samples = [parts.sample(i, "F" * 12, psnr - number + i, 1e12 / (1 + value)) for i in range(parts.PROMPTS)]
        parts.put(root / "alpha", {"name": "precisecache", "alpha": value, **changes} | USUAL | changes, samples)


@pytest.mark.parametrize(
    "changes", [{"reuse": "residual"}, {"reference": "previous_trial"}, {"version": 1}, {"warmup": 9}]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_line_over_alpha_is_of_the_usual_choices_alone(tmp_path, changes, first):
    """A variant at the same α takes no point's place, in whatever order the records are read, nor adds one."""
    lines = [((0.2, 0.5, 0.7), 50.0, {}), ((0.5, 0.9), 20.0, changes)]
    for alphas, psnr, fields in lines if first else lines[::-1]:
        line(tmp_path, alphas, psnr, **fields)
    (bench,) = benches(tmp_path)
    with style.styled():
        drawing = alpha(bench)
    (found,) = [each for each in drawing.figure.axes[1].containers if each.get_label() == "LFCache"]
    assert list(found.lines[0].get_xdata()) == [0.2, 0.5, 0.7]
    assert min(found.lines[0].get_ydata()) > 45


def test_two_records_of_one_title_have_a_strip_each(tmp_path):
    """Two sizes of a method may be called alike in Table 1."""
    report_parts.make(tmp_path / "table1")
    (bench,) = benches(tmp_path)
    bench.records["label"] = ["no cache" if method == "none" else "alike" for method in bench.records["method"]]
    with style.styled():
        drawing = fig7(bench)
    names = [axes.get_ylabel() for axes in drawing.figure.axes if axes.get_ylabel()]
    assert sorted(names) == ["alike"] * (len(bench.records) - 1) + ["no cache"]
