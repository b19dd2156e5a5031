"""README's pictures: `make pictures` on videos of a few steps, and on the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.figures import pictures, style
from pcbench import cli
from tests.analysis_parts import record, write
from tests.test_docs import LARGEST_PICTURE

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published"
SMALL = ["frames=5", "height=64", "width=64", "steps=30"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """What the experiment leaves, at a small size. `planned` computes 25 steps."""
    folder = tmp_path_factory.mktemp("pictures")
    words = ["+experiment=pictures", *(f"model.sampling.{word}" for word in SMALL), f"results={folder}"]
    assert cli.main(words) == 0
    return folder


def test_both_are_made_and_small(videos, tmp_path):
    assert main(["pictures", str(PUBLISHED), str(videos), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pareto.png", "strip.png"}
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) <= LARGEST_PICTURE
        assert int.from_bytes(data[16:20], "big") == pictures.WIDTH


def test_a_row_says_the_method_and_its_speed(videos):
    with style.styled():
        figure = pictures.strip(videos)
    rows = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes if axes.get_ylabel()]
    assert rows[0] == "no cache 1.0×"
    assert {row.rpartition(" ")[0] for row in rows[1:]} == {
        "planned", "PreciseCache-turbo", "TeaCache", "PreciseCache-flash (trial to trial)",
    }  # fmt: skip


def test_the_plot_names_its_lines():
    with style.styled():
        figure = pictures.pareto(PUBLISHED)
    assert {text.get_text() for text in figure.axes[0].texts} == set(pictures.NAMED.values())


def test_lines_are_of_one_reference_and_the_same_prompts(tmp_path):
    """A record of another size, or of fewer prompts, with more settings takes no line's place."""
    write(
        tmp_path / "methods", record("none"), *(named(name, speed) for name in pictures.NAMED for speed in (1.5, 2.5))
    )
    others = [record("none"), *(named("fewer_steps", speed, 5.0) for speed in (1.2, 1.5, 2.0, 2.5))]
    for number, changes in enumerate(({"reference": "another"}, {"machine": {"name": "other"}})):
        for each in others:
            few = each["samples"][: 4 - number]
            write(tmp_path / "methods", each | changes | {"id": f"{each['id']}{number}", "samples": few})
    with style.styled():
        figure = pictures.pareto(tmp_path)
    lowest = min(line.get_ydata().min() for line in figure.axes[0].lines)
    assert lowest == pytest.approx(41.5)


def named(curve: str, speed: float, psnr: float = 40.0) -> dict:
    """A record of the curve of this name."""
    name, _, reuse = curve.partition(" ")
    return record(name, speed, psnr, **({"reuse": reuse} if reuse else {}), setting=speed)


def test_nothing_to_draw_from_is_said(videos, tmp_path, capsys):
    for folders, line in {
        (tmp_path, videos): "no records",
        (PUBLISHED / "demo", videos): "no records of controlled extrapolate",
        (PUBLISHED, PUBLISHED / "demo"): "no videos that all methods have",
    }.items():
        assert main(["pictures", *map(str, folders), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
