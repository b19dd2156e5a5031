"""The hooks of an attached method: sort the transformer's calls into steps and branches, and let the rule answer them.

The unit is the denoising step, not the forward call: a pipeline may call its transformer once per guidance branch, and
may have two transformers that take turns. A root hook on each (diffusers' own hook system) sees every call, the clock
(clock.py) sorts it into calls, steps and branches, and the method's rule answers it. State belongs to one pipeline
call, over all its transformers: it is made at the first step and dropped at the end, an exception included.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import CacheContext
from torch._dynamo import trace_rules

from .anatomy import Anatomy
from .caller import Caller, Contexts, Turn
from .clock import Clock, Reading
from .denoiser import Branch, Denoiser, ModuleCall
from .method import Cache, Method, Rule
from .trace import Step, Stopwatch, Trace

HOOK_NAME = "training_free_cache"

# Only the model is compiled: its graphs begin and end where this package is called, whose code is never traced.
trace_rules.add(__package__.partition(".")[0])


class Recorder:
    """The traces of one handle, one per pipeline call; shared by the hooks of a pipeline's transformers."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.traces: list[Trace] = []

    def step(self, index: int, sigma: float | None) -> Step:
        """Open the row for a step of the current trace."""
        row = Step(index, sigma)
        self.traces[-1].steps.append(row)
        return row

    def start(self) -> Trace:
        """Open the trace of a pipeline call."""
        self.traces.append(Trace(self.method.NAME))
        return self.traces[-1]

    def finish(self) -> None:
        """Close the current trace; warn if the cache never hit or an indicator was NaN."""
        trace = self.traces[-1]
        trace.complete = True
        if any(step.indicator is not None and math.isnan(step.indicator) for step in trace.steps):
            warnings.warn(f"{trace.method}: the indicator was NaN; those steps were computed", stacklevel=3)
        if self.method.EXPECTS_REUSE and trace.reused + trace.partial == 0:
            warnings.warn(
                f"{trace.method}: the cache never hit, all {len(trace.steps)} steps were computed", stacklevel=3
            )


class Generation:
    """The pipeline call in progress, on all transformers of a pipeline; between calls it holds nothing."""

    def __init__(self, method: Method, recorder: Recorder, clock: Clock) -> None:
        self.method, self.recorder, self.clock = method, recorder, clock
        self.stopwatch, self.turn = Stopwatch(), Turn()
        self.caller: Caller | None = None
        self.forget()

    def forget(self) -> None:
        """Drop everything that belongs to the call in progress."""
        self.denoiser: Denoiser | None = None
        self.rule: Rule | None = None
        self.clock.forget()

    def called_by(self, caller: Caller) -> None:
        """Switch to the pipeline call that is calling; an earlier unfinished one is dropped."""
        if self.caller != caller:
            self.forget()
            self.clock.look_at(caller.pipe)
            self.caller = caller

    def finish(self) -> None:
        """The pipeline call has come to its end."""
        if not self.turn.end(threading.get_ident()):
            return
        self.stopwatch.settle()
        if self.denoiser is not None:
            self.recorder.finish()
        self.forget()
        self.caller = None
        self.clock.look_at(None)

    def answer(self, root: StepHook, module: Any, context: CacheContext | None, inputs: dict[str, Any]) -> torch.Tensor:
        """The prediction for a transformer's call. After an error nothing of the pipeline call is kept."""
        started = self.stopwatch.start(inputs["hidden_states"].device)
        try:
            now = self.clock.read(context, inputs)
            if self.clock.begins_call(now):
                self._start_call(root, module, now, inputs)
            if self.clock.begins_step(now):
                self._start_step(now, inputs)
            assert self.denoiser is not None
            prediction = self._answer(root, module, now, inputs)
            self.stopwatch.stop(started, self.denoiser.step)
            return prediction
        except BaseException:
            self.forget()
            raise

    def _start_call(self, root: StepHook, module: Any, now: Reading, inputs: dict[str, Any]) -> None:
        self.forget()
        self.clock.start_call(now)
        anatomy = root.anatomy.of_call(inputs, self.clock.pipe)
        num_steps, size = self.clock.num_steps(now), anatomy.latent_size(inputs)
        self.method.check(anatomy, size, num_steps)
        self.method.check_call(anatomy, inputs, self.clock.pipe)
        if self.method.needs_noise_level and self.clock.sigma(now.context, now.step or 0) is None:
            raise ValueError(
                f"{self.method.NAME}: the method needs the noise level of each step, and neither this pipeline nor its"
                " scheduler tells it; announce it with transformer.cache_context(name, sigma=…)"
            )
        self.denoiser = Denoiser(anatomy, module, root.fn_ref.original_forward, self.clock, num_steps)
        self.rule = self.method.rule()
        trace = self.recorder.start()
        trace.latent_size, trace.arguments = size, _shapes(anatomy, inputs)

    def _start_step(self, now: Reading, inputs: dict[str, Any]) -> None:
        denoiser, rule, last_seen = self.denoiser, self.rule, list(self.clock.seen)
        assert denoiser is not None
        assert rule is not None
        index = self.clock.start_step(now)
        denoiser.index += 1
        denoiser.step = self.recorder.step(index, self.clock.sigma(now.context, index))
        for name in list(denoiser.branches):
            switched_off = denoiser.anatomy.is_unconditional(name) and self.clock.unguided()
            if name not in last_seen or switched_off:  # what is kept of the branch goes out of date
                del denoiser.branches[name]
                rule.forget_branch(name)
        denoiser.begin_step(inputs)
        denoiser.branch_returns = self._branch_returns(last_seen)
        denoiser.must_compute = isinstance(self.method, Cache) and self.method.protects(denoiser)

    def _branch_returns(self, last_seen: list[str]) -> bool:
        """Whether the pipeline says that it will call the unconditional branch, which it did not at the last step."""
        assert self.denoiser is not None
        anatomy = self.denoiser.anatomy
        called = anatomy.BATCHED is not None or any(map(anatomy.is_unconditional, last_seen))
        return bool(last_seen) and not called and self.clock.says_guided() is True

    def _answer(self, root: StepHook, module: Any, now: Reading, inputs: dict[str, Any]) -> torch.Tensor:
        denoiser, rule = self.denoiser, self.rule
        assert denoiser is not None
        assert rule is not None
        first, name = not self.clock.seen, self.clock.branch(now)
        if denoiser.transformer is not module:  # Wan2.2's second transformer takes over
            denoiser.change_transformer(root.anatomy, module, root.fn_ref.original_forward)
            denoiser.must_compute = isinstance(self.method, Cache) and self.method.protects(denoiser)
            rule.change_transformer()
        branch = denoiser.branches.setdefault(name, Branch(name, inputs))
        branch.inputs = inputs
        denoiser.branch, denoiser.reused = branch, False
        calls = len(denoiser.step.calls)
        branch.prediction = rule.predict(denoiser)
        made = [call for call in denoiser.step.calls[calls:] if not call.trial and call.only is None]
        whole = len(made) == 1 and not made[0].skipped and made[0].batch == denoiser.anatomy.batch(inputs)
        action = "reuse" if denoiser.reused else "full" if whole else "partial"
        denoiser.step.action = action if first or denoiser.step.action == action else "partial"
        return branch.prediction


class StepHook(ModelHook):
    """Root hook of a transformer: hands every call to the generation in progress."""

    _is_stateful = True

    def __init__(self, anatomy: Anatomy, generation: Generation) -> None:
        super().__init__()
        self.anatomy, self.generation = anatomy, generation
        self.contexts = Contexts()  # diffusers' cache_context() writes the current context here

    @property
    def denoiser(self) -> Denoiser | None:
        """The pipeline call in progress."""
        return self.generation.denoiser

    @property
    def rule(self) -> Rule | None:
        """The method at work in it."""
        return self.generation.rule

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """diffusers calls this at the end of every pipeline call."""
        self.generation.finish()
        return module

    def deinitalize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """The hook was removed, perhaps after a failure: drop all tensors, in case the hook or its handle lives on."""
        self.generation.forget()
        return module

    @torch.compiler.disable(recursive=False)  # the transformer itself stays compiled
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = self.anatomy.received(self.anatomy.bind(module, args, kwargs))
        try:
            context = self.contexts.context
        except ValueError:  # a pipeline that announces none
            context = None
        caller = Caller.of(module)
        with self.generation.turn.of(caller):
            self.generation.called_by(caller)
            return self.anatomy.returned(self.generation.answer(self, module, context, inputs), inputs)


class ModuleHook(ModelHook):
    """Hook of a module that the method visits: lets the rule answer its calls, and counts those not made."""

    def __init__(self, root: StepHook, path: str) -> None:
        super().__init__()
        self.root, self.path = root, path

    @torch.compiler.disable(recursive=False)  # the module itself stays compiled
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        denoiser = self.root.denoiser
        if denoiser is None or denoiser.call is None:  # a trial, or a call outside the method's runs
            return self.fn_ref.original_forward(*args, **kwargs)
        assert self.root.rule is not None
        call = ModuleCall(self.path, self.fn_ref.original_forward, args, kwargs)
        output = self.root.rule.visit(denoiser, call)
        if not call.ran:
            denoiser.call.skipped[call.pattern] = denoiser.call.skipped.get(call.pattern, 0) + 1
        return output


def _shapes(anatomy: Anatomy, inputs: Mapping[str, Any]) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, value in anatomy.sent(inputs).items():
        if name in anatomy.SIZES:
            shapes[name] = value
        elif isinstance(value, torch.Tensor):
            shapes[name] = list(value.shape)
        elif isinstance(value, tuple) and all(isinstance(item, torch.Tensor) for item in value):
            shapes[name] = [list(tensor.shape) for tensor in value]
    return shapes
