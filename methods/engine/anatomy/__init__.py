"""Everything that differs between transformer families: latent layout, patch grid, CFG branches, arguments, blocks."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from .base import Anatomy, Block, Paths, Size

__all__ = ["Anatomy", "Block", "Paths", "Size", "anatomy_for", "anatomy_of"]

for _module in pkgutil.iter_modules(__path__):  # a file a family; each makes itself known
    importlib.import_module(f"{__name__}.{_module.name}")


def anatomy_for(kind: type, config: Mapping[str, Any], model: str = "", revision: str | None = None) -> Anatomy:
    """The anatomy of a diffusers transformer class with this config; `model` and `revision` name the checkpoint.

    Raises TypeError for a class that is not supported.
    """
    name = kind.__name__
    if name not in Anatomy.KNOWN:
        raise TypeError(f"no caching method knows {name}; supported transformers: {', '.join(Anatomy.KNOWN)}")
    config = {**_defaults(kind), **config}
    patch = config["patch_size"]
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    frames, height, width = patch
    anatomy = Anatomy.KNOWN[name]
    return anatomy(anatomy.FAMILY, (frames, height, width), config, model, revision)


@functools.cache
def _defaults(kind: type) -> dict[str, Any]:
    """Of a class's arguments. Shared: read it only."""
    declared = inspect.signature(kind).parameters.items()
    return {name: item.default for name, item in declared if item.default is not item.empty}


def anatomy_of(transformer: Any) -> Anatomy:
    """The anatomy of a diffusers transformer. Raises TypeError for a family that is not supported."""
    return anatomy_for(type(transformer), getattr(transformer, "config", {}))
