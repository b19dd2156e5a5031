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

PETA = 1e15


@functools.cache
def _forward_macs(transformer: type, config: str, shapes: str) -> int:
    with torch.device("meta"):
        model = transformer.from_config(json.loads(config))  # type: ignore[attr-defined]
        inputs = {name: torch.empty(shape) for name, shape in json.loads(shapes).items()}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**inputs, return_dict=False)
    return counter.get_total_flops() // 2


def forward_macs(
    transformer: type, config: Mapping[str, Any], shapes: Mapping[str, list[int]], size: tuple[int, ...] | None = None
) -> int:
    """MACs of one call with arguments of `shapes`; `size` (T, H, W) replaces the latent's."""
    shapes = dict(shapes)
    if size is not None:
        shapes["hidden_states"] = [*shapes["hidden_states"][:-3], *size]
    return _forward_macs(transformer, json.dumps(dict(config), sort_keys=True), json.dumps(shapes, sort_keys=True))


def trace_macs(transformer: type, config: Mapping[str, Any], trace: Trace | Mapping[str, Any]) -> int:
    """MACs of all transformer calls of one generation: full-size calls and trials, every guidance branch."""
    data = trace.to_dict() if isinstance(trace, Trace) else trace
    total = 0
    for step in data["steps"]:
        if step["forwards"]:
            total += step["forwards"] * forward_macs(transformer, config, data["arguments"])
        if step["trials"]:
            size = tuple(step["trial_size"])
            total += step["trials"] * forward_macs(transformer, config, data["arguments"], size)
    return total
