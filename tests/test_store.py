"""Files appear whole or not at all; the same content is not written twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcbench.store import Place, read_json, records, write_json, write_record, write_whole

from .analysis_parts import record


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert read_json(path) == {"a": 1}


def test_unchanged_content_is_not_touched(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, 2]})
    before = path.stat()
    write_json(path, {"a": [1, 2]})
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_lists_of_plain_values_take_one_line_and_stay_json(tmp_path):
    path = tmp_path / "x.json"
    data = {"a": [1.5, None, "b [c, d]"], "rows": [{"x": [1, 2]}, {"x": []}], "text": "[not a\nlist]"}
    write_json(path, data)
    assert json.loads(path.read_text()) == data
    assert '"x": [ 1, 2 ]' in path.read_text()


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") is None


def test_a_sample_is_complete_with_all_three_files(tmp_path):
    place = Place(tmp_path, "machine", "model", "none", "0123456789ab")
    files = place.sample("a-red-circle-s0")
    for path in (files.latent, files.video, files.trace):
        assert not files.complete
        assert list(place.traces()) == []
        write_whole(path, lambda partial: partial.write_text("{}"))
    assert files.complete
    assert list(place.traces()) == [(files, {})]
    assert files.latent.name == "a-red-circle-s0.safetensors"


def test_records_are_found(tmp_path):
    place = Place(tmp_path, "machine", "model", "none", "0123456789ab")
    data = record("none")
    write_record(place.record, data)
    assert list(records(tmp_path)) == [data]
    assert place.record == tmp_path / "records/machine/model/none-0123456789ab.json"
