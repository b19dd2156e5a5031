"""Sends records to Weights & Biases (W&B), during a sweep or at any later time: `python -m pcbench.tracking results`.

It only reads records and their videos, and nothing depends on it. There is one W&B run per record, and one with a table
of all records; a run's id never changes, so sending it again continues it. During a sweep it is a separate process of
the lowest priority, which can fail, hang or be killed without affecting the sweep. Nothing here imports torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..command import process_of

MODES = {
    **dict.fromkeys(("off", "false", "none", "disabled"), None),
    **dict.fromkeys(("offline", "true", "dryrun"), "offline"),
    **dict.fromkeys(("online", "run"), "online"),
}
PATIENCE = 60.0  # seconds that a finished sweep waits for this process


def mode_of(setting: Any) -> str | None:
    """None for off, "offline", or "online". Raises ValueError for anything else."""
    try:
        return MODES[str(setting).lower()]
    except KeyError:
        raise ValueError(f"wandb must be off, offline or online, not {setting!r}") from None


@contextmanager
def beside(results: Path, setting: Any, say: Callable[[str], None] = print) -> Iterator[None]:
    """While the body runs, a process sends the records that appear under `results`; if off, nothing is done at all.

    When the body ends, even by an error, the process makes a last pass and exits; we wait at most PATIENCE seconds.
    """
    mode = mode_of(setting)
    if mode is None or os.environ.get("RANK", "0") != "0":  # under torchrun, only the first process sends
        yield
        return
    again = f"python -m pcbench.tracking {results} --mode {mode}"
    command = process_of("pcbench.tracking", str(results), "--mode", mode, "--beside")
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        say(f"wandb: not started ({error}); later: {again}")
        yield
        return
    assert process.stdin is not None
    try:
        yield
    finally:
        process.stdin.close()  # the signal to finish, which it also gets if this process is killed
        try:
            if process.wait(PATIENCE) < 0:
                say(f"wandb: killed by signal {-process.returncode}; the records are whole, this makes it up: {again}")
        except subprocess.TimeoutExpired:
            process.kill()
            say(f"wandb: not done after {PATIENCE:.0f} s; this goes on: {again}")
