"""What a strategy of reuse keeps of computed steps in one pipeline call, by guidance branch: the base of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .denoiser import Denoiser, ModuleCall

SAME_LEVEL = 1 / 2000  # difference of noise levels (`clock.noise_levels`) below which two are one


@dataclass
class Reuse(ABC):
    """The memory of one pipeline call, by guidance branch."""

    memory: MutableMapping[str, Any] = field(default_factory=dict)

    NEEDS_BLOCKS: ClassVar[bool] = False  # it replaces the blocks, one by one; embeddings and head run
    NEEDS_NOISE_LEVEL: ClassVar[bool] = False

    def ready(self, denoiser: Denoiser) -> bool:
        """Whether the current branch has been stored once."""
        return denoiser.branch.name in self.memory

    @abstractmethod
    def store(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        """Remember what the current branch computed at this step."""

    @abstractmethod
    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        """Answer for the current branch at this step."""

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        """Answer the call of a block, where `NEEDS_BLOCKS`."""
        return call.run()

    def forget_branch(self, name: str) -> None:
        """Drop what is kept of a branch."""
        self.memory.pop(name, None)

    def change_transformer(self) -> None:  # noqa: B027
        """Another transformer takes over: keep whole predictions, but no differences between the two.

        A prediction, or what it adds to its input, belongs to the same denoising whichever transformer made it.
        """


def latent_of(denoiser: Denoiser) -> torch.Tensor:
    """The current branch's latent, in the form of a prediction."""
    return denoiser.anatomy.as_prediction(denoiser.branch.inputs["hidden_states"])


def residual_of(denoiser: Denoiser, prediction: torch.Tensor, reuse: str) -> torch.Tensor:
    """A prediction minus the latent it was computed for. Raises ValueError if their shapes differ."""
    latent = latent_of(denoiser)
    if latent.shape != prediction.shape:
        raise ValueError(
            f"reuse={reuse} needs a prediction of the latent's shape, not {tuple(prediction.shape)} for"
            f" {tuple(latent.shape)}"
        )
    return prediction - latent


def level_of(denoiser: Denoiser, reuse: str) -> float:
    """The step's noise level. Raises ValueError where it is not known."""
    if denoiser.step.sigma is None:
        raise ValueError(f"reuse={reuse} needs the noise level of each step, which this pipeline does not give")
    return denoiser.step.sigma
