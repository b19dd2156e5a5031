"""The figures of the trial's settings and of its gap to the full size, from records with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.figures import style
from analysis.figures.claims import NotDrawnError
from analysis.figures.trial_map import gap, trial_map
from analysis.load import benches

from . import figure_parts as parts

FACTORS, MODES, RADII = ("1x2x2", "2x4x4"), ("nearest-exact", "area"), ("1/5", "all")
LOW = "Do the low frequencies of a trial of 2×4×4 tell the impact better than all frequencies?"


def observed(root: Path, low: Callable[[np.ndarray], np.ndarray] = lambda lfd: lfd, distance: float = 0.5) -> Path:
    """Uncached samples whose low frequencies change by `low` of what tracks the impact, all frequencies by nothing like
    it; each trial is `distance` LFDs away from the full size."""

    def series(lfd: np.ndarray, radius: str) -> dict[str, Any]:
        change = low(lfd) if radius == "1/5" else np.roll(lfd, len(lfd) // 2)
        return {"adjacent": parts.listed(change), "literal": parts.listed(change), "gap": [1.0, *(distance * lfd)]}

    entries = []
    for number in range(parts.PROMPTS):
        entry = parts.entry(number)
        lfd = np.array(entry["difference@1"]["low"]["rms"][1:], dtype=float)
        entry["trial@2"] = {"1x1x1": {"none": {radius: series(lfd, radius) for radius in RADII}}} | {
            factor: {mode: {radius: series(lfd, radius) for radius in RADII} for mode in MODES} for factor in FACTORS
        }
        entries.append(entry)
    samples = [parts.sample(number, "F" * parts.STEPS) for number in range(parts.PROMPTS)]
    parts.put(root, {"name": "none"}, samples, entries)
    return root


def mapped(root: Path):
    (bench,) = benches(root)
    with style.styled():
        return trial_map(bench)


def test_low_frequencies_that_tell_more_and_that_tell_less(tmp_path):
    found = {claim.question: claim.answer for claim in mapped(observed(tmp_path / "more")).claims}
    assert found[LOW] == "yes"
    found = {claim.question: claim.answer for claim in mapped(observed(tmp_path / "less", low=lambda x: -x)).claims}
    assert found[LOW] == "no"


def test_every_cell_is_written_and_the_best_setting_named(tmp_path):
    drawing = mapped(observed(tmp_path))
    cells = len(RADII) * (len(FACTORS) + 1)
    panels = [axes for axes in drawing.figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [*MODES, *MODES]
    assert all(len(axes.texts) == cells for axes in panels)
    assert {text.get_text() for text in panels[0].texts[: len(FACTORS) + 1]} == {"1.00"}
    assert all("radius 1/5, with 1 [1, 1]" in note for note in drawing.notes)


@pytest.mark.parametrize(("distance", "answer"), [(0.5, "yes"), (3.0, "no")])
def test_the_gap_is_in_units_of_the_lfd(tmp_path, distance, answer):
    with style.styled():
        drawing = gap(benches(observed(tmp_path, distance=distance)))
    (claim,) = drawing.claims
    assert claim.answer == answer
    assert claim.found.value == pytest.approx(distance)
    assert claim.question.endswith("on tiny?")


def test_without_the_observation_there_is_no_figure(tmp_path):
    with pytest.raises(NotDrawnError, match="no record with trial"):
        mapped(parts.uncached(tmp_path))
    with pytest.raises(NotDrawnError, match="no record with trial"):
        gap(benches(tmp_path))


def test_two_benches_of_one_model_have_a_line_each(tmp_path):
    """Another machine, or another size, of a model is no less than the first."""
    observed(tmp_path / "one" / "trial_map", distance=0.5)
    observed(tmp_path / "two" / "trial_map", distance=2.0)
    found = [*benches(tmp_path / "one"), replace(benches(tmp_path / "two")[0], machine="another")]
    with style.styled():
        drawing = gap(found)
    assert [claim.answer for claim in drawing.claims] == ["yes", "no"]
    assert [claim.model.rpartition("; ")[2] for claim in drawing.claims] == [bench.machine for bench in found]
    assert drawing.model == found[0].model
