"""Launches of one line share its work by claims: the living count, the dead are taken over, nothing is made twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from pcbench import cli
from pcbench.store import atomic, claims

from .faults.harness import Child
from .launch_parts import TINY, another, claim_file, dead_process, jobs, made, same


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run by one process alone, which has also loaded and priced what the forked ones need."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*TINY, f"results={results}"]) == 0
    return results


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
    os.kill(victim.pid, signal.SIGSTOP)  # in its first sample, however long the other takes to start
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


def test_work_that_ended_two_workers_of_a_launch_is_refused_to_the_third(tmp_path, monkeypatch):
    """Another launch tries it again; without a launch, nothing is counted."""
    work = tmp_path / "work"

    def worker_dies(number: int) -> None:
        monkeypatch.setenv(claims.WORKER, f"{number}/3")
        if (child := os.fork()) == 0:
            with claims.claim(work) as claimed:
                os._exit(0 if claimed else 1)
        assert os.waitpid(child, 0)[1] == 0

    worker_dies(1)
    worker_dies(2)
    with claims.claim(work) as claimed:
        assert claimed
    monkeypatch.setenv(claims.LAUNCH, "first")
    worker_dies(1)
    assert claims.may_be_deadly(work)
    assert claims.busy(work)
    claims.sweep(tmp_path)
    worker_dies(2)
    claims.sweep(tmp_path)
    assert not claims.may_be_deadly(work)
    assert not claims.busy(work)  # nobody is to wait for it
    for _ in range(2):
        with pytest.raises(claims.DeadlyError, match="it ended worker 1/3 and 2/3"), claims.claim(work):
            pass
    monkeypatch.setenv(claims.LAUNCH, "second")
    claims.sweep(tmp_path)
    assert not list(tmp_path.glob(".claim-*"))
    with claims.claim(work) as claimed:
        assert claimed
