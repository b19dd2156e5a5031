"""DiCache: Bu et al., "Let Diffusion Model Determine Its Own Cache" (ICLR 2026, arXiv 2508.17356).

The first block, which always runs, is a probe: the change of its output from step to step, summed since the last
computed step, decides whether the other blocks run. If they do not, what the whole stack would add is read off a line
through what it added at the last two computed steps, and the probe says how far along.

Follows https://github.com/Bujiazi/DiCache at dd7f0de: WAN2.1/run_wan_dicache.py:148-218, HunyuanVideo/
run_hunyuanvideo_dicache.py:80-205 and, for what only its image model has, FLUX/run_flux_dicache.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import Cache, Rule, Tradeoff
from .engine.reuse import hidden_of, replaced, video_of
from .teacache import relative_l1

# Family -> threshold, largest gamma.
PUBLISHED = {
    "wan": (0.08, 2.0),  # run_wan_dicache.py:411 (--rel_l1_thresh), :173
    "hunyuanvideo": (0.1, 1.5),  # run_hunyuanvideo_dicache.py, main() and "Dynamic Cache Trajectory Alignment"
}
ERRORS = ("probe", "excess")


@dataclass(kw_only=True)
class DiCacheConfig(Cache):
    """DiCache with its official settings; there are none for CogVideoX and Open-Sora, which get Wan's.

    threshold: bound on the change summed since the last computed step; None is the official value of the backbone (Wan
        0.08, HunyuanVideo 0.1; FLUX has 0.4).
    probe_depth: blocks of the probe; the official code has 1 and recommends 1 to 5.
    error: what is summed, of the relative L1 distances from the step before: "probe", the probe's output's, which is
        the official default, or "excess", by how much it differs from that of the tokens before the first block
        (FLUX's "delta_minus", with a threshold of 0.08 and no protection).
    align: reuse on the line; otherwise the last residual is added, as while only one is known.
    gamma_max: how far along the line: from 1, the last computed step, to this; None is the official value of the
        backbone (Wan 2, HunyuanVideo and FLUX 1.5).
    protect_first: the official share of the steps, `ret_ratio`. FLUX protects the last step too.

    Each guidance branch decides for itself, as on Wan. Deviations from the official code: distances are taken in
    float32; a sum equal to the threshold, which HunyuanVideo's code reuses at, computes; where the probe has not moved
    between the last two computed steps, gamma is 1 and not 0/0; Wan's code protects a share of the calls, so for
    numbers of steps that end in 3, 4, 8 or 9 its conditional branch is protected one step longer.
    """

    threshold: float | None = None
    probe_depth: int = 1
    error: str = "probe"
    align: bool = True
    gamma_max: float | None = None
    protect_first: float = 0.2

    NAME: ClassVar[str] = "dicache"
    TRADEOFF: ClassVar = Tradeoff("threshold", 1e-5, 100.0)
    INERT: ClassVar = {"threshold": 0.0}
    EAGER: ClassVar = {"threshold": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, not {self.threshold}")
        if self.probe_depth < 1:
            raise ValueError(f"probe_depth must be at least 1, not {self.probe_depth}")
        if self.error not in ERRORS:
            raise ValueError(f"error must be one of {', '.join(ERRORS)}, not {self.error!r}")
        if self.gamma_max is not None and not self.gamma_max >= 1:
            raise ValueError(f"gamma_max must be at least 1, not {self.gamma_max}")

    def for_backbone(self, anatomy: Anatomy) -> DiCacheConfig:
        threshold, gamma_max = PUBLISHED.get(anatomy.family, PUBLISHED["wan"])
        return replace(
            self,
            threshold=threshold if self.threshold is None else self.threshold,
            gamma_max=gamma_max if self.gamma_max is None else self.gamma_max,
        )

    @property
    def shares_videos(self) -> bool:
        return True

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        blocks = [block.path for block in anatomy.blocks(transformer)]
        lists = [path.rpartition(".")[0] for path in blocks]
        alike = next((n for n, name in enumerate(lists) if name != lists[0]), len(blocks) - 1)
        if anatomy.TWO_HEADS:
            raise ValueError(
                f"dicache keeps what the blocks add to the video alone, and {anatomy.family} makes sound too"
            )
        if self.probe_depth > alike:
            raise ValueError(
                f"dicache: a probe of {self.probe_depth} blocks is too deep for this transformer:"
                f" probe_depth can be at most {alike}"
            )
        return blocks

    def rule(self) -> DiCache:
        return DiCache(self)

    def blocks_run(self, blocks: Mapping[str, int]) -> dict[str, int]:
        return {next(iter(blocks)): self.probe_depth}


@dataclass
class Memory:
    """A branch's sum of changes; and, while the stack runs, its input and what the probe added to it."""

    accumulated: float = 0.0
    start: torch.Tensor | None = None
    added: torch.Tensor | None = None


class DiCache(Rule):
    """Probe and line for one pipeline call; each branch decides for itself."""

    def __init__(self, config: DiCacheConfig) -> None:
        self.config = config
        self.memory: dict[str, Memory] = {}
        # of each branch; tensors are the video's tokens (B, tokens, width)
        self.probes = KeptTensors()  # the step before: the probe's output and, only for "excess", its input
        self.residuals = KeptTensors(config.kept)  # the last two computed steps: what stack and probe added

    def forget_branch(self, name: str) -> None:
        self.memory.pop(name, None)
        self.probes.discard(name)
        self.residuals.discard(name)

    def change_transformer(self) -> None:
        self.memory = {}
        self.probes.clear()
        self.residuals.clear()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        block, blocks = denoiser.block_of(call), denoiser.blocks
        assert block is not None
        name = denoiser.branch.name
        memory = self.memory.setdefault(name, Memory())
        if denoiser.reused:
            return replaced(block, call, hidden_of(block, call))
        if block is blocks[0]:
            memory.start = hidden_of(block, call)
        output = call.run()
        start, video = memory.start, video_of(block, output)
        assert start is not None
        if block is blocks[self.config.probe_depth - 1]:
            denoiser.reused = self._reuses(denoiser, memory, start, video)
            self.probes[name] = video, start if self.config.error == "excess" else None
            memory.added = video - start
            if denoiser.reused:
                answer = start + self._aligned(denoiser, memory.added)
                memory.start = memory.added = None
                return replaced(block, call, answer)
        if block is blocks[-1]:
            assert memory.added is not None
            before = self.residuals.packed(name)[-1:] if name in self.residuals else []
            self.residuals[name] = [*before, (video - start, memory.added)]
            memory.start = memory.added = None
        return output

    def _reuses(self, denoiser: Denoiser, memory: Memory, tokens: torch.Tensor, probe: torch.Tensor) -> bool:
        config, step, name = self.config, denoiser.step, denoiser.branch.name
        if denoiser.must_compute or name not in self.probes or name not in self.residuals:
            return False
        assert config.threshold is not None
        last_probe, last_tokens = self.probes[name]
        mean = denoiser.processes.mean
        error = relative_l1(probe, last_probe, mean)
        if last_tokens is not None:
            error = abs(error - relative_l1(tokens, last_tokens, mean))
        memory.accumulated += error
        step.indicator, step.accumulated, step.threshold = error, memory.accumulated, config.threshold
        step.details.setdefault("accumulated", {})[name] = memory.accumulated
        reuse = memory.accumulated < config.threshold  # never with a NaN
        if not reuse:
            memory.accumulated = 0.0
        return reuse

    def _aligned(self, denoiser: Denoiser, added: torch.Tensor) -> torch.Tensor:
        """What the stack would add, where the probe has `added` so much."""
        residuals = self.residuals[denoiser.branch.name]
        last, last_probe = residuals[-1]
        if len(residuals) < 2 or not self.config.align:
            return last
        before, before_probe = residuals[0]
        mean = denoiser.processes.mean
        gone, between = (mean((each - before_probe).float().abs()) for each in (added, last_probe))
        gamma = torch.nan_to_num(gone / between, nan=1.0).clip(1.0, self.config.gamma_max).to(last.dtype)
        return before + gamma * (last - before)
