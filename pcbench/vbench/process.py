"""One run of the worker: a process for one dimension, with a time limit, progress, and helpful errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..store import read_json
from .dimensions import VBENCH
from .edition import Edition
from .environment import Environment, weights_folder

WORKER = Path(__file__).with_name("worker.py")
TAIL = 4000  # characters of the worker's output kept with a failure
EVERY = 30.0  # seconds between two reports of progress
_BAR = re.compile(r"(\d+)/(\d+) \[")  # tqdm's progress bar


class WorkerError(RuntimeError):
    """A dimension could not be scored; `output` is the end of what the worker printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def worker_environment(edition: Edition, scratch: Path, device: str = "") -> dict[str, str]:
    """Environment variables for the worker: offline, weights from their folder, torch hub's files in `scratch` for
    VBench, whose worker links them, and among the weights for VBench-2.0."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    weights = weights_folder(edition)
    return env | {
        f"{edition.package.upper()}_CACHE_DIR": str(weights),
        "TORCH_HOME": str(scratch if edition is VBENCH else weights / "torch"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # amt-s.pth holds more than tensors
        "CUDA_VISIBLE_DEVICES": device,
    }


def run(
    environment: Environment,
    request: dict[str, Any],
    scratch: Path,
    device: str,
    timeout: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The worker's reply to a request. Raises WorkerError for a failure, a crash, or after `timeout` seconds.

    device: what the worker sees as CUDA_VISIBLE_DEVICES; empty for the CPU.
    """
    request_file, reply, log = scratch / "request.json", scratch / "reply.json", scratch / "log.txt"
    source = environment.source
    about = {"package": environment.edition.package, "source": source and str(source), "out": str(scratch / "out")}
    request = request | about | {"device": "cuda" if device else "cpu"}
    request_file.write_text(json.dumps(request), encoding="utf-8")
    bert = weights_folder(environment.edition) / "bert"  # where "bert-base-uncased" is found as a folder
    # VBench-2.0 names its configs relative to its own folder
    place = source or (bert if bert.is_dir() else scratch)
    variables = worker_environment(environment.edition, scratch / "torch", device)
    command = [str(environment.python), "-I", str(WORKER), str(request_file), str(reply)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = _wait(process, log, timeout, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    if code is None:
        raise WorkerError(f"stopped after {timeout:g} s (score.vbench_timeout)", tail)
    answer = read_json(reply)
    if answer is None:
        if code < 0:
            name = signal.Signals(-code).name
            raise WorkerError(f"its process was ended by {name}{', often for memory' if code == -9 else ''}", tail)
        raise WorkerError(f"its process ended with code {code} and no reply: {tail.strip().splitlines()[-1:]}", tail)
    if not answer["ok"]:
        raise WorkerError(answer["error"], tail)
    return answer


def _wait(process: subprocess.Popen[bytes], log: Path, timeout: float, progress: Callable[[str], None]) -> int | None:
    """Wait for the worker and report its progress; returns the exit code, or None if the time is up."""
    end, last = time.monotonic() + timeout, ""
    while (left := end - time.monotonic()) > 0:
        try:
            return process.wait(min(EVERY, left))
        except subprocess.TimeoutExpired:
            bars = _BAR.findall(log.read_text(encoding="utf-8", errors="replace")[-TAIL:])
            progress_bar = "/".join(bars[-1]) if bars else ""
            if progress_bar != last:
                progress(progress_bar)
            last = progress_bar
    return None


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for one run of the worker."""
    return tempfile.TemporaryDirectory(prefix="pcbench-vbench-")
