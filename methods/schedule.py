"""Controls that decide without measuring: no cache, fewer steps, uniform skipping, a replayed schedule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    """No cache, but a pipeline that takes `steps` steps whatever it is asked for: the baseline of equal compute.

    It is the pipeline's own call with another `num_inference_steps`, on which more than the schedule may depend (a
    guidance scale that changes from step to step).
    """

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
        original_class = type(pipe)
        pipe.__class__ = shortened = _shortened(original_class, self.steps)

        def undo() -> None:
            shortened.shortened_to = None  # type: ignore[attr-defined]  # for copies made meanwhile, too
            pipe.__class__ = original_class

        return undo

    def check_call(self, anatomy: Anatomy, inputs: Mapping[str, Any], pipe: Any) -> None:
        if pipe is not None and not getattr(pipe, "_is_shortened", False):
            raise ValueError(
                f"fewer_steps shortens the calls of the pipeline it was applied to, and no other {type(pipe).__name__}"
                " and no loop of your own: apply the method to the one that is called"
            )


def _shortened(pipeline_class: type, steps: int) -> type:
    """A class of pipelines whose calls take `steps` steps whatever they are asked for, until `shortened_to` is None."""
    original = pipeline_class.__call__
    signature = inspect.signature(original)
    if "num_inference_steps" not in signature.parameters:
        raise ValueError(f"fewer_steps: a {pipeline_class.__name__} cannot be asked for a number of steps")

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 (it is to be a pipeline's)
        if type(self).shortened_to is None:
            return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments
        for name in ("sigmas", "timesteps"):
            if asked.get(name) is not None:
                raise ValueError(f"fewer_steps cannot shorten a schedule that is given itself, as {name}=…")
        if asked.get("strength", 1) < 1:
            raise ValueError(
                "fewer_steps: a strength below 1 takes a part of the schedule; ask for fewer steps instead"
            )
        check_fits(FewerStepsConfig.NAME, steps, asked["num_inference_steps"])
        asked["num_inference_steps"], self._is_shortened = steps, True
        try:
            return original(*bound.args, **bound.kwargs)
        finally:
            del self._is_shortened

    members = {"shortened_to": steps, "__call__": __call__, "__module__": pipeline_class.__module__}
    return type(pipeline_class.__name__, (pipeline_class,), {**members, "__doc__": pipeline_class.__doc__})


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
