"""What a search has found, in the figure and the table that show it: only beside records with its own reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import figures
from analysis.figures import Options, read_oracle, style
from analysis.figures.highlight import Found
from analysis.figures.pareto import BY_SSIM, ORACLE
from analysis.load import Bench, benches
from analysis.tables import oracle

from .analysis_parts import record, write
from .test_compared import compared, drawn, told

ALL = ("a", "b", "c", "d")  # the prompts of analysis_parts


def put(folder: Path, name: str, uniform: float | None = 20.0, best: float | None = 60.0, **changes: Any) -> None:
    """A summary as pcbench.oracle writes it, of the records of analysis_parts; every video has the same scores."""
    videos = changes.pop("videos", ALL)
    rows = {"uniform": uniform, "best per prompt": best}
    data = {
        "model": "tiny_wan",
        "revision": None,
        "reuse": "extrapolate",
        "steps": 25,
        "of": 50,
        "machine": "m",
        "reference": "none",
        "samples": [{"prompt": prompt, "seed": 0} for prompt in videos],
        "schedules": {kind: {"psnr": [score] * len(videos)} for kind, score in rows.items()},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data))


def bench_of(root: Path, *records: dict[str, Any]) -> Bench:
    write(root, record("none"), *(records or [record("planned", 2.0, 48.5)]))
    (bench,) = benches(root)
    return bench


def table(*found: Bench) -> list[tuple[str, dict[str, list[str]]]]:
    """Heading and rows of every block of the table."""
    made = oracle.tables("mine", found)
    return [
        (block.heading, {row[0].text: [cell.text for cell in row[1:]] for row in block.rows})
        for each in made
        for block in each.blocks
    ]


def test_a_method_reaches_a_share_of_what_a_search_finds(tmp_path):
    """Over the videos that were searched, at their cost; settings elsewhere do not count."""
    bench = bench_of(tmp_path)
    assert table(bench) == []
    put(tmp_path / "oracle", "a", 28.5, 68.5, videos=("b", "c"))
    put(tmp_path / "oracle", "b", 40.0, 50.0, videos=("b", "c"), steps=10)
    (tmp_path / "oracle" / "tried.json").write_text("{}")
    ((heading, rows),) = table(bench)
    assert heading.endswith("2 videos, reuse=extrapolate")
    assert rows == {
        "evenly spaced": ["28.50 (0%)", "40.00 (0%)"],
        "each video's best": ["68.50 (100%)", "50.00 (100%)"],
        "planned": ["50.00 (54%)", ""],
    }


@pytest.mark.parametrize("elsewhere", [{"machine": "other"}, {"reference": "another"}, {"model": "tiny_hunyuan"}])
def test_a_search_is_shown_only_beside_what_it_was_made_against(tmp_path, elsewhere):
    """As many methods may be on two machines, or against two references, of one model."""
    bench = bench_of(tmp_path)
    put(tmp_path / "oracle", "a", **elsewhere)
    assert table(bench) == []
    with pytest.raises(ValueError, match="no records of"):
        Options(oracle=read_oracle(tmp_path / "oracle")).check([bench])


def test_every_payload_and_every_set_of_videos_has_its_own_block(tmp_path):
    bench = bench_of(tmp_path)
    put(tmp_path / "oracle", "a", 40.0)
    put(tmp_path / "oracle", "b", 30.0, reuse="prediction")
    put(tmp_path / "oracle", "c", 35.0, steps=20, videos=("a",))
    found = {heading.rpartition(": ")[2]: rows["evenly spaced"] for heading, rows in table(bench)}
    assert found == {
        "4 videos, reuse=extrapolate": ["40.00 (0%)", ""],
        "4 videos, reuse=prediction": ["30.00 (0%)", ""],
        "1 video, reuse=extrapolate": ["", "35.00 (0%)"],
    }


def test_a_share_is_of_the_videos_that_all_have_a_score_of(tmp_path):
    """The best schedule of one video is identical to its reference: it has no part in any gain."""
    bench = bench_of(tmp_path, record("planned", 2.0, 40.0))
    schedules = {"uniform": {"psnr": [30.0, 0.0]}, "best per prompt": {"psnr": [50.0, None]}}
    put(tmp_path / "oracle", "a", videos=("a", "b"), schedules=schedules)
    ((_, rows),) = table(bench)
    assert rows["planned"] == ["40.50 (50%)"]
    assert rows["evenly spaced"] == ["15.00 (0%)"]


@pytest.mark.parametrize(
    ("uniform", "best", "shown"), [(40.0, 40.0, "40.00"), (41.0, 40.0, "41.00"), (40.0, None, "40.00")]
)
def test_without_a_gain_there_are_no_shares(tmp_path, uniform, best, shown):
    bench = bench_of(tmp_path)
    put(tmp_path / "oracle", "a", uniform, best)
    ((_, rows),) = table(bench)
    assert rows["evenly spaced"] == [shown]


def test_a_search_of_identical_videos_alone_is_no_point_and_no_error(tmp_path):
    bench = bench_of(tmp_path)
    put(tmp_path / "oracle", "a", None, None)
    ((_, rows),) = table(bench)
    assert set(rows) == {"planned"}
    assert read_oracle(tmp_path / "oracle" / "a.json") == []


def test_a_summary_that_does_not_say_its_reference_is_refused(tmp_path):
    """Older ones do not; they would be shown beside whatever has the model's name."""
    put(tmp_path / "oracle", "a")
    path = tmp_path / "oracle" / "a.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "reference"}))
    with pytest.raises(ValueError, match="lacks 'reference': the same command line"):
        table(bench_of(tmp_path))


def test_summaries_of_a_search_are_read(tmp_path):
    """At one number of steps the best payload counts, and a video identical to its reference does not. Other JSON
    beside them is not read."""
    put(tmp_path / "oracle" / "m", "a", best=55.0)
    put(tmp_path / "oracle" / "m", "b", best=40.5, reuse="prediction")
    put(tmp_path / "oracle" / "m", "c", steps=20, schedules={"best per prompt": {"psnr": [None, 45.0, 45.0, 45.0]}})
    (tmp_path / "oracle" / "tried.json").write_text('{"a prompt": {"FrF": 0.1}}')
    found = Options(oracle=read_oracle(tmp_path / "oracle")).beside(bench_of(tmp_path))
    assert [(point.speedup, point.psnr, point.videos) for point in found] == [(2.0, 55.0, 4), (2.5, 45.0, 4)]
    (alone,) = read_oracle(tmp_path / "oracle" / "m" / "b.json")
    assert (alone.speedup, alone.psnr) == (2.0, 40.5)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no summary"):
        read_oracle(empty)


def test_what_is_no_summary_is_one_line(tmp_path, capsys):
    compared(tmp_path)
    for content, message in (
        ("[1, 2]", "has neither {model: [[speedup, PSNR], …]} nor a summary"),
        ("{", "has neither {model: [[speedup, PSNR], …]} nor a summary"),
        ('{"wan": [[2, 50]]}', "no records of 'wan'"),
    ):
        (tmp_path / "oracle.json").write_text(content)
        assert figures.main([str(tmp_path), "--oracle", str(tmp_path / "oracle.json")]) == 2
        assert message in capsys.readouterr().err


def test_the_best_schedules_found_are_a_dashed_line(tmp_path):
    compared(tmp_path)
    points = [(3.0, 45.0), (1.5, 60.0), (2.0, 55.0)]
    options = Options(oracle=[Found("tiny", *point) for point in points])
    drawing = drawn(tmp_path, options)
    mean, worst = drawing.figure.axes
    (line,) = [line for line in mean.lines if line.get_linestyle() == "--" and line.get_color() == style.BLACK]
    assert list(zip(*line.get_data(), strict=True)) == sorted(points)
    assert ORACLE in told(mean)
    assert ORACLE not in told(worst)
    assert ORACLE not in told(drawn(tmp_path, options, BY_SSIM).figure.axes[0])  # whose quality is another
    searched = Options(oracle=[Found("tiny", 2.0, 55.0, videos=4)])
    assert drawn(tmp_path, searched).title.endswith("by a search, which knows the outcome, over 4 videos.")
