"""What a rehearsed method holds, in bytes of the real run: its tensors are a stand-in's, narrow and few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from methods.engine.anatomy import Anatomy, Size
from methods.engine.kept_tensors import KeptTensors, tensors_in
from methods.engine.method import Rule


class Held:
    """The most bytes that a rule keeps from step to step, and of blocks also while one runs (BlockCache, ranking)."""

    def __init__(self, scale: Callable[[torch.Tensor], int]) -> None:
        self.scale = scale
        self.whole = self.inside = self.waiting = self.seen = 0

    def look(self, rule: Rule, between_steps: bool = False) -> None:
        """Count what the rule holds now; before a block runs, only if anything was stored since the last time."""
        if self.seen == KeptTensors.additions and not between_steps:
            return
        self.seen = KeptTensors.additions
        kept = rule.held_inside()
        inside = self._bytes(tensors_in([each.on_device() for each in kept]))
        waiting = self._bytes(tensors_in([each.on_cpu() for each in kept]))
        self.inside, self.waiting = max(self.inside, inside), max(self.waiting, waiting)
        if between_steps:
            self.whole = max(self.whole, self._bytes(rule.held()) - inside)

    def _bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        return sum(_bytes_held(tensors, self.scale))


def _bytes_held(tensors: Iterable[torch.Tensor], scale: Callable[[torch.Tensor], int]) -> Iterator[int]:
    """Full-size bytes of every storage, counted once by its first tensor: a view keeps its whole storage alive."""
    storages: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            yield round(scale(tensor) / max(tensor.numel(), 1) * storage.nbytes())


class Scale:
    """The number of elements that a tensor of the stand-in would have in the real transformer."""

    def __init__(self, real: Anatomy, stand_in: Anatomy, full: Size, small: Size, shapes: Any) -> None:
        self.cells = math.prod(full) / math.prod(small)
        self.tokens, self.few = (math.prod(real.token_grid(size)) for size in (full, small))
        self.text = real.text_tokens(shapes)
        self.width = width_of(real)
        self.grids = real.token_grid(full), real.token_grid(small)
        self.narrow = width_of(stand_in)
        self.widths = {self.narrow: self.width, 1: 1}  # 1: a token's scale
        if stand_in.second_width:
            self.widths[stand_in.second_width] = real.second_width

    def __call__(self, tensor: torch.Tensor) -> int:
        if tensor.ndim == 5 and tensor.shape[1:] == (*self.grids[1], self.narrow):  # tokens laid out in space and time
            return tensor.shape[0] * self.tokens * self.width
        if tensor.ndim == 5:  # a latent or a prediction
            return round(tensor.numel() * self.cells)
        width = self.widths.get(tensor.shape[-1] if tensor.ndim > 1 else 0)
        if width is None:
            return tensor.numel()
        if tensor.ndim == 2:
            return tensor.shape[0] * width
        rows = math.prod(tensor.shape[1:-1])
        if rows == self.few + self.text:
            rows = self.tokens + self.text
        elif rows != self.text:
            rows = round(rows * self.tokens / self.few)
        return tensor.shape[0] * rows * width


def width_of(anatomy: Anatomy) -> int:
    """The width of the transformer's token stream: heads times channels per head."""
    return anatomy.config["num_attention_heads"] * anatomy.config["attention_head_dim"]
