"""Attach a caching method to a diffusers pipeline, reversibly: `with apply(pipe, config) as handle: pipe(...)`.

The unit is the denoising step, not the forward call: a pipeline may call its transformer once per guidance branch,
and one decision holds for all of them. A root hook on the transformer (diffusers' own hook system) sees every call,
sorts it into steps and branches, asks the method's rule once per step, and either computes or reuses. State belongs
to one pipeline call: it is made at the first step and dropped at the end, an exception included.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from .anatomy import Anatomy, Size, anatomy_of
from .frequency import downsample
from .trace import Step, Stopwatch, Trace

HOOK_NAME = "training_free_cache"


class Rule(Protocol):
    """Decides, once per step of one pipeline call, whether the transformer computes. Fills in the step's row."""

    def __call__(self, denoiser: Denoiser, step: Step) -> bool: ...


@dataclass(kw_only=True)
class Method(ABC):
    """Base of every method's config: plain data, checked when made, shared by any number of calls."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1  # raised when the same fields come to mean other pixels
    EXPECTS_REUSE: ClassVar[bool] = True  # a call without one reused step deserves a warning

    @abstractmethod
    def rule(self) -> Rule:
        """A fresh rule for one pipeline call."""

    def patch(self, pipe: Any) -> Callable[[], None]:
        """Change the pipeline beyond the transformer hook; returns the undo."""
        return lambda: None

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:  # noqa: B027  # optional
        """Raise ValueError if the method cannot work on latents of (T, H, W) or in so many steps (None: not known)."""


@dataclass(slots=True)
class Branch:
    """One guidance branch of one call: its latest arguments, those of the step before, its latest prediction."""

    inputs: dict[str, Any]
    last_inputs: dict[str, Any] | None = None
    prediction: torch.Tensor | None = None


@dataclass
class Denoiser:
    """What a rule may see of a running pipeline call, and the one thing it may do: run a trial."""

    anatomy: Anatomy
    forward: Callable[..., Any]
    guidance_scale: Callable[[], float]
    num_steps: int | None
    index: int = -1  # of the current step, counted in this call
    branches: dict[str, Branch] = field(default_factory=dict)
    step: Step = field(default_factory=lambda: Step(-1))

    @property
    def latent_size(self) -> Size:
        """(T, H, W) of the full-size latent."""
        return self.anatomy.latent_size(next(iter(self.branches.values())).inputs)

    def trial(self, size: Size, mode: str, guidance: str = "guided", previous: bool = False) -> torch.Tensor:
        """The prediction for this step's latent resized to `size`; for the step before if `previous`.

        `guidance` is "guided" (all branches, combined as the pipeline will) or "cond" (the conditional branch alone).
        Nothing is cached or counted but the trial itself.
        """
        predictions = {}
        for name, branch in self.branches.items():
            if guidance == "cond" and name in self.anatomy.UNCONDITIONAL:
                continue
            inputs = branch.last_inputs if previous else branch.inputs
            if inputs is None:
                continue
            predictions[name] = _sample(self.forward(**self.anatomy.trial_inputs(inputs, size, mode)))
            self.step.trials += 1
        self.step.trial_size = size
        return self.anatomy.guided(predictions, self.guidance_scale())

    def cached(self, size: Size, mode: str, guidance: str = "guided") -> torch.Tensor:
        """The prediction that reuse would give, resized to `size`."""
        predictions = {
            name: downsample(branch.prediction, size, mode)
            for name, branch in self.branches.items()
            if branch.prediction is not None and (guidance == "guided" or name not in self.anatomy.UNCONDITIONAL)
        }
        return self.anatomy.guided(predictions, self.guidance_scale())


class Recorder:
    """The traces of one handle, one per pipeline call; shared by the hooks of a pipeline's transformers."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.traces: list[Trace] = []

    def step(self, index: int, sigma: float | None) -> Step:
        """Open the row for a step; an index that does not grow means a new pipeline call."""
        if not self.traces or self.traces[-1].complete or index <= self.traces[-1].steps[-1].index:
            self.traces.append(Trace(self.method.NAME))
        row = Step(index, sigma)
        self.traces[-1].steps.append(row)
        return row

    def finish(self) -> None:
        """Close the current trace; say so loudly if the cache never hit or a measure was not a number."""
        if not self.traces or self.traces[-1].complete:
            return
        trace = self.traces[-1]
        trace.complete = True
        if any(step.indicator is not None and math.isnan(step.indicator) for step in trace.steps):
            warnings.warn(f"{trace.method}: the indicator was NaN; those steps were computed", stacklevel=3)
        if self.method.EXPECTS_REUSE and trace.reused == 0:
            warnings.warn(
                f"{trace.method}: the cache never hit, all {len(trace.steps)} steps were computed", stacklevel=3
            )


class StepHook(ModelHook):
    """Root hook of a transformer: sorts calls into steps and branches, decides once per step, computes or reuses."""

    _is_stateful = True

    def __init__(
        self, method: Method, anatomy: Anatomy, recorder: Recorder, guidance_scale: Callable[[], float]
    ) -> None:
        super().__init__()
        self.method, self.anatomy = method, anatomy
        self.recorder, self.guidance_scale = recorder, guidance_scale
        self.contexts = StateManager(BaseState)  # diffusers' cache_context() writes the current context here
        self.stopwatch = Stopwatch()
        self._forget()

    def _forget(self) -> None:
        self.denoiser: Denoiser | None = None
        self.rule: Rule | None = None
        self.seen: set[str] = set()
        self.context: CacheContext | None = None
        self.compute = True

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """diffusers calls this at the end of every pipeline call."""
        self.stopwatch.settle()
        if self.denoiser is not None:
            self.recorder.finish()
        self._forget()
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = self.anatomy.bind(module, args, kwargs)
        started = self.stopwatch.start(inputs["hidden_states"].device)
        try:
            context = self.contexts.context
        except ValueError:  # a pipeline that announces no context: every call is a step
            context = CacheContext("default")
        if self._is_new_call(context, inputs):
            self._forget()
        if self._is_new_step(context):
            self._begin_step(context, inputs)
        self.seen.add(context.name)
        assert self.denoiser is not None
        branch = self.denoiser.branches.setdefault(context.name, Branch(inputs))
        branch.inputs = inputs
        if self.compute or branch.prediction is None:
            branch.prediction = _sample(self.fn_ref.original_forward(**inputs))
            self.denoiser.step.forwards += 1
        self.stopwatch.stop(started, self.denoiser.step)
        return _as_returned(branch.prediction, inputs)

    def _is_new_call(self, context: CacheContext, inputs: Mapping[str, Any]) -> bool:
        """Whether an earlier pipeline call was left unfinished (an exception) and this is the next one."""
        if self.context is None:
            return False
        if context.step_index is not None and self.context.step_index is not None:
            again = context.step_index == self.context.step_index and context.name in self.seen
            return context.step_index < self.context.step_index or again
        assert self.denoiser is not None
        last = next(iter(self.denoiser.branches.values())).inputs
        return bool(inputs["timestep"].max() > last["timestep"].max())

    def _is_new_step(self, context: CacheContext) -> bool:
        if self.context is None or context.name in self.seen:
            return True
        return context.step_index is not None and context.step_index != self.context.step_index

    def _begin_step(self, context: CacheContext, inputs: dict[str, Any]) -> None:
        if self.denoiser is None or self.rule is None:
            self.method.check(self.anatomy, self.anatomy.latent_size(inputs), context.num_inference_steps)
            self.denoiser = Denoiser(
                self.anatomy, self.fn_ref.original_forward, self.guidance_scale, context.num_inference_steps
            )
            self.rule = self.method.rule()
        denoiser = self.denoiser
        denoiser.index += 1
        index = denoiser.index if context.step_index is None else context.step_index
        denoiser.step = self.recorder.step(index, context.sigma)
        for branch in denoiser.branches.values():
            branch.last_inputs = branch.inputs
            branch.inputs = self.anatomy.at_step(branch.inputs, inputs)
        denoiser.branches.setdefault(context.name, Branch(inputs))
        if denoiser.index == 0:
            self._describe(self.recorder.traces[-1], inputs)
        self.context, self.seen = context, set()
        self.compute = True  # stays so if the rule raises
        self.compute = self.rule(denoiser, denoiser.step)
        denoiser.step.action = "full" if self.compute else "reuse"

    def _describe(self, trace: Trace, inputs: Mapping[str, Any]) -> None:
        trace.latent_size = self.anatomy.latent_size(inputs)
        trace.arguments = {name: list(v.shape) for name, v in inputs.items() if isinstance(v, torch.Tensor)}


class Handle:
    """A method attached to a pipeline. Leave the `with` block or call `remove()` to undo everything."""

    def __init__(self, pipe: Any, method: Method) -> None:
        self.method = method
        self._recorder = Recorder(method)
        self._transformers: list[tuple[Any, bool]] = []  # and whether its forward was its class's own
        self._undo_patch: Callable[[], None] = lambda: None
        hooks = [
            (module, StepHook(method, anatomy_of(module), self._recorder, _guidance_of(pipe, name)))
            for name in ("transformer", "transformer_2")
            if (module := getattr(pipe, name, None)) is not None
        ]
        if not hooks:
            raise TypeError(f"{type(pipe).__name__} has no transformer to attach {method.NAME} to")
        for module, _ in hooks:
            if getattr(module, "is_cache_enabled", False):
                raise ValueError("the transformer already has a cache; remove it before applying another")
        for module, hook in hooks:
            self._transformers.append((module, "forward" not in vars(module)))
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK_NAME)
            module._cache_config = method  # so that diffusers refuses a second cache
        self._undo_patch = method.patch(pipe)

    @property
    def traces(self) -> list[Trace]:
        """One trace per pipeline call since the method was applied."""
        return self._recorder.traces

    @property
    def trace(self) -> Trace:
        """The trace of the latest pipeline call. Raises LookupError before the first."""
        if not self.traces:
            raise LookupError("no pipeline call yet: the transformer was not run since apply()")
        return self.traces[-1]

    def remove(self) -> None:
        """Detach; the pipeline is what it was before. Safe to call twice."""
        for module, plain in self._transformers:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            registry.remove_hook(HOOK_NAME, recurse=False)
            if plain and not registry.hooks:
                del module.forward  # the class's own again
            module.__dict__.pop("_cache_config", None)  # the class says None
        self._transformers = []
        self._undo_patch()
        self._undo_patch = lambda: None

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def apply(pipe: Any, method: Method) -> Handle:
    """Attach `method` to a diffusers pipeline; every later call of the pipeline uses it until the handle is removed.

    Apply before `enable_model_cpu_offload()`, which otherwise drops the hook after the first video.
    Raises TypeError for an unsupported pipeline and ValueError if its transformer already has a cache.
    """
    return Handle(pipe, method)


def _guidance_of(pipe: Any, name: str) -> Callable[[], float]:
    """Reads the guidance scale of the running call (Wan2.2's second transformer may have its own)."""
    second = name == "transformer_2"

    def scale() -> float:
        value = getattr(pipe, "_guidance_scale_2", None) if second else None
        return float(value if value is not None else pipe.guidance_scale)

    return scale


def _sample(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output.sample


def _as_returned(prediction: torch.Tensor, inputs: Mapping[str, Any]) -> Any:
    if inputs.get("return_dict", True):
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)
    return (prediction,)
