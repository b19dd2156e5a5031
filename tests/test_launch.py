"""Launchers: workers on one results folder give an undisturbed run's records and make nothing twice."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch

from pcbench import backbones, cli, launch, stages
from pcbench.launch import worker
from pcbench.sampling import generate

from . import forks
from .faults.harness import Child
from .faults.launches import hangs, workers
from .launch_parts import TINY, jobs, logs, made, same, until


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run by one process alone, which has also loaded and priced what the forked ones need."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*TINY, f"results={results}"]) == 0
    return results


def test_workers_begin_with_different_models_and_take_one_after_another(tmp_path, monkeypatch):
    words = ["-m", "method=fora,teacache", "model=tiny_wan,tiny_opensora,tiny_hunyuan", "prompts.limit=2"]
    shares, orders = list(stages.shares(jobs(words, tmp_path))), []
    for number in range(1, 5):
        monkeypatch.setenv("PCBENCH_WORKER", f"{number}/4")
        mine = worker.in_order(shares)
        assert {replace(share, begin=None) for share in mine} == set(shares)
        assert {share.begin for share in mine} == {(number - 1) / 4}
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
    """One of them is a new interpreter, as a user's all are."""
    code, said = Child(tmp_path, lambda: forks.workers(new=1), LOCAL).wait()
    assert code == 0, said + logs(tmp_path)
    assert made(logs(tmp_path)) == 6
    assert "6 of 6 samples done, 0 running, 0 failed, 0 left" in said
    assert "teacache" in said
    same(tmp_path, undisturbed)
    code, said = Child(tmp_path, line=LOCAL).wait()  # nothing is left: nothing is started
    assert (code, len(list(tmp_path.glob("launches/*")))) == (0, 1), said


def test_a_killed_worker_is_told_and_the_others_do_its_work(tmp_path, undisturbed):
    (at := tmp_path / "hangs-here").touch()
    driver = Child(tmp_path, lambda: hangs(at), LOCAL)
    until(lambda: list(tmp_path.glob("hung-*")))
    os.kill(int(next(tmp_path.glob("hung-*")).name.removeprefix("hung-")), signal.SIGKILL)
    code, said = driver.wait()
    assert code == 0, said + logs(tmp_path)
    assert "was ended by signal 9" in said
    assert made(logs(tmp_path)) == 6
    same(tmp_path, undisturbed)


@pytest.mark.parametrize(("how", "expected"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_their_driver(tmp_path, undisturbed, how, expected):
    (at := tmp_path / "hangs-here").touch()
    driver = Child(tmp_path, lambda: hangs(at), LOCAL)
    until(lambda: list(tmp_path.glob("hung-*")))
    assert workers(tmp_path)
    os.kill(driver.pid, how)
    code, said = driver.wait()
    assert code == expected, said
    until(lambda: not workers(tmp_path), 20)
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    same(tmp_path, undisturbed)


def interrupted_in_a_fork() -> None:
    """Fork the workers; with the second one, the driver is interrupted before it has come back from the fork."""
    seen: list[int] = []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(after_in_parent=interrupt)
    forks.workers()


def test_an_interrupt_during_a_fork_is_not_lost(tmp_path, undisturbed):
    code, said = Child(tmp_path, interrupted_in_a_fork, LOCAL).wait()
    assert code == 130, said
    until(lambda: not workers(tmp_path), 20)


def no_room_for(key: str) -> None:
    """From now on, a latent with this key cannot be opened by this process and its forks."""

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path = os.fspath(arguments[0])
            if key in path and path.endswith(".safetensors"):
                raise OSError("no room for it")

    sys.addaudithook(hook)
    forks.workers()


def test_a_failed_sample_is_tried_by_two_workers_and_told_at_the_end(tmp_path, undisturbed):
    (job, *_) = jobs(TINY, tmp_path)
    key = job.files(*job.run.samples[0]).stem.name
    code, said = Child(tmp_path, lambda: no_room_for(key), LOCAL).wait()
    assert code == 1, said
    told = [line for line in said.splitlines() if line.startswith("pcbench: failed: ")]
    assert len(told) == len(set(told)) == 3, said
    assert all("no room for it" in line for line in told)
    assert "3 of 6 samples done, 0 running, 3 failed, 0 left" in said
    assert sum("  sample " in line and "  failed  " in line for line in logs(tmp_path).splitlines()) == 6
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    same(tmp_path, undisturbed)


def deadly(key: str) -> None:
    """From now on, whoever makes the uncached sample of this key is killed."""
    harmless = generate._generate_one

    def kills(pipe, job, prompt, seed, files):
        if job.uncached is None and files.stem.name == key:
            os.kill(os.getpid(), signal.SIGKILL)
        return harmless(pipe, job, prompt, seed, files)

    generate._generate_one = kills
    forks.workers()


def test_a_sample_that_ends_its_process_ends_two_workers_and_no_more(tmp_path, undisturbed):
    """As the kernel does where memory is short. The second one has made everything else before."""
    (job, *_) = jobs(TINY, tmp_path)
    key = job.files(*job.run.samples[0]).stem.name
    code, said = Child(tmp_path, lambda: deadly(key), [*TINY, "launcher=local", "workers=3"]).wait()
    assert code == 1, said + logs(tmp_path)
    assert said.count("was ended by signal 9") == 2
    assert "out of memory, or a crash in a library" in said
    assert "3 of 6 samples done, 0 running, 1 failed, 2 left" in said  # these two are made, and lack their reference
    assert said.count("1 of 2 references could not be made; the same command tries again") == 2
    assert [each.missing() for each in jobs(TINY, tmp_path)] == [[], []]
    assert job.reference.missing() == [job.run.samples[0]]
    code, said = Child(tmp_path, lambda: deadly(key), [*TINY, "launcher=local", "workers=3"]).wait()
    assert code == 1, said  # another launch tries it again
    assert said.count("was ended by signal 9") == 1, said  # it has one worker, for one missing sample
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    same(tmp_path, undisturbed)


def on_a_bad_gpu(module, name: str) -> None:
    """From now on, this function fails in worker 1; a worker that ends is soon followed by the others."""
    sound = getattr(module, name)

    def broken(*args, **kwargs):
        if os.environ.get(worker.WORKER, "").startswith("1/"):
            raise RuntimeError("CUDA error: out of memory")
        time.sleep(0.2)
        return sound(*args, **kwargs)

    setattr(module, name, broken)
    launch.GRACE = 1.0  # less than the others need
    forks.workers()


@pytest.mark.parametrize(("module", "name"), [(backbones, "load"), (generate, "denoise")])
def test_a_worker_whose_gpu_is_full_costs_the_others_nothing(tmp_path, undisturbed, module, name):
    """One that cannot load ends at once, one whose every call fails runs ahead through all samples."""
    code, said = Child(tmp_path, lambda: on_a_bad_gpu(module, name), LOCAL).wait()
    assert code == 0, said + logs(tmp_path)
    assert "failures of one worker were made up for by others" in said
    assert "6 of 6 samples done" in said
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


def test_workers_with_more_threads_than_cores_are_refused(tmp_path, capsys, monkeypatch):
    """Four of two threads on two cores take ten times as long as four of one."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert cli.main([*TINY, f"results={tmp_path}", "launcher=local", "workers=4"]) == 2
    assert "workers=4 of 2 threads each would slow one another down on 2 cores: set OMP_NUM_THREADS=1" in (
        capsys.readouterr().err
    )
    assert not any(tmp_path.iterdir())
