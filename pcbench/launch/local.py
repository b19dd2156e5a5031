"""`launcher=local`: a worker process for each GPU of this machine; on a CPU, as many as are asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import torch

from ..command import process_of
from ..config import ConfigError, Run
from ..devices import resolve, visible
from .worker import DRIVER, OWN, Launch

PATIENCE = 10.0  # seconds that a worker has to end when it is asked to


def gpus(runs: Sequence[Run]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of a worker for each GPU; empty if the runs are on the CPU. Raises ConfigError."""
    if numbered := [run.device for run in runs if ":" in run.device]:
        raise ConfigError(f"launcher=local gives each worker a GPU of its own: leave device={numbered[0]} away")
    on_cpu = {resolve(run.device) == "cpu" for run in runs}
    if len(on_cpu) > 1:
        raise ConfigError("launcher=local takes runs that are all on the CPU, or all on GPUs")
    return [] if on_cpu == {True} else visible()


def count(runs: Sequence[Run], asked: int | None) -> int:
    """The number of workers. Raises ConfigError if there are too few GPUs, on a CPU if it is not given, or if so many
    would wait for one another: threads of several processes on one core take turns at every matrix product."""
    found = gpus(runs)
    if not found and asked is None:
        raise ConfigError("launcher=local on a CPU needs workers=n; each has as many threads as OMP_NUM_THREADS says")
    if found and asked is not None and asked > len(found):
        raise ConfigError(f"workers={asked}, but there are {len(found)} GPUs here: launcher=local has a worker on each")
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if not found and threads > 1 and (asked or 1) * threads > cores:
        raise ConfigError(
            f"workers={asked} of {threads} threads each would slow one another down on {cores} cores:"
            f" set OMP_NUM_THREADS={max(1, cores // (asked or 1))}"
        )
    return asked or len(found)


class Pool:
    """The worker processes of a launch."""

    def __init__(self, launch: Launch, runs: Sequence[Run]) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        own_gpus = gpus(runs)
        launch.folder.mkdir(parents=True, exist_ok=True)
        command = process_of("pcbench", *launch.words, *OWN)
        try:
            for number in range(1, launch.count + 1):
                own = {"CUDA_VISIBLE_DEVICES": own_gpus[number - 1]} if own_gpus else {}
                with launch.log(number).open("ab") as log:
                    self._processes.append(
                        subprocess.Popen(
                            command,
                            env={**os.environ, **launch.environment(number), **own, DRIVER: "stdin"},
                            stdin=subprocess.PIPE,  # it closes with this process, and the worker ends
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,  # Ctrl-C is this process's to pass on
                        )
                    )
        except BaseException:
            self.stop()
            raise

    def works(self) -> bool:
        """Whether any worker is still there."""
        return any(code is None for code in self.codes().values())

    def codes(self) -> dict[int, int | None]:
        """The exit code of each worker by number; negative, the signal that ended it."""
        return {number: process.poll() for number, process in enumerate(self._processes, 1)}

    def stop(self) -> None:
        """End all workers."""
        for process in self._processes:
            with suppress(OSError):
                process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
