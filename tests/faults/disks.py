"""Disks that are full, read-only, or taken away in the middle of a run, for good or for a while."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pcbench.store import away

from .harness import Child, Tally, World, complete, issue, last, records

NOBODY = 65534


def _one_line(tally: Tally, code: int, said: str, what: str) -> None:
    """A run that could not be: its exit code is 1 or 2, one clear line for each of its runs, no traceback."""
    lines = [line for line in said.splitlines() if line.startswith("pcbench: ")]
    if code not in (1, 2) or not lines or "Traceback" in said:
        tally.wrong(f"{what}: exit code {code}, {len(lines)} lines, {said.strip().splitlines()[-1:]}")


def full(world: World, every: int = 1) -> Iterator[Tally]:
    """No space left, from the so-many-th write on; then there is space again."""
    tally, moment = Tally("disk full from a write on (ENOSPC)"), 0
    while True:
        store = world.empty()
        code, said = issue(store, lambda moment=moment: _full_after(moment))  # type: ignore[misc]
        if code == 0:
            return
        tally.injected += 1
        _one_line(tally, code, said, f"full from write {moment}")
        yield from _again(world, tally, store, f"full from write {moment}")
        moment += every


def _again(world: World, tally: Tally, store: Path, what: str) -> Iterator[Tally]:
    there = complete(store)
    code, said = issue(store)
    tally.lost += sum(complete(store).get(sample) != state for sample, state in there.items())
    world.judge(tally, store, code, said, what)
    yield tally


def _full_after(count: int) -> None:
    """In this process, let so many writes to files succeed; half of the next is written, then the disk is full."""
    left = count

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(path: Path, data: Any, *more: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                with open(path, "wb") as stream:
                    stream.write((data if isinstance(data, bytes) else data.encode())[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write(path, data, *more, **named)

        return writing

    Path.write_bytes = failing(Path.write_bytes)  # type: ignore[method-assign]
    Path.write_text = failing(Path.write_text)  # type: ignore[method-assign]


def small_files(world: World, sizes: tuple[int, ...] = (0, 2000, 5000, 12_000)) -> Iterator[Tally]:
    """The kernel refuses to let a file grow beyond a size (RLIMIT_FSIZE), ffmpeg's too."""
    tally = Tally("files may not grow (RLIMIT_FSIZE)")
    for size in sizes:
        store = world.empty()
        code, said = issue(store, lambda size=size: _limit(size))  # type: ignore[misc]
        tally.injected += 1
        if code != 0:
            _one_line(tally, code, said, f"{size} bytes")
        yield from _again(world, tally, store, f"{size} bytes")


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def read_only(world: World) -> Iterator[Tally]:
    """A folder that may not be written, from the start, below the results folder, or from the middle of the run."""
    tally = Tally("read-only folder, or permission lost")
    for what in ("results", "samples", "records", "midway"):
        store = world.empty()
        victim = store if what in ("results", "midway") else store / what
        victim.mkdir(exist_ok=True)
        for path in (world.root, store, victim):
            path.chmod(0o777)
        child = Child(store, _become_nobody) if what == "midway" else None
        if child:
            _wait_for_sample(store, child)
        for folder in [victim, *(p for p in victim.rglob("*") if p.is_dir())]:
            folder.chmod(0o555)
        code, said = child.wait() if child else issue(store, _become_nobody)
        tally.injected += 1
        _one_line(tally, code, said, what)
        for folder in [store, *(p for p in store.rglob("*") if p.is_dir())]:
            folder.chmod(0o777)
        yield from _again(world, tally, store, what)


def _become_nobody() -> None:
    """Root may write anywhere."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _wait_for_sample(store: Path, child: Child) -> None:
    while not list(store.glob("samples/*/*/*/*.trace.json")) and child.runs:
        time.sleep(0.01)


def deleted(world: World, times: int = 3) -> Iterator[Tally]:
    """The results folder is deleted while a sweep works in it."""
    tally = Tally("results folder deleted midway")
    for _ in range(times):
        store = world.empty()
        child = Child(store, _impatient)
        _wait_for_sample(store, child)
        shutil.rmtree(store, ignore_errors=True)
        code, said = child.wait()
        tally.injected += 1
        if code != 0 or records(store) != world.records:  # what vanished may have been made again at once
            _one_line(tally, code, said, "deleted")
        store.mkdir(exist_ok=True)
        yield from _again(world, tally, store, "deleted")


def _impatient() -> None:
    away.PATIENCE = 0.5


def vanished(world: World, seconds: float = 10.0, times: int = 3, seed: int = 0) -> Iterator[Tally]:
    """The results folder goes away in the middle of a sweep and comes back, in turn with nothing or an empty folder in
    its place. The sweep waits for it: nothing is lost, made again, or written elsewhere."""
    tally, chance = Tally("results folder away for a while"), random.Random(seed)
    for number in range(times):
        store, what = world.empty(), ("nothing", "an empty folder")[number % 2]
        elsewhere = store.with_name(f"{store.name}-away")
        child = Child(store)
        _wait_for_sample(store, child)
        time.sleep(chance.uniform(0, world.seconds / 2))
        store.rename(elsewhere)
        if number % 2:
            store.mkdir()
        time.sleep(seconds)
        if stray := list(store.rglob("*")) if store.exists() else []:
            tally.wrong(f"written in its place: {stray[0].relative_to(store)}")
            shutil.rmtree(store)
        if store.exists():
            store.rmdir()
        there = complete(elsewhere)
        elsewhere.rename(store)
        code, said = child.wait()
        tally.injected += 1
        tally.lost += sum(complete(store).get(sample) != state for sample, state in there.items())
        if code or "Traceback" in said:
            tally.wrong(f"{what} in its place: exit code {code}: {last(said)}")
        yield from _again(world, tally, store, f"{what} in its place")
