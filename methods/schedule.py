"""Controls that decide without looking: no cache, fewer steps, uniform skipping, a replayed schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .anatomy import Anatomy, Size
from .denoiser import Denoiser
from .method import Method, StepwiseCache, StepwiseRule
from .trace import Step


@dataclass(kw_only=True)
class NoCacheConfig(Method):
    """The reference: every step computed, only the trace is taken."""

    NAME: ClassVar[str] = "none"
    INERT: ClassVar = {}
    EXPECTS_REUSE: ClassVar[bool] = False


@dataclass(kw_only=True)
class FewerStepsConfig(Method):
    """No cache, but a schedule of `steps` steps whatever the pipeline is asked for: equal compute, honestly spent."""

    steps: int = 25

    NAME: ClassVar[str] = "fewer_steps"
    EAGER: ClassVar = {"steps": 6}
    EXPECTS_REUSE: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_budget(self.steps)

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        _check_fits(self.NAME, self.steps, num_steps)

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
class UniformConfig(StepwiseCache):
    """Compute `steps` evenly spaced steps, the first included, and reuse at the others."""

    steps: int = 25

    NAME: ClassVar[str] = "uniform"
    INERT: ClassVar = {"steps": 12}
    EAGER: ClassVar = {"steps": 6}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_budget(self.steps)

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None:
            raise ValueError(f"{self.NAME}: this pipeline does not announce its number of steps")
        _check_fits(self.NAME, self.steps, num_steps)

    def rule(self) -> StepwiseRule:
        return _Uniform(self)


class _Uniform(StepwiseRule):
    config: UniformConfig

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        assert denoiser.num_steps is not None
        # step i is computed when i * steps / total passes a whole number
        return denoiser.must_compute or step.index * self.config.steps % denoiser.num_steps < self.config.steps


@dataclass(kw_only=True)
class ReplayConfig(StepwiseCache):
    """Compute exactly the steps told: a schedule recorded by another method, or one of your own.

    actions: one letter a step, "F" to compute and "r" to reuse, as in a record's trace.
    """

    actions: str = ""

    NAME: ClassVar[str] = "replay"
    INERT: ClassVar = {"actions": "F" * 12}
    EAGER: ClassVar = {"actions": "FFFrFrrFrrrF"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.actions or set(self.actions) - {"F", "r"}:
            raise ValueError(f"actions must be letters F (compute) and r (reuse), one a step, not {self.actions!r}")
        if self.actions[0] != "F":
            raise ValueError("actions must begin with F: there is nothing to reuse at the first step")

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is not None and num_steps != len(self.actions):
            raise ValueError(f"replay: {len(self.actions)} actions for {num_steps} steps")

    def rule(self) -> StepwiseRule:
        return _Replay(self)


class _Replay(StepwiseRule):
    config: ReplayConfig

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        return denoiser.must_compute or self.config.actions[step.index] == "F"


def _check_budget(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")


def _check_fits(name: str, steps: int, num_steps: int | None) -> None:
    if num_steps is not None and steps > num_steps:
        raise ValueError(f"{name}: {steps} computed steps are more than the {num_steps} asked for")
