"""Backbones: `load(model)` gives a ready diffusers pipeline. The last one loaded is kept, so a sweep loads it once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from ..config import Backbone, ConfigError, Recipe
from . import wan

BUNDLED = Path(__file__).parent / "tiny" / "weights"
FAMILIES = {"wan": wan}

_loaded: tuple[str, Any] | None = None


def family(backbone: Backbone) -> Any:
    """The module that knows this backbone's family. Raises ConfigError if there is none."""
    if backbone.family not in FAMILIES:
        raise ConfigError(f"unknown backbone family {backbone.family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[backbone.family]


def source(backbone: Backbone) -> str:
    """The folder or hub repository of the weights. Raises ConfigError for bundled weights that are not there."""
    kind, _, name = backbone.source.partition(":")
    if kind != "bundled":
        return backbone.source
    if not (BUNDLED / name / "model_index.json").exists():
        raise ConfigError(f"no bundled weights named {name!r} in {BUNDLED}")
    return str(BUNDLED / name)


def load(recipe: Recipe, device: str) -> Any:
    """The recipe's pipeline on `device`, loaded or the one still held."""
    global _loaded
    key = repr((recipe.backbone, recipe.numerics, recipe.sampling.flow_shift, device))
    if _loaded is None or _loaded[0] != key:
        _loaded = None  # free the old one before the new one comes
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()  # of loading; a second of noise
        pipe = family(recipe.backbone).load(source(recipe.backbone), recipe, device)
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)  # of denoising steps
        _loaded = (key, pipe)
    return _loaded[1]


def transformer_config(backbone: Backbone) -> dict[str, Any]:
    """The transformer's config, from its folder if the weights are here, else as the backbone declares it."""
    path = Path(source(backbone)) / "transformer" / "config.json"
    return json.loads(path.read_text()) if path.exists() else dict(backbone.transformer)


def resolve_device(device: str) -> str:
    """ "auto" to what there is. Raises ConfigError for CUDA asked for and not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device} but no CUDA device is available; use device=cpu or device=auto")
    return device
