"""FasterCache (Lv et al., ICLR 2025): attention is extrapolated, one guidance branch estimated.

*Dynamic feature reuse*: between computed steps an attention module returns c1 + (c1 - c0) w, from its last two computed
outputs c0 and c1. *CFG-Cache*: at a full step the low and the high frequencies of "unconditional minus conditional" are
kept; at a skipped step only the conditional branch runs, and the kept difference, scaled up each time, gives the other.
Nothing is measured: the step's number decides. Schedules: Vchitect/FasterCache, scripts/*/fastercache_sample_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import Cache, Rule, Tradeoff
from .engine.trace import Step
from .frequency import low_passed

LEAD, OTHER = "lead", "other"  # the guidance branch that always runs, and the one that CFG-Cache estimates


@dataclass(kw_only=True)
class FasterCacheConfig(Cache):
    """FasterCache with CogVideoX's schedule; the authors published none for Wan or HunyuanVideo.

    Steps are numbered from 1.
    steps: the number of steps that the settings below are meant for.
    scale_to_steps: if the pipeline takes another number, stretch starts, ends and the ramp to it; "every" and "phase"
        stay. Our addition: the official numbers are for one length only.
    attention_start: first step whose self-attention may be extrapolated.
    attention_every, attention_phase: attention is computed where `step % every == phase`; every=1 always computes.
    attention_weight: w; 0 is plain reuse.
    attention_ramp: if not 0, w grows as `attention_weight * (step - attention_start + 1) / attention_ramp`.
    match_batch: after a step that ran one guidance branch alone, compute attention at the next step that runs both. If
        false, the conditional branch's attention is used for both, as in Open-Sora's and Vchitect's scripts.
    cfg_start, cfg_every: from this step on one branch is estimated, except at multiples of `cfg_every`; 1 never does.
    low_weight, low_until: factor on the low frequencies at each skipped step up to this one.
    high_weight, high_from: factor on the high frequencies at each skipped step from this one.
    radius_ratio: radius of the low-pass disk as a share of min(H, W), rounded down to whole bins.
    branch: "fixed" runs the conditional branch, as the paper says. "as_published" runs the first half of a batch, which
        on CogVideoX is the unconditional one: a defect of the official script (its issue 13). Families with another
        order, or with a call for each branch, do not have it.

    Without classifier-free guidance (HunyuanVideo's is embedded, unless true CFG is asked for) there is no CFG-Cache
    and only attention is extrapolated.

    Deviations from the official code: differences are kept as pixels and not as spectra, which is equivalent since the
    transform is linear; they are kept from the first step, not from shortly before they are needed.
    Latte's script (fastercache_sample_latte.py) runs the conditional half of its batch (`[1:2]`, :90) but gives it the
    unconditional half's kept attention (`[:f]`, :420) at ten of 50 steps; here each branch has its own.
    """

    steps: int = 50
    scale_to_steps: bool = True
    attention_start: int = 18
    attention_every: int = 3
    attention_phase: int = 0
    attention_weight: float = 0.3
    attention_ramp: int = 0
    match_batch: bool = True
    cfg_start: int = 18
    cfg_every: int = 5
    low_weight: float = 1.1
    low_until: int = 40
    high_weight: float = 1.1
    high_from: int = 30
    radius_ratio: float = 0.2
    branch: str = "fixed"

    NAME: ClassVar[str] = "fastercache"
    APPROACH: ClassVar[str] = "attention"
    TRADEOFF: ClassVar = Tradeoff("cfg_every", 2, None)
    INERT: ClassVar = {"attention_every": 1, "attention_phase": 0, "cfg_every": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "attention_start", "attention_every", "cfg_start", "cfg_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.attention_phase < self.attention_every:
            raise ValueError(f"attention_phase must be in [0, attention_every), not {self.attention_phase}")
        if self.attention_ramp < 0:
            raise ValueError(f"attention_ramp must be at least 0, not {self.attention_ramp}")
        if not 0 < self.radius_ratio <= 1:
            raise ValueError(f"radius_ratio must be in (0, 1], not {self.radius_ratio}")
        if self.branch not in ("fixed", "as_published"):
            raise ValueError(f"branch must be fixed or as_published, not {self.branch!r}")

    def for_backbone(self, anatomy: Anatomy) -> FasterCacheConfig:
        if self.branch == "as_published" and anatomy.BATCHED != "uncond_first":
            raise ValueError(
                "fastercache: branch=as_published reproduces a defect where the unconditional branch comes first in the"
                f" batch; it does not on {anatomy.family}, use branch=fixed"
            )
        return self

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None and self.scale_to_steps:
            raise ValueError(
                "fastercache: this pipeline does not say how many steps there will be; set scale_to_steps=false and"
                " steps as the schedule has it"
            )

    def check_call(self, anatomy: Anatomy, inputs: Mapping[str, Any], pipe: Any) -> None:
        if anatomy.further_guidance:
            raise ValueError(
                "fastercache leaves out the unconditional branch, and knows classifier-free guidance alone; this"
                f" {type(pipe).__name__} also has {', '.join(anatomy.further_guidance)}: switch it off"
            )

    @property
    def shares_videos(self) -> bool:
        return True

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        return False  # it leaves out a branch itself

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        if self.attention_every == 1:
            return []
        kinds = ("self", "temporal")
        return [path for block in anatomy.blocks(transformer) for kind in kinds for path in block.parts.get(kind, ())]

    def rule(self) -> Rule:
        return _FasterCache(self)


class _FasterCache(Rule):
    def __init__(self, config: FasterCacheConfig) -> None:
        self.config = config
        self._step: Step | None = None
        self._time = 0.0  # the step's number on the schedule's own scale
        self._lead_only = False  # the other branch is estimated at this step
        self._lead: torch.Tensor | None = None  # this step's prediction of the leading branch
        self._low: torch.Tensor | None = None  # low frequencies of other minus lead
        self._high: torch.Tensor | None = None  # and the high ones
        self._extrapolate = False  # attention is not computed at this step
        self._keeps = False  # attention computed at this step may be needed at a later one
        self._newest_whole = True  # the last step that computed attention ran both branches
        self._parts: tuple[str, ...] = ()  # guidance branches of the run in progress, in the order of its batch
        self._outputs = KeptTensors(config.kept)  # (module, part) -> [c0, c1]

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if self._step is not denoiser.step:
            self._begin(denoiser)
        if denoiser.batched:
            return self._predict_both(denoiser)
        if not denoiser.anatomy.is_unconditional(denoiser.branch.name):
            self._lead = self._run(denoiser, (LEAD,))
            return self._lead
        if self._lead_only and self._lead is not None:
            return self._estimated(self._lead)
        other = self._run(denoiser, (OTHER,))
        if self._lead is not None:  # a pipeline that calls the unconditional branch first has no CFG-Cache
            self._keep_difference(self._lead, other)
        return other

    def _begin(self, denoiser: Denoiser) -> None:
        """Decide what this step computes."""
        config, number = self.config, denoiser.step.index + 1
        place, total = denoiser.place
        stretch = config.steps / total if config.scale_to_steps and total else 1
        self._step, self._lead, self._time = denoiser.step, None, (place + 1) * stretch
        may_skip = not denoiser.must_compute
        self._lead_only = may_skip and self._time >= config.cfg_start and number % config.cfg_every > 0
        self._lead_only = self._lead_only and self._low is not None
        due = number % config.attention_every == config.attention_phase
        fits = self._newest_whole or self._lead_only or not config.match_batch
        self._extrapolate = may_skip and self._time >= config.attention_start and not due and fits
        self._keeps = (place + 3) * stretch >= config.attention_start and not denoiser.is_last_step
        if not self._extrapolate:
            self._newest_whole = not self._lead_only
        reused = {"attention": self._extrapolate, "guidance": self._lead_only}
        denoiser.step.details["reused"] = [name for name, is_reused in reused.items() if is_reused]

    def forget_branch(self, name: str) -> None:
        self.change_transformer()  # alone, the leading branch stood for both

    def change_transformer(self) -> None:
        self._low, self._high = None, None
        self._outputs.clear()

    def _predict_both(self, denoiser: Denoiser) -> torch.Tensor:
        lead_first = self.config.branch == "as_published" or denoiser.anatomy.BATCHED == "cond_first"
        order = (LEAD, OTHER) if lead_first else (OTHER, LEAD)
        if not self._lead_only:
            prediction = self._run(denoiser, order)
            parts = dict(zip(order, prediction.chunk(2), strict=True))
            self._keep_difference(parts[LEAD], parts[OTHER])
            return prediction
        half = denoiser.anatomy.part_of_batch(denoiser.branch.inputs, first=lead_first)
        lead = self._run(denoiser, (LEAD,), half)
        parts = {LEAD: lead, OTHER: self._estimated(lead)}
        return torch.cat([parts[name] for name in order])

    def _run(self, denoiser: Denoiser, parts: tuple[str, ...], inputs: dict[str, Any] | None = None) -> torch.Tensor:
        self._parts = parts
        return denoiser.run(inputs)

    def _keep_difference(self, lead: torch.Tensor, other: torch.Tensor) -> None:
        difference = other.float() - lead.float()
        self._low = low_passed(difference, self.config.radius_ratio, whole_bins=True)
        self._high = difference - self._low

    def _estimated(self, lead: torch.Tensor) -> torch.Tensor:
        """The other branch's prediction (CFG-Cache); the weights multiply over the skipped steps."""
        assert self._low is not None
        assert self._high is not None
        if self._time <= self.config.low_until:
            self._low = self._low * self.config.low_weight
        if self._time >= self.config.high_from:
            self._high = self._high * self.config.high_weight
        return (lead.float() + self._low + self._high).to(lead.dtype)

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        keys = [(call.path, part) for part in self._parts]
        if self._extrapolate and all(key in self._outputs for key in keys):
            outputs = [_tensorwise(self._extrapolated, *self._outputs[key]) for key in keys]
            return outputs[0] if len(outputs) == 1 else _tensorwise(lambda *rows: torch.cat(rows), *outputs)
        output = call.run()
        if not self._keeps:
            self._outputs.discard((call.path, LEAD), (call.path, OTHER))
            return output
        for index, part in enumerate(self._parts):
            rows = output if len(self._parts) == 1 else _tensorwise(lambda x, i=index: x.chunk(2)[i], output)
            latest = self._outputs.pack(rows)
            for owner in (LEAD, OTHER) if self._lead_only else (part,):  # alone, the lead stands for both
                key = call.path, owner
                self._outputs[key] = [self._outputs.packed(key)[-1] if key in self._outputs else latest, latest]
        return output

    def _extrapolated(self, c0: torch.Tensor, c1: torch.Tensor) -> torch.Tensor:
        """Dynamic feature reuse."""
        config = self.config
        ramp = (self._time - config.attention_start + 1) / config.attention_ramp if config.attention_ramp else 1
        return c1 + (c1 - c0) * (config.attention_weight * ramp)


def _tensorwise(function: Callable[..., torch.Tensor], *outputs: Any) -> Any:
    """Apply a function of tensors to module outputs, which may be tuples of tensors (video and text)."""
    if isinstance(outputs[0], tuple):
        return tuple(function(*tensors) for tensors in zip(*outputs, strict=True))
    return function(*outputs)
