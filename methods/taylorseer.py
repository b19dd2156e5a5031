"""TaylorSeer (Liu et al., "From Reusing to Forecasting", ICCV 2025) and FORA (Selvaraju et al., 2024), per module.

At a fresh step every attention and MLP of every block runs, and its output is kept with its finite differences; in
between each module's output is forecast by a Taylor expansion in steps, and only norms, gates, embeddings and the head
run. FORA is order 0: the last output is reused. The same forecast of the whole prediction, far lighter on memory and
usable with every decision, is `reuse="taylorseer"` of the step-wise methods (engine/reuse.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map

from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser, ModuleCall
from .engine.kept_tensors import KeptTensors
from .engine.method import Cache, Rule, Tradeoff


@dataclass(kw_only=True)
class TaylorSeerConfig(Cache):
    """TaylorSeer as in TaylorSeer-HunyuanVideo and TaylorSeer-Wan2.1 (cache_functions/cache_init.py, mode "Taylor").

    interval: steps from one fresh step to the next (official `fresh_threshold`); 1 never forecasts.
    max_order: order of the expansion (eq. 5 of the paper; official `max_order`).
    protect_first: official `first_enhance`; differences are kept from the last of these steps on, as officially.

    The modules are the official code's: attention after its output projection and before the gate (of video and text),
    cross-attention, MLP (of video and text); a HunyuanVideo single-stream block counts as one (`proj_out`, which ends
    attention and MLP together). Guidance branches share the schedule and keep their own memory: `max_order` + 1 tensors
    for each module and branch, so a 14B model does not fit 80 GB.

    Deviations: a module of which a branch has no memory runs; step 0 is always fresh, even with protect_first=0; the
    official code has no protect_last (0 here). CogVideoX has no official code; its blocks are taken like the others'.
    """

    protect_first: float = 1
    interval: int = 5
    max_order: int = 1

    NAME: ClassVar[str] = "taylorseer"
    APPROACH: ClassVar[str] = "schedule"
    TRADEOFF: ClassVar = Tradeoff("interval", 2, None)
    INERT: ClassVar[dict[str, Any] | None] = {"interval": 1}
    EAGER: ClassVar[dict[str, Any]] = {"interval": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, not {self.interval}")
        if self.max_order < 0:
            raise ValueError(f"max_order must be at least 0, not {self.max_order}")

    @property
    def shares_videos(self) -> bool:
        return True

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        paths: list[str] = []
        for block in anatomy.blocks(transformer):
            if _is_single_stream(block.module):
                paths += [f"{block.path}.{part}" for part in ("attn", "proj_mlp", "proj_out")]
            else:
                paths += [path for parts in block.parts.values() for path in parts]
        return paths

    def rule(self) -> TaylorForecast:
        return TaylorForecast(self)


@dataclass(kw_only=True)
class ForaConfig(TaylorSeerConfig):
    """FORA: the outputs of attention and MLP are reused between fresh steps, `interval` apart.

    interval: 5 is what TaylorSeer's tables use for FORA on video; FORA itself was published on images (DiT, 3).

    Deviations: fresh steps are counted from the first step, as TaylorSeer's repository does; FORA's own code
    (prathebaselva/FORA, src/models.py) counts to the last, which it thus always computes: protect_last=1 does that.
    """

    max_order: int = 0

    NAME: ClassVar[str] = "fora"
    TRADEOFF: ClassVar = Tradeoff("interval", 2, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_order:
            raise ValueError("fora is max_order=0; use taylorseer for higher orders")


class TaylorForecast(Rule):
    """`cal_type`, `derivative_approximation` and `taylor_formula` of the official code, for one pipeline call."""

    def __init__(self, config: TaylorSeerConfig) -> None:
        self.config = config
        self.last_fresh: int | None = None
        self.fresh = True
        self.seen = -1  # the step that `fresh` was decided for
        self.memory = KeptTensors(config.kept)  # (branch, module): step, factors

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if self.seen != denoiser.index:
            self.seen = denoiser.index
            self._decide(denoiser)
        return denoiser.run()

    def forget_branch(self, name: str) -> None:
        self.memory.discard(*[key for key in self.memory if key[0] == name])

    def change_transformer(self) -> None:
        self.memory.clear()

    def _decide(self, denoiser: Denoiser) -> None:
        """Fresh while protected, and each `interval` steps since the last fresh one."""
        step, last = denoiser.step, self.last_fresh
        distance = None if last is None else denoiser.index - last
        self.fresh = denoiser.must_compute or distance is None or distance >= self.config.interval
        step.indicator, step.threshold = None if distance is None else float(distance), float(self.config.interval)
        step.details["fresh"] = self.fresh
        if self.fresh:
            self.last_fresh = denoiser.index

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        key = denoiser.branch.name, call.path
        if _feeds_single_stream(denoiser, call.path):  # only proj_out reads its output
            forecast = not self.fresh and (key[0], call.path.rpartition(".")[0] + ".proj_out") in self.memory
            return _placeholder(denoiser, call) if forecast else call.run()
        if self.fresh or key not in self.memory:
            output = call.run()
            self.memory[key] = denoiser.index, self._differences(denoiser, output, *self.memory.get(key, (0, [])))
            return output
        computed, factors = self.memory[key]
        return _expand(factors, denoiser.index - computed)

    def _differences(self, denoiser: Denoiser, output: Any, before: int, old: list[Any]) -> list[Any]:
        """The output and its finite differences: F' = (F - F_before) / steps, and so on up to `max_order`."""
        factors, steps = [output], denoiser.index - before
        if denoiser.index >= self.config.first_steps(denoiser.num_steps) - 1:
            for k in range(min(self.config.max_order, len(old))):
                factors.append(tree_map(lambda new, earlier: (new - earlier) / steps, factors[k], old[k]))
        return factors


def _expand(factors: list[Any], ahead: int) -> Any:
    """sum of F^(k) ahead^k / k!, leaf by leaf: attention over two streams returns a tuple."""
    return tree_map(
        lambda *orders: sum(value * (ahead**k / math.factorial(k)) for k, value in enumerate(orders)), *factors
    )


def _is_single_stream(block: torch.nn.Module) -> bool:
    return hasattr(block, "proj_mlp") and hasattr(block, "proj_out")


def _feeds_single_stream(denoiser: Denoiser, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return name in ("attn", "proj_mlp") and _is_single_stream(denoiser.transformer.get_submodule(parent))


def _placeholder(denoiser: Denoiser, call: ModuleCall) -> Any:
    """An output of the right shape for a module whose output is not read."""
    if call.path.endswith(".attn"):
        return call.kwargs["hidden_states"], call.kwargs["encoder_hidden_states"]
    tokens, width = call.args[0], denoiser.transformer.get_submodule(call.path).out_features
    return tokens.new_zeros(1).expand(*tokens.shape[:-1], width)
