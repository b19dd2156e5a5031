"""Figures from records with known answers: words turn with the numbers, files repeat, what is missing is told."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from analysis import figures
from analysis.figures import style
from analysis.figures.claims import Claim, Drawing, NotDrawnError, at_least
from analysis.load import benches
from analysis.stats import Interval

from . import figure_parts as parts
from . import report_parts

ROOT = Path(__file__).parents[1]


def drawing_of(results: Path, kind: str) -> figures.Drawing:
    """The one drawing of a kind, alone."""
    (draw,) = [known.draw for known in figures.KINDS if known.name == kind]
    (bench,) = benches(results)
    with style.styled():
        return draw(bench)


def claims(results: Path, kind: str) -> dict[str, Claim]:
    """By question."""
    return {claim.question: claim for claim in drawing_of(results, kind).claims}


def answers(results: Path, kind: str) -> dict[str, str]:
    """By question."""
    return {question: claim.answer for question, claim in claims(results, kind).items()}


def answer(results: Path, kind: str, words: str) -> str:
    """Of the one question that begins so."""
    (found,) = [found for question, found in answers(results, kind).items() if question.startswith(words)]
    return found


# -- claims


# -- measures


# -- figures 3 and 4

TRACKS = "Does the LFD track the impact of reuse?"
BETTER = "Does the LFD track the impact of reuse better than the plain difference?"
HARMLESS = "Is reuse harmless at low noise?"


def test_an_lfd_that_tracks_says_yes(tmp_path):
    assert answers(parts.uncached(tmp_path), "fig3") == {
        TRACKS: "yes",
        "Does the trial's LFD track the impact of reuse?": "yes",
        BETTER: "yes",
        HARMLESS: "yes",
        "Is reuse of the high frequencies harmless?": "yes",
    }


def test_an_lfd_that_does_not_track_says_no(tmp_path):
    parts.uncached(tmp_path, changes=lambda i: {"impact": lambda lfd: lfd[::-1] ** 2})
    found = answers(tmp_path, "fig3")
    assert [found[question] for question in (TRACKS, BETTER, HARMLESS)] == ["no"] * 3


def test_prompts_that_disagree_leave_it_undecided(tmp_path):
    parts.uncached(tmp_path, changes=lambda i: {"impact": lambda lfd: (lfd if i % 4 else lfd[::-1]) ** 2})
    assert answer(tmp_path, "fig3", TRACKS) == "undecided"


def test_the_same_as_the_plain_difference_is_not_better(tmp_path):
    parts.uncached(tmp_path, changes=lambda i: {"plain": lambda lfd: lfd})
    assert answer(tmp_path, "fig3", BETTER) == "no"


def untried(results: Path, steps: slice, entries: slice = slice(None)) -> None:
    """Take the impact of these steps out of the reference's observations."""
    path = next(results.rglob("none*.json"))
    record = json.loads(path.read_text())
    for entry in record["observations"][entries]:
        for measured in entry["impact@1"].values():
            for values in measured.values():
                values[steps] = [None] * len(values[steps])
    path.write_text(json.dumps(record))


def test_steps_that_were_not_tried_are_passed_over(tmp_path):
    untried(parts.uncached(tmp_path), slice(2, None, 2))
    assert answer(tmp_path, "fig3", TRACKS) == "yes"
    assert "every 2nd step was tried" in drawing_of(tmp_path, "fig3").title


def test_a_prompt_that_is_still_observed_does_not_count(tmp_path):
    untried(parts.uncached(tmp_path), slice(5, None), slice(1))
    assert "every step was tried" in drawing_of(tmp_path, "fig3").title
    assert claims(tmp_path, "fig3")[TRACKS].prompts == parts.PROMPTS - 1
    untried(tmp_path, slice(5, None))
    with pytest.raises(NotDrawnError, match="observed to the last step"):
        drawing_of(tmp_path, "fig3")


def test_how_predictions_change(tmp_path):
    parts.uncached(tmp_path)
    found = claims(tmp_path, "fig4")
    assert {question: claim.answer for question, claim in found.items()} == {
        "Do predictions change much at low noise?": "yes",
        "Is the change of predictions at low noise of high frequency?": "yes",
        "Does the LFD fall from high noise to low noise?": "yes",
    }
    again = parts.uncached(tmp_path / "again", changes=lambda i: {"plain": lambda lfd: lfd})
    assert answer(again, "fig4", "Do predictions change much") == "no"


# -- figures 5 and 6


def test_trials_like_the_full_size_and_unlike(tmp_path):
    """Rank correlation and size, of trials against the last trial, then against the last prediction."""
    parts.uncached(tmp_path / "a", changes=lambda i: {"literal": lambda lfd: 300 - lfd})
    parts.uncached(tmp_path / "b", changes=lambda i: {"trial": lambda lfd: 3 * lfd})
    assert list(answers(tmp_path / "a", "fig5").values()) == ["yes", "yes", "no", "no"]
    assert list(answers(tmp_path / "b", "fig5").values()) == ["yes", "no", "yes", "yes"]


def test_pivotal_blocks_and_even_ones(tmp_path):
    parts.uncached(tmp_path / "a")
    parts.uncached(tmp_path / "b", changes=lambda i: {"shares": np.ones(parts.BLOCKS)})
    assert [claim.answer for claim in claims(tmp_path / "a", "fig6").values()] == ["yes", "yes"]
    assert [claim.answer for claim in claims(tmp_path / "b", "fig6").values()] == ["no", "no"]
    assert next(iter(claims(tmp_path / "b", "fig6").values())).found.value == pytest.approx(1)


# -- the bound, figure 2

LINEAR, POWER = "Is the final error linear in δ?", "Does the final error grow with the first power"


def test_a_linear_error_and_a_quadratic_one(tmp_path):
    linear = parts.cached(parts.uncached(tmp_path / "a"), lambda delta: 3 * delta)
    square = parts.cached(parts.uncached(tmp_path / "b"), lambda delta: delta**3)
    assert [answer(linear, "bound", words) for words in (LINEAR, POWER)] == ["yes", "yes"]
    assert claims(linear, "bound")[LINEAR].found.value == pytest.approx(1)
    assert answer(square, "bound", POWER) == "no"
    (exponent,) = [claim for words, claim in claims(square, "bound").items() if words.startswith(POWER)]
    assert exponent.found.value == pytest.approx(3)


def test_the_bounds_links(tmp_path):
    """C_Z is 10, c_LF 1: an error of 3 δ is within, 11 δ is not."""
    links = ("Does the bound hold?", "Is every prediction within", "Do computed steps predict")
    fine = answers(parts.cached(parts.uncached(tmp_path / "a"), lambda delta: 3 * delta), "bound")
    broken = answers(parts.cached(parts.uncached(tmp_path / "b"), lambda delta: 11 * delta, computed=2.0), "bound")
    for question in fine:
        if question.startswith(links):
            assert (fine[question], broken[question]) == ("yes", "no")
    assert fine["Is the change of predictions of low frequency?"] == "yes"
    assert sum(question.startswith(links) for question in fine) == len(links)


def test_reuse_at_low_noise_may_cost_less_or_more(tmp_path):
    for name, by, expected in (
        ("a", lambda i: 5.0, "yes"),
        ("b", lambda i: -5.0, "no"),
        ("c", lambda i: i - 3, "undecided"),
    ):
        results = parts.replayed(parts.uncached(tmp_path / name), by)
        assert answer(results, "fig2", "With 3 steps reused") == expected


# -- quality


@pytest.mark.parametrize(("ours", "expected"), [(43.0, "yes"), (37.0, "no")])
def test_a_method_of_table_1_at_equal_macs(tmp_path, ours, expected):
    parts.curve(tmp_path, "precisecache", {1.5: ours + 5, 3.0: ours - 5}, reuse="prediction")
    parts.curve(tmp_path, "teacache", {1.5: 45.0, 3.0: 35.0}, reuse="stack")
    assert answer(tmp_path, "pareto", "At 2× by MACs, is LFCache (PreciseCache) closer") == expected


@pytest.mark.parametrize(("speedup", "expected"), [(1.65, "yes"), (3.0, "no")])
def test_alpha(tmp_path, speedup, expected):
    root = tmp_path / "alpha"
    for alpha, ratio, psnr in ((0.2, 1.1, 60.0), (0.5, speedup, 50.0), (0.7, 4.0, 40.0)):
        samples = [parts.sample(i, "F" * 12, psnr + i, 1e12 / ratio) for i in range(parts.PROMPTS)]
        parts.put(root, {"name": "precisecache", "alpha": alpha, "block_cache_rate": 0.0}, samples)
    assert answer(tmp_path, "alpha", "Does α = 0.5 save") == expected
    assert answer(tmp_path, "alpha", "Does quality fall") == "yes"


def test_sizes_of_the_trial(tmp_path):
    for factor, psnr, macs in (([1, 2, 2], 45.0, 8e11), ([2, 4, 4], 44.0, 5e11), ([4, 4, 4], 44.0, 5e11)):
        samples = [parts.sample(i, "F" * 12, psnr + i, macs) for i in range(parts.PROMPTS)]
        parts.put(tmp_path / "table3", {"name": "precisecache", "downsample_factor": factor}, samples)
    assert answer(tmp_path, "downsample", "Does a trial downsampled by 1×2×2 only cost more?") == "yes"
    assert answer(tmp_path, "downsample", "Does a trial downsampled by 4×4×4 spoil the video?") == "no"


def test_strips_of_real_videos(tmp_path):
    report_parts.make(tmp_path / "table1")
    drawing = drawing_of(tmp_path, "fig7")
    assert "“the worst” and “a </script>" in drawing.caption
    pictures = [np.asarray(axes.get_images()[0].get_array()) for axes in drawing.figure.axes]
    assert len(pictures) == 4 * 8  # methods, frames of two prompts
    first, last = (int(np.median(pictures[at])) for at in (0, 3))
    assert abs(first - 10) < 4
    assert abs(last - (10 + 11 * 19)) < 4


# -- files


def everything(root: Path) -> Path:
    """Records that are enough for every figure but the strips."""
    bench = parts.replayed(parts.cached(parts.uncached(root / "figures"), lambda delta: 3 * delta), lambda i: 5.0)
    parts.curve(bench, "teacache", {1.5: 45.0, 3.0: 35.0}, reuse="stack")
    parts.curve(bench, "mine", {1.5: 46.0, 3.0: 36.0})
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[list[figures.Drawing], Path, Path]:
    """The drawings of everything, as they were written; the results and the folder of their files."""
    root = tmp_path_factory.mktemp("drawn")
    found, _ = figures.drawings(everything(root / "results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "drawings", lambda results, options: (found, []))  # once is enough
        figures.write(root / "results", root / "out", say=lambda line: None)
    return found, root / "results", root / "out"


def test_the_same_records_give_the_same_bytes(drawn, tmp_path):
    """In this process and in another one, whose hashes and time zone are others."""
    _, results, out = drawn
    command = [sys.executable, "-m", "analysis", "figures", str(results), "--out", str(tmp_path / "out")]
    env = os.environ | {"PYTHONHASHSEED": "1", "TZ": "UTC1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    here, there = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "out"))
    assert here == there
    names = {"fig2", "fig3", "fig4", "fig5", "fig6", "bound"}
    expected = {f"{name}-tiny.{kind}" for name in names for kind in ("pdf", "png", "md")}
    assert set(here) >= expected | {"pareto-figures-tiny.pdf", "claims.md"}
    for name, content in here.items():
        if name.endswith(".pdf"):
            assert b"/TrueType" in content or b"/CIDFontType2" in content
            assert b"/Type3" not in content


def test_every_answer_is_under_its_figure_and_in_the_table(drawn):
    found, _, out = drawn
    table = (out / "claims.md").read_text()
    assert len(found) == 8
    for drawing in found:
        caption = (out / f"{drawing.name}.md").read_text()
        assert caption == drawing.caption
        for claim in drawing.claims:
            assert claim.text in caption
            assert f"| {drawing.name} | {claim.question} | **{claim.answer}** |" in table


def test_answers_of_several_models_stand_beside_one_another():
    def drawing(model: str, *found: float) -> Drawing:
        claims = [
            Claim(f"Question {number}?", "", "It", Interval(value, value - 1, value + 1), at_least(5), 9)
            for number, value in enumerate(found)
        ]
        return Drawing("fig3", f"fig3-{model}", model, "", figure=None, claims=tuple(claims))

    gap = [Claim(f"Small, on {name}?", "", "It", Interval(9, 8, 10), at_least(5), 9, model=name) for name in "abc"]
    both = Drawing("gap", "gap", "a", "", figure=None, claims=tuple(gap))
    table = figures.claims_table([drawing("a", 9, 1, 3), drawing("b", 2, 9, 4), both]).split("beside one another:")[1]
    assert table.strip().splitlines() == [
        "| figure | question | a | b | yes would be |",
        "|---|---|---|---|---:|",
        "| fig3 | Question 0? | **yes**: 9 [8, 10] | **no**: 2 [1, 3] | at least 5 |",
        "| fig3 | Question 1? | **no**: 1 [0, 2] | **yes**: 9 [8, 10] | at least 5 |",
        "| fig3 | Question 2? | **no**: 3 [2, 4] | **undecided**: 4 [3, 5] | at least 5 |",
        "| gap | Small? | **yes**: 9 [8, 10] | **yes**: 9 [8, 10] | at least 5 |",
    ]
    assert "beside" not in figures.claims_table([drawing("a", 9)])


def test_what_is_missing_is_told_with_its_experiment(tmp_path, capsys):
    seen = [{key: parts.entry(i)[key] for key in ("prompt", "seed", "difference@1", "bound@1")} for i in range(3)]
    samples = [parts.sample(i, "F" * parts.STEPS) for i in range(3)]
    parts.put(parts.replayed(tmp_path / "results", lambda i: 5.0), {"name": "none"}, samples, seen)
    assert figures.main([str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (
        "bound: not drawn, no deviation of a run with a threshold observed; python -m pcbench +experiment=bound"
        in printed
    )
    assert "fig2-videos: not drawn, no videos that all methods have" in printed
    assert "alpha: not drawn, no records; python -m pcbench +experiment=alpha (or alpha_tiny) makes it" in printed
    assert "fig3: not drawn, no record with impact and difference observed; " in printed
    assert "fig4: not drawn" not in printed
    assert (tmp_path / "out" / "fig4-tiny.png").exists()


@pytest.mark.parametrize("kind", figures.KINDS, ids=lambda kind: kind.name)
def test_the_experiment_that_makes_a_figure_is_there(kind):
    for name in (kind.made_by, f"{kind.made_by}_tiny"):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()


def test_no_records_is_one_line(tmp_path, capsys):
    assert figures.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"analysis: no records under {tmp_path}\n"


def test_figures_of_two_folders_have_two_names(tmp_path):
    parts.uncached(tmp_path / "figures")
    parts.uncached(tmp_path / "mine" / "more")
    names = {drawing.name for drawing in figures.drawings(tmp_path)[0] if drawing.kind == "fig4"}
    assert names == {"fig4-figures-tiny", "fig4-mine-more-tiny"}


def test_a_notebook_keeps_its_own_style(tmp_path):
    before = dict(mpl.rcParams)
    drawing = figures.drawings(parts.uncached(tmp_path))[0][0]
    assert dict(mpl.rcParams) == before
    assert drawing._repr_png_().startswith(b"\x89PNG")


def test_no_torch_is_loaded():
    code = "import sys, analysis.figures; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib.pyplot')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_methods_look_different():
    looks = [tuple(style.of_method(name).values())[:2] for name in style.LOOKS]
    assert len(set(looks)) == len(looks)
    assert style.of_method("mine")["marker"] == style.OTHERS
    dashes = [style.of_method("teacache", number)["linestyle"] for number in range(4)]
    assert all(a != b for a, b in itertools.combinations(dashes, 2))
