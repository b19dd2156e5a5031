"""Programs in forks of this process, whose libraries they share: a new interpreter takes seconds to import torch."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

import pcbench.__main__
import pcbench.cli
import pcbench.fidelity.metrics  # brings torchmetrics
from pcbench.command import process_of
from pcbench.store import away

diffusers.WanPipeline, diffusers.HunyuanVideoPipeline  # noqa: B018  # which diffusers imports when they are named
OURS = ("pcbench", "methods", "analysis", "tests")


def popen(main: Callable[[], object], env: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen:
    """What subprocess.Popen does with these options, but that the program is `main`, which returns an exit code."""
    names = dict(os.environ if env is None else env)

    def become() -> None:
        os.closerange(3, 2**16)  # as a new program would; Popen's own pipe is among them, and it goes on
        away._watched.clear()
        code: object = 70
        before = sys.stdin, sys.stdout, sys.stderr  # noqa: F841  # which would close the new ones' files when they go
        try:
            gc.freeze()  # no collection needs to look at, and so copy, what is the parent's
            os.environ.clear()
            os.environ.update(names)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
            code = main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else bool(code))

    # An interrupt raised in one of the functions that Python calls after a fork would be lost: it has to wait.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(["fork"], preexec_fn=become, **how)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def module(words: Sequence[str], folder: Path, path: Path | str = "") -> subprocess.CompletedProcess[str]:
    """`python -m words…` in a folder. Our own packages are imported anew, from there or from `path`."""
    return _anew(
        ["-m", *words[1:]], lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True), folder, path
    )


def code(text: str, folder: Path, path: Path | str = "") -> subprocess.CompletedProcess[str]:
    """`python -c text` in a folder, likewise."""
    return _anew(["-c"], lambda: exec(text, {"__name__": "__main__"}), folder, path)


def _anew(
    words: Sequence[str], run: Callable[[], object], folder: Path, path: Path | str
) -> subprocess.CompletedProcess[str]:
    def main() -> None:
        torch.set_num_threads(1)  # the others are not in a fork
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        installed = [each for each in sys.path if each.startswith((sys.prefix, sys.base_prefix))]
        sys.path[:] = [str(folder), *filter(None, [str(path)]), *installed]
        importlib.invalidate_caches()
        sys.argv = list(words)
        run()

    env = {**os.environ, "PYTHONPATH": str(path)}
    process = popen(main, env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def workers(new: int = 0) -> None:
    """From now on, this process forks the workers that it would start (pcbench/launch/local.py), after `new` ones."""
    start, started = subprocess.Popen, itertools.count()

    def fork(command: Sequence[str], **how: Any) -> subprocess.Popen:
        own = process_of("pcbench")
        if list(command[: len(own)]) != own or next(started) < new:
            return start(command, **how)
        return popen(lambda: pcbench.__main__.main(command[len(own) :]), **how)

    subprocess.Popen = fork  # type: ignore[assignment,misc]
