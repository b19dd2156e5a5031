"""Attach a caching method to a diffusers pipeline, reversibly: `with apply(pipe, config) as handle: pipe(...)`.

The unit is the denoising step, not the forward call: a pipeline may call its transformer once per guidance branch. A
root hook on the transformer (diffusers' own hook system) sees every call, sorts it into steps and branches, and lets
the method's rule answer it. State belongs to one pipeline call: it is made at the first step and dropped at the end, an
exception included.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from .anatomy import Anatomy, anatomy_of
from .denoiser import Branch, Denoiser, ModuleCall
from .method import Cache, Method, Rule
from .trace import Step, Stopwatch, Trace

HOOK_NAME = "training_free_cache"


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
        if self.method.EXPECTS_REUSE and trace.reused + trace.partial == 0:
            warnings.warn(
                f"{trace.method}: the cache never hit, all {len(trace.steps)} steps were computed", stacklevel=3
            )


class Clock:
    """What a pipeline says about its running call beyond the cache context; each may be None.

    guidance: overrides the pipeline's own scale, for pipelines that keep theirs to themselves.
    """

    def __init__(self, pipe: Any, name: str, guidance: float | None) -> None:
        self._pipe, self._second, self._guidance = pipe, name == "transformer_2", guidance

    def guidance_scale(self) -> float:
        """The classifier-free guidance scale (Wan2.2's second transformer may have its own)."""
        if self._guidance is not None:
            return self._guidance
        if hasattr(self._pipe, "_guidance_scale") and type(self._pipe).__name__.startswith("HunyuanVideo"):
            raise ValueError(
                "HunyuanVideoPipeline does not tell its true_cfg_scale: give it to apply(…, guidance_scale=…),"
                " or look at the conditional branch alone (guidance=cond)"
            )
        value = getattr(self._pipe, "_guidance_scale_2", None) if self._second else None
        return float(value if value is not None else self._pipe.guidance_scale)

    def num_steps(self, context: CacheContext) -> int | None:
        if context.num_inference_steps is not None or context.name == NO_CONTEXT:
            return context.num_inference_steps
        return getattr(self._pipe, "_num_timesteps", None)

    def sigma(self, context: CacheContext, index: int) -> float | None:
        """The noise level: flow matching's sigma, or the timestep as a share of the training steps."""
        if context.sigma is not None or context.name == NO_CONTEXT:
            return context.sigma
        scheduler = getattr(self._pipe, "scheduler", None)
        if (sigmas := getattr(scheduler, "sigmas", None)) is not None and index < len(sigmas):
            return float(sigmas[index])
        if scheduler is None or index >= len(scheduler.timesteps):
            return None
        return float(scheduler.timesteps[index]) / scheduler.config.num_train_timesteps


NO_CONTEXT = "default"  # our name for calls from a pipeline that announces none


class StepHook(ModelHook):
    """Root hook of a transformer: sorts calls into steps and branches, and lets the rule answer them."""

    _is_stateful = True

    def __init__(self, method: Method, anatomy: Anatomy, recorder: Recorder, clock: Clock) -> None:
        super().__init__()
        self.method, self.anatomy, self.recorder, self.clock = method, anatomy, recorder, clock
        self.contexts = StateManager(BaseState)  # diffusers' cache_context() writes the current context here
        self.stopwatch = Stopwatch()
        self._forget()

    def _forget(self) -> None:
        self.denoiser: Denoiser | None = None
        self.rule: Rule | None = None
        self.seen: set[str] = set()
        self.context: CacheContext | None = None

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
            context = CacheContext(NO_CONTEXT)
        if self._is_new_call(context, inputs):
            self._forget()
        if self._is_new_step(context):
            self._begin_step(module, context, inputs)
        assert self.denoiser is not None
        prediction = self._answer(context.name, inputs)
        self.stopwatch.stop(started, self.denoiser.step)
        return _as_returned(prediction, inputs)

    def _answer(self, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        denoiser, rule = self.denoiser, self.rule
        assert denoiser is not None
        assert rule is not None
        branch = denoiser.branches.setdefault(name, Branch(name, inputs))
        branch.inputs = inputs
        denoiser.branch, denoiser.reused = branch, False
        calls = len(denoiser.step.calls)
        branch.prediction = rule.predict(denoiser)
        made = [call for call in denoiser.step.calls[calls:] if not call.trial and call.only is None]
        whole = len(made) == 1 and not made[0].skipped and made[0].batch == self.anatomy.batch(inputs)
        action = "reuse" if denoiser.reused else "full" if whole else "partial"
        denoiser.step.action = action if not self.seen or denoiser.step.action == action else "partial"
        self.seen.add(name)
        return branch.prediction

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

    def _begin_step(self, module: torch.nn.Module, context: CacheContext, inputs: dict[str, Any]) -> None:
        if self.denoiser is None or self.rule is None:
            num_steps = self.clock.num_steps(context)
            self.method.check(self.anatomy, self.anatomy.latent_size(inputs), num_steps)
            self.denoiser = Denoiser(
                self.anatomy, module, self.fn_ref.original_forward, self.clock.guidance_scale, num_steps
            )
            self.rule = self.method.rule()
        denoiser = self.denoiser
        denoiser.index += 1
        index = denoiser.index if context.step_index is None else context.step_index
        denoiser.step = self.recorder.step(index, self.clock.sigma(context, index))
        denoiser.must_compute = isinstance(self.method, Cache) and self.method.protects(denoiser)
        for branch in denoiser.branches.values():
            branch.last_inputs = branch.inputs
            branch.inputs = self.anatomy.at_step(branch.inputs, inputs)
        if denoiser.index == 0:
            self._describe(self.recorder.traces[-1], inputs)
        self.context, self.seen = context, set()

    def _describe(self, trace: Trace, inputs: Mapping[str, Any]) -> None:
        trace.latent_size = self.anatomy.latent_size(inputs)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                trace.arguments[name] = list(value.shape)
            elif isinstance(value, tuple) and all(isinstance(each, torch.Tensor) for each in value):
                trace.arguments[name] = [list(each.shape) for each in value]


class ModuleHook(ModelHook):
    """Hook of a module that the method visits: lets the rule answer its calls, and counts those not made."""

    def __init__(self, root: StepHook, path: str) -> None:
        super().__init__()
        self.root, self.path = root, path

    @torch.compiler.disable(recursive=False)  # the module itself stays compiled
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        denoiser = self.root.denoiser
        if denoiser is None or denoiser.call is None:  # a trial, or a call that is none of the method's
            return self.fn_ref.original_forward(*args, **kwargs)
        assert self.root.rule is not None
        call = ModuleCall(self.path, self.fn_ref.original_forward, args, kwargs)
        output = self.root.rule.visit(denoiser, call)
        if not call.ran:
            denoiser.call.skipped[call.pattern] = denoiser.call.skipped.get(call.pattern, 0) + 1
        return output


class Handle:
    """A method attached to a pipeline. Leave the `with` block or call `remove()` to undo everything."""

    def __init__(self, pipe: Any, method: Method, guidance_scale: float | None = None) -> None:
        self._recorder = Recorder(method)
        self._hooked: list[tuple[Any, bool]] = []  # modules, and whether their forward was their class's own
        self._transformers: list[Any] = []
        self._undo_patch: Callable[[], None] = lambda: None
        names = [name for name in ("transformer", "transformer_2") if getattr(pipe, name, None) is not None]
        if not names:
            raise TypeError(f"{type(pipe).__name__} has no transformer to attach {method.NAME} to")
        hooks = []
        for name in names:
            module = getattr(pipe, name)
            anatomy = anatomy_of(module)
            _refuse_if_taken(module, method)
            method = method.for_backbone(anatomy)
            hooks.append(
                (module, anatomy, StepHook(method, anatomy, self._recorder, Clock(pipe, name, guidance_scale)))
            )
        self.method = method
        plans = [(module, root, root.method.modules(anatomy, module)) for module, anatomy, root in hooks]
        try:
            for module, root, paths in plans:
                self._register(module, root)
                self._transformers.append(module)
                module._cache_config = method  # so that diffusers refuses a second cache
                for path in paths:
                    self._register(module.get_submodule(path), ModuleHook(root, path))
                module._diffusers_hook.invalidate_child_registries_cache()
            self._undo_patch = method.patch(pipe)
        except BaseException:
            self.remove()
            raise

    def _register(self, module: Any, hook: ModelHook) -> None:
        self._hooked.append((module, "forward" not in vars(module)))
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK_NAME)

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
        for module, plain in self._hooked:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            registry.remove_hook(HOOK_NAME, recurse=False)
            if plain and not registry.hooks:
                vars(module).pop("forward", None)  # the class's own again
        for module in self._transformers:
            module._diffusers_hook.invalidate_child_registries_cache()
            module.__dict__.pop("_cache_config", None)  # the class says None
        self._hooked, self._transformers = [], []
        self._undo_patch()
        self._undo_patch = lambda: None

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def apply(pipe: Any, method: Method, guidance_scale: float | None = None) -> Handle:
    """Attach `method` to a diffusers pipeline; every later call of the pipeline uses it until the handle is removed.

    Apply before `enable_model_cpu_offload()`, which otherwise drops the hook after the first video.
    `guidance_scale` is needed only where a pipeline does not publish its own (HunyuanVideo's `true_cfg_scale`).
    Raises TypeError for an unsupported pipeline; ValueError if its transformer already has a cache or is offloaded, or
    if the method cannot work on this family.
    """
    return Handle(pipe, method, guidance_scale)


def _refuse_if_taken(module: Any, method: Method) -> None:
    if getattr(module, "is_cache_enabled", False):
        raise ValueError("the transformer already has a cache; remove it before applying another")
    if hasattr(module, "_hf_hook"):
        raise ValueError(
            f"the transformer is already offloaded by accelerate, which would drop {method.NAME} after the first"
            " video: apply the cache first, then call enable_model_cpu_offload()"
        )


def _as_returned(prediction: torch.Tensor, inputs: Mapping[str, Any]) -> Any:
    if inputs.get("return_dict", True):
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)
    return (prediction,)
