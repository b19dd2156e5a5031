"""Backbones: `load` returns a ready diffusers pipeline. The last one loaded is kept, so a sweep loads it once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND

from methods.engine.anatomy import anatomy_of

from .. import devices, first_frame
from ..config import Backbone, ConfigError, Recipe, Run, check_choice
from . import cogvideox, hunyuan, hunyuan15, ltx2, quantized, shares, wan, wan_i2v, wan_ti2v, wan_ti2v_image
from .family import Family
from .opensora import family as open_sora
from .vchitect import family as vchitect
from .weights import are_random, config_of, source

FAMILIES: dict[str, Family] = {
    "wan": wan,
    "wan_i2v": wan_i2v,
    "wan_ti2v": wan_ti2v,
    "wan_ti2v_image": wan_ti2v_image,
    "hunyuan": hunyuan,
    "hunyuan15": hunyuan15,
    "ltx2": ltx2,
    "cogvideox": cogvideox,
    "opensora": open_sora,
    "vchitect": vchitect,
}

GRAPHS = 64  # of one block class: a graph for each size and guidance batch that a sweep on one pipeline may use

_loaded: tuple[str, Any] | None = None
_coming = False  # see `weights_are_coming`
calls: Counter[str] = Counter()  # calls of the pipeline held in memory, by recipe id; a recipe counted here is warm


def family(backbone: Backbone) -> Family:
    """The module for this backbone's family. Raises ConfigError if the family is unknown."""
    if backbone.family not in FAMILIES:
        raise ConfigError(f"unknown backbone family {backbone.family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[backbone.family]


def check(run: Run) -> None:
    """Raise ConfigError for errors in a run's device, offload and attention that can be found before loading."""
    device = devices.resolve(run.device)
    if run.offload == "model" and device == "cpu":
        raise ConfigError("model.offload=model moves weights to a GPU and back: there is no CUDA device here")
    if run.recipe.numerics.compile and run.offload != "none":
        raise ConfigError("model.numerics.compile keeps the model on the device: leave model.offload at none")
    if run.recipe.numerics.compile and run.recipe.numerics.parallel > 1:
        raise ConfigError("model.numerics.compile and .parallel were never tried together: leave one of them away")
    if run.recipe.numerics.quantization:
        others = {
            "model.offload=group": run.offload == "group",
            "model.numerics.parallel": run.recipe.numerics.parallel > 1,
            "model.numerics.compile": run.recipe.numerics.compile,
        }
        for other in (name for name, wanted in others.items() if wanted):
            raise ConfigError(f"model.numerics.quantization and {other} were never tried together: leave one away")
    shares.check(run.recipe, family(run.recipe.backbone), transformer_config(run.recipe.backbone))
    if (attention := run.recipe.numerics.attention) is not None:
        check_choice("model.numerics.attention", attention, [name.value for name in AttentionBackendName])
    elif AttentionBackendName.NATIVE.value != DIFFUSERS_ATTN_BACKEND:
        raise ConfigError(
            f"the environment says DIFFUSERS_ATTN_BACKEND={DIFFUSERS_ATTN_BACKEND}, which changes videos and is in no"
            f" record: unset it, and give model.numerics.attention={DIFFUSERS_ATTN_BACKEND}"
        )


def load(recipe: Recipe, device: str, offload: str = "none") -> Any:
    """The recipe's pipeline, newly loaded or the one held: on `device` (a run's setting, "auto" included), or waiting
    for `placed` if offloaded. A different pipeline held before is released first."""
    global _loaded
    device = devices.resolve(device)
    key = repr((recipe.backbone, recipe.numerics, recipe.sampling.flow_shift, device, offload))
    if _loaded is None or _loaded[0] != key:
        forget()
        _loaded = (key, fresh(recipe, device, offload))
    else:
        devices.use(device)  # another may have become the current one since
    return _loaded[1]


def fresh(recipe: Recipe, device: str, offload: str = "none") -> Any:
    """The recipe's pipeline as `load` returns it, but newly loaded in any case, and not held."""
    device = devices.resolve(device)
    devices.use(device)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # the loading bars only add noise
    kind = family(recipe.backbone)
    if are_random(recipe.backbone):
        pipe = kind.build(recipe, device if offload == "none" else "cpu")
    else:
        with _weights_coming():
            pipe = kind.load(source(recipe.backbone), recipe)
    _settle(pipe, recipe, device, offload)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)  # bar of denoising steps
    return pipe


@contextmanager
def _weights_coming() -> Iterator[None]:
    global _coming
    _coming = True
    try:
        yield
    finally:
        _coming = False


def weights_are_coming() -> bool:
    """Whether weights are being downloaded or read from disk, which may take hours."""
    return _coming


def _settle(pipe: Any, recipe: Recipe, device: str, offload: str) -> None:
    transformers = [each for each in (pipe.transformer, getattr(pipe, "transformer_2", None)) if each is not None]
    if recipe.numerics.quantization is not None:
        for transformer in transformers:  # where it was loaded: a GPU need not hold the unquantized weights
            quantized.quantize_blocks(transformer, recipe.numerics.quantization)
    if offload == "none":
        pipe.to(device)
    elif offload == "group":
        # Set up before any cache is attached, so that a reused step moves no weights. The VAE stays on the device.
        stream = device.startswith("cuda")
        pipe.vae.to(device)
        pipe.enable_group_offload(
            torch.device(device), num_blocks_per_group=1, use_stream=stream, exclude_modules=["vae"]
        )
    if recipe.numerics.vae_tiling:
        pipe.vae.enable_tiling()
    # diffusers remembers one backend for all models of the process, so it is compared and set for every model.
    backend = attention_of(recipe)
    changes = backend != attention_backend()
    for transformer in transformers:
        if changes:
            transformer.set_attention_backend(backend)
        if recipe.numerics.parallel > 1:
            shares.spread(transformer, recipe.numerics.parallel, recipe.numerics.cfg_parallel)
        if recipe.numerics.compile:
            compile_blocks(transformer)


def compile_blocks(transformer: Any) -> None:
    """Compile each block for itself, in place. All blocks of a class share a graph for each size: full size and trials.

    A cache attached later wraps the compiled blocks, so its decisions stay outside the graphs. A size is never made
    symbolic, which would slow down the full size for the trials' sake; too many sizes are an error instead of eager
    calls that nobody notices.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in anatomy_of(transformer).blocks(transformer):
        block.module.compile(dynamic=False)


@contextmanager
def placed(pipe: Any, offload: str, device: str) -> Iterator[None]:
    """Make the pipeline able to run inside the block. With offload "model", components move to the device in turn."""
    if offload != "model":
        yield
        return
    pipe.enable_model_cpu_offload(device=devices.resolve(device))
    try:
        yield
    finally:
        pipe.remove_all_hooks()


def held() -> str | None:
    """A key that identifies the pipeline held in memory; None if there is none."""
    return None if _loaded is None else _loaded[0]


def forget() -> None:
    """Release the pipeline held in memory, and its memory on the device."""
    global _loaded
    _loaded = None
    calls.clear()
    devices.release()


def prompt_arguments(pipe: Any, run: Run, prompt: str, encoded: bool = False) -> dict[str, Any]:
    """A prompt of the run as arguments of the pipeline's call. encoded: its text as embeddings, as it always is for a
    pipeline with random weights, which has no text encoder. An image is encoded by the call itself."""
    text, image = text_of(run, prompt), image_of(run, prompt)
    if not encoded and pipe.text_encoder is not None:
        return {"prompt": text, **image}
    return {**family(run.recipe.backbone).embed(pipe, text, run.recipe), **image}


def text_of(run: Run, prompt: str) -> str:
    """The text of a prompt of the run, without its image's name."""
    return first_frame.text_of(prompt) if prompt in run.images else prompt


def image_of(run: Run, prompt: str) -> dict[str, Any]:
    """The prompt's first frame as an argument of the pipeline's call; empty for a model that starts from text alone."""
    sampling = run.recipe.sampling
    if prompt not in run.images:
        return {}
    return {"image": first_frame.opened(run.images[prompt], sampling.height, sampling.width)}


def set_guidance(pipe: Any, recipe: Recipe) -> None:
    """Give the recipe's guidance scale to a pipeline that takes it from its guider and not from its call."""
    if (guider := getattr(pipe, "guider", None)) is not None:
        guider.guidance_scale = recipe.sampling.guidance_scale


def after_call(pipe: Any) -> None:
    """Release what a call leaves in its pipeline: the scheduler's outputs, the last timestep, and the earlier frames
    that a VAE still caches if it failed in the middle of decoding."""
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    for name, value in vars(pipe).items():
        if isinstance(value, torch.Tensor):
            setattr(pipe, name, None)
    if hasattr(pipe.vae, "clear_cache"):
        pipe.vae.clear_cache()


def attention_of(recipe: Recipe) -> str:
    """The attention backend that the recipe will run with."""
    return recipe.numerics.attention or AttentionBackendName.NATIVE.value


def attention_backend() -> str:
    """The attention backend that diffusers is set to at the moment."""
    return _AttentionBackendRegistry.get_active_backend()[0].value


def transformer_config(backbone: Backbone) -> dict[str, Any]:
    """The transformer's config: from its folder if that is on this machine, else as the backbone declares it."""
    return config_of(backbone, "transformer")
