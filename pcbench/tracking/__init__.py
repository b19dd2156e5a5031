"""Records to Weights & Biases, beside a sweep or at any later time: `python -m pcbench.tracking results`.

A projection: it reads records and the videos beside them, and nothing reads it. One run a record, and one with the
table of them all; a run's id stays, so projecting again continues it. Beside a sweep it is a process of its own at the
lowest priority, which can fail, hang or be killed without the sweep noticing. Nothing here imports torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODES = {
    **dict.fromkeys(("off", "false", "none", "disabled"), None),
    **dict.fromkeys(("offline", "true", "dryrun"), "offline"),
    **dict.fromkeys(("online", "run"), "online"),
}
PATIENCE = 60.0  # seconds a finished sweep waits for its projection


def mode_of(asked: Any) -> str | None:
    """None for off, "offline", or "online". Raises ValueError for anything else."""
    try:
        return MODES[str(asked).lower()]
    except KeyError:
        raise ValueError(f"wandb must be off, offline or online, not {asked!r}") from None


@contextmanager
def beside(results: Path, asked: Any, say: Callable[[str], None] = print) -> Iterator[None]:
    """While the body runs, a process projects the records that appear under `results`; off, nothing is done at all.

    When the body ends, however it ends, the process makes a last pass and goes; it is waited for, but not for long.
    """
    mode = mode_of(asked)
    if mode is None or os.environ.get("RANK", "0") != "0":  # of several processes under torchrun the first one speaks
        yield
        return
    again = f"python -m pcbench.tracking {results} --mode {mode}"
    command = [sys.executable, "-m", "pcbench.tracking", str(results), "--mode", mode, "--beside"]
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
        process.stdin.close()  # the sign to finish; it comes, too, if this process is killed
        try:
            if process.wait(PATIENCE) < 0:
                say(f"wandb: killed by signal {-process.returncode}; the records are whole, this makes it up: {again}")
        except subprocess.TimeoutExpired:
            process.kill()
            say(f"wandb: not done after {PATIENCE:.0f} s; this goes on: {again}")
