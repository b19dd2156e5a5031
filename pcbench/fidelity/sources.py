"""What a metric compares: a sample's final latents, its frames, or its frames back from an mp4 file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..config import Run
from ..sampling.generate import frames_of, latents_of
from ..sampling.video import kept, through_mp4
from ..store import SampleFiles


class Source(Protocol):
    """encoded: the video goes through a file, whose frame rate then moves its pixels."""

    @property
    def encoded(self) -> bool: ...

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        """The array of one sample."""
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
        pass  # the stages drop them


@dataclass(frozen=True)
class Mp4:
    """Frames as H.264 at this constant rate factor hands them back."""

    crf: int
    encoded: bool = True

    def load(self, run: Run, files: SampleFiles) -> np.ndarray:
        return kept.get((files.latent, self, run.fps), lambda: through_mp4(frames_of(run, files), run.fps, self.crf))

    def drop(self, run: Run, files: SampleFiles) -> None:
        kept.drop((files.latent, self, run.fps))
