"""What a metric compares: a sample's final latents, its frames, or its frames after encoding to and from mp4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..config import Run
from ..sampling.generate import frames_of, latents_of
from ..sampling.video import kept, through_mp4
from ..store import SampleFiles


class Source(Protocol):
    """Where a metric's arrays come from. encoded: the video goes through a file, whose frame rate affects pixels."""

    @property
    def encoded(self) -> bool: ...

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        """The array of one sample; a video is uint8 (n, height, width, 3)."""
        ...

    def drop(self, run: Run, files: SampleFiles) -> None:
        """Forget what `load` kept for the next metric."""
        ...


@dataclass(frozen=True)
class Latents:
    """Final latents in float32, (1, channels, T, H, W)."""

    encoded: bool = False

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        return latents_of(files).float().numpy()

    def drop(self, run: Run, files: SampleFiles) -> None:
        pass


@dataclass(frozen=True)
class Frames:
    """Decoded frames, (n, height, width, 3) in uint8."""

    encoded: bool = False

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        return frames_of(run, files)

    def drop(self, run: Run, files: SampleFiles) -> None:
        pass  # the scoring stage drops them


@dataclass(frozen=True)
class Mp4:
    """Frames encoded with H.264 at this constant rate factor and decoded again."""

    crf: int
    encoded: bool = True

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        return kept.get((files.latent, self, run.fps), lambda: through_mp4(frames_of(run, files), run.fps, self.crf))

    def drop(self, run: Run, files: SampleFiles) -> None:
        kept.drop((files.latent, self, run.fps))
