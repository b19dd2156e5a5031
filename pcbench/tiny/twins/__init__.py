"""The twins: every family's own pipeline, transformer, VAE, scheduler and text encoder classes at toy width."""

from __future__ import annotations

from .base import Kind, Twin
from .cogvideox import CogVideoXTwin
from .hunyuan import HunyuanTwin, SmallHunyuanTwin
from .opensora import OpenSoraTwin
from .wan import SmallWanTwin, WanTwin

_ALL = (WanTwin, SmallWanTwin, HunyuanTwin, SmallHunyuanTwin, CogVideoXTwin, OpenSoraTwin)
TWINS: dict[str, type[Twin]] = {twin.NAME: twin for twin in _ALL}

__all__ = ["TWINS", "Kind", "Twin"]
