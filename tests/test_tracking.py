"""Records on W&B: read back they are equal; whatever happens to them there, sweeps and records do not notice."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pcbench import cli, tracking
from pcbench.store import records
from pcbench.tracking.entries import displayed, numbers, of_record, of_sweep

from . import forks
from .report_parts import make, put, record
from .test_cli import QUICK, SMALL, without_times
from .wandb_parts import environment, project, runs_of, server

ROOT = Path(__file__).parents[1]
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs wandb: pip install 'pcbench[wandb]'"
)
KEY = "0" * 40
SWEEP = ["-m", "method=uniform", "method.steps=3,4", *SMALL[:-1], *QUICK, "prompts.limit=1"]


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("whole") / "bench")


@pytest.fixture
def bench(whole_bench, tmp_path) -> Path:
    return Path(shutil.copytree(whole_bench, tmp_path / "bench"))


def test_modes():
    assert [tracking.mode_of(each) for each in ("off", False, None, "disabled")] == [None] * 4
    assert tracking.mode_of(True) == tracking.mode_of("offline") == "offline"
    assert tracking.mode_of("online") == "online"
    with pytest.raises(ValueError, match="wandb must be off, offline or online, not 'sometimes'"):
        tracking.mode_of("sometimes")


def test_a_wrong_mode_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert cli.main(["wandb=sometimes", f"results={tmp_path}"]) == 2
    assert capsys.readouterr().err == "pcbench: wandb must be off, offline or online, not 'sometimes'\n"


def test_off_costs_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        with tracking.beside(tmp_path, "off"):
            pass
        patch.setenv("RANK", "1")
        with tracking.beside(tmp_path, "online"):  # another process under torchrun does it
            pass
    code = "import sys, pcbench.tracking.entries; sys.exit(bool({'wandb', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert not any(tmp_path.iterdir())


def test_the_summary_is_the_records_numbers():
    flat = numbers(record("precisecache", 1, vbench=[{"dimensions": {"color": {"score": None, "n": 0}}}]))
    assert flat["macs/speedup"] == 1.5
    assert flat["latency/speedup/max"] == 1.6
    assert flat["vbench/0/dimensions/color/score"] is None
    assert (flat["samples"], flat["steps"], flat["computed"]) == (3, 10, 6)
    assert not any("recipe" in name or "machine" in name for name in flat)


def test_ids_are_stable_and_apart(tmp_path):
    ours = of_record(tmp_path / "a" / "bench", record("none"))
    assert ours.id == of_record(tmp_path / "b" / "bench", record("none")).id == "none-none0-cb6a3cc4"
    elsewhere = of_record(tmp_path / "bench", record("none", machine="another")).id
    assert len({ours.id, elsewhere, of_record(tmp_path / "other", record("none")).id}) == 3


HOSTILE_FOLDERS = ("a b", "ünï-日本語", "a/../b: 100%?#", "x" * 200, "[glob]*", "-", "two\nlines", "caf\udce9", "/")


def test_ids_are_valid_and_apart_for_any_results_folder(tmp_path):
    """W&B takes letters, digits and `-_.` in an id of up to 64 characters, and names of up to 128."""
    folders = [Path(name) if name == "/" else tmp_path / name for name in HOSTILE_FOLDERS]
    entries = [entry for folder in folders for entry in (of_record(folder, record("none")), of_sweep(folder, []))]
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", entry.id)
        for text in (displayed(entry.name), displayed(entry.group), displayed(entry.group, 64)):
            assert 0 < len(text.encode().decode()) <= 128
            assert text.isprintable()
    (tmp_path / "bench").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bench")
    ways = (tmp_path / "bench", tmp_path / "link", tmp_path / "link" / ".." / "bench", Path(f"{tmp_path}/bench/"))
    assert len({of_record(way, record("none")).id for way in ways}) == 1


@needs_wandb
def test_an_offline_run_read_back_equals_the_record(bench, tmp_path):
    done = project(tmp_path, str(bench))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wandb: 5 runs written offline")
    assert done.stderr == ""
    runs, found = runs_of(bench), list(records(bench))
    assert len(runs) == 5
    for each in found:
        run = runs[of_record(bench, each).id]
        assert run["group"] == "bench"
        assert {name: run["config"][name] for name in each["recipe"]} == each["recipe"]
        assert run["config"]["machine"] == each["machine"]
        assert run["summary"] == numbers(each)
        table = run["tables"]["per_sample"]
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["prompt"] for row in rows] == [s["prompt"] for s in each["samples"]]
        for row, sample in zip(rows, each["samples"], strict=True):
            assert {name: row[name] for name in sample["fidelity"]} == sample["fidelity"]
        assert len(run["videos"]) == 3
        for words, path in run["videos"].items():
            originals = bench.rglob(f"*/{each['recipe']['method']['name']}-{each['id']}/*.mp4")
            assert words.removesuffix(" (seed 0)") in [row["prompt"] for row in rows]
            assert path.read_bytes() in [original.read_bytes() for original in originals]
    table = next(run for name, run in runs.items() if name.startswith("table-"))["tables"]["records"]
    rows = {row[table["columns"].index("id")]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert rows.keys() == {each["id"] for each in found}
    for each in found:
        assert {name: rows[each["id"]][name] for name in numbers(each)} == numbers(each)
    assert rows["precisecache2"]["settings"] == "threshold=0.2"
    assert not any((tmp_path / "home").iterdir())


def folders(bench: Path) -> set[tuple[str, int]]:
    """W&B's offline runs by name and time: the name holds the second, in which a run may be written twice."""
    return {(path.name, path.stat().st_ctime_ns) for path in (bench / "wandb").glob("offline-run-*")}


@needs_wandb
def test_only_what_changed_is_written_again(bench, tmp_path):
    project(tmp_path, str(bench))
    before = folders(bench)
    assert "0 runs written" in project(tmp_path, str(bench)).stdout
    assert folders(bench) == before
    put(bench, record("teacache", 1, status="failed", error="no room"))
    assert "2 runs written" in project(tmp_path, str(bench)).stdout  # the record's and the table
    after = folders(bench)
    assert len(after) == 5
    assert len(before & after) == 3
    teacache = next(run for name, run in runs_of(bench).items() if name.startswith("teacache"))
    assert teacache["summary"]["error"] == "no room"
    for path in bench.glob("wandb/offline-run-*/*.wandb"):
        path.with_name(f"{path.name}.synced").touch()  # as `wandb sync` does
    for mode in ("offline", "online"):
        assert f"0 runs written {mode}" in project(tmp_path, str(bench), "--mode", mode).stdout
    put(bench, record("teacache", 1, status="ok"))
    assert "2 runs written" in project(tmp_path, str(bench)).stdout
    assert len(folders(bench)) == 7  # beside those that were sent


@needs_wandb
def test_two_processes_write_no_run_twice(bench, tmp_path):
    """As two shards of a sweep on one results folder have them."""
    command = [sys.executable, "-m", "pcbench.tracking", str(bench)]
    how = {"cwd": ROOT, "env": environment(tmp_path), "stdout": subprocess.PIPE, "text": True}
    said = [process.communicate()[0] for process in [subprocess.Popen(command, **how) for _ in range(2)]]
    assert sorted(re.findall(r"(\d) runs written", "".join(said))) == ["0", "5"]
    assert len(folders(bench)) == 5


@needs_wandb
def test_online_sends_the_same_once(bench, tmp_path):
    with server() as (address, uploaded):
        account = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": address}
        done = project(tmp_path, str(bench), "--mode", "online", **account)
        again = project(tmp_path, str(bench), "--mode", "online", **account)
    assert "5 runs written online" in done.stdout, done.stderr
    assert "0 runs written online" in again.stdout
    assert not any((bench / "wandb").glob("offline-run-*"))
    for each in records(bench):
        summary = json.loads(uploaded[f"{of_record(bench, each).id}/wandb-summary.json"])
        assert {name: summary[name] for name in numbers(each) if name in summary} == _known(each)


def _known(each: dict) -> dict:
    """What an online summary has room for: a missing value is left out."""
    return {name: value for name, value in numbers(each).items() if value is not None}


TROUBLES = ("no key", "no network", "a server that says nothing")


@pytest.fixture(scope="module")
def fallen_back(whole_bench, tmp_path_factory) -> dict[str, tuple[subprocess.CompletedProcess[str], Path, float]]:
    """Of each trouble the process, its bench and the seconds it took: all wait for W&B at the same time."""

    def online(trouble: str) -> tuple[subprocess.CompletedProcess[str], Path, float]:
        folder, began = tmp_path_factory.mktemp("online"), time.perf_counter()
        bench = Path(shutil.copytree(whole_bench, folder / "bench"))
        with server(answers=False) as (address, _):
            where = address if "says nothing" in trouble else "http://127.0.0.1:9"
            key = {} if trouble == "no key" else {"WANDB_API_KEY": KEY}
            done = project(folder, str(bench), "--mode", "online", WANDB_BASE_URL=where, WANDB_INIT_TIMEOUT="1", **key)
        return done, bench, time.perf_counter() - began

    with ThreadPoolExecutor() as pool:
        return dict(zip(TROUBLES, pool.map(online, TROUBLES), strict=True))


@needs_wandb
@pytest.mark.parametrize("trouble", TROUBLES)
def test_online_falls_back_to_offline(fallen_back, trouble):
    done, bench, seconds = fallen_back[trouble]
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("wandb: online failed (")
    assert "5 runs written offline" in done.stdout
    assert len(runs_of(bench)) == 5
    assert seconds < 90


def test_without_the_package_it_says_so(bench, tmp_path):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "wandb.py").write_text("raise ImportError")
    done = project(tmp_path, str(bench), PYTHONPATH=str(tmp_path / "absent"))
    assert done.returncode == 2
    assert done.stderr == "wandb: not installed (pip install 'pcbench[wandb]'); the records do without it\n"


def test_no_records_is_one_line(tmp_path):
    done = project(tmp_path, str(tmp_path / "nothing"))
    assert (done.returncode, done.stderr) == (2, f"wandb: no records under {tmp_path / 'nothing'}\n")


def sweep(tmp_path: Path, name: str, *words: str, **more: str) -> subprocess.Popen:
    env = environment(tmp_path, **more)
    line = [*SWEEP, f"results={tmp_path / name}", *words]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return forks.popen(lambda: cli.main(line), env, cwd=ROOT, **said)


def beside(sweep_process: subprocess.Popen) -> int:
    """The process id of the projection that runs beside a sweep."""
    for _ in range(1200):
        for children in Path(f"/proc/{sweep_process.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                if b"pcbench.tracking" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        assert sweep_process.poll() is None
        time.sleep(0.05)
    raise AssertionError("nothing beside the sweep")


def contents(results: Path) -> dict[str, dict]:
    return {path.name: without_times(json.loads(path.read_text())) for path in results.glob("records/*/*/*.json")}


@pytest.fixture
def sweep_here(tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """The sweep in this process, the projection beside it; returns exit code and what both said."""

    def run(*words: str, **more: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - (wanted := environment(tmp_path, **more)).keys():
                patch.delenv(name)
            for name, value in wanted.items():
                patch.setenv(name, value)
            code = cli.main([*SWEEP, f"results={tmp_path / 'bench'}", *words])
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, dict]:
    """The records of the sweep without W&B."""
    folder = tmp_path_factory.mktemp("plain")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        assert cli.main([*SWEEP, f"results={folder / 'bench'}"]) == 0
    assert "wandb" not in out.getvalue()
    assert not (folder / "bench" / "wandb").exists()
    return contents(folder / "bench")


@needs_wandb
def test_a_sweep_is_projected_as_it_goes(plain, tmp_path, sweep_here):
    code, out, err = sweep_here("wandb=offline")
    assert code == 0, err
    assert contents(tmp_path / "bench") == plain
    assert out.splitlines()[-1].startswith("wandb: ")
    assert len(runs_of(tmp_path / "bench")) == 4  # no cache, two methods, the table
    for each in records(tmp_path / "bench"):
        run = runs_of(tmp_path / "bench")[of_record(tmp_path / "bench", each).id]
        assert run["summary"] == numbers(each)
        assert len(run["videos"]) == 1


@needs_wandb
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process through /proc")
def test_the_projection_killed_in_the_middle(plain, tmp_path):
    process = sweep(tmp_path, "bench", "wandb=online")  # and no key
    os.kill(beside(process), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert contents(tmp_path / "bench") == plain
    said = [line for line in out.splitlines() if line.startswith("wandb: ")]
    assert len(said) == 1
    assert "killed by signal 9" in said[0]
    assert project(tmp_path, str(tmp_path / "bench")).returncode == 0
    assert len(runs_of(tmp_path / "bench")) == 4


@needs_wandb
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process through /proc")
def test_a_killed_sweep_is_projected_as_far_as_it_came(tmp_path):
    process = sweep(tmp_path, "bench", "wandb=offline")
    child = beside(process)
    while not any((tmp_path / "bench").glob("records/*/*/none-*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for _ in range(1200):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert any(name.startswith("none-") for name in runs_of(tmp_path / "bench"))


def test_a_sweep_without_the_package(plain, tmp_path, sweep_here):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "wandb.py").write_text("raise ImportError")
    code, _, err = sweep_here("wandb=offline", PYTHONPATH=str(tmp_path / "absent"))
    assert code == 0
    assert err.count("wandb: not installed") == 1
    assert contents(tmp_path / "bench") == plain
