"""Claims on long work in a shared folder: who works on what, without a lock server, on a network file system too.

A claim is a file next to the result it is for, made whole by an exclusive link (or exclusive creation, where there are
no links). A thread touches this process's claims every few seconds. A claim counts while its process lives, if that is
one of this machine, and while it is touched; the file system's own clock decides, so hosts need not agree on the time.
What a dead process claimed is taken over; among the workers of one launch the claim then says whom it has outlived, so
that work which ends every process that does it is given up. Claims only save work: results are put in place whole
(atomic.py), the first one counts, and if two processes ever claimed the same thing, it would merely be made twice.
Stdlib only.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import away, fits
from .atomic import alone, is_alive, namespace, partial

# In the environment of a worker: which of how many it is, and the launch it is of
WORKER, LAUNCH = "PCBENCH_WORKER", "PCBENCH_LAUNCH"
CLAIM = ".claim-"  # prefix of file names
CONTENT = {"process": int, "namespace": str, "host": str, "token": str}
OF_LAUNCH = {"launch": str, "worker": str, "ended": [str]}  # besides, in a worker's claim
LIVES = 2  # workers of a launch that may end over the same work
BEAT = 10.0  # seconds between two touches of a claim
LIMIT = 60.0  # seconds without a touch after which a claim is dead; an NFS client may hide touches for a few seconds

_held: dict[Path, str] = {}  # this process's claims, and the token in each
_missed: list[Path] = []  # what others were found to work on
_heart: tuple[int, threading.Thread] | None = None  # the process it belongs to: a forked one has no such thread


class DeadlyError(RuntimeError):
    """Work that has ended the workers which did it, as the kernel ends processes where memory is short."""


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Claim work on `path` while the body runs; yields False if another process is doing it. Never waits. Raises
    DeadlyError if too many workers of this launch have ended over it."""
    file = _file(path)
    if len(gone := _ended(file)) >= LIVES and not _lives(file):
        raise DeadlyError(f"it ended worker {' and '.join(gone)}: out of memory, or a crash in a library")
    token = _take(file)
    if token is None:
        _missed.append(path)
    elif token:
        _held[file] = token
        _beat_from_now_on()
    try:
        yield token is not None
    finally:
        away.waited()
        if token and _held.pop(file, None) and _token(file) == token:
            with suppress(OSError):
                file.unlink()


def may_be_deadly(path: Path) -> bool:
    """Whether a worker of this launch ended while it worked on `path`, and another one is still to try."""
    return 0 < len(_ended(_file(path))) < LIVES


def busy(*paths: Path) -> bool:
    """Whether another process works on one of the paths, or is still to take it over from one of this launch."""
    found = [path for path in paths if _file(path) not in _held and (_lives(_file(path)) or may_be_deadly(path))]
    _missed.extend(found)
    return bool(found)


def leave_to_others(path: Path) -> None:
    """Note work as another process's, without a claim: this one comes back to it when its own is done."""
    _missed.append(path)


@contextmanager
def missed() -> Iterator[list[Path]]:
    """While the body runs, a list collects what other processes were found to be working on."""
    global _missed
    before, _missed = _missed, []
    try:
        yield _missed
    finally:
        _missed = before


def held() -> set[str]:
    """The names of what this process has claimed now."""
    return {file.name.removeprefix(CLAIM) for file in [*_held]}


def running(folder: Path) -> set[str]:
    """The names of what is being worked on in a folder, by any process."""
    return {path.name.removeprefix(CLAIM) for path in _claims(folder) if _lives(path)}


def sweep(folder: Path) -> None:
    """Delete the claims of the dead, but for those that this launch is still to take over."""
    for path in _claims(folder):
        if not (_lives(path) or _ended(path)):
            with alone(folder), suppress(OSError):
                if not _lives(path):  # nobody has taken it over meanwhile
                    path.unlink()


def _file(path: Path) -> Path:
    return path.with_name(f"{CLAIM}{path.name}")


def _claims(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [folder / name for name in os.listdir(folder) if name.startswith(CLAIM)]
    return []


def _take(file: Path) -> str | None:
    """The token in the claim that is ours now; None if another's counts; "" where no file can be made: without claims
    the work itself says what is wrong with the folder."""
    token = secrets.token_hex(8)
    content = {"process": os.getpid(), "namespace": namespace(), "host": _host(), "token": token}
    if launch := os.environ.get(LAUNCH):
        content |= {"launch": launch, "worker": os.environ.get(WORKER, ""), "ended": _ended(file)}
    text = json.dumps(content)
    try:
        with partial(file) as own:
            own.write_text(text)
            if _create(own, file, text):
                return token
            with alone(file.parent):  # two processes that find the same claim dead: one is first
                if _lives(file):
                    return None
                os.replace(own, file)
        return token if _token(file) == token else None  # where folders cannot be locked, the last one is first
    except OSError:
        return None if _lives(file) else ""


def _create(own: Path, file: Path, text: str) -> bool:
    """Put a file in place; returns False if there is one already."""
    try:
        os.link(own, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        with suppress(FileExistsError), file.open("x") as stream:
            stream.write(text)
            return True
        return False
    return True


def _lives(file: Path) -> bool:
    """Whether a claim counts: it is whole, its process may be alive, and it was touched not long ago."""
    try:
        with file.open("rb") as stream:  # opening asks a file server for the file's times
            data, touched = json.loads(stream.read()), os.fstat(stream.fileno()).st_mtime
    except (OSError, ValueError, RecursionError):
        return False
    if not fits(data, CONTENT) or (data["namespace"] == namespace() and not is_alive(data["process"])):
        return False
    return _now(file.parent) - touched <= LIMIT


def _ended(file: Path) -> list[str]:
    """What a claim says of the workers of this launch that it has outlived, its own one included if that is dead."""
    claim, launch = _read(file), os.environ.get(LAUNCH)
    if not launch or not fits(claim, OF_LAUNCH) or claim["launch"] != launch:
        return []
    return [*claim["ended"], *([] if file in _held or _lives(file) else [claim["worker"]])]


def _now(folder: Path) -> float:
    """The time by the clock that gives this folder's files theirs; ours, if it takes no file at the moment."""
    with suppress(OSError), partial(folder / "now") as own:
        own.touch()
        return own.stat().st_mtime
    return time.time()


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads(file.read_bytes())
        return data if fits(data, CONTENT) else {}
    return {}


def _token(file: Path) -> Any:
    return _read(file).get("token")


def _host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else ""


def _beat_from_now_on() -> None:
    global _heart
    if _heart is None or _heart[0] != os.getpid():
        _heart = os.getpid(), threading.Thread(target=_beat, name="claims", daemon=True)
        _heart[1].start()


def _beat() -> None:
    """Touch what this process holds, for ever; what was taken from it, while it was stopped, is another's."""
    while True:
        time.sleep(BEAT)
        for file, token in list(_held.items()):
            if _token(file) == token:
                with suppress(OSError):
                    os.utime(file)
