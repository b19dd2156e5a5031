"""What a reused step returns: nine strategies, usable with every step-wise decision.

The paper's Table 4 compares the first three and finds little difference; "extrapolate" is ours; the published forecasts
of other methods are in forecast.py. All but "stack" replace the whole transformer, so a reused step costs nothing. Each
keeps, per guidance branch, what it needs from computed steps (kept.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from .denoiser import Denoiser, ModuleCall
from .forecast import Chebyshev, Hermite, MeanVelocity, SecondDifference
from .kept import SAME_LEVEL, Reuse, latent_of, level_of, residual_of
from .kept_tensors import KeptTensors


class Prediction(Reuse):
    """F_i = F_a: the last computed prediction (section 4.3)."""

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        self.memory[denoiser.branch.name] = prediction

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        return self.memory[denoiser.branch.name]


class Residual(Reuse):
    """F_i = Z_i + (F_a - Z_a): the residual R = F - Z is kept (Table 4; EasyCache's own)."""

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        self.memory[denoiser.branch.name] = residual_of(denoiser, prediction, "residual")

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        return latent_of(denoiser) + self.memory[denoiser.branch.name]


@dataclass
class TaylorSeer(Reuse):
    """Taylor expansion in steps from finite differences of computed predictions (Liu et al., TaylorSeer, eq. 5)."""

    order: int = 1

    def change_transformer(self) -> None:
        self.memory = {name: (None, factors[:1]) for name, (_, factors) in self.memory.items()}

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        index, (before, old) = denoiser.index, self.memory.get(denoiser.branch.name, (None, []))
        factors = [prediction]
        for k in range(min(self.order, len(old)) if before is not None else 0):
            factors.append((factors[k] - old[k]) / (index - before))
        self.memory[denoiser.branch.name] = index, factors

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        computed, factors = self.memory[denoiser.branch.name]
        ahead = denoiser.index - (computed or 0)
        return sum(factor * (ahead**k / math.factorial(k)) for k, factor in enumerate(factors[1:], 1)) + factors[0]


@dataclass
class Extrapolate(Reuse):
    """F_i = F_a + d (F_a - F_b) (s_i - s_a) / (s_a - s_b): a damped line in sigma through two computed steps.

    A level that is visited twice (by Heun's and other solvers of second order), or one within half a training step of
    it, replaces the first visit: one point defines no line.
    """

    damping: float = 1.0

    NEEDS_NOISE_LEVEL: ClassVar[bool] = True

    def change_transformer(self) -> None:
        self.memory = {name: [(None, prediction)] for name, (*_, (_, prediction)) in self.memory.items()}

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        sigma, visits = level_of(denoiser, "extrapolate"), self.memory.get(denoiser.branch.name, [])
        last = [visit for visit in visits if visit[0] is not None and abs(visit[0] - sigma) > SAME_LEVEL][-1:]
        self.memory[denoiser.branch.name] = [*last, (sigma, prediction)]

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        *before, (sigma_a, a) = self.memory[denoiser.branch.name]
        if not before:
            return a
        sigma_b, b = before[0]
        along = self.damping * (level_of(denoiser, "extrapolate") - sigma_a) / (sigma_a - sigma_b)
        return a + along * (a - b)


Streams = tuple[torch.Tensor, torch.Tensor | None]  # tokens of the video, and of the second stream


@dataclass
class StackResidual(Reuse):
    """What the block stack added to its input is added again; embeddings and head run (TeaCache and its family).

    With two streams only the video's residual is kept, unless there is a head for the other one too (LTX-2's sound).
    """

    kept: str = "exact"

    NEEDS_BLOCKS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.memory: KeptTensors = KeptTensors(self.kept)
        self.second: KeptTensors = KeptTensors(self.kept)  # the second stream's, where it has a head
        self._running: Streams | None = None  # input of the block stack while it computes

    def change_transformer(self) -> None:
        self.memory.clear()
        self.second.clear()

    def forget_branch(self, name: str) -> None:
        super().forget_branch(name)
        self.second.discard(name)

    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        """The residual was stored at the last block; of a branch that another process computes, only that it was."""
        if denoiser.branch.name not in self.memory:
            self.memory[denoiser.branch.name] = None

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        return denoiser.run()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        first, last = denoiser.blocks[0], denoiser.blocks[-1]
        block = denoiser.block_of(call)
        assert block is not None
        hidden, name = hidden_of(block, call), denoiser.branch.name
        second = text_of(block, call) if denoiser.anatomy.TWO_HEADS else None
        if denoiser.reused:
            residual = self.residual(denoiser) if call.path == first.path else None
            if residual is None:
                return replaced(block, call, hidden)
            return replaced(block, call, hidden + residual, None if second is None else second + self.second[name])
        if call.path == first.path:
            self._running = hidden, second
        output = call.run()
        if call.path == last.path:
            assert self._running is not None
            started, second_started = self._running
            self.keep(denoiser, video_of(block, output) - started)
            if second_started is not None:
                self.second[name] = output[block.metadata.return_encoder_hidden_states_index] - second_started
            self._running = None
        return output

    def keep(self, denoiser: Denoiser, residual: torch.Tensor) -> None:
        """Remember what the stack has added for the current branch."""
        self.memory[denoiser.branch.name] = residual

    def residual(self, denoiser: Denoiser) -> torch.Tensor | None:
        """What is added in the stack's place; None for a branch that another process computes."""
        return self.memory[denoiser.branch.name]


def hidden_of(block: Any, call: ModuleCall) -> torch.Tensor:
    """The video tokens (B, tokens, width) a block was called with."""
    metadata = block.metadata
    return metadata._get_parameter_from_args_kwargs(metadata.hidden_states_argument_name, call.args, call.kwargs)


def text_of(block: Any, call: ModuleCall) -> torch.Tensor:
    """The text tokens (B, tokens, width) a block was called with."""
    metadata = block.metadata
    return metadata._get_parameter_from_args_kwargs(
        metadata.encoder_hidden_states_argument_name, call.args, call.kwargs
    )


def video_of(block: Any, output: Any) -> torch.Tensor:
    """The video tokens (B, tokens, width) in what a block returned."""
    return output[block.metadata.return_hidden_states_index] if isinstance(output, tuple) else output


def replaced(block: Any, call: ModuleCall, hidden: torch.Tensor, text: torch.Tensor | None = None) -> Any:
    """What a block would return with these tokens; the text tokens it was called with unless `text` is given."""
    metadata = block.metadata
    if metadata.return_encoder_hidden_states_index is None:
        return hidden
    answer: list[Any] = [None, None]
    answer[metadata.return_hidden_states_index] = hidden
    answer[metadata.return_encoder_hidden_states_index] = text_of(block, call) if text is None else text
    return tuple(answer)


STRATEGIES: dict[str, type[Reuse]] = {
    "prediction": Prediction,
    "residual": Residual,
    "taylorseer": TaylorSeer,
    "extrapolate": Extrapolate,
    "stack": StackResidual,
    "chebyshev": Chebyshev,
    "hermite": Hermite,
    "second_difference": SecondDifference,
    "mean_velocity": MeanVelocity,
}


def strategy(name: str, damping: float, order: int, blend: float = 1.0, kept: str = "exact") -> Reuse:
    """A fresh memory for one pipeline call, with those of the options that the strategy has."""
    options = {"damping": damping, "order": order, "blend": blend, "kept": kept}
    known = {field.name for field in fields(STRATEGIES[name])}
    return STRATEGIES[name](**{option: value for option, value in options.items() if option in known})  # type: ignore[arg-type]
