"""Where numbers come from: the machine (on which latency depends), the commit, the package versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import uuid
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import devices
from .config import Run

CODE = [":/methods", ":/pcbench", ":/conf"]
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "torchmetrics")
OPTIONAL = ("torchao",)  # named where it is installed


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return match.group(1) if match else platform.processor() or platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


@functools.cache
def host() -> str:
    """Six hex digits that identify this host: a hash that reveals nothing personal.

    If the environment variable PCBENCH_HOST is set, its hash: for identical hosts that should count as one, or for a
    container whose name changes. Otherwise the hash of the system's machine-id and the host's name together, since
    copied images share a machine-id and hosts can share a name. Without a machine-id, the network card's number serves.
    """
    return hashlib.sha256(f"pcbench {host_name()}".encode()).hexdigest()[:6]


def host_name() -> str:
    """What is hashed: as PCBENCH_HOST on other hosts, it makes them count as this one."""
    return os.environ.get("PCBENCH_HOST") or f"{_machine_id()} {platform.node()}"


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text not in ("", "uninitialized"):
            return text
    number = uuid.getnode()
    return "" if number >> 40 & 1 else f"{number:012x}"  # that bit is set if the number is random


def machine(device: str, gpus: int = 1) -> dict[str, Any]:
    """The hardware and runtime of a run on `device` and this many GPUs. `name` is a folder name made of everything that
    latency and the last bits of a video depend on. Raises ConfigError for a device that does not exist here."""
    return dict(_machine(devices.resolve(device), gpus, torch.get_num_threads()))


@functools.cache
def _machine(device: str, gpus: int, threads: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "host": host(),
        "device": device.partition(":")[0],
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": None,
        "torch": torch.__version__,
    }
    processor = f"{described['cpu']} {threads} threads"
    if device != "cpu":
        used = [device] if gpus == 1 else [f"cuda:{number}" for number in range(gpus)]
        names = Counter(torch.cuda.get_device_name(gpu) for gpu in used)
        described["gpu"] = processor = " ".join(f"{count}x {name}" for name, count in names.items())
        described["cuda"] = torch.version.cuda
    version = torch.__version__ if device != "cpu" else torch.__version__.split("+")[0]  # "+cu126": other kernels
    name = _slug(f"{processor} torch {version} {described['host']}")
    return {"name": name, **described}


def machine_of(run: Run) -> dict[str, Any]:
    """The machine that a run uses."""
    return machine(run.device, run.recipe.numerics.parallel)


@functools.cache
def revision() -> dict[str, Any]:
    """The project's commit, whether the code in the working tree differs from it, and package versions.

    Commit and difference are None for an installed pcbench: git does not track its files, whatever repository they are
    in.
    """
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    dirty = _git("status", "--porcelain", "--", *CODE) if tracked else None
    return {
        "commit": _git("rev-parse", "HEAD") if tracked else None,
        "dirty": None if dirty is None else bool(dirty),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, *OPTIONAL) if importlib.util.find_spec(name)},
    }
