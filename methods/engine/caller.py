"""Which pipeline is calling a transformer: several may share one, and only the calling one knows guidance and steps."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

MARK = "__cached_call__"
TRANSFORMERS = ("transformer", "transformer_2")  # the attributes in which a pipeline keeps them


def transformers_of(pipe: Any) -> dict[str, Any]:
    """A pipeline's transformers by name, those wrapped by `torch.compile` unwrapped."""
    found = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    plain = {name: item._orig_mod if isinstance(item, OptimizedModule) else item for name, item in found.items()}
    return {name: module for name, module in plain.items() if module is not None}


@dataclass(frozen=True)
class Caller:
    """One running pipeline call. pipe: None in a user's own loop. call: the mark in its stack frame, None there too."""

    pipe: Any
    call: Any
    thread: int

    @classmethod
    def of(cls, module: nn.Module) -> Caller:
        """The innermost pipeline call on this thread's stack whose pipeline holds `module`."""
        pipe = call = None
        for variables in _calls(sys._getframe(1)):
            candidate = variables["self"]
            if candidate is pipe:  # a subclass's __call__ around its parent's: one call
                call = variables.setdefault(MARK, object())
            elif any(transformer is module for transformer in transformers_of(candidate).values()):
                if pipe is not None:
                    break
                pipe, call = candidate, variables.setdefault(MARK, object())
        return cls(pipe, call, threading.get_ident())

    @property
    def is_running(self) -> bool:
        """Whether the pipeline call is still on its thread's stack; False for a user's own loop (not known)."""
        if self.call is None:
            return False
        return any(variables.get(MARK) is self.call for variables in _calls(sys._current_frames().get(self.thread)))


def _calls(frame: FrameType | None) -> Iterator[Any]:
    """The local variables of each `__call__` method around a stack frame, innermost first.

    A variable that is added to them lasts as long as the frame, and so identifies the call.
    """
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_code.co_varnames[:1] == ("self",):
            variables = frame.f_locals
            if "self" in variables:
                yield variables
        frame = frame.f_back


class Turn:
    """Lets one pipeline call at a time use what a method is attached to, since its caches belong to one call."""

    def __init__(self) -> None:
        self._caller: Caller | None = None
        self._inside = threading.RLock()  # held while the transformer runs

    @contextmanager
    def of(self, caller: Caller) -> Iterator[None]:
        """A context to run the transformer in for a call. Raises RuntimeError while another call is running."""
        if not self._inside.acquire(blocking=False):
            raise RuntimeError(_refusal(self._caller, caller))
        try:
            if self._caller not in (None, caller) and self._caller.is_running:
                raise RuntimeError(_refusal(self._caller, caller))
            self._caller = caller
            yield
        finally:
            self._inside.release()

    def end(self, thread: int) -> bool:
        """Note that the call has ended; False if another thread's call is running."""
        if self._caller is not None and self._caller.thread != thread and self._caller.is_running:
            return False
        self._caller = None
        return True


def _refusal(running: Caller | None, caller: Caller) -> str:
    name = "another loop" if running is None or running.pipe is None else type(running.pipe).__name__
    where = "inside that call" if running is not None and running.thread == caller.thread else "by another thread"
    return (
        f"{name} is in the middle of a call on this transformer, which has a caching method attached: it cannot be"
        f" called {where} before that ends; give each its own transformer"
    )


class Contexts(StateManager):
    """The cache context that diffusers announces, one per thread: it says nothing about another thread's step."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        super().__init__(BaseState)

    @property  # type: ignore[override]
    def _context(self) -> CacheContext | None:
        return getattr(self._of_thread, "context", None)

    @_context.setter
    def _context(self, context: CacheContext | None) -> None:
        self._of_thread.context = context
