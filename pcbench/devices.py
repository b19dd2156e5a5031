"""The device of a run: which one it is; and the time, peak memory and free memory of that device alone."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable
from typing import Any

import torch

from .config import ConfigError


def resolve(device: str) -> str:
    """ "cpu" or "cuda:N" for "auto", "cpu", "cuda" or "cuda:N". Raises ConfigError for another or a missing device.

    A GPU always gets its number, as another run of this process may have made another GPU the current one. The default
    is the first GPU, or this process's own if several processes share a model (sampling/parallel.py).
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return "cpu"
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device, re.ASCII)
    if match is None:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
    if not count:
        raise ConfigError(f"device={device} but no CUDA device is available; use device=cpu or device=auto")
    number = int(match[1] if match[1] is not None else os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        raise ConfigError(f"device={device}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}")
    return f"cuda:{number}"


def visible(device: str = "auto") -> list[str]:
    """CUDA_VISIBLE_DEVICES of a process for each GPU that a run may use: the numbered one, or all; none on the CPU."""
    if resolve(device) == "cpu":
        return []
    count, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    every = listed[:count] if len(listed) >= count and listed[0] else [str(number) for number in range(count)]
    return [every[int(device.partition(":")[2])]] if ":" in device else every


def use(device: str) -> None:
    """Make a resolved device the current CUDA device of this process."""
    if device != "cpu":
        torch.cuda.set_device(device)


def synchronize(device: str) -> None:
    """Wait until a resolved device has finished all its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: str, first: torch.nn.Module | None = None) -> tuple[float, Any]:
    """Seconds that `work` takes on a resolved device, and what it returns. first: a module that it calls; what comes
    before its first call counts neither as time nor in `peak`."""
    synchronize(device)
    began = time.perf_counter()

    def begin(*_: Any) -> None:
        nonlocal began
        hook.remove()
        synchronize(device)
        reset_peak(device)
        began = time.perf_counter()

    if first is not None:
        hook = first.register_forward_pre_hook(begin)
    result = work()
    synchronize(device)
    return time.perf_counter() - began, result


def reset_peak(device: str) -> None:
    """Make `peak` count from now on."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> int | None:
    """Most bytes of tensors on a resolved device since `reset_peak`; None on a CPU, where torch does not count them."""
    return None if device == "cpu" else torch.cuda.max_memory_allocated(device)


def free_bytes(device: str) -> int | None:
    """Bytes that this process could still allocate on a resolved device, including what torch holds in reserve; None on
    a CPU, where it depends on other programs and on swap space."""
    if device == "cpu":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def release() -> None:
    """Free memory that is no longer used. Hook registries and their modules refer to each other in cycles, and Python's
    collector runs after a number of objects, however many GPU bytes they hold, so it is called here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
