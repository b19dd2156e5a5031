"""The interface of a backbone family's module: everything in which families differ, as far as the harness cares.

What methods need to know about the inside of a transformer is in methods/engine/anatomy/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from methods.engine.anatomy import Anatomy

from ..config import Recipe, Sampling

# One narrow attention head: part of every family's NARROW.
HEAD = {"num_attention_heads": 1, "attention_head_dim": 16}


class Family(Protocol):
    """What every family's module defines; `FAMILIES` lists the modules by name."""

    @property
    def PIPELINE(self) -> Any:  # noqa: N802
        """The pipeline's class: from diffusers, or our own in the same style."""

    @property
    def TRANSFORMER(self) -> Any:  # noqa: N802
        """The transformer's class."""

    @property
    def ANATOMY(self) -> Anatomy:  # noqa: N802
        """The anatomy of a transformer with the family's usual patch size."""

    @property
    def SPATIAL(self) -> int:  # noqa: N802
        """Pixels per side of a latent cell."""

    @property
    def TEXT_ENCODERS(self) -> Sequence[tuple[Any, Callable[[], Any], int]]:  # noqa: N802
        """Class, config and number of tokens of each text encoder of the released weights."""

    @property
    def NARROW(self) -> Mapping[str, Any]:  # noqa: N802
        """Config values that make a transformer of the family cheap without changing its blocks or their parts."""

    @property
    def BOUNDARY(self) -> float | None:  # noqa: N802
        """Share of the noise above which the first of two transformers is used; None if there is only one."""

    def load(self, source: str, recipe: Recipe) -> Any:
        """The pipeline with weights from a folder or the hub, at the recipe's dtype."""

    def build(self, recipe: Recipe, device: str) -> Any:
        """The same architecture with random weights and no text encoder."""

    def scheduler(self) -> Any:
        """The scheduler published with the released weights."""

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Set the scheduler's steps as the pipeline's call does."""

    def check(self, sampling: Sampling) -> None:
        """Raise ConfigError for a size that the pipeline would silently change or cannot generate."""

    def latent_size(self, sampling: Sampling) -> tuple[int, int, int]:
        """(T, H, W) of the latent, in cells."""

    def branches(self, recipe: Recipe) -> int:
        """Number of transformer calls per step."""

    def guidance_scale(self, recipe: Recipe) -> float | None:
        """The scale of classifier-free guidance if the pipeline has no such attribute, else None."""

    def arguments(self, recipe: Recipe, transformer: dict[str, Any]) -> dict[str, Any]:
        """Shapes of the tensor arguments of one call of a transformer with this config."""

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """The pipeline call's arguments except prompt and noise."""

    def embed(self, pipe: Any, prompt: str, recipe: Recipe) -> dict[str, torch.Tensor]:
        """Prompt embeddings as pipeline arguments."""

    def decode(self, pipe: Any, latents: torch.Tensor, recipe: Recipe) -> np.ndarray:
        """Final latents to frames (frames, height, width, 3) in uint8."""
