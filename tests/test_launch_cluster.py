"""Workers on Ray and SLURM: the records of an undisturbed run, after kills and preemption too."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from pcbench import cli
from pcbench.store.atomic import is_alive

from . import slurm_node
from .launch_parts import logs, made, same, until

ROOT = Path(__file__).parents[1]
SIZE = [f"model.sampling.{name}" for name in ("steps=4", "frames=5", "height=64", "width=64")]
LINE = ["-m", "model=tiny_wan,tiny_hunyuan", "method=fora", "prompts.limit=2", "stages=[generate,score]", *SIZE]
SAMPLES = 8
RAY = """
import os, sys
import ray
from pcbench import cli
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
sys.exit(cli.main(sys.argv[1:]))
"""
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'pcbench[ray]'")
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs submitit: pip install 'pcbench[slurm]'"
)
needs_slurm = pytest.mark.skipif(
    shutil.which("srun") is None and not slurm_node.can_start(),
    reason="needs a SLURM cluster, or root and Debian's slurmd, slurmctld, slurm-client and munge to start one here",
)


@pytest.fixture
def slurm(tmp_path_factory):
    """The cluster that this machine is in, or one of its own."""
    with slurm_node.running(tmp_path_factory.mktemp("slurm")) if slurm_node.can_start() else nullcontext():
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*LINE, f"results={results}"]) == 0
    return results


def start(results, *command: str, folder=ROOT) -> subprocess.Popen:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    words = [*command, *LINE, f"results={results}"]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def claimed_by(results, driver) -> int:
    """The process that makes a sample; waits for one."""

    def claimant():
        assert driver.poll() is None, driver.communicate()[0]
        for path in results.rglob(".claim-*"):
            with suppress(OSError, ValueError):
                process = json.loads(path.read_text())["process"]
                if is_alive(process):  # the claims of the dead lie about for a while
                    return process
        return None

    until(claimant, 300)
    return claimant() or claimed_by(results, driver)


@pytest.mark.ray
@needs_ray
def test_ray_finishes_after_the_driver_and_an_actor_were_killed(tmp_path, undisturbed):
    words = ("-c", RAY, "launcher=ray", "workers=2")
    driver = start(tmp_path, *words)
    worker = claimed_by(tmp_path, driver)
    driver.kill()
    driver.wait()
    until(lambda: not Path(f"/proc/{worker}").exists(), 60)
    driver = start(tmp_path, *words)
    os.kill(claimed_by(tmp_path, driver), signal.SIGKILL)
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said + logs(tmp_path)
    assert f"{SAMPLES} of {SAMPLES} samples done" in said
    assert made(logs(tmp_path)) == SAMPLES
    same(tmp_path, undisturbed)


@pytest.mark.slurm
@needs_submitit
def test_jobs_of_submitit_share_a_sweep_and_a_preempted_one_goes_on(tmp_path, undisturbed):
    """As processes of this machine: what is queued, and what a job does when it is told to leave. A folder of the
    user's own that is called as one of ours hides nothing from them."""
    own, safe = tmp_path / "own", ["-P"] if sys.version_info >= (3, 11) else []
    (own / "methods").mkdir(parents=True)
    if safe:
        (own / "methods" / "__init__.py").write_text("raise SystemExit('the user's own')")
    words = (*safe, "-m", "pcbench", "launcher=slurm", "workers=2", "slurm.gpus=0", "slurm.cluster=local")
    driver = start(tmp_path, *words, folder=own)
    os.kill(claimed_by(tmp_path, driver), signal.SIGUSR2)
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said + logs(tmp_path)
    output = [path.read_text() for path in tmp_path.glob("launches/*/submitit/*.err")]
    assert sum("this job is preempted" in text for text in output) == 1
    assert made(logs(tmp_path)) == SAMPLES
    same(tmp_path, undisturbed)


@pytest.mark.slurm
@needs_submitit
@needs_slurm
def test_slurm_finishes_after_a_job_was_preempted(tmp_path, undisturbed, slurm):
    driver = start(tmp_path, "-m", "pcbench", "launcher=slurm", "workers=2", "slurm.cpus=1", "slurm.minutes=30")
    claimed_by(tmp_path, driver)
    listed = subprocess.run(
        ["squeue", "-h", "-r", "-t", "R", "-o", "%i"], capture_output=True, text=True
    ).stdout.split()
    subprocess.run(["scontrol", "requeue", listed[0]], check=True)
    said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said + logs(tmp_path)
    same(tmp_path, undisturbed)


def test_without_their_packages_launchers_say_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    for launcher in ("ray", "slurm"):
        assert cli.main([f"results={tmp_path}", f"launcher={launcher}", "workers=2"]) == 2
        assert f"pip install 'pcbench[{launcher}]'" in capsys.readouterr().err
