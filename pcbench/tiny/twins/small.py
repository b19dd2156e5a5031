"""What small twins share: frames of the lit world with four times the tokens of a tiny twin's."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from .base import Kind, Twin


class SmallTwin(Twin):
    """Put before a family's twin, it makes a larger one of the same classes and width.

    Its latent is 4 x 32 x 32: PreciseCache's trial, 2 x 4 x 4 times smaller, keeps 8 x 8 cells of it. The last kind of
    training latent has the trial's size and shows the whole clip in half the frames.
    """

    FRAMES: ClassVar = 13
    SIDE: ClassVar = 256
    LIT: ClassVar = True
    SHIFT: ClassVar = 5.0
    LEAST_SHIFT: ClassVar = 2.0
    KINDS: ClassVar[tuple[Kind, ...]] = (
        Kind("full", 1500, 256, 6, 0.10, 0.60),
        Kind("half", 6000, 128, 16, 0.70, 0.20),
        Kind("quarter", 3000, 64, 48, 0.10, 0.10),
        Kind("trial", 3000, 64, 64, 0.10, 0.10, frames=7, stride=2),
    )

    @classmethod
    def model(cls) -> str:
        return cls.NAME

    @classmethod
    def shift(cls, latent: torch.Size) -> float:
        """The shift of Stable Diffusion 3 (arXiv 2403.03206, eq. 23), which grows with the root of the token count."""
        full = (cls.FRAMES + 3) // 4 * (cls.SIDE // 8) ** 2
        return max(cls.LEAST_SHIFT, cls.SHIFT * math.sqrt(latent[2:].numel() / full))
