"""How much device memory denoising will take, from meta-device models: weights, activations, what a cache keeps.

Text encoders and the VAE are not included; they run before and after, and can wait elsewhere (`model.offload=model`).
"""

from __future__ import annotations

import functools
import json
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.engine.anatomy import anatomy_for

from .. import backbones, devices
from ..config import Recipe, Run
from ..job import Job
from .dry_run import Rehearsal, rehearse
from .held import width_of
from .macs import AllTrue, empty_inputs, short_model

GIB = 2**30


def transformers_of(recipe: Recipe) -> int:
    """How many transformers take turns."""
    return 2 if "guidance_scale_2" in recipe.backbone.call else 1


def weights_bytes(recipe: Recipe) -> int:
    """Bytes of the transformer's weights, or of both transformers' if there are two."""
    weights, _, saved = _measured(*_key(recipe))
    kind = recipe.numerics.quantization
    return transformers_of(recipe) * (weights if kind is None else weights - saved[kind])


def activations_bytes(recipe: Recipe) -> int:
    """Most bytes alive at once during one transformer call, assuming an attention kernel that stores no scores."""
    return _measured(*_key(recipe))[1]


def arithmetic_bytes(recipe: Recipe) -> int:
    """Most bytes alive at once in the method's own arithmetic on features, outside the transformer (Fourier
    transforms, differences in float32)."""
    family, config = backbones.family(recipe.backbone), backbones.transformer_config(recipe.backbone)
    anatomy, size = anatomy_for(family.TRANSFORMER, config), family.latent_size(recipe.sampling)
    batch = family.arguments(recipe, config)["hidden_states"][0]
    shape = batch, math.prod(anatomy.token_grid(size)), width_of(anatomy)
    tokens = torch.empty(shape, dtype=getattr(torch, recipe.numerics.dtype), device="meta")
    with torch.no_grad(), _Alive() as alive:
        recipe.method.arithmetic(anatomy, tokens, size)
    return alive.most


def needed(run: Run, rehearsal: Rehearsal) -> tuple[int, int, int]:
    """Bytes on the device while denoising: weights, working memory, and what the method keeps.

    Weights that wait on the CPU do not count: with group offload, all; with model offload, those of the transformer
    whose turn it is not. If GPUs share the tokens, each GPU's share is given: of what is kept of blocks. Whole
    predictions, and features measured before the blocks, are kept on each.
    """
    weights = 0 if run.offload == "group" else weights_bytes(run.recipe)
    if run.offload == "model":
        weights //= transformers_of(run.recipe)
    working, numerics = max(activations_bytes(run.recipe), arithmetic_bytes(run.recipe)), run.recipe.numerics
    tokens = numerics.parallel // 2 if numerics.cfg_parallel else numerics.parallel
    return weights, working // tokens, rehearsal.held_whole + rehearsal.held_inside // numerics.parallel


def why_too_large(job: Job) -> str | None:
    """Why the job cannot fit its device; None if it may fit, if there is nothing to compute, or on a CPU.

    Nothing is loaded to find out. Text encoder and VAE are not counted, so a refused job could never have run.
    """
    run = job.run
    free = devices.free_bytes(devices.resolve(run.device))
    if free is None or not (job.missing() or {"latency", "observe"}.intersection(run.stages)):
        return None
    parts = needed(run, rehearse(run.recipe))
    if sum(parts) <= free:
        return None
    weights, working, held = (f"{part / GIB:.1f}" for part in parts)
    return (
        f"{run.recipe.backbone.name} {run.label}: needs at least {sum(parts) / GIB:.1f} GiB while denoising (weights"
        f" {weights}, computing {working}, kept by the method {held}), and"
        f" {devices.resolve(run.device)} has {free / GIB:.1f}: a smaller model.sampling, another method, or another GPU"
    )


def _key(recipe: Recipe) -> tuple[type, str, str, str]:
    family, config = backbones.family(recipe.backbone), backbones.transformer_config(recipe.backbone)
    shapes = json.dumps(family.arguments(recipe, config))
    return family.TRANSFORMER, json.dumps(config, sort_keys=True), shapes, recipe.numerics.dtype


@functools.cache
def _measured(transformer: type, config: str, shapes: str, dtype: str) -> tuple[int, int, dict[str, int]]:
    """Bytes of the weights, most bytes alive at once during a call, and bytes that each quantization saves."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model, _, weights, saved = short_model(transformer, config, torch.get_default_dtype())
        with torch.device("meta"), torch.no_grad():
            inputs = empty_inputs(json.loads(shapes))
            with AllTrue(), _FusedAttention(), _Alive() as alive:
                model(**inputs, return_dict=False)
    finally:
        torch.set_default_dtype(default_dtype)
    return weights, alive.most, saved


class _FusedAttention(TorchFunctionMode):
    """Attention that only allocates its output, as fused kernels do; the meta device's own would store all scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return named["query"].new_empty(*named["query"].shape[:-1], named["value"].shape[-1])


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors created inside the block, from creation until nothing refers to them any more."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage())._cdata not in known | self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return result

    def _free(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self.now -= size
