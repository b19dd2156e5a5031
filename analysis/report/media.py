"""The report's videos: those of the samples, and how far each is from its reference."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from pcbench.store import read_json, write_json, write_whole

EACH_FRAME = ["-fps_mode", "passthrough"]  # ffmpeg would repeat and drop frames for a constant rate
FULL = 48  # of 255: the difference drawn brightest
# matplotlib's inferno at five places: black where nothing differs
COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=float)


def about(path: Path) -> dict[str, float]:
    """Frames per second, number of frames, width and height (pixels) of a video."""
    meta, frames = iio.immeta(path, plugin="FFMPEG"), 0
    for _ in iio.imiter(path, plugin="FFMPEG", output_params=EACH_FRAME):
        frames += 1
    return {"fps": meta["fps"], "frames": frames, "width": meta["size"][0], "height": meta["size"][1]}


def bring(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a link where the disk allows it, else a copy."""
    if target.exists() and (target.samefile(source) or _state(target) == _state(source)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def difference(video: Path, reference: Path, frames: np.ndarray | None, target: Path, fps: float) -> np.ndarray | None:
    """Write |video − reference| as a video, unless `target` is that of these very files already, which a note beside it
    says; `frames` are the reference's, if read.

    Returns the reference's frames, or None if they were not read. Both are compared as decoded from mp4, so that the
    difference includes compression. Raises ValueError if the two differ in shape.
    """
    note, made_of = target.with_name(f".{target.name}.json"), [_state(video), _state(reference)]
    if target.exists() and read_json(note) == made_of:
        return frames
    frames = _read(reference) if frames is None else frames
    frames_of_method = _read(video)
    if frames_of_method.shape != frames.shape:
        raise ValueError(f"{video} is of shape {frames_of_method.shape}, its reference {frames.shape}")
    write_whole(
        target,
        lambda path: iio.imwrite(
            path, heat(frames_of_method, frames), fps=fps, plugin="FFMPEG", codec="libx264", pixelformat="yuv420p",
            macro_block_size=2, output_params=["-crf", "20", "-movflags", "+faststart"],
        ),
    )  # fmt: skip
    write_json(note, made_of)
    return frames


def _read(path: Path) -> np.ndarray:
    return iio.imread(path, plugin="FFMPEG", output_params=EACH_FRAME)


def heat(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The colour-mapped mean absolute difference over channels of uint8 videos (frames, height, width, 3); uint8."""
    table = np.stack([np.interp(np.linspace(0, 4, 256), range(5), channel) for channel in COLOURS.T], axis=-1)
    table = table.round().astype(np.uint8)
    coloured = []
    for frame, reference_frame in zip(video, reference, strict=True):  # a whole real video would take 0.25 GB
        distance = np.abs(frame.astype(np.int16) - reference_frame).mean(-1)
        coloured.append(table[np.minimum(distance * (255 / FULL), 255).astype(np.uint8)])
    return np.stack(coloured)


def _state(path: Path) -> list[int]:
    """What tells a file from another one: an older one with another content may come to its place."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
