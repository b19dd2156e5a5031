"""Checks of a backbone and a machine before weights are loaded: a config that does not fit its weights, an attention
backend that does not run here, a video too large for the memory here, a folder that cannot be written."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
)

from methods.engine.anatomy import anatomy_for

from . import backbones, devices
from .backbones import quantized, weights
from .config import Backbone, ConfigError, Recipe, Run
from .cost.memory import weights_bytes, why_too_large
from .job import job_of
from .messages import nearest, shortened

# Arguments of a pipeline call that pcbench sets itself, or that would break it if changed.
OURS = {
    "self", "prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale",
    "timesteps", "sigmas", "num_videos_per_prompt", "generator", "latents", "prompt_embeds", "negative_prompt_embeds",
    "output_type", "return_dict", "attention_kwargs", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
}  # fmt: skip
MOST_TOKENS = 4096  # the most tokens of a text
DEEPEST = 1000  # blocks of a transformer
GIB = 2**30


def check_backbone(backbone: Backbone) -> None:
    """Raise ConfigError for a backbone whose fields contradict its family or its weights."""
    _check_backbone(json.dumps([backbone.name, backbone.family, backbone.source, backbone.call, backbone.transformer]))


@functools.lru_cache(maxsize=256)
def _check_backbone(fields: str) -> None:
    name, kind, source, call, transformer = json.loads(fields)
    backbone = Backbone(name=name, family=kind, source=source, call=call, transformer=transformer)
    family, folder = backbones.family(backbone), Path(backbones.source(backbone))
    stored = _json(folder / "transformer" / "config.json")
    if stored and stored.get("_class_name") not in (None, family.TRANSFORMER.__name__):
        raise ConfigError(
            f"model.backbone.family={kind} takes a {family.TRANSFORMER.__name__}, and the weights are of a"
            f" {stored['_class_name']}: choose another model=…"
        )
    known = [name for name in inspect.signature(family.TRANSFORMER.__init__).parameters if name != "self"]
    for key, value in transformer.items():
        if key not in known:
            raise ConfigError(f"unknown option {key!r} of model.backbone.transformer: {nearest(key, known)}")
        if stored and stored.get(key) != value:
            raise ConfigError(f"model.backbone.transformer.{key}: {name}'s weights have {shortened(stored.get(key))}")
        if "layers" in key and not (isinstance(value, int) and 0 < value <= DEEPEST):
            raise ConfigError(f"model.backbone.transformer.{key} must be from 1 to {DEEPEST}, not {shortened(value)}")
    own, patch = family.ANATOMY.patch, _patch(family.TRANSFORMER, backbones.transformer_config(backbone))
    if patch != own:  # as CogVideoX-1.5's, of two frames: its pipeline pads latents to whole patches
        raise ConfigError(
            f"{name} has patches of {shortened(list(patch))} latent frames, rows and columns; those of {kind} are of"
            f" {list(own)}"
        )
    _check_call(family, call, _json(folder / "model_index.json"))


def _patch(kind: type, config: dict[str, Any]) -> Sequence[Any]:
    """Latent frames, rows and columns of a token; of a config that is none, whatever it says."""
    try:
        return anatomy_for(kind, config).patch
    except (TypeError, ValueError):
        return [config["patch_size"]]


def _check_call(family: Any, call: dict[str, Any], index: dict[str, Any]) -> None:
    """Raise ConfigError if a further argument of the pipeline call is unknown to the pipeline or of the wrong kind."""
    parameters = inspect.signature(family.PIPELINE.__call__).parameters
    known = [name for name in parameters if name not in OURS]
    for key, value in call.items():
        if key not in known:
            raise ConfigError(f"unknown option {shortened(key)!r} of model.backbone.call: {nearest(key, known)}")
        usual = parameters[key].default
        if key == "max_sequence_length" and not (type(value) is int and 0 < value <= MOST_TOKENS):
            raise ConfigError(f"model.backbone.call.{key} must be from 1 to {MOST_TOKENS}, not {shortened(value)!r}")
        if isinstance(usual, bool) != isinstance(value, bool) or not _like(value, usual):
            raise ConfigError(
                f"model.backbone.call.{key} cannot be {shortened(value)!r}; usual is {shortened(usual)!r}"
            )
    if "guidance_scale_2" in call and index and not (index.get("transformer_2") or [None])[0]:
        raise ConfigError("model.backbone.call.guidance_scale_2 is for two transformers, and this model has one")


def _like(value: Any, usual: Any) -> bool:
    """Whether a value is of the same kind as a parameter's default."""
    if usual is None or value is None or usual is inspect.Parameter.empty:
        return True
    return isinstance(value, int | float) if isinstance(usual, int | float) else isinstance(value, type(usual))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_here(run: Run) -> None:
    """Raise ConfigError if this machine cannot carry out a run because of its attention backend or its size."""
    device = devices.resolve(run.device)
    if run.recipe.numerics.attention is not None:
        _check_attention(run.recipe.numerics.attention, device, run.recipe.numerics.dtype)
    if run.recipe.numerics.compile:
        _check_compiler(device)
    if run.recipe.numerics.quantization is not None:
        _check_quantization(run.recipe.numerics.quantization, device, run.recipe.numerics.dtype)
    least, total = least_bytes(run.recipe), total_bytes(device)
    if least > total:
        size = run.recipe.sampling
        raise ConfigError(
            f"{run.recipe.backbone.name} at {size.frames}x{size.height}x{size.width} takes at least {least / GIB:,.0f}"
            f" GiB, and {device} has {total / GIB:,.0f}: ask for fewer frames or pixels, or a smaller model"
        )


@functools.cache
def _check_attention(name: str, device: str, dtype: str) -> None:
    """Raise ConfigError for a diffusers attention backend that is not installed or fails on a few tokens."""
    try:
        backend = AttentionBackendName(name)
        _check_attention_backend_requirements(backend)
        query = torch.zeros(1, 128, 2, 64, dtype=getattr(torch, dtype), device=device)
        _AttentionBackendRegistry._backends[backend](query=query, key=query, value=query)
    except Exception as error:  # kernels raise errors of all kinds
        raise ConfigError(f"model.numerics.attention={name} does not run on {device} here: {error}") from error


@functools.cache
def _check_compiler(device: str) -> None:
    """Raise ConfigError if torch.compile makes nothing that runs on the device: it needs a C++ compiler, or Triton."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # of all kinds
        raise ConfigError(f"model.numerics.compile does not work on {device} here: {error}") from error


@functools.cache
def _check_quantization(kind: str, device: str, dtype: str) -> None:
    """Raise ConfigError if a small layer cannot be quantized and run on the device."""
    if reason := quantized.lacks():
        raise ConfigError(f"model.numerics.quantization={kind}: {reason}")
    try:
        layer = torch.nn.Sequential(torch.nn.Linear(64, 64, device=device, dtype=getattr(torch, dtype)))
        quantized.quantize(layer, kind)
        layer(torch.zeros(1, 64, device=device, dtype=getattr(torch, dtype)))
    except Exception as error:  # of all kinds
        raise ConfigError(f"model.numerics.quantization={kind} does not work on {device} here: {error}") from error


def least_bytes(recipe: Recipe) -> int:
    """Bytes that a video needs at the very least: the transformer's weights and the input, residual and (four times as
    wide) hidden tokens of one of its layers; or, if more, the frames from the VAE and their 8-bit copy."""
    sampling, family = recipe.sampling, backbones.family(recipe.backbone)
    itemsize = getattr(torch, recipe.numerics.dtype).itemsize
    frames = 3 * sampling.frames * sampling.height * sampling.width * (itemsize + 1)
    config, patch = backbones.transformer_config(recipe.backbone), family.ANATOMY.patch
    tokens = math.prod(-(-n // p) for n, p in zip(family.latent_size(sampling), patch, strict=True))
    width = config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1)
    bundled = recipe.backbone.source.startswith("bundled:")  # a few megabytes
    return max(frames, tokens * width * itemsize * 6 + (0 if bundled else weights_bytes(recipe)))


@functools.cache
def total_bytes(device: str) -> int:
    """Bytes of memory of a resolved device: the GPU's, or this machine's or container's."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(machine, int(text)) if text.isdigit() else machine


def check_ready(run: Run) -> None:
    """Raise ConfigError if work on a run cannot begin here: its folder, its size, its weights, this machine."""
    check_writable(run.results)
    if too_large := why_too_large(job_of(run)):
        raise ConfigError(too_large)
    weights.require(run.recipe.backbone, run.download)
    check_here(run)


def check_writable(results: Path) -> None:
    """Raise ConfigError if nothing can be written under `results`."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"results folder {shortened(results)!r} cannot be written: {why}") from error
