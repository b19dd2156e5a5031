"""The weights of a transformer's blocks in 8 bits (`model.numerics.quantization`), by torchao. Optional extra.

Only weights are rounded, each output channel of a linear layer with a scale of its own; a layer's weights are converted
back when it runs, and everything is computed in the recipe's dtype. It saves memory, not time. Embeddings, norms,
biases and the head stay as they are.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from methods.engine.anatomy import anatomy_of

ROW = {"int8": 5, "float8": 4}  # bytes a channel, beside a byte a weight: its scale, and a zero point of int8


def lacks() -> str | None:
    """Why no weights can be quantized here; None if they can."""
    if importlib.util.find_spec("torchao") is None:
        return 'it needs the torchao package: pip install "pcbench[quantization]"'
    return None


def quantize(module: torch.nn.Module, kind: str) -> None:
    """Round the weights of all linear layers inside a module, in place."""
    from torchao import quantization

    configs = {"int8": quantization.Int8WeightOnlyConfig, "float8": quantization.Float8WeightOnlyConfig}
    quantization.quantize_(module, configs[kind]())


def quantize_blocks(transformer: Any, kind: str) -> None:
    """Round the weights of a transformer's blocks, in place."""
    for block in anatomy_of(transformer).blocks(transformer):
        quantize(block.module, kind)


def bytes_saved(transformer: Any, kind: str) -> int:
    """By how many bytes `quantize_blocks` makes the weights of a transformer smaller, which may be without data."""
    linear = [
        module
        for block in anatomy_of(transformer).blocks(transformer)
        for module in block.module.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    return sum(each.weight.numel() * (each.weight.itemsize - 1) - each.out_features * ROW[kind] for each in linear)
