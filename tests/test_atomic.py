"""Writers in one folder: names of their own, locks that end with their owner, and only the dead's leftovers deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analysis.load import benches
from pcbench.store import (
    DamagedError,
    atomic,
    claims,
    load_json,
    read_json,
    read_record,
    records,
    write_record,
    write_sealed,
)

from .analysis_parts import record

ROOT = Path(__file__).parents[1]


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path):
    path, texts = tmp_path / "x.txt", ["a" * 100_000, "b" * 100_000]

    def work(text: str) -> None:
        for _ in range(50):
            atomic.write_whole(path, lambda partial: partial.write_text(text))

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_in_the_place_of_a_file_is_set_aside_and_kept(tmp_path, capsys):
    (tmp_path / "x.json" / "inside").mkdir(parents=True)
    atomic.write_whole(tmp_path / "x.json", lambda partial: partial.write_text("{}"))
    assert (tmp_path / "x.json").read_text() == "{}"
    (aside,) = tmp_path.glob("x.json.damaged-*")
    assert (aside / "inside").is_dir()
    assert capsys.readouterr().out.count("\n") == 1


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with atomic.partial(tmp_path / "x.mp4") as own:
        own.write_text("")
        assert own.suffix == ".mp4"
        _, pid, namespace, *_ = own.name.split("-")
        dead = own.with_name(own.name.replace(pid, str(done.pid)))
        elsewhere = dead.with_name(dead.name.replace(namespace, "0" * 8))
        for path in (dead, elsewhere, tmp_path / ".partial-of-somebody"):
            path.write_text("")
        atomic.sweep(tmp_path)
        assert own.exists()
    assert {path.name for path in tmp_path.iterdir()} == {elsewhere.name, ".partial-of-somebody"}


def test_a_claim_ends_with_its_owner_and_is_never_waited_for(tmp_path):
    code = "\n".join(
        (
            "import sys, time, pathlib, pcbench.store.claims",
            "with pcbench.store.claims.claim(pathlib.Path(sys.argv[1])) as ours:",
            "    print(ours, flush=True)",
            "    time.sleep(60)",
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with claims.claim(tmp_path / "s") as ours:
        assert not ours
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with claims.claim(tmp_path / "s") as ours:
        assert ours
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


def test_any_changed_bit_of_sealed_json_is_noticed(tmp_path):
    path, data = tmp_path / "x.trace.json", {"steps": [1, 2.5, None], "name": "a", "deep": {"b": [True]}}
    write_sealed(path, data)
    assert load_json(path) == data
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = read_json(path)
        assert found is None or {name: found[name] for name in data} == data  # white space, or the checksum's own key
    path.rename(tmp_path / "y.trace.json")
    with pytest.raises(DamagedError):
        load_json(tmp_path / "y.trace.json")


FOREIGN = [
    "",
    "{",
    "[]",
    "3",
    "null",
    '{"a": 1}',
    "[" * 100_000,
    "\x00\x00",
    '{"samples": [], "recipe": 1}',
    "{'a': 1}",
]


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_damaged_record_is_a_line_and_the_others_count(tmp_path, capsys, text):
    sound, broken = record("none"), record("uniform", speedup=2.0, psnr=30.0)
    folder = tmp_path / "records" / "m" / "tiny_wan"
    for each in (sound, broken):
        write_record(folder / f"{each['id'].replace('/', '')}.json", each)
    victim = next(path for path in folder.iterdir() if path.name.startswith("uniform"))
    assert sorted(each["id"] for each in records(tmp_path)) == sorted([sound["id"], broken["id"]])
    victim.write_text(text)
    (bench,) = benches(tmp_path)
    assert len(bench.records) == 1
    assert capsys.readouterr().err.count("damaged record") == 1
    (folder / f"{sound['id']}.json").write_text(text)
    with pytest.raises(ValueError, match="no records under"):
        benches(tmp_path)


def test_a_copy_of_a_record_is_a_line_and_counts_once(tmp_path, capsys):
    folder = tmp_path / "records" / "m" / "tiny_wan"
    for name, each in {"a": record("none"), "b": record("uniform", speedup=2.0, psnr=30.0)}.items():
        write_record(folder / f"{name}.json", each)
    (folder / "b (copy).json").write_bytes((folder / "b.json").read_bytes())
    assert len(list(records(tmp_path))) == 2
    assert "left out, a copy" in capsys.readouterr().err


def test_a_records_checksum_is_of_all_but_measured_times(tmp_path):
    path, data = tmp_path / "r.json", record("uniform", speedup=2.0, psnr=30.0)
    write_record(path, data)
    assert read_record(path) == data
    changed = json.loads(path.read_text())
    changed["samples"][0]["seconds"] = 99.0
    path.write_text(json.dumps(changed))
    read_record(path)
    for spoil in (lambda d: d["samples"][0].update(macs=1), lambda d: d["latency"].update(repeats=4)):
        spoilt = json.loads(json.dumps(changed))
        spoil(spoilt)
        path.write_text(json.dumps(spoilt))
        with pytest.raises(DamagedError):
            read_record(path)
