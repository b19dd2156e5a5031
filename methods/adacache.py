"""AdaCache (Kahatapitiya et al., "Adaptive Caching for Faster Video Generation with Diffusion Transformers", 2024).

The change of one block's attention residual since the last computed step, divided by the number of steps, is looked up
in a codebook, which says after how many steps to compute again. Motion regularisation (MoReg) raises the measure where
the residual changes much from frame to frame, so that videos with motion are computed more often.

Official code exists for Open-Sora only (AdaCache-DiT/AdaCache: opensora_base/opensora/models/stdit/stdit3.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy, Block, Size
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.offload import onload
from .engine.processes import Processes
from .engine.reuse import hidden_of
from .engine.trace import Step

# Name -> number of steps it was made for -> upper bound of the measure -> steps to the next computed one
# (configs/sample_adacache.py:11-14). The official 100-step codebook has no name; it lies near "slow".
CODEBOOKS: dict[str, dict[int, dict[float, int]]] = {
    "slow": {
        30: {0.08: 3, 0.16: 2, 0.24: 1, 0.32: 1, 0.40: 1, 1.00: 1},
        100: {0.03: 12, 0.05: 10, 0.07: 8, 0.09: 6, 0.11: 4, 1.00: 3},
    },
    "fast": {30: {0.08: 6, 0.16: 5, 0.24: 4, 0.32: 3, 0.40: 2, 1.00: 1}},
}
# MoReg's window, counted from step 1 (configs/sample_adacache_moreg.py:17-18).
MOREG_STEPS = {30: (4, 26), 100: (10, 90)}

# Block class -> where its gated self-attention is read: the module whose output is the attention before the gate, the
# module whose output holds the gate ("" is the block itself: its timestep modulation), and the gate's index there.
# A single-stream block ends attention and MLP in one projection, whose output is used.
PROBES = {
    "WanTransformerBlock": ("attn1", "", 2),
    "HunyuanVideoTransformerBlock": ("attn", "norm1", 1),
    "HunyuanVideo15TransformerBlock": ("attn", "norm1", 1),
    "HunyuanVideoSingleTransformerBlock": ("proj_out", "norm", 1),
    "CogVideoXBlock": ("attn1", "norm1", 2),
    "STDiT3Block": ("attn1", "", 2),
    "VchitectBlock": ("attn", "norm1", 1),
}


@dataclass(kw_only=True)
class AdaCacheConfig(StepwiseCache):
    """AdaCache; only its Open-Sora settings are official.

    codebook: "slow", "fast", or your own {upper bound of the measure: steps to the next computed one}; above the
        second-to-last bound the last entry applies, as in the official code. A name has codebooks for several numbers
        of steps; the one nearest to this run's number is used unchanged (50 steps: the one for 30).
    codebook_scale: factor on the codebook's bounds, to tune the method (ours; officially 1).
    metric_block: index over all block lists of the block that is measured; None is the official one, block 13 of 28,
        scaled to this model's depth, and among the temporal blocks if there are any (official cache_res "t-attn").
    moreg: motion regularisation, off by default as in configs/sample_adacache.py.
    moreg_steps: first and last step with MoReg, counted from 1; None is the official window, scaled to this run.
    moreg_strides, moreg_scale, moreg_power, moreg_divisor, mograd: official moreg_strides [1], moreg_hyp (.385, 8, 1)
        and mograd_mul 10.
    protect_first, protect_last: official skip_cache_steps: the first step and the last two.
    reuse: the official code adds every block's last attention and MLP residuals to the stream again; all blocks reuse
        at the same steps, so their sum is what the whole stack added: "stack".

    The measure is taken over all guidance branches together, which in Open-Sora are one batch.

    Deviations: after a NaN measure the next step is computed (officially the codebook's last entry applies); the
    residual is measured in float32; HunyuanVideo's single-stream blocks have no attention residual of their own, so
    the whole block's is measured. Measuring several blocks, or cross-attention and MLP instead of attention (official
    cache_loc, cache_res), is not implemented.
    """

    protect_first: float = 1
    protect_last: int = 2
    reuse: str = "stack"
    codebook: Any = "slow"
    metric_block: int | None = None
    moreg: bool = False
    moreg_steps: tuple[int, int] | None = None
    moreg_strides: tuple[int, ...] = (1,)
    moreg_scale: float = 0.385
    moreg_power: float = 8.0
    moreg_divisor: float = 1.0
    mograd: float = 10.0
    codebook_scale: float = 1.0

    NAME: ClassVar[str] = "adacache"
    TRADEOFF: ClassVar = Tradeoff("codebook_scale", 1e-3, 1e3)
    INERT: ClassVar[dict[str, Any] | None] = {"codebook": {0.0: 1, 1.0: 1}}
    EAGER: ClassVar[dict[str, Any]] = {"codebook": {0.2: 4, 1.0: 2}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.moreg_strides = tuple(self.moreg_strides)
        self.moreg_steps = None if self.moreg_steps is None else tuple(self.moreg_steps)  # type: ignore[assignment]
        if isinstance(self.codebook, str):
            if self.codebook not in CODEBOOKS:
                raise ValueError(f"codebook must be one of {', '.join(CODEBOOKS)} or a mapping, not {self.codebook!r}")
        else:
            self.codebook = {float(bound): int(steps) for bound, steps in dict(self.codebook).items()}
            bounds = list(self.codebook)
            if not bounds or bounds != sorted(bounds) or min(self.codebook.values()) < 1:
                raise ValueError(f"codebook needs rising bounds and steps of at least 1, not {self.codebook}")
        if self.metric_block is not None and self.metric_block < 0:
            raise ValueError(f"metric_block must be at least 0, not {self.metric_block}")
        if not self.moreg_strides or min(self.moreg_strides) < 1:
            raise ValueError(f"moreg_strides must be whole numbers from 1, not {self.moreg_strides}")
        if not (self.moreg_scale > 0 and self.moreg_divisor > 0 and self.codebook_scale > 0):
            raise ValueError("moreg_scale, moreg_divisor and codebook_scale must be above 0")

    def measured(self, blocks: list[Block]) -> Block:
        """The block whose attention is measured."""
        if self.metric_block is None:
            blocks = [block for block in blocks if "temporal" in block.parts] or blocks
        index = round(13 / 28 * len(blocks)) if self.metric_block is None else self.metric_block
        if index >= len(blocks):
            raise ValueError(f"metric_block {index} is beyond the last of {len(blocks)} blocks")
        return blocks[index]

    def steps_after(self, measure: float, num_steps: int | None) -> int:
        """Steps from a computed step with this measure to the next computed one."""
        codebook: dict[float, int] = self.codebook
        if isinstance(self.codebook, str):
            codebook = CODEBOOKS[self.codebook][_nearest(CODEBOOKS[self.codebook], num_steps)]
        *bounded, (_, beyond) = codebook.items()
        scaled = measure / self.codebook_scale
        return next((steps for bound, steps in bounded if scaled < bound), beyond if not math.isnan(measure) else 1)

    def in_moreg_window(self, step: int, num_steps: int | None) -> bool:
        """Whether the step, counted from 1, is regularised."""
        if self.moreg_steps is not None:
            return self.moreg_steps[0] <= step <= self.moreg_steps[1]
        made_for = _nearest(MOREG_STEPS, num_steps)
        first, last = (round(end * (num_steps or made_for) / made_for) for end in MOREG_STEPS[made_for])
        return first <= step <= last

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if self.moreg and max(self.moreg_strides) >= anatomy.token_grid(latent_size)[0]:
            raise ValueError(
                f"adacache: moreg_strides {self.moreg_strides} need a longer video than"
                f" {anatomy.token_grid(latent_size)[0]} frames of tokens"
            )

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        block = self.measured(anatomy.blocks(transformer))
        attention, gate, _ = probe_of(block)
        probed = [f"{block.path}.{name}" if name else block.path for name in (attention, gate)]
        return list(dict.fromkeys([*super().modules(anatomy, transformer), block.path, *probed]))

    @property
    def shares_videos(self) -> bool:
        return not self.moreg  # a process may hold parts of frames

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        return self.shares_videos and anatomy.BATCHED is not None  # it measures both branches together

    def arithmetic(self, anatomy: Anatomy, tokens: torch.Tensor, latent_size: Size) -> None:
        residual = tokens.float() * tokens.new_ones(1).float()
        (residual - residual).abs().sum()

    def rule(self) -> AdaptiveCaching:
        return AdaptiveCaching(self)


@dataclass
class Sums:
    """L1 norms by quantity, summed over the guidance branches of one computed step; left on their device."""

    norms: dict[Any, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, quantity: Any, residual: torch.Tensor) -> None:
        """Add the L1 norm of a residual to a quantity."""
        self.norms.setdefault(quantity, []).append(residual.abs().sum())

    def totals(self, processes: Processes) -> dict[Any, float]:
        """The sums so far over all tokens, by quantity; the host waits for the device once."""
        own = torch.stack([norm for norms in self.norms.values() for norm in norms])
        values = iter(processes.sum(own).tolist())
        return {quantity: sum(next(values) for _ in norms) for quantity, norms in self.norms.items()}


class AdaptiveCaching(StepwiseRule):
    """`compute_next_step` and the schedule around it, for one pipeline call."""

    config: AdaCacheConfig

    def __init__(self, config: AdaCacheConfig) -> None:
        super().__init__(config)
        self.block: Block | None = None
        self.residuals = KeptTensors()  # branch -> its attention residual at the last computed step
        self.gate: torch.Tensor | None = None
        self.tokens = 0  # of the video, that this process holds
        self.computed = 0  # the last computed step
        self.rate = self.last_rate = 1  # steps to the next computed one, now and at the last one
        self.moreg = self.last_moreg = 1.0
        self.sums = Sums()

    def forget_branch(self, name: str) -> None:
        super().forget_branch(name)
        self.residuals.discard(name)

    def change_transformer(self) -> None:
        super().change_transformer()
        self.block, self.gate = None, None
        self.residuals.clear()

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        since = denoiser.index - self.computed
        step.accumulated, step.threshold = float(since), float(self.rate)
        if not (denoiser.must_compute or since >= self.rate or not self.residuals):
            return False
        self.computed, self.last_rate, self.last_moreg, self.sums = denoiser.index, self.rate, self.moreg, Sums()
        return True

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        if self.block is None:
            self.block = self.config.measured(denoiser.blocks)
        attention, gate, place = probe_of(self.block)
        if call.path == self.block.path:
            self.tokens = hidden_of(self.block, call).shape[1]
        if call.path == self.block.path and not gate and not denoiser.reused:
            timestep = call.kwargs.get("temb", call.args[2] if len(call.args) > 2 else None)
            assert timestep is not None
            onload(denoiser.transformer, call.path, alone=True)
            self.gate = (self.block.module.scale_shift_table + timestep.float())[..., place, :]
        output = super().visit(denoiser, call) if denoiser.block_of(call) else call.run()
        if gate and call.path == f"{self.block.path}.{gate}":
            self.gate = output[place]
        elif call.path == f"{self.block.path}.{attention}":
            self._measure(denoiser, output[0] if isinstance(output, tuple) else output)
        return output

    def _measure(self, denoiser: Denoiser, attention: torch.Tensor) -> None:
        """Add this branch's attention residual to the norms of the step."""
        assert self.gate is not None
        gate = self.gate if self.gate.ndim == 3 else self.gate.unsqueeze(1)
        residual = attention[:, : self.tokens].float() * gate.float()
        previous = self.residuals.get(denoiser.branch.name)
        self.residuals[denoiser.branch.name], self.gate = residual, None
        if previous is None:
            return
        self.sums.add("change", residual - previous)
        self.sums.add("before", previous)
        if self.config.moreg:
            _, height, width = denoiser.anatomy.token_grid(denoiser.anatomy.latent_size(denoiser.branch.inputs))
            for stride in self.config.moreg_strides:
                later, earlier = residual[:, stride * height * width :], residual[:, : -stride * height * width]
                self.sums.add(("between", stride), later - earlier)
                self.sums.add(("frames", stride), later)
                self.sums.add(("frames", stride), earlier)

    def observe(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        """After each branch: measure the branches seen so far, and set the step to compute next."""
        if not self.sums.norms:
            return
        totals = self.sums.totals(denoiser.processes)
        measure = _ratio(totals["change"], totals["before"]) / self.last_rate
        if self.config.moreg:
            regularised = self._moreg(denoiser, totals)
            denoiser.step.details["moreg"] = regularised
            measure *= regularised
        denoiser.step.indicator = measure
        self.rate = self.config.steps_after(measure, denoiser.place[1])

    def _moreg(self, denoiser: Denoiser, totals: dict[Any, float]) -> float:
        """The motion factor (1 outside the window), plus how fast it changes per step."""
        config = self.config
        self.moreg = 1.0
        place, total = denoiser.place
        if config.in_moreg_window(place + 1, total):
            strides = config.moreg_strides
            motion = sum(_ratio(totals["between", stride], totals["frames", stride]) for stride in strides)
            motion /= len(strides)
            self.moreg = (motion / config.moreg_scale) ** config.moreg_power / config.moreg_divisor
        return self.moreg + abs(config.mograd * (self.moreg - self.last_moreg) / self.last_rate)


def probe_of(block: Block) -> tuple[str, str, int]:
    """Where to read a block's attention and its gate (see PROBES). Raises ValueError for an unknown class of block."""
    name = type(block.module).__name__
    if name not in PROBES:
        raise ValueError(f"adacache: where to measure the attention of a {name} is not known")
    return PROBES[name]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _nearest(made_for: dict[int, Any], num_steps: int | None) -> int:
    return min(made_for, key=lambda steps: abs(steps - (num_steps or steps)))
