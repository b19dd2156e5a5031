"""Which files belong together, and whether they can be compared: found out from their headers, before any work."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg

from ..config import ConfigError
from ..messages import nearest, shortened
from ..sampling.video import is_whole_mp4

NAMED = 4  # files named in a message; further ones are counted
OTHERS = {".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif"}  # videos that are not read
PROBES = 4  # ffmpeg processes at a time


@dataclass(frozen=True)
class Shape:
    """Size of a video: frames, height and width in pixels, frames per second."""

    frames: int
    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width} at {self.fps:g} fps"


@dataclass(frozen=True)
class Folder:
    """A folder of mp4 files. label: what tells it from the other folders. files: by name, in order; in names, letters
    with accents are single characters (NFC), as macOS and others write them differently. left_out: other videos."""

    label: str
    path: Path
    files: dict[str, Path]
    left_out: Sequence[str] = ()

    @property
    def note(self) -> str:
        """A line about the videos that are left out; empty if there are none."""
        return f"{self.label}: left out, as only mp4 files are read: {_named(self.left_out)}" if self.left_out else ""


def folders(paths: Sequence[Path]) -> list[Folder]:
    """The folders, the reference first, each with its mp4 files. Raises ConfigError for one that has none."""
    return [
        Folder(label, path, _files(path), sorted(file.name for file in _visible(path, OTHERS)))
        for label, path in zip(labels(paths), paths, strict=True)
    ]


def labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many parts of its path as tell it from the others."""
    if twice := [path for i, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:i]]]:
        raise ConfigError(f"{shortened(twice[0])} is given twice: there is nothing to compare it with")
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]).lstrip("/") for part in parts]


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        near = nearest(
            path.name, [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        )
        raise ConfigError(f"no folder {shortened(path)}: {near}")
    files: dict[str, Path] = {}
    for file in _visible(path, {".mp4"}):
        name = unicodedata.normalize("NFC", file.name)
        if name in files:
            raise ConfigError(f"{shortened(path)} has two files whose names look alike, {name!r}: rename one")
        files[name] = file
    if not files:
        inside = sorted(each.name for each in path.iterdir() if each.is_dir() and any(each.glob("*.mp4")))
        where = f"; its folder {inside[0]!r} has some" if inside else ""
        other = [file.name for file in _visible(path, OTHERS)]
        convert = f"; convert its other videos first: {_named(other)}" if other else ""
        raise ConfigError(f"{shortened(path)} holds no mp4 file{where}{convert}")
    return files


def _visible(path: Path, suffixes: set[str]) -> list[Path]:
    """A folder's files with these suffixes, without hidden ones: unfinished files, and macOS's notes about files."""
    return [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() in suffixes and file.is_file() and not file.name.startswith(".")
    ]


def shape_of(path: Path) -> Shape:
    """The shape of a video, from its headers: nothing is decoded. Raises ValueError if the file is no whole video."""
    if not is_whole_mp4(path.read_bytes()):
        raise ValueError("is no whole mp4 file")
    try:
        meta = iio.immeta(path, plugin="FFMPEG")
        frames, _ = imageio_ffmpeg.count_frames_and_secs(path)
    except Exception as error:  # ffmpeg's complaints come as OSError, RuntimeError and others
        raise ValueError(f"cannot be read: {shortened(error)}") from error
    width, height = meta["size"]
    return Shape(frames, height, width, meta["fps"])


def problems(reference: Folder, others: Sequence[Folder], say: Callable[[int, int], None]) -> list[str]:
    """A line for every way in which a folder does not match the reference, naming the files; empty if all can be
    compared. `say` is told how many of how many files have been looked at."""
    found = []
    for folder in others:
        missing, extra = reference.files.keys() - folder.files.keys(), folder.files.keys() - reference.files.keys()
        if missing:
            found.append(f"{folder.label}: {_count(missing, reference)} missing: {_named(missing)}")
        if extra:
            found.append(f"{folder.label}: {len(extra)} without a reference of that name: {_named(extra)}")
    if found:
        return found
    every = [reference, *others]
    shapes: list[dict[str, Shape | str]] = []
    with ThreadPoolExecutor(PROBES) as pool:
        done, total = 0, sum(len(folder.files) for folder in every)
        for folder in every:
            shapes.append({})
            for name, shape in zip(folder.files, pool.map(_shape_or_fault, folder.files.values()), strict=True):
                shapes[-1][name] = shape
                say(done := done + 1, total)
    for folder, own in zip(every, shapes, strict=True):
        faults = [name for name, shape in own.items() if isinstance(shape, str)]
        if faults:
            found.append(f"{folder.label}: {_named(faults, NAMED)}: {own[faults[0]]}")
    if found:
        return found
    for folder, own in zip(others, shapes[1:], strict=True):
        unequal = [name for name in folder.files if own[name] != shapes[0][name]]
        if unequal:
            first = unequal[0]
            more = f" ({_count(unequal, reference)} differ: {_named(unequal)})" if len(unequal) > 1 else ""
            found.append(f"{folder.label}: {shortened(first)} has {own[first]}, its reference {shapes[0][first]}{more}")
    return found


def _shape_or_fault(path: Path) -> Shape | str:
    try:
        return shape_of(path)
    except (OSError, ValueError) as error:
        return str(error)


def _count(names: Iterable[str], reference: Folder) -> str:
    return f"{len(list(names))} of {len(reference.files)}"


def _named(names: Iterable[str], limit: int = NAMED) -> str:
    """The first few names, in the order a reader expects (2 before 10), and how many more there are."""
    ordered = sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(shortened(name, 48) for name in ordered[:limit]) + more
