"""Writing in a folder that processes share: files that appear whole, locks that end with their owner. Stdlib only."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: files still appear whole, only two processes may do the same work
    fcntl = None  # type: ignore[assignment]

PARTIAL, CLAIM = ".partial-", ".claim-"  # how names begin
PATIENCE = 30.0  # seconds for a lock that is held for moments only; then its owner hangs, and we go on without it


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A file name beside `path` that no other writer uses; what is left of it in the end is deleted.

    It keeps the suffix, which some writers choose a format by, and names the process, so that `sweep` can tell what a
    killed one left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{PARTIAL}{os.getpid()}-{_namespace()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield own
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it into place. OSError if the disk does not take it."""
    with partial(path) as own:
        write(own)
        put(own, path)


def put(own: Path, path: Path) -> None:
    """Rename a whole file into place; a folder that lies there is set aside."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path, "a folder where a file belongs", print)
    os.replace(own, path)


def set_aside(path: Path, why: str, say: Callable[[str], None]) -> None:
    """Rename what cannot be used to `<name>.damaged-<time>-<random>`, and say so in one line. Nothing is deleted."""
    aside = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
    with suppress(FileNotFoundError):  # another process was quicker
        path.rename(path.with_name(aside))
        say(f"{path}: {why}; set aside as {aside}")


@functools.cache
def _namespace() -> str:
    """This boot and container, eight hex digits: only within them is a process known by its number."""
    parts = [os.uname().nodename] if hasattr(os, "uname") else []
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Delete what processes left behind that are surely dead: partial files of this machine's, claims of nobody."""
    for path in folder.glob(f"{CLAIM}*"):
        with claim(path.with_name(path.name.removeprefix(CLAIM))):
            pass
    for path in orphans(folder):
        with suppress(OSError):
            path.unlink()


def orphans(folder: Path) -> Iterator[Path]:
    """The partial files in a folder whose writers, processes of this machine, are dead."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            pid, _, rest = name.removeprefix(PARTIAL).partition("-")
            ours = name.startswith(PARTIAL) and pid.isdigit() and rest.startswith(f"{_namespace()}-")
            if ours and not _alive(int(pid)):
                yield folder / name


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock for a moment's work. It is not nested; the kernel takes it back from a process that dies.

    Where a folder cannot be locked, or its owner hangs, the work goes on without: what it protects is checked again
    when it is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock", PATIENCE):
        yield


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether long work on `path` is ours to do, False while another process is at it. Never waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{CLAIM}{path.name}")
    with _locked(file, 0.0) as ours:
        try:
            yield ours
        finally:
            if ours:
                with suppress(OSError):
                    file.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, patience: float) -> Iterator[bool]:
    """Whether the lock was had, waiting for it at most `patience` seconds; True where there are no locks."""
    try:
        stream = file.open("a")
    except OSError:  # another user's, or nothing can be written here, which the work itself will say
        yield True
        return
    with stream:
        yield _lock(stream.fileno(), patience)


def _lock(descriptor: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return True
    return True
