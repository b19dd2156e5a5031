"""Pyramid Attention Broadcast (Zhao et al., ICLR 2025): attention outputs are reused at the next steps.

Each kind of attention (spatial, temporal, cross) is computed every few steps and its output used unchanged in between,
for more steps the less that kind changes (section 3.2 of the paper). Nothing is measured: a counter and a window
of timesteps decide. Rule and numbers: NUS-HPC-AI-Lab/VideoSys, videosys/core/pab/pab_mgr.py and
videosys/pipelines/*/pipeline_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import Cache, Rule, Tradeoff

RANGES = {"spatial_range": "self", "temporal_range": "temporal", "cross_range": "cross"}  # field -> kind of module

# What the authors set for a family. They set nothing for Wan and HunyuanVideo; ELSEWHERE is our choice: the ranges of
# PAB246 in CogVideoX's window, the widest published one.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cogvideox": {"spatial_range": 2, "window": (100, 850)},
    "opensora": {
        "spatial_range": 2,
        "temporal_range": 4,
        "cross_range": 6,
        "window": (450, 930),
        "mlp_timesteps": (676, 788, 864),
    },
    "vchitect": {"spatial_range": 2, "temporal_range": 4, "cross_range": 6, "window": (100, 800)},
}
ELSEWHERE: dict[str, Any] = {"spatial_range": 2, "temporal_range": 4, "cross_range": 6, "window": (100, 850)}


@dataclass(kw_only=True)
class PABConfig(Cache):
    """PAB; a field left at None takes the backbone's published value, or our choice where there is none.

    spatial_range, temporal_range, cross_range: steps from one computation of spatial attention (joint 3-D attention
        counts as such), temporal or cross-attention to the next; 1 always computes. PAB246 is 2, 4, 6.
    window: (low, high); attention is broadcast at model timesteps strictly between the two. Timesteps are the model's,
        after the scheduler's shift: with a shift of 5 only some 21 of Wan's 50 steps lie in (100, 800).
    mlp_timesteps: timesteps (truncated to integers) at which the MLPs of `mlp_blocks` are computed and kept for the
        next `mlp_skip_count` steps, whatever the window. Open-Sora's are bf16-rounded timesteps of one setting (480p,
        9:16, 51 frames, 30 steps); a timestep that does not occur has no effect.

    Open-Sora's self-attention and MLP outputs are kept after the gate, as in the official code; elsewhere the module's
    own output is kept, and each step's gate is applied to it.

    Deviation from the official code: counter and memory are kept for each guidance branch. That makes no difference
    where the branches share a call, as on CogVideoX and Open-Sora. On Vchitect-2.0 each has a call, and the official
    counter and memory serve both: with an even range the second branch always takes the first one's output.
    """

    spatial_range: int | None = None
    temporal_range: int | None = None
    cross_range: int | None = None
    window: tuple[int, int] | None = None
    mlp_timesteps: tuple[int, ...] | None = None
    mlp_blocks: tuple[int, ...] = (0, 1, 2, 3, 4)
    mlp_skip_count: int = 2

    NAME: ClassVar[str] = "pab"
    APPROACH: ClassVar[str] = "attention"
    TRADEOFF: ClassVar = Tradeoff("spatial_range", 2, None)
    INERT: ClassVar = {"spatial_range": 1, "temporal_range": 1, "cross_range": 1, "mlp_timesteps": ()}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "mlp_timesteps", "mlp_blocks"):
            if getattr(self, name) is not None:
                setattr(self, name, tuple(getattr(self, name)))  # YAML gives lists
        for name in RANGES:
            every = getattr(self, name)
            if every is not None and every < 1:
                raise ValueError(f"{name} must be at least 1 (computed at every step), not {every}")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise ValueError(f"window must be two timesteps, the lower first, not {self.window}")
        if self.mlp_skip_count < 1:
            raise ValueError(f"mlp_skip_count must be at least 1, not {self.mlp_skip_count}")

    def for_backbone(self, anatomy: Anatomy) -> PABConfig:
        published = PUBLISHED.get(anatomy.family, ELSEWHERE)
        kinds = {kind for parts in (*anatomy.BLOCKS.values(), anatomy.KINDS) for kind in parts}
        settings: dict[str, Any] = {}
        for name, kind in RANGES.items():
            every = getattr(self, name)
            if kind not in kinds and every is not None and every > 1:
                part = name.removesuffix("_range")
                raise ValueError(f"pab: {anatomy.family} has no {part} attention to broadcast; leave {name} at null")
            settings[name] = 1 if kind not in kinds else published.get(name, 1) if every is None else every
        for name, fallback in (("window", ELSEWHERE["window"]), ("mlp_timesteps", ())):
            given = getattr(self, name)
            settings[name] = published.get(name, fallback) if given is None else given
        for name in ("mlp_blocks", "mlp_skip_count"):
            if not settings["mlp_timesteps"] and getattr(self, name) != getattr(PABConfig, name):
                raise ValueError(f"pab: {name} has no effect on {anatomy.family} without mlp_timesteps")
        return replace(self, **settings)

    @property
    def ranges(self) -> dict[str, int]:
        """Kinds of attention that are broadcast -> steps from one computation to the next."""
        given = {kind: getattr(self, name) or 1 for name, kind in RANGES.items()}
        return {kind: every for kind, every in given.items() if every > 1}

    @property
    def shares_videos(self) -> bool:
        return True

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        found, mlps = [], False
        for block in anatomy.blocks(transformer):
            for kind, paths in block.kinds.items():
                of_mlp = kind == "mlp" and self.mlp_timesteps and _number(block.path) in self.mlp_blocks
                mlps |= bool(of_mlp)
                if kind in self.ranges or of_mlp:
                    found += [*paths, *(block.gates[path] for path in paths if path in block.gates)]
        if self.mlp_timesteps and not mlps:
            raise ValueError(f"pab: {anatomy.family} has no MLP in any of mlp_blocks {self.mlp_blocks}")
        return found

    def rule(self) -> Rule:
        return _Broadcast(self)


class _Broadcast(Rule):
    def __init__(self, config: PABConfig) -> None:
        self.config = config
        self._counts: dict[str, int] = {}  # branch -> its calls so far
        self._mlp_until: dict[str, int] = {}  # branch -> the count up to which its MLP outputs are valid
        self._now: set[str] = set()  # kinds answered from memory in the running call
        self._lasting: set[str] = set()  # kinds that the branch's next call may take from memory
        self._memory = KeptTensors(config.kept)  # (branch, module) -> the module's latest output, perhaps a tuple
        self._kinds: dict[str, str] = {}  # module -> kind
        self._gates: dict[str, str] = {}  # module -> its gate, which answers in its place

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if not self._kinds:
            for block in denoiser.blocks:
                kinds = {path: kind for kind, paths in block.kinds.items() for path in paths}
                self._kinds |= kinds | {gate: kinds[path] for path, gate in block.gates.items()}
                self._gates |= block.gates
        branch = denoiser.branch.name
        count = self._counts.get(branch, 0)
        self._counts[branch] = count + 1
        timestep = denoiser.timestep()
        low, high = self.config.window or ELSEWHERE["window"]
        self._now = {kind for kind, every in self.config.ranges.items() if count % every and low < timestep < high}
        if timestep in (self.config.mlp_timesteps or ()):
            self._mlp_until[branch] = count + self.config.mlp_skip_count
        elif count <= self._mlp_until.get(branch, -1):
            self._now.add("mlp")
        if denoiser.must_compute:
            self._now = set()
        self._lasting = self._needed_next(denoiser, count, timestep)
        denoiser.step.details["broadcast"] = sorted(self._now)
        return denoiser.run()

    def _needed_next(self, denoiser: Denoiser, count: int, timestep: int) -> set[str]:
        """Kinds that the branch's next call may take from memory; outputs of the others need not be kept."""
        if denoiser.is_last_step:
            return set()
        low, high = self.config.window or ELSEWHERE["window"]
        following = denoiser.next_timestep()
        within = low < timestep if following is None else low < following < high  # timesteps fall from step to step
        needed = {kind for kind, every in self.config.ranges.items() if (count + 1) % every and within}
        return needed | ({"mlp"} if self._mlp_until.get(denoiser.branch.name, -1) > count else set())

    def forget_branch(self, name: str) -> None:
        self._counts.pop(name, None)
        self._mlp_until.pop(name, None)
        self._memory.discard(*[key for key in self._memory if key[0] == name])

    def change_transformer(self) -> None:
        self._memory.clear()
        self._kinds = {}

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        branch, gate = denoiser.branch.name, self._gates.get(call.path)
        key = branch, gate or call.path
        fresh = self._kinds[call.path] not in self._now or key not in self._memory
        if gate:  # the gate's output is kept; the module need not run where that is reused
            return call.run() if fresh else call.args[0]
        output = call.run() if fresh else self._memory[key]
        if self._kinds[call.path] not in self._lasting:
            self._memory.discard(key)
        elif fresh:
            self._memory[key] = output
        return output


def _number(block: str) -> int:
    """A block's index in its own list."""
    return int(block.rsplit(".", 1)[-1])
