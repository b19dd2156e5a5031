"""Dynamic sequence parallelism (Zhao et al., "DSP", 2024): the dimension in which tokens are split changes with need.

Between blocks each process holds all places of some frames, and attention over space needs nothing else. For attention
over time they exchange tokens, so that each holds all frames of some places, and exchange them back. Shares may be
uneven; a video with fewer frames or places than there are processes is computed whole by each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

FRAMES, PLACES = 1, 2  # dimensions of tokens (B, frames, places, width)


@dataclass(frozen=True)
class Shares:
    """The shares of the processes of a group in so many `frames` and `places`."""

    group: Any
    frames: int
    places: int

    @classmethod
    def of(cls, parallel_config: Any, frames: int, places: int) -> Shares | None:
        """Those in diffusers' configuration, set by `enable_parallelism`; None if nothing is to be split."""
        if parallel_config is None:
            return None
        group = parallel_config.context_parallel_config._flattened_mesh.get_group()
        return cls(group, frames, places) if min(frames, places) >= dist.get_world_size(group) else None

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """This process's frames of tokens (B, frames, places, width)."""
        return tokens.tensor_split(dist.get_world_size(self.group), dim=FRAMES)[dist.get_rank(self.group)]

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """All frames (B, frames, places, width), from this process's."""
        sizes = _sizes(self.frames, dist.get_world_size(self.group))
        padded = tokens.new_zeros(tokens.shape[0], max(sizes), *tokens.shape[2:])
        padded[:, : tokens.shape[FRAMES]] = tokens
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=FRAMES)

    def by_places(self, tokens: torch.Tensor) -> torch.Tensor:
        """All frames of this process's places, from all places of its frames."""
        return self._exchange(tokens, split=PLACES, join=FRAMES, joined=self.frames)

    def by_frames(self, tokens: torch.Tensor) -> torch.Tensor:
        """All places of this process's frames, from all frames of its places."""
        return self._exchange(tokens, split=FRAMES, join=PLACES, joined=self.places)

    def _exchange(self, tokens: torch.Tensor, split: int, join: int, joined: int) -> torch.Tensor:
        """Split in one dimension and joined in another, which is `joined` long in the end."""
        count, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        sent = tokens.tensor_split(count, dim=split)
        shapes = []
        for size in _sizes(joined, count):
            shape = list(sent[rank].shape)
            shape[join] = size
            shapes.append(shape)
        flat = torch.cat([part.flatten() for part in sent])
        taken, given = [math.prod(shape) for shape in shapes], [part.numel() for part in sent]
        received = flat.new_empty(sum(taken))
        dist.all_to_all_single(received, flat, taken, given, group=self.group)
        parts = zip(received.split(taken), shapes, strict=True)
        return torch.cat([part.view(shape) for part, shape in parts], dim=join)


def _sizes(total: int, count: int) -> list[int]:
    """The sizes that `tensor_split` splits so many into."""
    return [total // count + (rank < total % count) for rank in range(count)]
