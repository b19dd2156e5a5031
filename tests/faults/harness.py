"""Sweeps in child processes that share this one's imports, and what is compared of their results folders."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pcbench import cli

LINE = (
    "-m", "method=fora", "prompts.limit=2", "latency.repeats=1", "latency.warmup=0",
    "model.sampling.steps=2", "model.sampling.frames=5", "model.sampling.height=32", "model.sampling.width=32",
)  # fmt: skip
MEASURED = {"seconds", "milliseconds", "latency"}
LIMIT = 300.0  # seconds for a sweep that takes a few


@dataclass
class Tally:
    """What a kind of fault cost, over all the times it was injected."""

    fault: str
    injected: int = 0
    lost: int = 0  # samples that were complete before the fault, undamaged, and were made again
    differ: int = 0  # records that are not those of an undisturbed run, but for measured times
    silent: int = 0  # wrong results with exit code 0, damage with no line, tracebacks, unclear refusals
    notes: list[str] = field(default_factory=list)

    def wrong(self, note: str) -> None:
        """Count a wrong outcome that nobody was told of."""
        self.silent += 1
        self.notes.append(note)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, differs, or was wrong."""
        return not (self.lost or self.differ or self.silent)


class Child:
    """A sweep in a forked process; `before` runs in it first, to make its world a worse one."""

    def __init__(self, results: Path, before: Callable[[], object] | None = None, line: Sequence[str] = LINE) -> None:
        self.output, output = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job inherits as ignored
                os._exit(_sweep([*line, f"results={results}"], before, output))
            finally:
                os._exit(70)
        os.close(output)
        os.set_blocking(self.output, False)

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet; it stays to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """As `kill -9` does."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Exit code (negative: the signal) and all that was printed."""
        end, said = time.monotonic() + LIMIT, b""
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                self.kill()
            said += self.read()
            time.sleep(0.005)
        said += self.read()
        os.close(self.output)
        return os.waitstatus_to_exitcode(ended[1]), said.decode(errors="replace")

    def read(self) -> bytes:
        """What was printed since the last time."""
        said = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output, 2**16):
                said += data
        return said


def _sweep(words: Sequence[str], before: Callable[[], object] | None, output: int) -> int:
    gc.freeze()  # no collection needs to look at, and so copy, what is the parent's
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    try:
        if before is not None:
            before()
        return cli.main(words)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()


def issue(results: Path, before: Callable[[], object] | None = None) -> tuple[int, str]:
    """A whole sweep."""
    return Child(results, before).wait()


def plain(data: Any) -> Any:
    """A record without measured times."""
    if isinstance(data, dict):
        return {name: plain(value) for name, value in data.items() if name not in MEASURED}
    return [plain(each) for each in data] if isinstance(data, list) else data


def records(results: Path) -> dict[str, Any]:
    """Every record by its path, without measured times; what cannot be read is its own difference."""
    found = {}
    for path in results.glob("records/*/*/[!.]*.json"):
        try:
            found[str(path.relative_to(results))] = plain(json.loads(path.read_bytes()))
        except (ValueError, OSError) as error:
            found[str(path.relative_to(results))] = repr(error)
    return found


def contents(results: Path) -> dict[str, str]:
    """The sha256 of every latent and video."""
    files = [p for end in ("safetensors", "mp4") for p in results.glob(f"samples/*/*/*/[!.]*.{end}") if p.is_file()]
    return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def complete(results: Path) -> dict[str, tuple[int, int]]:
    """The samples that are there, with the time and inode of their traces: others, if they are made again."""
    traces = results.glob("samples/*/*/*/[!.]*.trace.json")
    whole = [p for p in traces if all(_beside(p, end).exists() for end in (".safetensors", ".mp4"))]
    return {str(p.relative_to(results)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in whole}


def _beside(trace: Path, end: str) -> Path:
    return trace.with_name(trace.name.removesuffix(".trace.json") + end)


class World:
    """An undisturbed run, and copies of it to disturb."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole = root, root / "whole"
        torch.set_num_threads(1)  # a forked process has no other thread of ours
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # what this process has loaded and priced, the children have too
            cli.main([*LINE, f"results={root / 'warm'}"])
        began = time.monotonic()
        code, said = issue(self.whole)
        if code:
            raise SystemExit(f"the undisturbed run failed with code {code}:\n{said}")
        self.seconds = time.monotonic() - began
        self.records, self.contents = records(self.whole), contents(self.whole)

    def copy(self) -> Path:
        """A finished store, the same down to its times."""
        return Path(shutil.copytree(self.whole, self.empty(), dirs_exist_ok=True))

    def empty(self) -> Path:
        """A results folder with nothing in it."""
        store = self.root / f"store-{time.monotonic_ns()}"
        store.mkdir()
        return store

    def judge(self, tally: Tally, store: Path, code: int, said: str, what: str) -> None:
        """Compare a store after its line was issued again, undisturbed, with the undisturbed one; then delete it."""
        now = records(store)
        differ = [path for path in self.records if now.get(path) != self.records[path]]
        tally.differ += len(differ)
        wrong = [path for path, digest in self.contents.items() if contents(store).get(path) != digest]
        if code != 0 or "Traceback" in said:
            tally.wrong(f"{what}: issued again: exit code {code}: {last(said)}")
        elif differ or wrong:
            tally.wrong(f"{what}: exit code 0, but {(differ + wrong)[0]} is wrong")
        if stray := list(store.rglob(".partial-*")):
            tally.wrong(f"{what}: left behind: {stray[0].name}")
        shutil.rmtree(store)


def last(said: str) -> str:
    """The last line of what was said."""
    return (said.strip().splitlines() or ["nothing was said"])[-1][:200]
