"""First-block cache: chengzeyi/ParaAttention at 4de137c, src/para_attn/first_block_cache; also diffusers' own.

The first block always runs. If what it adds to its input is close to what it added at the last computed step, the other
blocks do not run: what they added at that step is added again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy, Block
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import Cache, Rule, Tradeoff
from .engine.reuse import hidden_of, replaced, video_of


@dataclass(kw_only=True)
class FirstBlockCacheConfig(Cache):
    """The first block's residual decides; no accumulation, no limit on steps in a row, no calibration.

    threshold: bound on mean|r - r'| / mean|r'|, with r the first block's residual on the video's tokens and r' that of
        the last computed step. 0.05 is diffusers' default (hooks/first_block_cache.py); ParaAttention has 0.06 for
        HunyuanVideo and 0.08 to 0.12 for FLUX (doc/fastest_*.md).

    Each guidance branch decides for itself, as with diffusers' cache contexts and ParaAttention's "alter" cache. With
    two streams the other blocks' residuals of both are kept. Deviation from diffusers: a difference equal to the
    threshold, or NaN, computes (ParaAttention's comparison) where diffusers reuses.
    """

    threshold: float = 0.05

    NAME: ClassVar[str] = "first_block_cache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, not {self.threshold}")

    @property
    def shares_videos(self) -> bool:
        return True

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        blocks = [block.path for block in anatomy.blocks(transformer)]
        if len(blocks) < 2:
            raise ValueError("first_block_cache: a transformer of one block leaves nothing to reuse")
        return blocks

    def rule(self) -> FirstBlockCache:
        return FirstBlockCache(self)

    def blocks_run(self, blocks: Mapping[str, int]) -> dict[str, int]:
        return {next(iter(blocks)): 1}


class FirstBlockCache(Rule):
    """The rule for one pipeline call; each branch decides for itself."""

    def __init__(self, config: FirstBlockCacheConfig) -> None:
        self.config = config
        # of each branch's last computed step; pairs are of the video's and the text's tokens (None without a stream)
        self.first = KeptTensors()  # the first block's residual
        self.rest = KeptTensors(config.kept)  # the pair that the other blocks added
        self.start: tuple[torch.Tensor, torch.Tensor | None] | None = None  # input of the other blocks, while they run

    def forget_branch(self, name: str) -> None:
        self.first.discard(name)
        self.rest.discard(name)

    def change_transformer(self) -> None:
        self.first.clear()
        self.rest.clear()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        block = denoiser.block_of(call)
        assert block is not None
        if block is denoiser.blocks[0]:
            return self._first(denoiser, block, call)
        if denoiser.reused:
            return replaced(block, call, hidden_of(block, call))  # the first block's output, unchanged
        output = call.run()
        if block is denoiser.blocks[-1]:
            assert self.start is not None
            video, text = _streams(block, output)
            start_video, start_text = self.start
            added = None if text is None or start_text is None else text - start_text
            self.start, self.rest[denoiser.branch.name] = None, (video - start_video, added)
        return output

    def _first(self, denoiser: Denoiser, block: Block, call: ModuleCall) -> Any:
        output = call.run()
        video, text = _streams(block, output)
        residual = video - hidden_of(block, call)
        name = denoiser.branch.name
        if name in self.rest and self._near(denoiser, residual, self.first[name]):
            denoiser.reused = True
            added_video, added_text = self.rest[name]
            added = None if text is None or added_text is None else text + added_text
            return replaced(block, call, video + added_video, added)
        self.first[name], self.start = residual, (video, text)
        self.rest.discard(name)
        return output

    def _near(self, denoiser: Denoiser, residual: torch.Tensor, reference: torch.Tensor) -> bool:
        step, threshold, mean = denoiser.step, self.config.threshold, denoiser.processes.mean
        difference = float(mean((residual - reference).abs()) / mean(reference.abs()))
        step.indicator = step.accumulated = difference
        step.threshold = threshold
        step.details.setdefault("difference", {})[denoiser.branch.name] = difference
        return not denoiser.must_compute and difference < threshold  # never with a NaN


def _streams(block: Block, output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The video's tokens in what a block returned, and the text's if it returns them."""
    index = block.metadata.return_encoder_hidden_states_index
    return video_of(block, output), None if index is None else output[index]
