"""One transformer over several GPUs (backbones/shares.py), one process per GPU under torchrun.

    torchrun --nproc-per-node 4 -m pcbench model=wan model.numerics.parallel=4 stages=[latency]

Every process holds the whole model and a share of the tokens, and sees the whole prediction. All make the same
decisions (methods/engine/processes.py). Only latency can be measured this way: the other stages would gain nothing. The
first process prints and writes; the others write to a temporary folder.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from .. import backbones, devices
from ..config import ConfigError, Run


def processes() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line for this process: all but the first get a temporary results folder and print nothing."""
    if os.environ.get("RANK", "0") == "0":
        return list(arguments)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    folder = tempfile.mkdtemp(prefix="pcbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [*arguments, f"results={folder}"]


def check(run: Run) -> None:
    """Raise ConfigError for a run over several GPUs that is impossible on any hardware."""
    count, method = run.recipe.numerics.parallel, run.recipe.method
    cfg_parallel, anatomy = run.recipe.numerics.cfg_parallel, backbones.family(run.recipe.backbone).ANATOMY
    if count == 1:
        return
    if run.stages != ("latency",):
        raise ConfigError("model.numerics.parallel is for latency alone: add stages=[latency]")
    if run.budget is not None:
        raise ConfigError("a budget is found on one GPU: leave model.numerics.parallel at 1")
    if run.offload != "none":
        raise ConfigError("model.numerics.parallel keeps the model on every GPU: leave model.offload at none")
    if not method.shares_videos:
        raise ConfigError(f"{method.NAME} would decide by each GPU's share of the tokens: leave parallel at 1")
    if cfg_parallel and not method.shares_guidance(anatomy):
        raise ConfigError(f"{method.NAME} needs both of {anatomy.family}'s guidance branches at once: no cfg_parallel")


def start(runs: Iterable[Run]) -> None:
    """Join the other processes. Raises ConfigError if the runs ask for another number of processes or GPUs."""
    for run in runs:
        count = run.recipe.numerics.parallel
        if count != processes():
            advice = f"torchrun --nproc-per-node {count} -m pcbench …" if count > 1 else "no torchrun"
            raise ConfigError(f"model.numerics.parallel={count} with {processes()} process(es): start it with {advice}")
        if count > 1 and not devices.resolve(run.device).startswith("cuda"):
            raise ConfigError("model.numerics.parallel above 1 needs as many CUDA devices; there is none here")
        if count > 1 and run.device not in ("auto", "cuda"):
            raise ConfigError(f"model.numerics.parallel={count} takes the first {count} GPUs: leave device at auto")
        if count > 1 and count > (available := torch.cuda.device_count()):
            raise ConfigError(f"model.numerics.parallel={count}, but there are {available} CUDA devices here")
    if processes() > 1 and not dist.is_initialized():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")  # gloo exchanges the sizes of uneven shares, as in diffusers
        atexit.register(dist.destroy_process_group)


def broadcast_from_rank0(value: Any) -> Any:
    """The first process's version of a small plain value, so that all processes act on the same one."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
