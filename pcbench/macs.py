"""Multiply-accumulates of the transformer, priced from a trace: each kind of call is counted once on the meta device.

MACs are half of PyTorch's FLOPs, attention included. On the meta device attention runs as plain matrix products, so
its FLOPs are counted whatever kernel the real run used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from methods import Trace
from methods.anatomy import Size, anatomy_for

PETA = 1e15


@functools.cache
def _module_macs(transformer: type, config: str, shapes: str, size: Size, batch: int) -> dict[str, int]:
    """MACs of one call, by module path; "" is the whole. Modules without any are left out."""
    with torch.device("meta"):
        model = transformer.from_config(json.loads(config)).eval()  # type: ignore[attr-defined]
        inputs = {name: _empty(name, shape) for name, shape in json.loads(shapes).items()}
        anatomy = anatomy_for(transformer, model.config)
        if anatomy.latent_size(inputs) != size:
            inputs = anatomy.trial_inputs(inputs, size, "nearest-exact")
        if anatomy.batch(inputs) != batch:
            inputs = anatomy.part_of_batch(inputs, first=True)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(**inputs, return_dict=False)
    counts = {name.partition(".")[2]: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    return {**counts, "": counter.get_total_flops() // 2}


def _empty(name: str, shape: list[Any]) -> Any:
    if shape and isinstance(shape[0], list):
        return tuple(torch.empty(each) for each in shape)
    return torch.empty(shape, dtype=torch.bool if name.endswith("mask") else None)


def call_macs(
    transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]], call: Mapping[str, Any]
) -> int:
    """MACs of one `methods.Call` (as plain data) of a transformer whose full-size calls have these `arguments`."""
    texts = json.dumps(dict(config), sort_keys=True), json.dumps(dict(arguments), sort_keys=True)
    frames, height, width = call["size"]
    macs = _module_macs(transformer, *texts, (frames, height, width), call["batch"])

    def of(pattern: str) -> int:
        return macs.get(pattern.replace("*", "0"), 0)

    if call["only"] is not None:
        return sum(count * of(path) for path, count in call["only"].items())
    return macs[""] - sum(count * of(pattern) for pattern, count in call["skipped"].items())


def forward_macs(transformer: type, config: Mapping[str, Any], arguments: Mapping[str, list[Any]]) -> int:
    """MACs of one call with tensor arguments of these shapes, nothing skipped."""
    anatomy = anatomy_for(transformer, config)
    inputs = {name: _empty(name, shape) for name, shape in arguments.items()}
    call = {"size": anatomy.latent_size(inputs), "batch": anatomy.batch(inputs), "only": None, "skipped": {}}
    return call_macs(transformer, config, arguments, call)


def trace_macs(transformer: type, config: Mapping[str, Any], trace: Trace | Mapping[str, Any]) -> int:
    """MACs of all transformer calls of one generation: full size, trials and parts, every guidance branch."""
    data = trace.to_dict() if isinstance(trace, Trace) else trace
    return sum(
        call_macs(transformer, config, data["arguments"], call) for step in data["steps"] for call in step["calls"]
    )
