"""The processes that share a video: each holds a part of the transformer's tokens, and all must decide alike.

A process that skipped a block which another runs would leave that one waiting for its tokens. So what decides is never
a number of one process: what is measured on tokens is summed over all of them (`mean`, `norm`, `sum`), and a decision
made once a step is the first one's (`agree`). On one process each of these changes nothing, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Processes:
    """The processes that hold the tokens of one transformer. group: theirs in torch.distributed; None for one alone."""

    group: Any = None

    @classmethod
    def of(cls, transformer: Any) -> Processes:
        """Those that diffusers' `enable_parallelism` has split this transformer's tokens among."""
        parallel = getattr(transformer, "_parallel_config", None)
        context = None if parallel is None else parallel.context_parallel_config
        return cls() if context is None else cls(context._flattened_mesh.get_group())

    def agree(self, value: Plain) -> Plain:
        """The first process's version of a plain value, in all of them."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
        return box[0]

    def sum(self, parts: torch.Tensor) -> torch.Tensor:
        """The sum of every process's tensor, which have one shape; added up in the same order by all."""
        if self.group is None:
            return parts
        found = [torch.empty_like(parts) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(found, parts.contiguous(), group=self.group)
        return torch.stack(found).sum(0)

    def mean(self, part: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens of all processes, a scalar on the device; `part` holds those of this one."""
        if self.group is None:
            return part.mean()
        total, count = self.sum(torch.stack([part.float().sum(), part.new_tensor(part.numel(), dtype=torch.float32)]))
        return total / count

    def norm(self, norms: torch.Tensor) -> torch.Tensor:
        """Euclidean norms over the tokens of all processes, from `norms` over those of this one."""
        return norms if self.group is None else self.sum(norms.square()).sqrt()


ALONE = Processes()
