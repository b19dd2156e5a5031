"""The tiny twins: each family's own pipeline, transformer, VAE, scheduler and text encoder classes at toy width."""

from __future__ import annotations

from .base import Twin
from .cogvideox import CogVideoXTwin
from .hunyuan import HunyuanTwin
from .opensora import OpenSoraTwin
from .wan import WanTwin

TWINS: dict[str, type[Twin]] = {twin.NAME: twin for twin in (WanTwin, HunyuanTwin, CogVideoXTwin, OpenSoraTwin)}

__all__ = ["TWINS", "Twin"]
