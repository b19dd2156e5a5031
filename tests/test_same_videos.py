"""The Pareto front and the worst prompts compare what has the same videos: records may have other ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.load import benches
from analysis.tables import worst_table
from analysis.tables.cells import COLUMNS, Row

from .analysis_parts import IDENTICAL, record, write


def only(data: dict[str, Any], *prompts: str) -> dict[str, Any]:
    """A record of these prompts alone."""
    return data | {"samples": [sample for sample in data["samples"] if sample["prompt"] in prompts]}


def scored(data: dict[str, Any], **psnr: float | None) -> dict[str, Any]:
    """A record with other scores of some prompts; None: the video is identical."""
    for sample in data["samples"]:
        if sample["prompt"] in psnr:
            value = psnr[sample["prompt"]]
            sample["fidelity"]["psnr@2"] = value
            sample["fidelity_notes"] = {"psnr@2": IDENTICAL} if value is None else {}
    return data


def front(root: Path, *records: dict[str, Any]) -> set[str]:
    write(root, record("none"), *records)
    (bench,) = benches(root)
    rows = [Row(bench, number) for number in range(len(bench.records))]
    return {row.record["method"] for row in rows if COLUMNS["front"].cell(row).text}


def worst(root: Path, *records: dict[str, Any]) -> tuple[list[tuple[str, float, str, int]], list[str]]:
    write(root, record("none"), *records)
    (table,) = worst_table("x", benches(root))
    rows = [(row[0].text[0], row[1].value, row[4].text, row[5].value) for row in table.blocks[0].rows]
    return rows, table.notes


def test_the_front_is_what_nothing_beats(tmp_path):
    settings = {"pab": (4.0, 10.0), "fora": (2.0, 45.0), "teacache": (1.5, 50.0), "magcache": (2.0, 40.0)}
    alike = record("dicache", 2.0, 45.0)
    found = front(tmp_path, *(record(name, *each) for name, each in settings.items()), alike)
    assert found == {"pab", "fora", "teacache", "dicache"}


def test_the_front_is_over_the_videos_that_two_records_have(tmp_path):
    """The mean of one that has the easiest video alone is higher than that of one that is better on it."""
    assert front(tmp_path, record("pab", 2.0, 40.0), only(record("fora", 2.1, 39.0), "d")) == {"pab", "fora"}


def test_a_replayed_schedule_of_one_video_beats_no_method(tmp_path):
    replayed = only(record("replay", 2.1, 60.0, actions="FrFr"), "d")
    assert front(tmp_path / "one", record("pab", 2.0, 40.0), replayed) == {"pab"}
    assert front(tmp_path / "two", replayed) == {"replay"}


def test_identical_videos_are_on_the_front(tmp_path):
    """Their PSNR is infinite, and no setting that costs as much is better."""
    assert front(tmp_path / "a", record("pab", 2.0, None), record("fora", 1.9, 60.0)) == {"pab"}
    assert front(tmp_path / "b", record("pab", 2.0, 50.0), record("fora", 1.9, None)) == {"pab", "fora"}
    assert front(tmp_path / "c", record("pab", 2.0, None), record("fora", 1.9, None)) == {"pab"}


def test_what_costs_as_much_as_no_cache_is_on_no_front(tmp_path):
    assert front(tmp_path, record("pab", 0.9, None), record("fora", 2.0, 40.0)) == {"fora"}


def test_an_identical_video_is_no_disadvantage(tmp_path):
    """Without it, its record's mean is that of the videos that are worse for both."""
    better = scored(record("pab", 2.0, 40.0), d=None)
    assert front(tmp_path / "a", better, record("fora", 2.0, 40.0)) == {"pab"}
    assert front(tmp_path / "b", scored(record("pab", 2.0, 41.0), d=None), record("fora", 2.0, 40.0)) == {"pab"}


def test_what_is_not_scored_is_on_no_front(tmp_path):
    data = record("pab", 9.0, 40.0)
    for sample in data["samples"]:
        sample["fidelity"] = {}
    assert front(tmp_path, data, record("fora", 2.0, 40.0)) == {"fora"}


def test_the_worst_prompts_are_of_the_videos_that_all_records_have(tmp_path):
    """Two prompts of a bad setting alone are not worse than the others."""
    rows, _ = worst(tmp_path, only(record("pab", 2.0, 40.0), "a", "b"), record("fora", 3.0, 10.0))
    assert rows == [("a", 25.0, "fora", 2), ("b", 26.0, "fora", 2)]


def test_a_prompt_that_some_left_identical_is_not_worse_for_it(tmp_path):
    """A gentle setting leaves the easiest prompt as it is: that prompt's mean would be the coarse settings' alone."""
    rows, _ = worst(tmp_path, scored(record("pab", 1.1, 60.0), d=None), record("fora", 3.0, 20.0))
    assert [row[0] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0] == ("a", 20.0, "fora", 1)


def test_replayed_schedules_have_no_say_in_the_worst_prompts(tmp_path):
    replayed = only(record("replay", 2.1, 60.0, actions="FrFr"), "d")
    rows, _ = worst(tmp_path, record("pab", 2.0, 40.0), replayed)
    assert [row[0] for row in rows] == ["a", "b", "c", "d"]
    assert rows[-1] == ("d", 43.0, "pab", 1)


def test_without_a_record_of_all_a_note_says_so(tmp_path):
    write(tmp_path, record("none"), scored(record("pab", 2.0, 40.0), a=None), scored(record("fora", 2.0, 40.0), b=None))
    write(tmp_path / "more", record("none"), record("pab", 2.0, 40.0))
    (table,) = worst_table("x", benches(tmp_path))
    assert len(table.blocks) == 1
    assert table.notes[1].endswith("no record has a PSNR of every video that all have.")
