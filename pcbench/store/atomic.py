"""Writing to a folder that processes share: files appear complete, locks end with their owner. Stdlib only."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import away

try:
    import fcntl
except ImportError:  # Windows: files still appear complete, but two processes may do the same work
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial-"  # prefix of file names
LONGEST_NAME = 180  # bytes: the prefix of partial files, and a suffix, fit beside it into the usual 255
PATIENCE = 30.0  # seconds to wait for a lock that is only held briefly; after that its owner hangs, and we do without

_without: set[Path] = set()  # folders whose lock was waited for in vain: its owner hangs, and is not waited for twice


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A file name next to `path` that no other writer uses; a file left under that name at the end is deleted.

    It keeps the suffix, by which some writers choose a format, and contains the process id, so that `sweep` can find
    what a killed process left behind.
    """
    away.make_folder(path.parent)
    own = path.with_name(f"{PARTIAL}{os.getpid()}-{namespace()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield own
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def fitting(name: str) -> str:
    """The file name, or its hash and suffix if it is so long that the names of the files made for it would not fit."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()[:32] + Path(name).suffix


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to `path`, then rename it into place. Raises OSError if it cannot be written."""

    def once() -> None:
        with partial(path) as own:
            write(own)
            put(own, path)

    away.steadily(once)


def put(own: Path, path: Path) -> None:
    """Rename a complete file into place; a folder that is in the way is set aside."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path, "a folder where a file belongs", print)
    os.replace(own, path)


def set_aside(path: Path, why: str, say: Callable[[str], None]) -> None:
    """Rename an unusable file to `<name>.damaged-<time>-<random>`, and say so in one line. Nothing is deleted."""
    new_name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
    with suppress(FileNotFoundError):  # another process was quicker
        path.rename(path.with_name(new_name))
        say(f"{path}: {why}; set aside as {new_name}")


@functools.cache
def namespace() -> str:
    """Eight hex digits for this boot and container: process ids are unique only within these."""
    parts = [os.uname().nodename] if hasattr(os, "uname") else []
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Delete the partial files that dead processes of this machine left behind."""
    for path in orphans(folder):
        with suppress(OSError):
            path.unlink()


def orphans(folder: Path) -> Iterator[Path]:
    """The partial files in a folder whose writers were processes of this machine and are dead."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            pid, _, rest = name.removeprefix(PARTIAL).partition("-")
            is_local = name.startswith(PARTIAL) and pid.isdigit() and rest.startswith(f"{namespace()}-")
            if is_local and not is_alive(int(pid)):
                yield folder / name


def is_alive(pid: int) -> bool:
    """Whether a process of this machine with this id exists, and has not ended without its parent's notice."""
    with suppress(OSError, IndexError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock for brief work. It cannot be nested; the kernel releases it if the process dies.

    If a folder cannot be locked, or the lock's owner hangs, the work goes on without the lock: the files it protects
    are checked again when they are read.
    """
    away.make_folder(folder)
    with _locked(folder / ".lock", 0 if folder in _without else PATIENCE) as held:
        (_without.discard if held else _without.add)(folder)
        yield


@contextmanager
def _locked(file: Path, patience: float) -> Iterator[bool]:
    """Wait at most `patience` seconds for the lock; yields whether we hold it, or True if locking is impossible."""
    try:
        stream = file.open("a")
    except OSError:  # another user's file, or a read-only folder, which the work itself will report
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
