"""Controls that decide without measuring: no cache, fewer steps, uniform skipping, a replayed schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.method import Method, StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step


@dataclass(kw_only=True)
class NoCacheConfig(Method):
    """The reference: every step is computed, and only the trace recorded."""

    NAME: ClassVar[str] = "none"
    INERT: ClassVar = {}
    EXPECTS_REUSE: ClassVar[bool] = False

    @property
    def shares_videos(self) -> bool:
        return True

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        return True


@dataclass(kw_only=True)
class FewerStepsConfig(Method):
    """No cache, but a schedule of `steps` steps whatever the pipeline is asked for: the baseline of equal compute."""

    steps: int = 25

    NAME: ClassVar[str] = "fewer_steps"
    TRADEOFF: ClassVar = Tradeoff("steps", 1, None, more_is_faster=False)
    EAGER: ClassVar = {"steps": 6}
    EXPECTS_REUSE: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        check_fits(self.NAME, self.steps, num_steps)

    @property
    def shares_videos(self) -> bool:
        return True

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        return True

    def patch(self, pipe: Any) -> Callable[[], None]:
        scheduler, original_class = pipe.scheduler, type(pipe.scheduler)
        scheduler.__class__ = shortened = _shortened(original_class, self.steps)

        def undo() -> None:
            shortened.shortened_to = None  # type: ignore[attr-defined]  # for copies made meanwhile, too
            scheduler.__class__ = original_class

        return undo

    def check_call(self, anatomy: Anatomy, inputs: Mapping[str, Any], pipe: Any) -> None:
        if pipe is not None and getattr(type(pipe.scheduler), "shortened_to", None) != self.steps:
            raise ValueError(
                f"fewer_steps was applied to another scheduler than the one of the {type(pipe).__name__} that is"
                " calling: remove() the handle, and apply it to this pipeline with this scheduler"
            )


def _shortened(scheduler_class: type, steps: int) -> type:
    """A scheduler class that takes `steps` steps whatever it is asked for, as long as `shortened_to` is not None.

    A class, not a replaced method: a copy of the scheduler then sets its own timesteps, not the original's.
    """

    @functools.wraps(scheduler_class.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> None:
        budget, sigmas = type(self).shortened_to, kwargs.get("sigmas")
        if budget is not None and sigmas is not None:  # a pipeline with its own noise levels: the same curve
            asked_at = np.arange(len(sigmas)) / len(sigmas)
            kwargs["sigmas"] = np.interp(np.arange(budget) / budget, asked_at, sigmas).tolist()
        elif budget is not None:
            num_inference_steps = budget
        return scheduler_class.set_timesteps(self, num_inference_steps, *args, **kwargs)  # type: ignore[attr-defined]

    members = {
        "shortened_to": steps,
        "set_timesteps": set_timesteps,
        "__module__": scheduler_class.__module__,
        "__doc__": scheduler_class.__doc__,
    }
    return type(scheduler_class.__name__, (scheduler_class,), members)


@dataclass(kw_only=True)
class UniformConfig(StepwiseCache):
    """Compute `steps` evenly spaced steps, the first included, and reuse at the others."""

    steps: int = 25

    NAME: ClassVar[str] = "uniform"
    APPROACH: ClassVar[str] = "schedule"
    TRADEOFF: ClassVar = Tradeoff("steps", 1, None, more_is_faster=False)
    INERT: ClassVar = {"steps": 12}
    EAGER: ClassVar = {"steps": 6}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is None:
            raise ValueError(f"{self.NAME}: this pipeline does not announce its number of steps")
        check_fits(self.NAME, self.steps, num_steps)

    def rule(self) -> StepwiseRule:
        return _Uniform(self)


class _Uniform(StepwiseRule):
    config: UniformConfig

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        assert denoiser.num_steps is not None
        return denoiser.must_compute or evenly(self.config.steps, denoiser.num_steps)[step.index] == "F"


def evenly(steps: int, num_steps: int) -> str:
    """The letters of evenly spaced computed steps: step i is one when i * steps / num_steps passes a whole number."""
    return "".join("F" if index * steps % num_steps < steps else "r" for index in range(num_steps))


@dataclass(kw_only=True)
class ReplayConfig(StepwiseCache):
    """Compute exactly the given steps: a schedule recorded by another method, or one of your own.

    actions: one letter a step, "F" to compute and "r" to reuse, as in a record's trace.
    """

    actions: str = ""

    NAME: ClassVar[str] = "replay"
    APPROACH: ClassVar[str] = "schedule"
    INERT: ClassVar = {"actions": "F" * 12}
    EAGER: ClassVar = {"actions": "FFFrFrrFrrrF"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_actions(self.actions)

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        if num_steps is not None and num_steps != len(self.actions):
            raise ValueError(f"replay: {len(self.actions)} actions for {num_steps} steps")

    def rule(self) -> StepwiseRule:
        return _Replay(self)


class _Replay(StepwiseRule):
    config: ReplayConfig

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        if step.index >= len(self.config.actions):
            raise ValueError(f"replay: {len(self.config.actions)} actions, but the pipeline goes on")
        return denoiser.must_compute or self.config.actions[step.index] == "F"


def check_actions(actions: str, name: str = "actions") -> None:
    """Raise ValueError for what is no schedule of letters."""
    if not actions or set(actions) - {"F", "r"}:
        raise ValueError(f"{name} must be letters F (compute) and r (reuse), one a step, not {actions!r}")
    if actions[0] != "F":
        raise ValueError(f"{name} must begin with F: there is nothing to reuse at the first step")


def check_steps(steps: int) -> None:
    """Raise ValueError for a number of computed steps below 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")


def check_fits(name: str, steps: int, num_steps: int | None) -> None:
    """Raise ValueError if more steps are to be computed than there are."""
    if num_steps is not None and steps > num_steps:
        raise ValueError(f"{name}: {steps} computed steps are more than the {num_steps} asked for")
