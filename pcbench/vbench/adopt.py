"""Make an interpreter that has VBench-2.0's packages known, and its code, a clone of Vchitect/VBench.

Its packages cannot be built by one command: they pin CUDA 11.8, a compiled mmcv and flash-attention, and PyPI's
vbench2 0.1.1 lacks the code of most dimensions. So one builds the environment as its README says, and this writes down
what it can do.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from ..messages import ConfigError
from ..store import write_json
from .build import ask
from .dimensions import VBENCH2
from .environment import folder
from .process import WORKER, worker_environment

SUITE = Path("vbench2") / "VBench2_full_info.json"


def adopt(python: Path, source: Path) -> None:
    """Try every dimension's imports in the interpreter with the code, and write that down. Raises ConfigError."""
    python, source, home = python.absolute(), source.absolute(), folder(VBENCH2)
    if not (source / SUITE).is_file():
        raise ConfigError(
            f"{source} has no {SUITE}: --source names the folder VBench-2.0 of a clone of Vchitect/VBench"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            reply = Path(scratch) / "check.json"
            command = [str(python), "-I", str(WORKER), "--check", str(reply), str(source)]
            answer = ask(command, reply, worker_environment(VBENCH2, Path(scratch)) | {"TORCH_HOME": scratch}, source)
        about = {"python": str(python), "source": str(source), **answer, "suite": str(source / SUITE)}
        write_json(home / "environment.json", about)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.output.splitlines() if line.strip()]
        raise ConfigError(f"{python} cannot run VBench-2.0: {lines[-1] if lines else 'it said nothing'}") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or python}: {error.strerror}") from error
