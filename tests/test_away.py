"""A results folder that goes away and comes back (tests/faults/disks.py takes it from a whole sweep)."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from pcbench.store import SampleFiles, away, load_json, read_json, write_json
from pcbench.store.atomic import write_whole


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    with away.watching(folder):
        yield folder


def take(root, seconds: float, empty: bool = False) -> threading.Thread:
    """Take the folder away now, and bring it back so much later."""
    elsewhere = root.with_name("elsewhere")
    root.rename(elsewhere)
    if empty:
        root.mkdir()

    def back() -> None:
        time.sleep(seconds)
        if empty:
            root.rmdir()
        elsewhere.rename(root)

    thread = threading.Thread(target=back)
    thread.start()
    return thread


@pytest.mark.parametrize("empty", [False, True])
def test_what_is_written_and_read_waits_for_the_folder(root, empty, capsys):
    write_json(root / "old.json", {"a": 1})
    files = SampleFiles(root / "sample")
    for path in (files.latent, files.video, files.trace):
        path.touch()
    for use in (
        lambda: write_json(root / "new.json", {"b": 2}),
        lambda: read_json(root / "old.json") == {"a": 1},
        lambda: files.complete,
    ):
        back = take(root, 0.3, empty)
        assert use() is not False
        back.join()
    assert load_json(root / "new.json") == {"b": 2}
    assert capsys.readouterr().err.count("the results folder is away; waiting") == 3


def test_work_begun_before_is_done_again(root):
    written = []

    def write(own) -> None:
        written.append(own)
        if len(written) == 1:
            take(root, 0.2)
        own.write_text("whole")

    write_whole(root / "x", write)
    assert (root / "x").read_text() == "whole"
    assert len(written) == 2
    assert [path.name for path in root.iterdir()] == ["x"]


@pytest.mark.parametrize("between", ["waited", "_make_within"])
def test_no_folder_is_made_in_its_place_however_late_it_goes(root, monkeypatch, between):
    """Between the look and the work, or between two of its parts."""
    step, taken = getattr(away, between), []

    def late(*arguments):
        result = step(*arguments) if between == "waited" else None
        if not taken:
            taken.append(take(root, 0.3, empty=True))
        return result if between == "waited" else step(*arguments)

    monkeypatch.setattr(away, between, late)
    away.make_folder(root / "a" / "b")
    taken[0].join()
    assert (root / "a" / "b").is_dir()


def test_a_folder_that_another_process_made_anew_is_used(root):
    root.rename(root.with_name("elsewhere"))
    (root / "theirs").mkdir(parents=True)
    away.make_folder(root / "a" / "b")
    assert (root / "a" / "b").is_dir()


def test_after_a_while_it_counts_as_deleted(root, monkeypatch):
    monkeypatch.setattr(away, "PATIENCE", 0.2)
    root.rmdir()
    write_json(root / "x.json", {})
    assert not away.is_away()
    assert load_json(root / "x.json") == {}


def test_an_error_of_another_kind_is_not_waited_for_and_a_passing_one_is_tried_once_more(root):
    tried = []

    def failing(number: int):
        def work() -> None:
            tried.append(number)
            raise OSError(number, "no")

        return work

    for number in (errno.ENOSPC, errno.ESTALE):
        with pytest.raises(OSError, match="no"):
            away.steadily(failing(number))
    assert tried == [errno.ENOSPC, errno.ESTALE, errno.ESTALE]


def test_nothing_is_watched_by_itself(tmp_path):
    write_json(tmp_path / "a" / "x.json", {})
    assert not away.is_away()
    assert read_json(tmp_path / "b" / "x.json") is None
