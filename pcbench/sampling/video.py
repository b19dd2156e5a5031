"""Frames in memory: kept for the next stage up to a limit, or encoded to an mp4 file and decoded again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

EACH_FRAME = ["-fps_mode", "passthrough"]  # ffmpeg would repeat and drop frames for a constant rate
KEPT_BYTES = 2**30  # 17 videos of 65 frames at 480x640, 750 of the tiny backbone's


class Kept:
    """Videos (frames, height, width, 3) in uint8 by key; beyond `limit` bytes the oldest are dropped."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._videos: dict[Hashable, np.ndarray] = {}

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The video of this key; calls `make` if it is not kept."""
        if key not in self._videos:
            self.put(key, make())
        return self._videos[key]

    def put(self, key: Hashable, video: np.ndarray) -> None:
        """Keep a video; the newest stays whatever its size."""
        self.drop(key)
        while self._videos and self.bytes + video.nbytes > self.limit:
            self.drop(next(iter(self._videos)))
        self._videos[key] = video

    def __contains__(self, key: Hashable) -> bool:
        return key in self._videos

    def drop(self, key: Hashable) -> None:
        """Forget a video, if it is kept."""
        self._videos.pop(key, None)

    @property
    def bytes(self) -> int:
        """Total bytes of all kept videos."""
        return sum(video.nbytes for video in self._videos.values())


kept = Kept()


def through_mp4(frames: np.ndarray, fps: int, crf: int) -> np.ndarray:
    """Frames (n, height, width, 3) in uint8, encoded with H.264 at this constant rate factor (CRF) and decoded again.

    Written as imageio does: yuv420p, with sizes rescaled to multiples of 16. `imageio.mimwrite` without a quality uses
    CRF 23, x264's own default, although its documentation says quality 5, which would be CRF 25; quality 8 is CRF 10.
    Two other things affect pixels: `fps`, by 0.7 dB between 8 and 24, since CRF spends bits by time; and the number of
    encoder threads, which imageio leaves to the machine. Here it is one, so that all machines agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        imageio.mimwrite(path, list(frames), fps=fps, output_params=["-crf", str(crf), "-threads", "1"])
        return read_mp4(path)


def read_mp4(path: Path) -> np.ndarray:
    """All frames of a video file, (n, height, width, 3) in uint8: each one once, also where the rate varies."""
    return np.stack(imageio.mimread(path, memtest=False, output_params=EACH_FRAME))


def is_whole_mp4(data: bytes) -> bool:
    """Whether the boxes of an mp4 file end where the file does. A truncated file may still play, and be scored."""
    position, kinds = 0, set()
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:  # means that the size follows in eight bytes
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            return False
        kinds.add(kind)
        position += size
    return position == len(data) and {b"moov", b"mdat"} <= kinds
