"""Which computed steps explain the MACs that the paper printed."""

from __future__ import annotations

import pytest

from pcbench import paper
from pcbench.cost import paper_check

from .plan_parts import ROOT, run_of


@pytest.fixture(scope="module")
def explained() -> dict[tuple[str, str], paper_check.Explained]:
    compose = lambda model, method: run_of(model, method)  # noqa: E731
    return {(row.model, row.method): row for row in paper_check.table1(paper_check.MODELS, compose)}


def test_table_1_is_complete():
    rows = paper.table("table1")
    assert len(rows) == 4 * 7
    for row in rows:  # the printed MACs' ratios are the printed speedups, roughly; a typing error would not be
        none = next(float(r["pmacs"]) for r in rows if r["model"] == row["model"] and r["method"] == "none")
        assert none / float(row["pmacs"]) == pytest.approx(float(row["speedup"]), rel=0.10)


def test_steps_that_explain_the_papers_macs(explained):
    expected = {"wan": (30.6, 22.5, 18.1), "hunyuan": (29.6, 24.0, 19.1), "cogvideox": (28.8, 23.6, 18.2)}
    for model, steps in expected.items():
        found = [explained[model, method].steps for method in ("base", "turbo", "flash")]
        assert found == pytest.approx(steps, abs=0.25)
    assert explained["opensora", "turbo"].steps == pytest.approx(13.9, abs=0.3)


def test_what_fits_and_what_does_not(explained):
    fits = {key: row.fits for key, row in explained.items()}
    assert all(fits[model, "none"] for model in paper_check.MODELS)
    assert all(fits[model, method] is None for model in paper_check.MODELS for method in ("base", "turbo", "teacache"))
    assert fits["cogvideox", "pab"]  # CogVideoX alone has official schedules of both, and both fit
    assert fits["cogvideox", "fastercache"]
    assert not any(fits[model, "pab"] for model in ("wan", "hunyuan"))  # there are none for these
    for model in paper_check.MODELS:  # flash computes 0.77 to 0.81 of turbo; 40 % of blocks and L = 3 make 0.74 to 0.76
        flash, turbo = explained[model, "flash"], explained[model, "turbo"]
        assert not flash.fits
        assert 0.77 < flash.pmacs / turbo.pmacs < 0.82
        assert 0.70 < flash.ours / turbo.pmacs < 0.77


def test_table_3_does_not_follow_from_its_trials():
    rows = {row.factor: row for row in paper_check.table3(run_of("wan", "precisecache_turbo"))}
    found = {factor: round(row.implied, 2) for factor, row in rows.items()}
    assert found == {"1x2x2": 1.79, "1x4x4": 2.13, "1x8x8": 2.21, "2x4x4": 2.18, "4x4x4": 2.20}
    assert [factor for factor, row in rows.items() if not row.fits] == ["1x2x2", "1x4x4"]
    assert rows["1x2x2"].trials == pytest.approx(5.5, abs=0.05)
    assert rows["1x2x2"].steps == pytest.approx(45.1, abs=0.1)


def test_the_inverse_is_printed_with_what_does_not_fit(capsys):
    lines: list[str] = []
    paper_check.show(["wan"], lambda model, method: run_of(model, method), lines.append)
    text = "\n".join(lines)
    assert "wan turbo" in text
    assert "22.4/50" in text
    misfits = [line for line in lines if line.startswith("does not fit")]
    assert any("wan flash" in line for line in misfits)
    assert any("1x2x2 (0.99, MACs say 1.79)" in line for line in misfits)


def test_rows_of_table_1_are_presets_of_conf():
    for row in paper.table("table1"):
        assert all((ROOT / "conf" / "method" / f"{name}.yaml").exists() for name in row["presets"].split())
        assert run_of(row["model"], paper.to_the_letter(row)).preset == paper.to_the_letter(row)
    assert paper.implied_share("wan", "precisecache_trial_base") is None  # of the paper's text, not of its Table 1
    assert paper.implied_share("wan", "precisecache_base")[0] == "base"
