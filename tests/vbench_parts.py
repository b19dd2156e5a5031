"""A VBench environment for tests: a fake interpreter that runs a few lines of Python in place of the worker."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcbench import cli
from pcbench.config import Run, Score
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.sampling.generate import write_video
from pcbench.vbench.dimensions import DIMENSIONS

# Prompts of VBench, as its list has them.
ENTRIES = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a toilet, frozen in time", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red bicycle", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
]
STOP, TOILET, BICYCLE = (str(entry["prompt_en"]) for entry in ENTRIES)
OTHER = "a small red circle moving left"

# The worker's part of the protocol; `videos` are the names it was given, `reply` is to be filled.
FRAME = """
import json, os, signal, sys, time
request = json.load(open(sys.argv[1]))
videos = sorted(os.listdir(request["videos"]))
reply = {{"ok": True, "versions": {{}}, "score": 0.5, "videos": dict.fromkeys(videos, 0.5)}}
with open({calls!r}, "a") as calls:
    print(json.dumps(request | {{"names": videos, "device": os.environ["CUDA_VISIBLE_DEVICES"]}}), file=calls)
{body}
json.dump(reply, open(sys.argv[2], "w"))
sys.exit(0 if reply["ok"] else 3)
"""


def fake_environment(home: Path, body: str = "", imports: dict[str, str] | None = None) -> Path:
    """Write what `setup` writes, with an interpreter that runs `body`. Returns the file it notes its calls in."""
    home.mkdir(parents=True, exist_ok=True)
    calls, program, python = home / "calls", home / "fake.py", home / "python"
    program.write_text(FRAME.format(calls=str(calls), body=body))
    python.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{program}" "$@"\n')  # drops -I and the worker
    return _finish(home, python, calls, imports)


def fake_vbench(home: Path, packages: Path) -> None:
    """Write what `setup` writes, with an interpreter that runs the real worker on the modules in `packages`."""
    home.mkdir(parents=True, exist_ok=True)
    python = home / "python"
    code = "import sys, runpy; sys.path[0] = sys.argv.pop(1); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    python.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "{code}" "{packages}" "$@"\n')  # drops -I
    _finish(home, python, home / "calls", None)


def _finish(home: Path, python: Path, calls: Path, imports: dict[str, str] | None) -> Path:
    python.chmod(0o755)
    (home / "suite.json").write_text(json.dumps(ENTRIES))
    about = {
        "key": "",
        "python": str(python),
        "versions": {"vbench": "0.1.5"},
        "suite": str(home / "suite.json"),
        "dimensions": dict.fromkeys(DIMENSIONS) | (imports or {}),
    }
    (home / "environment.json").write_text(json.dumps(about))
    return calls


def run_of(results: Path, prompts: list[str], *dimensions: str, seeds: tuple[int, ...] = (0,), **score: object) -> Run:
    """A run of `none` on tiny_wan that only scores."""
    (results.parent / "prompts.txt").write_text("\n".join(prompts))
    run = cli.run_from(["method=none", f"prompts.file={results.parent / 'prompts.txt'}", f"results={results}"])
    asked = Score(vbench=list(dimensions), **score)  # type: ignore[arg-type]
    return replace(run, seeds=list(seeds), stages=("score",), score=asked)


def frames(seed: int) -> np.ndarray:
    """A short clip of a moving gradient with noise: (9, 48, 64, 3) uint8."""
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(9) * 3, np.add.outer(np.arange(48), np.arange(64)))[..., None].repeat(3, -1)
    return (ramp + random.integers(0, 40, ramp.shape)).clip(0, 255).astype(np.uint8)


@functools.cache
def clip() -> bytes:
    """A short video, encoded as generation does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames(0), fps=8)
        return path.read_bytes()


def video(number: int) -> bytes:
    """The clip, with a last box that players pass over and that is another for each number."""
    content = number.to_bytes(4, "big")
    return clip() + (8 + len(content)).to_bytes(4, "big") + b"free" + content


def make_samples(run: Run, without: tuple[tuple[str, int], ...] = ()) -> None:
    """The files of the run's samples, as generation leaves them, but for those in `without`."""
    for number, (prompt, seed) in enumerate(run.samples):
        if (prompt, seed) in without:
            continue
        files = job_of(run).place.sample(sample_key(prompt, seed))
        files.video.parent.mkdir(parents=True, exist_ok=True)
        files.video.write_bytes(video(number))
        files.latent.write_bytes(b"")
        files.trace.write_text("{}")
