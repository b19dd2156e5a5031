"""The processes that share a video: each holds a part of the transformer's tokens, and all must decide alike.

A process that skipped a block which another runs would leave that one waiting for its tokens. So what decides is never
a number of one process: what is measured on tokens is summed over all of them (`mean`, `norm`, `sum`), and a decision
made once a step is the first one's (`agree`). On one process each of these changes nothing, to the last bit.

The two guidance branches may also be computed by two halves of the processes (`pair`), which exchange the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Plain = TypeVar("Plain")
GUIDANCE = "_guidance_groups"  # attribute of a transformer


def share_guidance(transformer: Any, pair: Any, everyone: Any) -> None:
    """Have this transformer's guidance branches computed by the two of each `pair` of the processes in `everyone`."""
    setattr(transformer, GUIDANCE, (pair, everyone))


@dataclass(frozen=True)
class Processes:
    """Groups of torch.distributed; None for this process alone.

    group: those that hold parts of what a module is called with. everyone: those that make the video.
    pair: two, the first of which computes the conditional branch and the other the unconditional one.
    """

    group: Any = None
    everyone: Any = None
    pair: Any = None

    @classmethod
    def of(cls, transformer: Any, batched: bool) -> Processes:
        """Those that share the tokens since diffusers' `enable_parallelism`, and the branches since `share_guidance`.

        batched: whether one call holds both branches.
        """
        parallel = getattr(transformer, "_parallel_config", None)
        context = None if parallel is None else parallel.context_parallel_config
        tokens = None if context is None else context._flattened_mesh.get_group()
        pair, everyone = getattr(transformer, GUIDANCE, (None, tokens))
        return cls(everyone if batched else tokens, everyone, pair)

    @property
    def side(self) -> int:
        """This process's place in its pair: 0 for the branch that is called first, 1 for the other."""
        return dist.get_rank(self.pair)

    def exchange(self, own: torch.Tensor, note: Plain) -> tuple[list[torch.Tensor], list[Plain]]:
        """A tensor and a plain value of each of the pair, in order."""
        tensors, notes = [torch.empty_like(own) for _ in range(2)], [note] * 2
        dist.all_gather(tensors, own.contiguous(), group=self.pair)
        dist.all_gather_object(notes, note, group=self.pair)
        return tensors, notes

    def agree(self, value: Plain) -> Plain:
        """The first process's version of a plain value, in all of them."""
        if self.everyone is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.everyone, 0), group=self.everyone)
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
