"""The machine of a record: the device that was used, and a host's own name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pcbench import backbones, cli, devices, provenance
from pcbench.config import ConfigError
from pcbench.job import job_of

GPUS = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA L40S"]


@pytest.fixture(autouse=True)
def fresh():
    def forget():
        provenance.host.cache_clear()
        provenance._machine.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def gpus(monkeypatch):
    """CUDA as far as names go: devices that can be counted and asked for their names."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(GPUS))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPUS[torch.device(device).index])


def name(*arguments) -> str:
    return provenance.machine(*arguments)["name"]


def test_a_machine_is_the_device_used(gpus, monkeypatch):
    assert len({name("cpu"), name("cuda:0"), name("cuda:2")}) == 3
    assert name("auto") == name("cuda") == name("cuda:0") == name("cuda:1")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu126")
    provenance._machine.cache_clear()
    assert "torch-2.13.0-cu126" in name("cuda")  # other kernels than those of +cu130
    assert "torch-2.13.0-" in name("cpu")
    assert "cu126" not in name("cpu")
    assert provenance.machine("cpu")["gpu"] is None
    assert provenance.machine("cuda:2")["gpu"] == "1x NVIDIA L40S"
    assert name("cuda", 2) != name("cuda")
    before = name("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # CUDA_VISIBLE_DEVICES=0
    provenance._machine.cache_clear()
    assert name("cuda") == before


def test_a_runs_place_and_record_follow_its_device(gpus, tmp_path):
    run = cli.run_from(["method=uniform", f"results={tmp_path}"])
    run = replace(run, device="cpu")
    other = replace(run, device="cuda:2")
    assert job_of(run).place.machine == job_of(run.reference).place.machine == name("cpu")
    assert job_of(other).place.machine == job_of(other.reference).place.machine == name("cuda:2")
    assert job_of(run).place.latency("x") != job_of(other).place.latency("x")
    assert job_of(run).place.id == job_of(other).place.id  # the recipe is the same


def test_two_hosts_that_call_themselves_alike_are_two_machines(monkeypatch):
    seen = set()
    for machine_id, node in (("a" * 32, "vm"), ("b" * 32, "vm"), ("a" * 32, "vm2")):
        monkeypatch.setattr(provenance, "_machine_id", lambda machine_id=machine_id: machine_id)
        monkeypatch.setattr(provenance.platform, "node", lambda node=node: node)
        provenance.host.cache_clear()
        provenance._machine.cache_clear()
        seen.add(name("cpu"))
    assert len(seen) == 3


def test_a_host_can_be_given_a_name_of_its_own(monkeypatch):
    own = provenance.host()
    monkeypatch.setenv("PCBENCH_HOST", "farm")
    provenance.host.cache_clear()
    farm = provenance.host()
    monkeypatch.setattr(provenance.platform, "node", lambda: "another")
    provenance.host.cache_clear()
    assert provenance.host() == farm != own
    assert "farm" not in farm


def test_a_host_stays_the_same_and_says_nothing_in_clear(monkeypatch):
    before = provenance.host()
    provenance.host.cache_clear()
    assert provenance.host() == before
    assert len(before) == 6
    assert provenance.platform.node() not in provenance.machine("cpu")["name"].split("-")


def test_threads_are_another_machine_on_a_cpu():
    threads, before = torch.get_num_threads(), name("cpu")
    torch.set_num_threads(threads + 1)
    try:
        assert name("cpu") != before
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:٣", "CUDA", "mps", "cuda:0 "])
def test_what_is_no_device_is_refused(gpus, device):
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
        devices.resolve(device)


def test_a_device_that_is_not_here_is_refused(gpus):
    with pytest.raises(ConfigError, match="cuda:0 to cuda:2"):
        devices.resolve("cuda:3")


def test_a_process_of_several_takes_its_own_gpu(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.resolve("cuda") == devices.resolve("auto") == "cuda:1"


def test_loading_makes_the_device_the_current_one(gpus, monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(backbones, "_settle", lambda pipe, recipe, device, offload: None)
    monkeypatch.setattr(devices, "release", lambda: None)
    run = cli.run_from(["method=none", "device=cuda:1"])
    backbones.load(run.recipe, run.device)
    backbones.load(run.recipe, run.device)
    backbones._loaded = None
    assert used == ["cuda:1", "cuda:1"]
