"""The trace: one row per denoising step of one pipeline call, and the stopwatch that fills in its times."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class Step:
    """What happened at one denoising step.

    `action` is "full" or "reuse". `indicator` is the method's own measure (PreciseCache: the LFD), `accumulated` what
    was compared with `threshold`. `forwards` and `trials` count transformer calls at full size and at `trial_size`
    (T, H, W of the latent), over all guidance branches. `milliseconds` is time spent inside the hooked transformer.
    """

    index: int
    sigma: float | None = None
    action: str = "full"
    indicator: float | None = None
    accumulated: float | None = None
    threshold: float | None = None
    forwards: int = 0
    trials: int = 0
    trial_size: tuple[int, int, int] | None = None
    milliseconds: float = 0.0


@dataclass(slots=True)
class Trace:
    """All steps of one pipeline call, and the shapes its transformer was called with.

    `latent_size` is (T, H, W); `arguments` maps each tensor argument of a full-size call to its shape.
    """

    method: str
    latent_size: tuple[int, int, int] | None = None
    arguments: dict[str, list[int]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    complete: bool = False

    @property
    def computed(self) -> int:
        """Steps at which the transformer ran at full size."""
        return sum(step.action == "full" for step in self.steps)

    @property
    def reused(self) -> int:
        """Steps answered from the cache."""
        return len(self.steps) - self.computed

    def summary(self) -> str:
        """One line for people."""
        return f"{self.method}: {len(self.steps)} steps, {self.computed} computed, {self.reused} reused"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


class Stopwatch:
    """Adds the time between `start` and `stop` to a step; on CUDA by events, read once at the end of the call."""

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
