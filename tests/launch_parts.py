"""Small sweeps by several processes, and what is counted and compared of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pcbench import cli
from pcbench.job import jobs_of

from .faults.harness import LINE, contents, records

TINY = [*LINE, "method=fora,teacache", "model.sampling.steps=3", "stages=[generate,score]"]


def jobs(words, results) -> list:
    return jobs_of(cli.compose.compose([*words[1:], f"results={results}"], multirun=True).runs)


def same(results, undisturbed) -> None:
    for kind in (records, contents):
        found, expected = kind(results), kind(undisturbed)
        assert [path for path in expected | found if found.get(path) != expected.get(path)] == []


def made(said: str) -> int:
    return sum("  sample " in line for line in said.splitlines())


def logs(results) -> str:
    return "".join(path.read_text() for path in sorted(results.glob("launches/*/worker-*.log")))


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def claim_file(path: Path) -> Path:
    return path.with_name(f".claim-{path.name}")


def another(path: Path, **changed) -> Path:
    """A claim as another process, by default of another machine, has just made it."""
    content = {"process": os.getpid(), "namespace": "00000000", "host": "elsewhere", "token": "x", **changed}
    claim_file(path).write_text(json.dumps(content))
    return claim_file(path)


def dead_process() -> int:
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    return dead
