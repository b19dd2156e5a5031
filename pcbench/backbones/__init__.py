"""Backbones: `load(recipe)` gives a ready diffusers pipeline. The last one loaded is kept, so a sweep loads it once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ContextParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND

from ..config import RANDOM, Backbone, ConfigError, Recipe, Run
from . import cogvideox, hunyuan, wan
from .opensora import family as open_sora
from .weights import source

FAMILIES = {"wan": wan, "hunyuan": hunyuan, "cogvideox": cogvideox, "opensora": open_sora}

_loaded: tuple[str, Any] | None = None


def family(backbone: Backbone) -> Any:
    """The module that knows this backbone's family. Raises ConfigError if there is none."""
    if backbone.family not in FAMILIES:
        raise ConfigError(f"unknown backbone family {backbone.family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[backbone.family]


def check(run: Run) -> None:
    """Raise ConfigError for what can be known wrong of a run's device, offload and attention before loading."""
    device = resolve_device(run.device)
    if run.offload == "model" and device == "cpu":
        raise ConfigError("model.offload=model moves weights to a GPU and back: there is no CUDA device here")
    known = [name.value for name in AttentionBackendName]
    if (asked := run.recipe.numerics.attention) is not None and asked not in known:
        raise ConfigError(f"model.numerics.attention must be one of {', '.join(known)}, not {asked!r}")


def load(recipe: Recipe, device: str, offload: str = "none") -> Any:
    """The recipe's pipeline, loaded or the one still held: on `device`, or waiting for `placed` if offloaded."""
    global _loaded
    key = repr((recipe.backbone, recipe.numerics, recipe.sampling.flow_shift, device, offload))
    if _loaded is None or _loaded[0] != key:
        _loaded = None  # free the old one before the new one comes
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()  # of loading; a second of noise
        kind = family(recipe.backbone)
        if recipe.backbone.source == RANDOM:
            pipe = kind.build(recipe, device if offload == "none" else "cpu")
        else:
            pipe = kind.load(source(recipe.backbone), recipe)
        _settle(pipe, recipe, device, offload)
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)  # of denoising steps
        _loaded = (key, pipe)
    return _loaded[1]


def _settle(pipe: Any, recipe: Recipe, device: str, offload: str) -> None:
    if offload == "none":
        pipe.to(device)
    elif offload == "group":
        # Before any cache is attached: then a reused step moves no weights. The VAE decodes once and stays.
        stream = device.startswith("cuda")
        pipe.vae.to(device)
        pipe.enable_group_offload(
            torch.device(device), num_blocks_per_group=1, use_stream=stream, exclude_modules=["vae"]
        )
    if recipe.numerics.vae_tiling:
        pipe.vae.enable_tiling()
    # diffusers remembers a backend for all models of the process, so it is set for each.
    backend = recipe.numerics.attention or DIFFUSERS_ATTN_BACKEND
    for transformer in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if transformer is not None and backend != attention_backend():
            transformer.set_attention_backend(backend)
        if transformer is not None and recipe.numerics.parallel > 1:
            spread(transformer, recipe.numerics.parallel)


def spread(transformer: Any, count: int) -> None:
    """Share the transformer's tokens among so many processes (parallel.py); the shares may be uneven."""
    transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, ulysses_anything=True))


@contextmanager
def placed(pipe: Any, offload: str, device: str) -> Iterator[None]:
    """The pipeline able to run. With offload "model" its components come to the device one at a time inside."""
    if offload != "model":
        yield
        return
    pipe.enable_model_cpu_offload(device=resolve_device(device))
    try:
        yield
    finally:
        pipe.remove_all_hooks()


def forget() -> None:
    """Let go of the pipeline still held."""
    global _loaded
    _loaded = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attention_backend() -> str:
    """The attention backend that diffusers uses now."""
    return _AttentionBackendRegistry.get_active_backend()[0].value


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
