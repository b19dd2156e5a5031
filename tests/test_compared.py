"""Figures and tables that compare many methods: what stands out, names that can be read, the worst prompt, budgets."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

import methods
from analysis import figures, pareto
from analysis.approaches import OLDER, TITLES
from analysis.figures import Options, style
from analysis.figures.pareto import BY_MACS
from analysis.figures.pareto import pareto as draw
from analysis.load import benches
from analysis.pareto import Curve, paired
from analysis.tables import budget, tables
from methods.engine.method import APPROACHES, Method

from . import figure_parts as parts
from .analysis_parts import record, write

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
ALL = [each for each in vars(methods).values() if isinstance(each, type) and issubclass(each, Method)]
NAMED = {each.NAME: each for each in ALL if hasattr(each, "NAME")}


def drawn(results: Path, options: Options = figures.DEFAULT, view=BY_MACS) -> figures.Drawing:
    (bench,) = benches(results)
    with style.styled():
        return draw(bench, view, options)


def names_in(panel: Axes) -> list[Text]:
    return [text for text in panel.texts if text.get_text()]


def told(panel: Axes) -> dict[str, Text]:
    """The names written in a panel, each on one line."""
    return {text.get_text().replace("\n", " "): text for text in names_in(panel)}


# -- approaches


def test_every_method_declares_an_approach_that_figures_know():
    assert set(APPROACHES) == set(TITLES)
    assert len(NAMED) > 15
    assert {each.APPROACH for each in NAMED.values()} == set(APPROACHES)


def test_older_records_have_the_approach_that_methods_declare():
    known = {name: NAMED[name].APPROACH for name in OLDER}
    assert known == OLDER


def test_a_record_says_its_own_approach(tmp_path):
    new = record("magic", 2.0, 40.0, setting=1) | {"approach": "attention"}
    write(tmp_path, record("none"), new, record("unknown", 2.0, 40.0), record("pab", 1.5, 40.0))
    (bench,) = benches(tmp_path)
    found, _ = pareto.curves(bench)
    assert {name: curve.approach for name, curve in found.items()} == {
        "magic": "attention",
        "unknown": "other",
        "pab": "attention",
    }


# -- names in figures


def many(root: Path, count: int) -> Path:
    """Tangled curves of this many methods: some of known approaches, all within a few decibels."""
    known = [name for name in OLDER if name not in {"none", "replay"}]
    generator = np.random.default_rng(count)
    for number in range(count):
        name = known[number] if number < len(known) else f"method_number_{number}"
        settings = sorted(generator.uniform(1.1, 4, size=4))
        parts.curve(root, name, {speed: 60 - 8 * speed + generator.uniform(0, 5) for speed in settings})
    return root


@pytest.mark.parametrize("count", [2, 9, 40])
def test_names_are_all_there_and_none_covers_another(tmp_path, count):
    drawing = drawn(many(tmp_path, count))
    named = set()
    for panel in drawing.figure.axes:
        boxes = [text.get_window_extent() for text in names_in(panel)]
        named |= set(told(panel))
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        frame = panel.get_window_extent()
        assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)
        assert all(frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1 for box in boxes)
    (bench,) = benches(tmp_path)
    assert named == set(pareto.short_names(pareto.curves(bench)[0]).values())
    assert len(named) == count


def test_what_is_written_in_a_figure_is_at_least_eight_points(tmp_path):
    parts.uncached(many(tmp_path / "many", 12))
    for drawing in figures.drawings(tmp_path)[0]:
        texts = [text for text in drawing.figure.findobj(Text) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 8, drawing.name


def test_many_methods_have_a_row_for_each_approach(tmp_path):
    titles = [panel.get_title("left") for panel in drawn(many(tmp_path / "many", 12)).figure.axes]
    assert [title for title in titles if title] == list(TITLES.values())
    assert len(drawn(many(tmp_path / "few", 5)).figure.axes) == 2


def test_many_variants_of_a_few_methods_have_a_row_for_each_method(tmp_path):
    for name, reuse, d in itertools.product(("teacache", "easycache"), ("prediction", "residual", "stack"), (0.5, 1.0)):
        parts.curve(tmp_path, name, {1.5: 45.0, 3.0: 35.0}, reuse=reuse, damping=d)
    panels = drawn(tmp_path, Options(["easycache stack"])).figure.axes
    assert [panel.get_title("left") for panel in panels if panel.get_title("left")] == ["easycache", "teacache"]
    assert set(told(panels[2])) == {"easycache, stack", *(f"{reuse}{damped}" for reuse in ("prediction", "residual",
        "stack") for damped in ("", ", damping 0.5"))}  # fmt: skip


def test_short_names_tell_curves_of_one_method_apart(tmp_path):
    parts.curve(tmp_path, "teacache", {1.5: 45.0}, reuse="stack", retention_steps=True)
    parts.curve(tmp_path, "teacache", {1.5: 45.0}, reuse="stack", retention_steps=False)
    parts.curve(tmp_path, "first_block_cache", {1.5: 45.0})
    parts.curve(tmp_path, "precisecache", {1.5: 45.0}, reuse="prediction", reference="previous_trial")
    (bench,) = benches(tmp_path)
    assert set(pareto.short_names(pareto.curves(bench)[0]).values()) == {
        "teacache", "teacache, retention steps", "first block cache", "precisecache",
    }  # fmt: skip


# -- what stands out


def coloured(drawing: figures.Drawing) -> dict[str, str]:
    """The names that are not grey, with their colours."""
    found = told(drawing.figure.axes[0])
    return {name: text.get_color() for name, text in found.items() if text.get_color() != style.DARK}


def compared(root: Path) -> Path:
    parts.curve(root, "planned", {1.5: 45.0, 3.0: 35.0}, reuse="extrapolate")
    parts.curve(root, "precisecache", {1.5: 44.0, 3.0: 34.0}, reuse="prediction")
    parts.curve(root, "teacache", {1.5: 43.0, 3.0: 33.0}, reuse="stack")
    parts.curve(root, "magcache", {1.5: 46.0, 3.0: 36.0}, reuse="stack")
    parts.curve(root, "fewer_steps", {1.5: 50.0, 3.0: 40.0})
    return root


def test_ours_and_the_best_method_of_others_stand_out(tmp_path):
    """A shorter schedule is no method."""
    found = coloured(drawn(compared(tmp_path)))
    assert set(found) == {"planned", "precisecache", "magcache"}
    assert len(set(found.values())) == 3


def test_a_method_or_a_curve_may_be_asked_for(tmp_path):
    compared(tmp_path)
    assert set(coloured(drawn(tmp_path, Options(["teacache", "planned extrapolate"])))) == {"teacache", "planned"}
    assert coloured(drawn(tmp_path, Options([]))) == {}
    assert set(coloured(drawn(tmp_path, Options(["best"])))) == {"magcache"}


def test_asking_for_what_is_not_there_is_one_line(tmp_path, capsys):
    compared(tmp_path)
    assert figures.main([str(tmp_path), "--highlight", "planned,magic"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("analysis: nothing to highlight is called 'magic'; there are: fewer_steps, magcache stack,")


def test_the_worst_prompt_is_beside_the_mean(tmp_path):
    """Prompt i has i dB more, so the mean is 3.5 dB above the worst."""
    drawing = drawn(compared(tmp_path))
    curves = [[line for line in panel.lines if line.get_marker() != "None"] for panel in drawing.figure.axes]
    means, lowest = ({line.get_color(): line.get_ydata() for line in lines} for lines in curves)
    colour = coloured(drawing)["planned"]
    assert list(means[colour]) == [48.5, 38.5]
    assert list(lowest[colour]) == [45.0, 35.0]


# -- budgets


def budgeted(root: Path, model: str = "tiny_wan") -> Path:
    """Three methods: the first best at 1.5, the second at 2, a third that is never faster than 1.5."""
    write(root, record("none", model=model))
    for name, scores in (("one", (50.0, 40.0)), ("two", (49.0, 43.0))):
        for speed, score in zip((1.53, 1.95), scores, strict=True):
            write(root, record(name, speed, score, model=model, setting=speed))
    write(root, record("slow", 1.5, 30.0, model=model))
    return root


def test_a_method_is_read_at_the_setting_within_five_percent(tmp_path):
    (bench,) = benches(budgeted(tmp_path))
    scores, behind = budget.tables("x", [bench], (1.5, 2.0))
    rows = {row[0].text: row[1:] for row in scores.blocks[0].rows}
    assert list(rows) == ["one", "two", "slow"]  # by PSNR at the middle budget, here the first
    assert [cell.words()[0] for cell in rows["one"]] == ["51.50", "50.00", "41.50", "40.00"]
    assert rows["one"][0].interval is not None
    assert [cell.words()[0] for cell in rows["slow"]] == ["31.50", "30.00", "(31.50 at 1.50×)", "–"]
    apart = {row[0].text: [cell.words()[0] for cell in row[1:]] for row in behind.blocks[0].rows}
    assert apart == {"one": ["best", "-3.00"], "two": ["-1.00", "best"], "slow": ["-20.00", "–"]}
    assert "– in 2× (1 of 3 rows): no setting within 5% of the budget." in behind.all_notes()


def test_differences_are_paired(tmp_path):
    """Prompts differ by decibels, and both methods alike: the difference has no spread."""
    (bench,) = benches(budgeted(tmp_path))
    _, behind = budget.tables("x", [bench], (1.5, 2.0))
    (cell,) = [row[1] for row in behind.blocks[0].rows if row[0].text == "two"]
    assert (cell.low, cell.high) == pytest.approx((-1, -1))


def test_a_difference_is_over_the_prompts_that_both_have_scores_for():
    """A video that is identical to its reference has no PSNR; the mean of the others is no mean of the same prompts."""
    nan, macs = math.nan, np.array([[2.0] * 3, [1.0] * 3])
    one, two = (
        Curve(name, "", {}, ["a", "b"], macs, 4.0, np.full(2, nan), {"psnr@2": np.array(scores)})
        for name, scores in (("one", [[nan, 31, 41], [25, 31, 41]]), ("two", [[50, 30, 40], [nan, 30, 40]]))
    )
    at = {target: paired(one, target, other=two, metric="psnr@2", prompts=3) for target in (2.0, 3.0, 4.0)}
    assert [values[0] for values in at.values()] == [1, 1, 1]
    points = [budget.nearest(curve, 2.0) for curve in (one, two)]
    assert points[0].minus(points[1]).value == 1


def test_the_experiment_has_its_tables_and_its_figure(tmp_path):
    for model in ("tiny_wan", "tiny_hunyuan"):
        budgeted(tmp_path / "budget_tiny", model)
    assert {"budget_tiny-at", "budget_tiny-behind"} <= {table.name for table in tables(tmp_path)}
    (drawing,) = [each for each in figures.drawings(tmp_path)[0] if each.kind == "budget"]
    assert drawing.name == "budget-budget_tiny"
    panels = np.array(drawing.figure.axes).reshape(2, 2)
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["tiny_hunyuan", "tiny_wan"]
    assert [panel.get_title() for panel in panels[0]] == [
        f"{b}× fewer MACs" for b in ("1.5", "2")
    ]  # no setting is at the others
    out_of_reach = [sum(line.get_marker() == "x" for line in panel.lines) for panel in panels[0]]
    assert out_of_reach == [0, 1]


def test_two_references_of_one_size_have_a_row_each(tmp_path):
    (bench,) = benches(budgeted(tmp_path / "budget"))
    with style.styled():
        drawing = figures.budget.budget([bench, replace(bench, reference="another")])
    labels = [axes.get_ylabel().replace("\n", " ") for axes in drawing.figure.axes if axes.get_ylabel()]
    assert [label.rpartition("against ")[2] for label in labels] == [bench.reference, "another"]


def test_other_experiments_have_none(tmp_path):
    budgeted(tmp_path / "mine")
    assert not [table for table in tables(tmp_path) if table.name.endswith(("-at", "-behind"))]
    assert not [drawing for drawing in figures.drawings(tmp_path)[0] if drawing.kind == "budget"]


def test_the_committed_records_can_be_read_at_budgets():
    found = benches(PUBLISHED / "methods")
    scores, _ = budget.tables("methods", found, (1.5, 2.0, 2.5))
    assert len(scores.blocks) == 2
    rows = {row[0].text: dict(zip(scores.columns, row, strict=True)) for row in scores.blocks[0].rows}
    assert rows["planned"]["PSNR (dB) at 2× ↑"].value == pytest.approx(54.9, abs=0.05)
    assert rows["planned"]["worst at 2×"].value == pytest.approx(41.9, abs=0.05)  # docs/comparison.md
    assert json.dumps([row[0].text for row in scores.blocks[1].rows]).count("pab") == 1


# -- from how many steps caching pays


def shorter(root: Path, gains: dict[int, float], machine: str = "m", model: str = "tiny_wan", size: int = 128) -> None:
    """Records of a method that gains so much over fewer steps, by the number of steps without a cache."""
    for steps, gained in gains.items():
        for made in (
            record("none", model=model, machine=machine),
            record("fewer_steps", 1.5, 40.0, model=model, machine=machine),
            record("one", 1.52, 40 + gained, model=model, machine=machine),
            record("fast", 3.0, 60.0, model=model, machine=machine),
        ):
            ending = f"-{steps}-{size}"
            made |= {"id": made["id"] + ending, "reference": "none1.0{}" + ending}
            made["recipe"]["sampling"] |= {"steps": steps, "height": size}
            write(root, made)


def test_gains_of_other_models_machines_and_sizes_have_figures_of_their_own(tmp_path):
    """They would be points of one line, or take each other's place at one number of steps."""
    root = tmp_path / "fewsteps"
    shorter(root, {8: 1.0, 20: 1.0})
    shorter(root, {8: 2.0, 50: 2.0}, machine="other")
    shorter(root, {8: 3.0, 50: 3.0}, model="tiny_hunyuan")
    shorter(root, {8: 4.0, 50: 4.0}, size=256)
    made = [each for each in figures.drawings(tmp_path)[0] if each.kind == "fewsteps"]
    assert len({drawing.name for drawing in made}) == 4
    lines = [line for each in made for line in each.figure.axes[0].lines if line.get_label() == "one"]
    assert sorted((*line.get_xdata(), *line.get_ydata().round(6)) for line in lines) == [
        (8, 20, 1.0, 1.0), (8, 50, 2.0, 2.0), (8, 50, 3.0, 3.0), (8, 50, 4.0, 4.0),
    ]  # fmt: skip


def test_one_unsuitable_record_ends_no_other_figure(tmp_path):
    """A record without a number of steps, in the one experiment that draws over them."""
    shorter(tmp_path / "fewsteps", {8: 1.0, 20: 1.0})
    for path in (tmp_path / "fewsteps").rglob("*.json"):
        data = json.loads(path.read_text())
        if data["recipe"]["sampling"]["steps"] == 8:
            del data["recipe"]["sampling"]["steps"]
            path.write_text(json.dumps(data))
    compared(tmp_path / "mine")
    found, missing = figures.drawings(tmp_path)
    assert "pareto" in {drawing.kind for drawing in found}
    (line,) = [line for line in missing if "fewsteps: not drawn of fewsteps on" in line]
    assert "NaN" in line


def test_gains_over_fewer_steps_are_drawn_against_the_number_of_steps(tmp_path):
    root = tmp_path / "fewsteps_tiny"
    shorter(root, {8: -2.0, 20: 3.0, 50: 6.0})
    (drawing,) = [each for each in figures.drawings(tmp_path)[0] if each.kind == "fewsteps"]
    assert [(claim.question, claim.answer) for claim in drawing.claims] == [
        ("Does caching pay at 8 steps?", "no"),
        ("Does caching pay at 20 steps?", "yes"),
        ("Does caching pay at 50 steps?", "yes"),
    ]
    (line,) = [line for line in drawing.figure.axes[0].lines if line.get_label() == "one"]
    assert list(line.get_xdata()) == [8, 20, 50]
    assert list(line.get_ydata()) == pytest.approx([-2, 3, 6])
    assert not [line for line in drawing.figure.axes[0].lines if line.get_label() == "fast"]  # never as cheap
