"""Everything that differs between transformer families: latent layout, patch grid, CFG branches, arguments, blocks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .base import Anatomy, Block, Size
from .cogvideox import CogVideoXAnatomy
from .hunyuan import HunyuanVideoAnatomy
from .opensora import OpenSoraAnatomy
from .wan import WanAnatomy

__all__ = ["FAMILIES", "Anatomy", "Block", "Size", "anatomy_for", "anatomy_of"]

FAMILIES: dict[str, tuple[str, type[Anatomy]]] = {
    "WanTransformer3DModel": ("wan", WanAnatomy),
    "HunyuanVideoTransformer3DModel": ("hunyuanvideo", HunyuanVideoAnatomy),
    "CogVideoXTransformer3DModel": ("cogvideox", CogVideoXAnatomy),
    "STDiT3Transformer3DModel": ("opensora", OpenSoraAnatomy),
}


def anatomy_for(kind: type, config: Mapping[str, Any]) -> Anatomy:
    """The anatomy of a diffusers transformer class with this config. Raises TypeError for one that is not supported."""
    name = kind.__name__
    if name not in FAMILIES:
        raise TypeError(f"no caching method knows {name}; supported transformers: {', '.join(FAMILIES)}")
    declared = inspect.signature(kind).parameters.items()
    config = {**{key: item.default for key, item in declared if item.default is not item.empty}, **config}
    patch = config["patch_size"]
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    frames, height, width = patch
    family, anatomy = FAMILIES[name]
    return anatomy(family, (frames, height, width), config)


def anatomy_of(transformer: Any) -> Anatomy:
    """The anatomy of a diffusers transformer. Raises TypeError for a family that is not supported."""
    return anatomy_for(type(transformer), getattr(transformer, "config", {}))
