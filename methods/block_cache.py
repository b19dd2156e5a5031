"""BlockCache: section 3.4, equations (5) and (6), of Wang et al., "PreciseCache" (ICLR 2026).

At the steps that LFCache decides to compute, a refresh measures what every block adds to its input; for the blocks that
add least, the next L computed steps take that from memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .engine.anatomy import Block
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.reuse import hidden_of, replaced, text_of, video_of

RANKINGS = ("absolute", "relative")  # question 24 of docs/precisecache.md
SETS = ("apart", "shared")  # question 26
SURPLUS = 4  # extra blocks kept while ranking, beyond those that will be reused


class BlockCache:
    """A refresh keeps what the least pivotal blocks add to their input; the next L computed steps only add that.

    Only what will be reused is kept, plus `SURPLUS` blocks while ranking: about `rate` × blocks × branches residuals.
    While ranking, the host waits for the device once in several blocks, not at every block. With two streams (video
    and text) both residuals are kept, ranked by the video's. Where processes share a video each keeps the residuals of
    its tokens; norms are over the tokens of all, so that all choose the same blocks.
    """

    def __init__(self, rate: float, steps: int, ranking: str, sets: str, kept: str) -> None:
        """The values of `PreciseCacheConfig`'s block_cache_rate, block_cache_steps, block_ranking, block_sets, kept."""
        self.rate, self.steps, self.ranking, self.sets = rate, steps, ranking, sets
        self.phase = "full"  # or "refresh" or "cached"; trials do not visit blocks
        self.left = 0  # computed steps until the next refresh
        # branch -> block -> norms over this process's tokens (of D; of the block's input too, if that is ranked by)
        self.norms: dict[str, dict[str, torch.Tensor]] = {}
        # (branch, block) -> residual D of the video, D of the text (None without a text stream)
        self.residuals = KeptTensors(kept)
        self.leader: str | None = None  # with shared sets, the branch whose ranking all follow

    def begin_step(self, denoiser: Denoiser, warming_up: bool) -> None:
        """Choose the phase of a step; called once for every step that LFCache decides to compute."""
        if warming_up:
            self.phase = "full"
        elif self.left == 0 or denoiser.must_compute or math.isnan(denoiser.step.indicator or 0.0):
            self.phase = "refresh"
            self.forget()
            self.left = self.steps
        else:
            self.phase, self.left = "cached", self.left - 1
        denoiser.step.details["blocks"] = self.phase

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        block = denoiser.block_of(call)
        assert block is not None
        key = denoiser.branch.name, block.path
        if self.phase == "cached" and key in self.residuals:
            video, text = self.residuals[key]
            added = None if text is None else text_of(block, call) + text
            return replaced(block, call, hidden_of(block, call) + video, added)  # equation (6)
        output = call.run()
        if self.phase == "refresh":
            self._keep(denoiser, block, call, output)
            denoiser.step.details["cached_blocks"] = {name: sorted(paths) for name, paths in self.norms.items()}
        return output

    def forget(self) -> None:
        """Drop everything; the next step refreshes."""
        self.left, self.norms, self.leader = 0, {}, None
        self.residuals.clear()

    def forget_branch(self, name: str) -> None:
        """Drop what is kept of a guidance branch."""
        self.norms.pop(name, None)
        self.residuals.discard(*[key for key in self.residuals if key[0] == name])

    def _keep(self, denoiser: Denoiser, block: Block, call: ModuleCall, output: Any) -> None:
        name = denoiser.branch.name
        self.leader, kept = self.leader or name, self.norms.setdefault(name, {})
        follows = self.sets == "shared" and name != self.leader
        if follows and block.path not in self.norms[self.leader]:
            return
        before = hidden_of(block, call)
        video = video_of(block, output) - before  # equation (5)
        measured = (video, before) if self.ranking == "relative" else (video,)
        kept[block.path] = torch.stack([torch.linalg.vector_norm(tokens.float()) for tokens in measured])
        text_index = block.metadata.return_encoder_hidden_states_index
        text = None if text_index is None else output[text_index] - text_of(block, call)
        self.residuals[name, block.path] = video, text
        surplus = len(kept) - round(self.rate * len(denoiser.blocks))
        if not follows and (surplus > SURPLUS or (surplus > 0 and block.path == denoiser.blocks[-1].path)):
            norms = denoiser.processes.norm(torch.stack(list(kept.values())))
            ranked = norms[:, 0] / norms[:, 1] if self.ranking == "relative" else norms[:, 0]
            sizes = dict(zip(kept, ranked.tolist(), strict=True))
            for path in sorted(sizes, key=lambda path: sizes[path], reverse=True)[:surplus]:
                del kept[path], self.residuals[name, path]  # the most pivotal so far
