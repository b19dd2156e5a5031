"""`python -m pcbench.tracking` in forks of a small process that has W&B, which takes longer to import than to use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

import pytest

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["wandb", "pcbench.tracking.__main__", __name__])


def project(words: Sequence[str], env: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What `python -m pcbench.tracking words…` does in a folder with these variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_ERROR_REPORTING", "false")  # which it reads when it is imported
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as said:
        places = Path(said, "out"), Path(said, "err")
        process = SERVER.Process(target=_become, args=(tuple(words), dict(env), folder, places))
        process.start()
        process.join(200)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(words), 200)
        out, err = (place.read_text() for place in places)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _become(words: Sequence[str], env: Mapping[str, str], folder: Path, places: Sequence[Path]) -> None:
    from pcbench.tracking.__main__ import main

    for stream, place in zip((1, 2), places, strict=True):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    try:
        sys.exit(main(words))
    finally:
        with contextlib.suppress(ImportError):
            import wandb

            wandb.teardown()  # as at the end of an interpreter
