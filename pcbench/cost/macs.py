"""Multiply-accumulates (MACs) of the transformer from a trace: each kind of call is counted once on the meta device.

MACs are half of PyTorch's FLOPs, attention included. On the meta device attention runs as plain matrix products, so
its FLOPs are counted whatever kernel the real run used.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from methods import Trace
from methods.engine.anatomy import Size, anatomy_for

from ..backbones.quantized import bytes_saved
from ..config import QUANTIZATIONS
from ..job import Job
from .timesteps import num_steps

PETA = 1e15
# What scaled dot-product attention becomes on the meta device. Linear layers are mm or addmm.
ATTENTION = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Macs:
    """MACs: those of attention's two products (queries by keys, weights by values), and all others (`linear`)."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __sub__(self, other: Macs) -> Macs:
        return self + -1 * other

    def __rmul__(self, count: float) -> Macs:
        return Macs(round(count * self.linear), round(count * self.attention))


@functools.cache
def _module_macs(transformer: type, config: str, shapes: str, size: Size, batch: int) -> dict[str, Macs]:
    """MACs of one call by module path; "" is the whole model. Modules without MACs are left out."""
    model, counts, _, _ = short_model(transformer, config, torch.get_default_dtype())
    anatomy = anatomy_for(transformer, model.config)
    with torch.device("meta"):
        inputs = anatomy.received(empty_inputs(json.loads(shapes)))
        if anatomy.latent_size(inputs) != size:
            inputs = anatomy.trial_inputs(inputs, size, "nearest-exact")
        if anatomy.batch(inputs) != batch:
            inputs = anatomy.part_of_batch(inputs, first=True)
        counter = FlopCounterMode(display=False)
        with AllTrue(), counter, torch.no_grad():
            model(**anatomy.sent(inputs), return_dict=False)
    macs = {name.partition(".")[2]: _split(flops) for name, flops in counter.get_flop_counts().items()}
    others = ((count - 1) * macs[path] for path, count in counts.items())
    return {**macs, "": sum(others, _split(counter.get_flop_counts()["Global"]))}


@functools.lru_cache(maxsize=16)
def short_model(transformer: type, config: str, dtype: torch.dtype) -> tuple[Any, dict[str, int], int, dict[str, int]]:
    """A transformer without data, of each list of its blocks, which are alike, only the first; how many there were, by
    the path of the first; the bytes of all its weights in this dtype, while it is the default; and how many of them
    each kind of quantization saves."""
    with torch.device("meta"):
        model = transformer.from_config(json.loads(config)).eval()  # type: ignore[attr-defined]
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    saved = {kind: bytes_saved(model, kind) for kind in QUANTIZATIONS}
    lists = Counter(block.path.rpartition(".")[0] for block in anatomy_for(transformer, model.config).blocks(model))
    for path in lists:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_submodule(path)[:1])
    return model, {f"{path}.0": count for path, count in lists.items()}, weights, saved


def _split(flops: Mapping[Any, int]) -> Macs:
    attention = sum(count for operator, count in flops.items() if operator in ATTENTION)
    return Macs((sum(flops.values()) - attention) // 2, attention // 2)


def empty_inputs(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Uninitialised tensors of these shapes on the current device, as a call's arguments; a number stays."""
    return {name: _empty(name, shape) for name, shape in shapes.items()}


def _empty(name: str, shape: Any) -> Any:
    if isinstance(shape, int):
        return shape
    if shape and isinstance(shape[0], list):
        return tuple(torch.empty(inner) for inner in shape)
    return torch.empty(shape, dtype=torch.bool if "mask" in name else None)


class AllTrue(TorchFunctionMode):
    """Lets a transformer that looks into its masks run on the meta device, where they have no values: all are true.

    A mask's negation selects nothing, and the answer to any question about values is no. How many tokens there are
    after masked ones were moved to the end does not depend on it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if not (isinstance(first, torch.Tensor) and first.is_meta):
            return func(*args, **(kwargs or {}))
        if name == "__bool__":
            return False
        if name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            return first[:0] if getattr(args[1], "negated", False) else first[:]
        result = func(*args, **(kwargs or {}))
        if name in ("__invert__", "bitwise_not"):
            result.negated = True
        return result


def call_price(
    transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]], call: Mapping[str, Any]
) -> Macs:
    """MACs of one `methods.Call` (as plain data) of a transformer whose full-size calls have these `arguments`."""
    texts = json.dumps(dict(config), sort_keys=True), json.dumps(dict(arguments), sort_keys=True)
    frames, height, width = call["size"]
    macs = _module_macs(transformer, *texts, (frames, height, width), call["batch"])

    def of(modules: Mapping[str, float]) -> Macs:
        return sum((count * macs.get(path.replace("*", "0"), Macs()) for path, count in modules.items()), Macs())

    if call["only"] is not None:
        return of(call["only"])
    return macs[""] - of(call["skipped"])


def call_macs(
    transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]], call: Mapping[str, Any]
) -> int:
    """The total of `call_price`."""
    return call_price(transformer, config, arguments, call).total


def forward_price(transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]]) -> Macs:
    """MACs of one call with tensor arguments of these shapes, nothing skipped."""
    anatomy = anatomy_for(transformer, config)
    with torch.device("meta"):
        inputs = anatomy.received(empty_inputs(arguments))
    call = {"size": anatomy.latent_size(inputs), "batch": anatomy.batch(inputs), "only": None, "skipped": {}}
    return call_price(transformer, config, arguments, call)


def forward_macs(transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]]) -> int:
    """The total of `forward_price`."""
    return forward_price(transformer, config, arguments).total


def trace_macs(transformer: type, config: Mapping[str, Any], trace: Trace | Mapping[str, Any]) -> int:
    """MACs of all transformer calls of one generation: full size, trials and parts, every guidance branch."""
    data = trace.to_dict() if isinstance(trace, Trace) else trace
    decisive = ("size", "batch", "only", "skipped")
    calls = Counter(
        json.dumps({name: call[name] for name in decisive}) for step in data["steps"] for call in step["calls"]
    )  # few calls differ
    return sum(
        count * call_macs(transformer, config, data["arguments"], json.loads(call)) for call, count in calls.items()
    )


def trace_price(transformer: type, config: Mapping[str, Any], trace: Mapping[str, Any], trials: bool = False) -> Macs:
    """MACs of all transformer calls of one generation, or of its trials alone."""
    calls = [call for step in trace["steps"] for call in step["calls"] if call["trial"] or not trials]
    return sum((call_price(transformer, config, trace["arguments"], call) for call in calls), Macs())


def reference_macs(job: Job) -> int:
    """MACs of one uncached generation, from the recipe alone."""
    per_call = forward_macs(job.family.TRANSFORMER, job.config, job.family.arguments(job.recipe, job.config))
    return per_call * job.family.branches(job.recipe) * num_steps(job.recipe)
