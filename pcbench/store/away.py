"""A results folder that goes away in the middle of a run and comes back, as one on a network file system does.

Work in a watched folder waits for it. Otherwise a file would be written into a folder made anew in its place, beneath
the mount, and what cannot be seen would count as missing and be made again. Stdlib only.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

PATIENCE = 60.0  # seconds to wait for a folder; after that it counts as deleted, and is made anew
PAUSE = 0.5  # seconds between two looks
# What a file system says that is not there at the moment: of a folder, of a mount, of a server
PASSING = {errno.ENOENT, errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}

T = TypeVar("T")


class _Watched(NamedTuple):
    """A folder as it was at the beginning."""

    identity: tuple[int, int]  # device and inode
    opened: int | None  # a descriptor of it, which stays with this folder whatever takes its place; None on Windows


_watched: dict[Path, _Watched] = {}
_absences = 0  # how often one was found away


@contextmanager
def watching(folder: Path) -> Iterator[None]:
    """While the body runs, everything in the folder, which exists now, waits for it when it is away."""
    folder = folder.absolute()
    opened = os.open(folder, os.O_RDONLY) if os.mkdir in os.supports_dir_fd else None
    _watched[folder] = _Watched(_identity(folder), opened)
    try:
        yield
    finally:
        _watched.pop(folder, None)
        if opened is not None:
            os.close(opened)


def is_away() -> bool:
    """Whether a watched folder is not there, or an empty one is in its place, as where nothing is mounted."""
    return any(_is_away(folder, watched.identity) for folder, watched in _watched.items())


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_away(folder: Path, identity: tuple[int, int]) -> bool:
    try:
        return _identity(folder) != identity and not os.listdir(folder)
    except OSError:
        return True


def waited() -> bool:
    """Wait for watched folders that are away; returns whether there were any, and what was seen must be looked at
    again."""
    global _absences
    if not is_away():
        return False
    _absences += 1
    end = time.monotonic() + PATIENCE
    print(f"pcbench: the results folder is away; waiting for it, at most {PATIENCE:.0f} s", file=sys.stderr, flush=True)
    while is_away() and time.monotonic() < end:
        time.sleep(PAUSE)
    for folder in [folder for folder, watched in _watched.items() if _is_away(folder, watched.identity)]:
        del _watched[folder]
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. In a watched folder that is away this waits; it makes nothing in its place,
    not even if that one goes away in between."""
    folder = folder.absolute()
    waited()
    while True:
        try:
            return _make(folder)
        except OSError:
            if folder.is_dir() or not waited():
                raise


def _make(folder: Path) -> None:
    for root, watched in _watched.items():
        if folder.is_relative_to(root):
            if watched.identity != _identity(root):
                if not os.listdir(root):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
            elif watched.opened is not None:
                return _make_within(watched.opened, folder.relative_to(root))
    folder.mkdir(parents=True, exist_ok=True)


def _make_within(opened: int, folder: Path) -> None:
    for count in range(1, len(folder.parts) + 1):
        with suppress(FileExistsError):
            os.mkdir(os.path.join(*folder.parts[:count]), dir_fd=opened)


def steadily(work: Callable[[], T]) -> T:
    """Do work that reads and writes in watched folders, and may be repeated; again if they were away meanwhile."""
    repeated = False
    while True:
        before = _absences
        try:
            result = work()
        except OSError as error:
            if not waited() and _absences == before:
                if not _watched or error.errno not in PASSING or repeated:
                    raise
                repeated = True  # it may just have come back
            continue
        if _absences == before:
            return result
