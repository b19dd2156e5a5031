"""Controls that decide without looking: no cache, fewer steps, uniform skipping."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .anatomy import Anatomy, Size
from .core import Denoiser, Method, Rule
from .trace import Step


def _always(denoiser: Denoiser, step: Step) -> bool:
    return True


@dataclass(kw_only=True)
class NoCacheConfig(Method):
    """The reference: every step computed, only the trace is taken."""

    NAME: ClassVar[str] = "none"
    EXPECTS_REUSE: ClassVar[bool] = False

    def rule(self) -> Rule:
        return _always


@dataclass(kw_only=True)
class _StepBudget(Method):
    """A method told how many steps to compute."""

    steps: int = 25

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        if num_steps is not None and self.steps > num_steps:
            raise ValueError(f"{self.NAME}: {self.steps} computed steps are more than the {num_steps} asked for")


@dataclass(kw_only=True)
class FewerStepsConfig(_StepBudget):
    """No cache, but a schedule of `steps` steps whatever the pipeline is asked for: equal compute, honestly spent."""

    NAME: ClassVar[str] = "fewer_steps"
    EXPECTS_REUSE: ClassVar[bool] = False

    def rule(self) -> Rule:
        return _always

    def patch(self, pipe: Any) -> Callable[[], None]:
        scheduler = pipe.scheduler
        original = scheduler.set_timesteps

        @functools.wraps(original)
        def set_timesteps(num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> None:
            sigmas = kwargs.get("sigmas")
            if sigmas is not None:  # a pipeline with its own noise levels: the same curve, fewer points
                asked_at = np.arange(len(sigmas)) / len(sigmas)
                kwargs["sigmas"] = np.interp(np.arange(self.steps) / self.steps, asked_at, sigmas).tolist()
                return original(num_inference_steps, *args, **kwargs)
            return original(self.steps, *args, **kwargs)

        scheduler.set_timesteps = set_timesteps
        return lambda: scheduler.__dict__.pop("set_timesteps", None)


@dataclass(kw_only=True)
class UniformConfig(_StepBudget):
    """Compute `steps` evenly spaced steps, the first included, and reuse the latest prediction at the others."""

    NAME: ClassVar[str] = "uniform"

    def rule(self) -> Rule:
        def computed(denoiser: Denoiser, step: Step) -> bool:
            if denoiser.num_steps is None:
                raise ValueError("uniform: this pipeline does not announce its number of steps")
            # step i is computed when i * steps / total passes a whole number
            return denoiser.index * self.steps % denoiser.num_steps < self.steps

        return computed
