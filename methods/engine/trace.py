"""The trace: one row per denoising step of one pipeline call, the transformer calls it cost, and their times."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

ACTIONS = ("full", "partial", "reuse")


@dataclass(slots=True)
class Call:
    """One run of the transformer, or of some of its modules: all that is needed to count its cost.

    size: (T, H, W) of the latent it ran on. batch: its batch size. trial: whether it only measures, at a chosen size.
    skipped: number of module calls not made, by path, indices of repeated modules as "*" ("blocks.*.attn1": 30).
    only: if not None, the modules that ran by themselves (number of calls by path; below 1 for a share of one), instead
        of the whole.
    """

    size: tuple[int, int, int]
    batch: int
    trial: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    only: dict[str, float] | None = None


@dataclass(slots=True)
class Step:
    """What happened at one denoising step.

    action: "full" (everything computed), "reuse" (answered from the cache), "partial" (some modules or some guidance
    branches reused). `indicator` is the method's own measure (PreciseCache: the LFD), `accumulated` what was compared
    with `threshold`; where guidance branches decide separately they are the last branch's. `details` holds what is
    specific to the method. `milliseconds` is time spent inside the hooked transformer.
    """

    index: int
    sigma: float | None = None
    action: str = "full"
    indicator: float | None = None
    accumulated: float | None = None
    threshold: float | None = None
    calls: list[Call] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    milliseconds: float = 0.0

    @property
    def forwards(self) -> int:
        """Transformer calls at full size, over all guidance branches, with or without skipped modules."""
        return sum(not call.trial and call.only is None for call in self.calls)

    @property
    def trials(self) -> int:
        """Trial calls of the transformer, over all guidance branches."""
        return sum(call.trial for call in self.calls)


@dataclass(slots=True)
class Trace:
    """All steps of one pipeline call, and the shapes its transformer was called with.

    `latent_size` is (T, H, W); `arguments` maps each tensor argument of a full-size call to its shape, an argument that
    is a tuple of tensors to a list of shapes.
    """

    method: str
    latent_size: tuple[int, int, int] | None = None
    arguments: dict[str, list[Any]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    complete: bool = False

    @property
    def computed(self) -> int:
        """Steps at which the transformer's blocks ran at full size, all of them or some."""
        return len(self.steps) - self.reused

    @property
    def partial(self) -> int:
        """Steps at which some modules or some guidance branches were reused."""
        return sum(step.action == "partial" for step in self.steps)

    @property
    def reused(self) -> int:
        """Steps answered from the cache."""
        return sum(step.action == "reuse" for step in self.steps)

    def summary(self) -> str:
        """One line to read."""
        partly = f" ({self.partial} of them in part)" if self.partial else ""
        return f"{self.method}: {len(self.steps)} steps, {self.computed} computed{partly}, {self.reused} reused"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: a number that is not finite is None, and its step lists it under "not_finite"."""
        data = asdict(self)
        data["steps"] = [_finite(step) for step in data["steps"]]
        return data


def _finite(step: dict[str, Any]) -> dict[str, Any]:
    """A step's row with None for NaN and infinities, whose paths are listed under "not_finite", if there are any."""
    found: list[str] = []

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            found.append(path)
            return None
        if isinstance(value, dict):
            return {str(key): plain(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, f"{path}.{index}") for index, item in enumerate(value)]
        return value

    row = {name: plain(value, name) for name, value in step.items()}
    return {**row, "not_finite": found} if found else row


class Stopwatch:
    """Adds the milliseconds from `start` to `stop` to a step; on CUDA by events, read once at the end of the call."""

    def __init__(self) -> None:
        self._pending: list[tuple[Step, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> Any:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def stop(self, started: Any, step: Step) -> None:
        if isinstance(started, float):
            step.milliseconds += (time.perf_counter() - started) * 1000
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append((step, started, event))

    def settle(self) -> None:
        """Read the events still pending."""
        for step, started, ended in self._pending:
            ended.synchronize()
            step.milliseconds += started.elapsed_time(ended)
        self._pending.clear()
