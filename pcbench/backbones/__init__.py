"""Backbones: `load(recipe)` gives a ready diffusers pipeline. The last one loaded is kept, so a sweep loads it once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ContextParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND

from .. import devices
from ..config import Backbone, ConfigError, Recipe, Run, check_choice
from . import cogvideox, hunyuan, wan
from .family import Family
from .opensora import family as open_sora
from .weights import are_random, config_of, source

FAMILIES: dict[str, Family] = {"wan": wan, "hunyuan": hunyuan, "cogvideox": cogvideox, "opensora": open_sora}

_loaded: tuple[str, Any] | None = None
calls: Counter[str] = Counter()  # of the pipeline still held, by recipe id: what it has been called with is warm


def family(backbone: Backbone) -> Family:
    """The module that knows this backbone's family. Raises ConfigError if there is none."""
    if backbone.family not in FAMILIES:
        raise ConfigError(f"unknown backbone family {backbone.family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[backbone.family]


def check(run: Run) -> None:
    """Raise ConfigError for what can be known wrong of a run's device, offload and attention before loading."""
    device = devices.resolve(run.device)
    if run.offload == "model" and device == "cpu":
        raise ConfigError("model.offload=model moves weights to a GPU and back: there is no CUDA device here")
    if (asked := run.recipe.numerics.attention) is not None:
        check_choice("model.numerics.attention", asked, [name.value for name in AttentionBackendName])


def load(recipe: Recipe, device: str, offload: str = "none") -> Any:
    """The recipe's pipeline, loaded or the one still held: on `device` (as of a run), or waiting for `placed` if
    offloaded. The memory of the one before is free by then."""
    global _loaded
    device = devices.resolve(device)
    devices.use(device)
    key = repr((recipe.backbone, recipe.numerics, recipe.sampling.flow_shift, device, offload))
    if _loaded is None or _loaded[0] != key:
        forget()
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()  # of loading; a second of noise
        kind = family(recipe.backbone)
        if are_random(recipe.backbone):
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
    backend = attention_of(recipe)
    for transformer in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if transformer is not None and backend != attention_backend():
            transformer.set_attention_backend(backend)
        if transformer is not None and recipe.numerics.parallel > 1:
            spread(transformer, recipe.numerics.parallel)


def spread(transformer: Any, count: int) -> None:
    """Share the transformer's tokens among so many processes (sampling/parallel.py); the shares may be uneven."""
    transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, ulysses_anything=True))


@contextmanager
def placed(pipe: Any, offload: str, device: str) -> Iterator[None]:
    """The pipeline able to run. With offload "model" its components come to the device one at a time inside."""
    if offload != "model":
        yield
        return
    pipe.enable_model_cpu_offload(device=devices.resolve(device))
    try:
        yield
    finally:
        pipe.remove_all_hooks()


def held() -> str | None:
    """What names the pipeline still held; None if there is none."""
    return None if _loaded is None else _loaded[0]


def forget() -> None:
    """Let go of the pipeline still held."""
    global _loaded
    _loaded = None
    calls.clear()
    devices.release()


def after_call(pipe: Any) -> None:
    """Let go of what a call leaves in its pipeline: the scheduler's outputs, the last timestep, and of a VAE that
    failed in the middle of decoding what it kept of earlier frames."""
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    for name, value in vars(pipe).items():
        if isinstance(value, torch.Tensor):
            setattr(pipe, name, None)
    if hasattr(pipe.vae, "clear_cache"):
        pipe.vae.clear_cache()


def attention_of(recipe: Recipe) -> str:
    """The attention backend that the recipe will run with."""
    return recipe.numerics.attention or DIFFUSERS_ATTN_BACKEND


def attention_backend() -> str:
    """The attention backend that diffusers uses now."""
    return _AttentionBackendRegistry.get_active_backend()[0].value


def transformer_config(backbone: Backbone) -> dict[str, Any]:
    """The transformer's config, from its folder if the weights are here, else as the backbone declares it."""
    return config_of(backbone, "transformer")
