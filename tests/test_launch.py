"""One sweep on many GPUs: shards, claims and launchers give an undisturbed run's records and make nothing twice."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pcbench import cli, stages
from pcbench.job import jobs_of
from pcbench.launch import shards, worker
from pcbench.store import atomic, claims

from .faults.harness import LINE, Child, contents, records

TINY = [*LINE, "stages=[generate,score]"]


def jobs(words, results) -> list:
    return jobs_of(cli.compose.compose([*words[1:], f"results={results}"], multirun=True).runs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run by one process alone, which has also loaded and priced what the forked ones need."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*TINY, f"results={results}"]) == 0
    return results


def same(results, undisturbed) -> None:
    assert records(results) == records(undisturbed)
    assert contents(results) == contents(undisturbed)


def made(said: str) -> int:
    return sum("  sample " in line for line in said.splitlines())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_samples_once_and_keep_references_with_what_needs_them(tmp_path, count):
    words = ["-m", "model=tiny_wan,tiny_opensora", "method=none,fora", "prompts.limit=3"]
    whole = jobs(words, tmp_path)
    every = sorted((job.id, *sample) for job in whole for sample in job.run.samples)
    taken = []
    for number in range(1, count + 1):
        own = jobs_of(shards.take([job.run for job in whole], shards.Shard(number, count)))
        taken += [(job.id, *sample) for job in own for sample in job.run.samples]
        assert all(set(job.run.samples) == set(job.reference.run.samples) for job in own)
    assert sorted(taken) == every


def test_shards_cost_about_the_same(tmp_path):
    units = shards.units(jobs(["-m", "model=tiny_wan,tiny_opensora", "method=none,fora", "prompts.limit=16"], tmp_path))
    costs = [sum(unit.macs for unit in share) for share in shards.cut(units, 4)]
    assert max(costs) - min(costs) <= 2 * max(unit.macs for unit in units)


def test_the_shards_of_a_run_are_the_run(tmp_path, undisturbed, capsys):
    results = f"results={tmp_path / 'shards'}"
    for number in (1, 2):
        assert cli.main([*TINY, results, f"shard={number}/2"]) == 0
        assert made(capsys.readouterr().out) == 3  # a sample of the reference and of each of two methods
    same(tmp_path / "shards", undisturbed)
    assert cli.main([*TINY, results]) == 0
    assert made(capsys.readouterr().out) == 0


def test_lines_for_a_job_array(tmp_path, capsys):
    assert cli.main([*TINY, f"results={tmp_path / 'a b'}", "shards=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    run = [line for line in lines if not line.startswith("#")]
    assert [line.rpartition("shard=")[2].split()[0] for line in run[:3]] == ["1/3", "2/3", "3/3"]
    assert f"'results={tmp_path / 'a b'}'" in run[0]
    assert any("shard=$SLURM_ARRAY_TASK_ID/3" in line and "sbatch --array=1-3" in line for line in lines)
    assert not (tmp_path / "a b").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "''", "1/1000000"])
def test_a_bad_shard_is_one_line(tmp_path, capsys, shard):
    assert cli.main([f"results={tmp_path}", f"shard={shard}"]) == 2
    assert "shard must be i/n with i from 1 to n" in capsys.readouterr().err


def claim_file(path: Path) -> Path:
    return path.with_name(f".claim-{path.name}")


def another(path: Path, **changed) -> Path:
    """A claim as another process, by default of another machine, has just made it."""
    content = {"process": os.getpid(), "namespace": "00000000", "host": "elsewhere", "token": "x", **changed}
    claim_file(path).write_text(json.dumps(content))
    return claim_file(path)


def dead_process() -> int:
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    return dead


def test_a_claim_of_another_machine_counts_while_it_is_touched(tmp_path):
    file = another(tmp_path / "s")
    with claims.missed() as missed, claims.claim(tmp_path / "s") as ours:
        assert not ours
    assert missed == [tmp_path / "s"]
    assert claims.busy(tmp_path / "s")
    assert claims.running(tmp_path) == {"s"}
    os.utime(file, (time.time() - 2 * claims.LIMIT,) * 2)
    assert not claims.busy(tmp_path / "s")
    with claims.claim(tmp_path / "s") as ours:
        assert ours
        assert json.loads(file.read_text())["process"] == os.getpid()
        assert not claims.busy(tmp_path / "s")  # it is not another's
    assert not file.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"process": "x"}', '{"process": 1, "namespace": []}', "\0"]
)
def test_a_corrupt_claim_is_none(tmp_path, content):
    claim_file(tmp_path / "s").write_text(content)
    assert not claims.busy(tmp_path / "s")
    with claims.claim(tmp_path / "s") as ours:
        assert ours


def test_claims_of_the_dead_are_taken_over_at_once_and_swept(tmp_path):
    file = another(tmp_path / "s", process=dead_process(), namespace=atomic.namespace())
    with claims.claim(tmp_path / "s") as ours:
        assert ours
    another(tmp_path / "s", process=dead_process(), namespace=atomic.namespace())
    living = another(tmp_path / "t")
    claims.sweep(tmp_path)
    assert not file.exists()
    assert living.exists()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("locks", [True, False])
def test_of_many_that_find_a_claim_dead_one_gets_it(tmp_path, monkeypatch, links, locks):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    if not locks:
        monkeypatch.setattr(atomic, "fcntl", None)
    for number in range(5):
        another(tmp_path / f"{number}", process=dead_process(), namespace=atomic.namespace())
        got, barrier, done = [], threading.Barrier(8), threading.Event()

        def contend(number=number, got=got, barrier=barrier, done=done):
            barrier.wait()
            with claims.claim(tmp_path / f"{number}") as ours:
                got.append(ours)
                if len(got) == 8:
                    done.set()
                done.wait(10)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(got) == 1 if locks else sum(got) >= 1


def test_a_claim_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "_heart", None)
    with claims.claim(tmp_path / "s") as ours:
        assert ours
        os.utime(claim_file(tmp_path / "s"), (0, 0))
        time.sleep(0.5)
        assert claim_file(tmp_path / "s").stat().st_mtime > 0


def test_two_launches_of_one_line_share_its_samples(tmp_path, undisturbed):
    both = [Child(tmp_path, line=TINY) for _ in range(2)]
    ends = [child.wait() for child in both]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum(made(said) for _, said in ends) == 6
    same(tmp_path, undisturbed)
    assert not list(tmp_path.rglob(".claim-*"))


def test_a_killed_launch_leaves_its_sample_to_the_other(tmp_path, undisturbed):
    victim, said = Child(tmp_path, line=TINY), ""
    while not list(tmp_path.rglob(".claim-*")):
        assert victim.runs
        time.sleep(0.002)
    other = Child(tmp_path, line=TINY)
    os.kill(victim.pid, signal.SIGKILL)
    said += victim.wait()[1]
    code, more = other.wait()
    assert code == 0, more
    assert made(said + more) == 6
    same(tmp_path, undisturbed)
    assert not list(tmp_path.rglob(".claim-*"))


def test_a_sample_with_a_living_worker_elsewhere_is_waited_for_and_not_made_twice(tmp_path, undisturbed, monkeypatch):
    (reference, *_) = jobs(TINY, tmp_path)
    files = reference.reference.files(*reference.run.samples[0])
    files.stem.parent.mkdir(parents=True)
    file = another(files.stem)
    child = Child(tmp_path, line=TINY)
    said = ""
    while "waiting for other processes" not in said:
        assert child.runs, said
        time.sleep(0.05)
        said += child.read().decode()
    assert made(said) == 5
    file.unlink()
    code, more = child.wait()
    assert code == 0, more
    assert made(said + more) == 6
    same(tmp_path, undisturbed)


def logs(results) -> str:
    return "".join(path.read_text() for path in sorted(results.glob("launches/*/worker-*.log")))


def workers(results) -> set[int]:
    """The processes that work on a results folder, but for the forked driver."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
            if f"results={results}".encode() in words and b"PCBENCH_WORKER=" in environment:
                found.add(int(folder.name))
    return found


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_begin_with_different_models_and_take_one_after_another(tmp_path, monkeypatch):
    words = ["-m", "method=fora,teacache", "model=tiny_wan,tiny_opensora,tiny_hunyuan", "prompts.limit=2"]
    shares, orders = list(stages.shares(jobs(words, tmp_path))), []
    for number in range(1, 5):
        monkeypatch.setenv("PCBENCH_WORKER", f"{number}/4")
        mine = worker.in_order(shares)
        assert sorted(map(id, mine)) == sorted(map(id, shares))
        orders.append([model for model, _ in itertools.groupby(share.job.place.model for share in mine)])
        for share in mine:  # a reference before what needs it
            ids = [(each.job.place.model, each.job.id) for each in mine]
            place = share.job.place.model
            assert ids.index((place, share.job.reference.id)) <= ids.index((place, share.job.id))
    assert all(len(set(order)) == len(order) == 3 for order in orders)
    assert len({order[0] for order in orders}) >= 2
    assert orders[0][0] == "tiny_wan"


LOCAL = [*TINY, "launcher=local", "workers=2"]


def test_local_workers_share_a_sweep(tmp_path, undisturbed):
    code, said = Child(tmp_path, line=LOCAL).wait()
    assert code == 0, said + logs(tmp_path)
    assert made(logs(tmp_path)) == 6
    assert "6 of 6 samples done, 0 running, 0 failed, 0 left" in said
    assert "precisecache_base" in said
    same(tmp_path, undisturbed)
    code, said = Child(tmp_path, line=LOCAL).wait()  # nothing is left: nothing is started
    assert (code, len(list(tmp_path.glob("launches/*")))) == (0, 1), said


def test_a_killed_worker_is_told_and_the_others_do_its_work(tmp_path, undisturbed):
    driver = Child(tmp_path, line=LOCAL)
    until(lambda: list(tmp_path.rglob(".claim-*")))
    claim = json.loads(next(tmp_path.rglob(".claim-*")).read_text())
    os.kill(claim["process"], signal.SIGKILL)
    code, said = driver.wait()
    assert code == 0, said + logs(tmp_path)
    assert "was ended by signal 9" in said
    assert made(logs(tmp_path)) == 6
    same(tmp_path, undisturbed)


@pytest.mark.parametrize(("how", "expected"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_driver(tmp_path, undisturbed, how, expected):
    driver = Child(tmp_path, line=LOCAL)
    until(lambda: list(tmp_path.rglob(".claim-*")))
    assert workers(tmp_path)
    os.kill(driver.pid, how)
    code, said = driver.wait()
    assert code == expected, said
    until(lambda: not workers(tmp_path), 20)
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    same(tmp_path, undisturbed)


FAULT = """
import os, sys
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        path = os.fspath(arguments[0])
        if "KEY" in path and path.endswith(".safetensors"):
            raise OSError("no room for it")
sys.addaudithook(hook)
"""


def test_a_failed_sample_is_tried_once_and_told_at_the_end(tmp_path, undisturbed, monkeypatch):
    (job, *_) = jobs(TINY, tmp_path)
    key = job.files(*job.run.samples[0]).stem.name
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(FAULT.replace("KEY", key))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code, said = Child(tmp_path, line=LOCAL).wait()
    assert code == 1, said
    told = [line for line in said.splitlines() if line.startswith("pcbench: failed: ")]
    assert len(told) == len(set(told)) == 3, said
    assert all("no room for it" in line for line in told)
    assert "3 of 6 samples done, 0 running, 3 failed, 0 left" in said
    assert sum("  sample " in line and "  failed  " in line for line in logs(tmp_path).splitlines()) == 3
    monkeypatch.undo()
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    same(tmp_path, undisturbed)


BAD = {
    "launcher=slrum": "launcher cannot be 'slrum'",
    "workers=2": "workers=2 needs a launcher",
    "launcher=local": "launcher=local on a CPU needs workers=n",
    "launcher=local workers=0": "workers must be from 1",
    "launcher=local workers=2 shard=1/2": "leave shard and shards away",
    "launcher=local workers=2 method=teacache budget=2x": "found by one process",
}


@pytest.mark.parametrize("words", BAD)
def test_a_launch_that_cannot_be_is_one_line(tmp_path, capsys, words):
    assert cli.main([f"results={tmp_path}", *words.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert BAD[words] in lines[0]
