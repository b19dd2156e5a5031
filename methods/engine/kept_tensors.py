"""Where methods keep what blocks and their parts computed: in a dict that may store it in fewer bytes, or on the CPU.

That is for answers, by far the most. What a method *measures* inside blocks is in such a dict too, but exact: decisions
depend on how answers are stored through the answers alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map

STORAGES = ("exact", "bfloat16", "float8", "cpu")
FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max


class KeptTensors(MutableMapping[Any, Any]):
    """A dict of tensors, or of nested tuples and lists of them, kept as `storage` says.

    exact: the tensors themselves. bfloat16: rounded to it. float8: rounded to e4m3, each token scaled by its largest
    value, so that none is rounded to zero beside a large one. cpu: in the CPU's memory, unchanged; on a GPU it is
    copied there and back beside the computation, and when a value is read, the one stored after it is fetched already
    (the first after the last), as blocks are visited in the order in which they were stored.

    What is read has the dtype and the device of what was written. Not for use from several streams.
    """

    additions: ClassVar[int] = 0  # of all of them in this process: how often what one holds may have grown
    SCALED_OVER: Any = -1  # the dimensions of a tensor that share a float8 scale: a token's channels; None: all

    def __init__(self, storage: str = "exact") -> None:
        self.storage = storage
        self._packed: dict[Hashable, Any] = {}
        self._leaving: list[_Copy] = []  # to the CPU, of what was stored last
        self._arriving: tuple[Hashable, Any] | None = None  # the key that is read next, and its copies from the CPU
        self._stream: Any = None  # for copies on a GPU

    def pack(self, value: Any) -> Any:
        """The value as it is stored; to store that again, under any key, costs nothing."""
        KeptTensors.additions += 1
        before, self._leaving = self._leaving, []
        packed = tree_map(self._pack, value)
        self._leaving = self._leaving or before
        return packed

    def packed(self, key: Hashable) -> Any:
        """What `pack` made of the value. Raises KeyError."""
        return self._packed[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._unfetch(key)
        self._packed[key] = self.pack(value)

    def __getitem__(self, key: Hashable) -> Any:
        packed, self._leaving = self._packed[key], []
        if self.storage != "cpu":
            return tree_map(_unpacked, packed)
        KeptTensors.additions += 1
        arriving, self._arriving = self._arriving, None
        copies = arriving[1] if arriving is not None and arriving[0] == key else self._fetched(packed)
        value = tree_map(lambda leaf: leaf.wait() if isinstance(leaf, _Copy) else leaf, copies)
        keys = list(self._packed)
        following = keys[(keys.index(key) + 1) % len(keys)]
        if following != key:
            self._arriving = following, self._fetched(self._packed[following])
        return value

    def __delitem__(self, key: Hashable) -> None:
        self._unfetch(key)
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def __iter__(self) -> Iterator[Any]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def discard(self, *keys: Hashable) -> None:
        """Drop these, where they are there."""
        for key in keys:
            if key in self._packed:
                del self[key]

    def clear(self) -> None:
        """Drop everything."""
        self._packed, self._leaving, self._arriving = {}, [], None

    def on_device(self) -> list[Any]:
        """What takes the model's device's memory, in nested containers."""
        if self.storage != "cpu":
            return [self._packed]
        arriving: list[torch.Tensor] = []
        if self._arriving is not None:
            tree_map(lambda leaf: arriving.append(leaf.target) if isinstance(leaf, _Copy) else None, self._arriving[1])
        return [*(copy.source for copy in self._leaving), *arriving]

    def on_cpu(self) -> list[Any]:
        """What waits in the CPU's memory with `storage` cpu, in nested containers."""
        return [self._packed] if self.storage == "cpu" else []

    def _pack(self, leaf: Any) -> Any:
        if self.storage == "exact" or not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        if self.storage == "bfloat16":
            return _Packed(leaf.to(torch.bfloat16), leaf.dtype)
        if self.storage == "float8":
            largest = torch.linalg.vector_norm(leaf, math.inf, dim=self.SCALED_OVER, keepdim=True).float()
            scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
            return _Packed((leaf / scale).to(FLOAT8), leaf.dtype, scale)
        if self._stream is None and leaf.device.type == "cuda":
            self._stream = torch.cuda.Stream(leaf.device)
        waiting = torch.empty(leaf.shape, dtype=leaf.dtype, device="cpu", pin_memory=self._stream is not None)
        self._leaving.append(_Copy(leaf, waiting, self._stream))
        return _Waiting(waiting, leaf.device)

    def _fetched(self, packed: Any) -> Any:
        def fetch(leaf: Any) -> Any:
            if not isinstance(leaf, _Waiting):
                return leaf
            return _Copy(leaf.tensor, torch.empty_like(leaf.tensor, device=leaf.device), self._stream)

        return tree_map(fetch, packed)

    def _unfetch(self, key: Hashable) -> None:
        if self._arriving is not None and self._arriving[0] == key:
            self._arriving = None


@dataclass(frozen=True)
class _Packed:
    """A tensor rounded to fewer bits; `data` times `scale`, if there is one."""

    data: torch.Tensor
    dtype: torch.dtype
    scale: torch.Tensor | None = None


def _unpacked(leaf: Any) -> Any:
    if not isinstance(leaf, _Packed):
        return leaf
    tensor = leaf.data.to(leaf.dtype)
    return tensor if leaf.scale is None else tensor.mul_(leaf.scale)


@dataclass(frozen=True)
class _Waiting:
    """A tensor in the CPU's memory, and the device that it came from."""

    tensor: torch.Tensor
    device: torch.device


class _Copy:
    """A copy from `source` to `target`; on a GPU under way in `stream`.

    Both tensors' memory on the GPU belongs to the stream that computes. That stream is made to wait for the copy before
    it uses the target, and before this object is dropped, so that nothing overwrites either too early; the host never
    waits. No copy begins before what was queued when it was asked for, so copies do not run ahead of the computation.
    """

    def __init__(self, source: torch.Tensor, target: torch.Tensor, stream: Any) -> None:
        self.source, self.target, self.done = source, target, None
        if stream is None:
            target.copy_(source)
            return
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            self.done = stream.record_event()
        self.device = stream.device

    def wait(self) -> torch.Tensor:
        """The target, which everything computed from here on finds complete."""
        if self.done is not None:
            torch.cuda.current_stream(self.device).wait_event(self.done)
        return self.target

    def __del__(self) -> None:
        if getattr(self, "done", None) is not None:
            self.wait()


PLAIN = frozenset({bool, float, int, str, type(None)})  # have no tensors; asked first, for they are most of all


def tensors_in(value: Any, besides: tuple[type, ...] = ()) -> Iterator[torch.Tensor]:
    """Each tensor on the device that an object, its objects, or nested dicts, lists, tuples and sets refer to, once;
    not those of modules, and of objects of the types `besides`."""
    seen: dict[int, Any] = {}
    for found in _found_in(value, seen, besides):
        yield from [found] if isinstance(found, torch.Tensor) else _found_in(found.on_device(), seen, besides)


def kept_in(value: Any, besides: tuple[type, ...] = ()) -> list[KeptTensors]:
    """The `KeptTensors` that an object refers to in the same way."""
    return [found for found in _found_in(value, {}, besides) if isinstance(found, KeptTensors)]


def _found_in(value: Any, seen: dict[int, Any], besides: tuple[type, ...]) -> Iterator[Any]:
    """Each tensor, and each `KeptTensors` as a whole. seen: by their ids, which they keep while they are in it."""
    left, passed_over = [value], (torch.nn.Module, str, *besides)  # the next is the last; a plan looks at millions
    while left:
        value = left.pop()
        if type(value) in PLAIN or id(value) in seen or isinstance(value, passed_over):
            continue
        seen[id(value)] = value
        if isinstance(value, (torch.Tensor, KeptTensors)):
            yield value
        elif isinstance(value, (list, tuple, set)):
            left.extend(reversed(tuple(value)))
        else:
            left.extend(reversed((value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()))
