"""Build VBench's interpreter: a virtual environment with every package pinned.

It reuses this interpreter's torch through a .pth file, or with `full` installs its own torch of the same version. Every
step can be repeated, so the same command continues a build that was interrupted or failed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..messages import ConfigError
from ..store import read_json, write_json
from .dimensions import VBENCH, of
from .environment import folder
from .process import WORKER, worker_environment

HERE = Path(__file__).parent
REQUIREMENTS, DETECTRON2 = HERE / "requirements.txt", HERE / "requirements-detectron2.txt"
PYTHON = (3, 11)  # tokenizers 0.13.3, which VBench's transformers needs, has no wheel for a later one
PIP = "pip>=25.3"  # the first version with --build-constraint
GIGABYTES = {False: 2, True: 9}  # required free space, by `full`; most of a full build is its CUDA torch
NAMES = [dimension.name for dimension in of(VBENCH)]
Say = Callable[[str], None]


def build(full: bool, python: Path | None, detectron2: str | None, say: Say = print) -> Path:
    """Build or complete the environment and return its interpreter. Raises ConfigError if a step fails."""
    home = folder()
    interpreter = home / "venv" / "bin" / "python"
    base = (python or Path(sys.executable)).absolute()
    _check(base, full, home)
    venv_key = _key(base, full)
    key = f"{venv_key} {detectron2 or ''} {' '.join(NAMES)}"
    done = read_json(home / "environment.json")
    if done is not None and done["key"] == key and interpreter.exists():
        say(f"already built: {home}")
        return interpreter
    steps: list[tuple[str, Callable[[], object]]] = [
        ("virtual environment", lambda: _venv(base, full, home, venv_key)),
        ("pip", lambda: _pip(interpreter, "--upgrade", PIP)),
        ("torchvision" if not full else "torch and torchvision", lambda: _pip(interpreter, *_torch(full))),
        ("VBench and its pinned packages", lambda: _pip(interpreter, "--no-deps", *_pinned(REQUIREMENTS))),
    ]
    if detectron2 is not None:
        source = str(Path(detectron2).absolute()) if Path(detectron2).exists() else detectron2
        steps += [
            ("what detectron2 needs", lambda: _pip(interpreter, "--no-deps", *_pinned(DETECTRON2))),
            (
                "detectron2 from source, some minutes",
                lambda: _pip(interpreter, "--no-deps", "--no-build-isolation", source),
            ),
        ]
    steps.append(("trying every dimension's imports", lambda: _finish(interpreter, home, key)))
    for number, (title, step) in enumerate(steps, 1):
        say(f"{number}/{len(steps)} {title}")
        try:
            step()
        except subprocess.CalledProcessError as error:
            log = home / "setup.log"
            log.write_text(error.output, encoding="utf-8")
            lines = [line for line in error.output.splitlines() if line.strip()]
            why = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
            raise ConfigError(f"setup failed at {title!r}: {why.strip()}; all of it in {log}") from error
    return interpreter


def _check(base: Path, full: bool, home: Path) -> None:
    """Raise ConfigError early for a build that would fail later: wrong Python, folder not writable, disk too full."""
    command = [str(base), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        version = tuple(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ConfigError(f"{base} does not run as a Python interpreter: {error}") from error
    if version != PYTHON:
        raise ConfigError(
            f"VBench's pinned packages are for Python {PYTHON[0]}.{PYTHON[1]}, and {base} is "
            f"{version[0]}.{version[1]}: name one with --python PATH"
        )
    if not full and version != sys.version_info[:2]:
        raise ConfigError(
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, whose torch {base} cannot use: add --full"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{home} cannot be written: {error.strerror}; choose a folder with PCBENCH_VBENCH") from error
    free = shutil.disk_usage(home).free / 1e9
    if free < GIGABYTES[full]:
        raise ConfigError(f"{home} has {free:.1f} GB free and the build wants {GIGABYTES[full]}")


def _key(base: Path, full: bool) -> str:
    """A key that changes with everything that decides what is installed, except detectron2, which is added later."""
    torch = metadata.version("torch")
    files = [REQUIREMENTS.read_text(), DETECTRON2.read_text()]
    parts = [str(base), full, torch, None if full else _parents(), files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _parents() -> list[str]:
    """The folders in which this interpreter has torch and its dependencies."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ConfigError("torch is not installed here: use --full")
    return list(dict.fromkeys([str(Path(spec.origin).parents[1]), *map(sysconfig.get_path, ("purelib", "platlib"))]))


def _venv(base: Path, full: bool, home: Path, key: str) -> None:
    """Make a virtual environment for this key; an existing one is kept if it was begun for the same key."""
    venv, begun = home / "venv", home / "venv" / "key"
    if begun.exists() and begun.read_text() == key and (venv / "bin" / "python").exists():
        return
    (home / "environment.json").unlink(missing_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    _run([str(base), "-m", "venv", str(venv)])
    if not full:
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "zz_parent.pth").write_text("".join(f"{path}\n" for path in _parents()))
    begun.write_text(key)


def _torch(full: bool) -> list[str]:
    """pip's arguments for the torchvision that matches this torch (0.28.0 for 2.13.0); with `full`, for torch too."""
    version = metadata.version("torch").split("+")[0]
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    if major != 2:
        raise ConfigError(f"which torchvision goes with torch {version} is not known here")
    vision = f"torchvision==0.{minor + 15}.{patch}"
    return [f"torch=={version}", vision] if full else ["--no-deps", vision]


def _pinned(requirements: Path) -> list[str]:
    """pip's arguments for a file of pinned packages, with the pinned setuptools for packages built from source."""
    return ["--build-constraint", str(REQUIREMENTS), "-r", str(requirements)]


def _pip(interpreter: Path, *arguments: str) -> None:
    _run([str(interpreter), "-m", "pip", "install", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str]) -> None:
    """Run a command; if it fails, the CalledProcessError has its output."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)


def _finish(interpreter: Path, home: Path, key: str) -> None:
    """Ask the new interpreter what it can import and write that down, as the last step."""
    scratch, reply = home / "scratch", home / "scratch" / "check.json"
    (scratch / "ViCLIP").mkdir(parents=True, exist_ok=True)  # two dimensions need a file there when they are imported
    reply.unlink(missing_ok=True)
    env = worker_environment(VBENCH, scratch) | {"VBENCH_CACHE_DIR": str(scratch)}
    answer = ask([str(interpreter), "-I", str(WORKER), "--check", str(reply)], reply, env)
    shutil.rmtree(scratch)
    assert set(answer["dimensions"]) == set(NAMES), "another VBench than the pinned one"
    write_json(home / "environment.json", {"key": key, "python": str(interpreter), **answer})


def ask(command: list[str], reply: Path, env: dict[str, str], cwd: Path | None = None) -> dict[str, Any]:
    """The worker's answer to --check. Raises CalledProcessError with its output if there is none."""
    done = subprocess.run(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    answer = read_json(reply)
    if answer is None or not answer.pop("ok"):
        output = done.stdout + ("" if answer is None else f"\n{answer['error']}")
        raise subprocess.CalledProcessError(done.returncode, done.args, output)
    return answer
