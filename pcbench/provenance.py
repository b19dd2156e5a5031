"""Where numbers come from: the machine (which latency belongs to), the commit, the packages."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "torchmetrics")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


@functools.cache
def machine() -> dict[str, Any]:
    """Hardware and runtime that latency depends on; `name` is a folder name made of the parts that matter."""
    import torch

    described: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        described["gpu"] = f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
        described["cuda"] = torch.version.cuda
    processor = described["gpu"] or f"{described['cpu']} {described['threads']} threads"
    return {"name": _slug(f"{processor} torch {torch.__version__.split('+')[0]}"), **described}


@functools.cache
def revision() -> dict[str, Any]:
    """The project's commit, whether the code in the tree differs from it, and package versions."""
    dirty = _git("status", "--porcelain", "--", "methods", "pcbench", "conf")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if dirty is None else bool(dirty),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
