"""One resumable training loop: Muon and AdamW, warm-up and cosine decay, EMA, checkpoints, a loss curve."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

LONGEST_UNSAVED = 600  # seconds, plus up to one interval of the curve: a checkpoint is only saved with its step's row
COLUMNS = ("step", "loss", "learning_rate", "seconds")

LossFn = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(kw_only=True, slots=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    muon_learning_rate: float = 0.0  # for the matrices inside transformer blocks; with 0, AdamW trains them too
    warmup: int = 200
    floor: float = 0.02  # the cosine ends at this share of the learning rate
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_every: int = 250
    log_every: int = 25

    def rate(self, step: int, begun: int = 0) -> float:
        """Share of the full learning rate at `step`, for optimizers that started without state at step `begun`."""
        ramp = min(1.0, (step + 1 - begun) / self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return ramp * (self.floor + (1 - self.floor) * cosine)

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW for everything, or Muon for the matrices of transformer blocks and inner convolutions.

        On the tiny Wan, 350 steps of Muon taught as much of the prompts as several thousand of AdamW.
        """
        chosen = [(name, p) for name, p in model.named_parameters() if self.muon_learning_rate and _suits_muon(name, p)]
        others = [p for p in model.parameters() if not any(p is matrix for _, matrix in chosen)]
        adamw = torch.optim.AdamW(others, self.learning_rate, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        if not chosen:
            return [adamw]
        return [adamw, FlatMuon([p for _, p in chosen], self.muon_learning_rate, self.weight_decay)]


@dataclass(frozen=True, slots=True)
class Start:
    """Where to continue a training whose checkpoint is lost; the model already has its published weights."""

    step: int = 0
    rows: list[tuple[int, float, float, float]] = field(default_factory=list)  # the loss curve so far


def published(curve: Path) -> Start:
    """The step that the weights next to this loss curve have reached, and the curve."""
    with curve.open(newline="") as file:
        _, *lines = csv.reader(file)
    rows = [(int(step), float(loss), float(rate), float(seconds)) for step, loss, rate, seconds in lines]
    return Start(rows[-1][0], rows)


def _suits_muon(name: str, parameter: torch.Tensor) -> bool:
    if parameter.ndim == 2:
        return "blocks." in name
    first_or_last = any(word in name for word in ("conv_in", "conv_out", "embed"))
    return parameter.ndim > 3 and not first_or_last


class FlatMuon(torch.optim.Muon):
    """PyTorch's Muon, which only takes matrices, for convolutions too: a kernel is a matrix of outputs by inputs."""

    def __init__(self, parameters: list[torch.Tensor], learning_rate: float, weight_decay: float) -> None:
        self.whole = parameters
        self.flat = [p.detach().flatten(1) for p in parameters]  # views of the same memory
        super().__init__(self.flat, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        for flat, whole in zip(self.flat, self.whole, strict=True):
            flat.grad = None if whole.grad is None else whole.grad.flatten(1)
        return super().step(closure)


def write_atomically(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file next to `path`, then rename it to `path`."""
    partial = path.with_suffix(path.suffix + ".partial")
    save(partial)
    os.replace(partial, path)


def _update_ema(ema: dict[str, torch.Tensor], model: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # short memory while there is little to remember
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value.detach().float(), 1 - decay)
        else:
            ema[name].copy_(value)


def train(model: nn.Module, loss_at: LossFn, schedule: Schedule, folder: Path, start: Start | None = None) -> None:
    """Train `model` in place until `schedule.steps`, continuing from the checkpoint in `folder` if there is one.

    Without a checkpoint it begins at `start`, with new optimizers that are warmed up again.

    `loss_at(step, generator)` draws its batch from the generator, which is seeded by the step alone: a resumed run
    sees the same batches as an uninterrupted one. At the end the model has its EMA (averaged) weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, curve = folder / "checkpoint.pt", folder / "loss.csv"
    optimizers = schedule.optimizers(model)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    start = start or Start()
    first, begun, rows = start.step, start.step, list(start.rows)
    total, count = 0.0, 0  # of the losses since the last row
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=next(model.parameters()).device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema, first, rows = state["ema"], state["step"], state["rows"]
        begun = state.get("begun", 0)
        total, count = state.get("loss", (0.0, 0))
        print(f"resumed at step {first} of {schedule.steps}", flush=True)
    (folder / "schedule.json").write_text(json.dumps(asdict(schedule), indent=1) + "\n")

    def save(step: int) -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        state = {"model": model.state_dict(), "optimizers": states, "ema": ema, "step": step, "begun": begun}
        write_atomically(checkpoint, lambda path: torch.save(state | {"rows": rows, "loss": (total, count)}, path))
        with curve.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])

    model.train()
    began, timed = time.monotonic(), 0
    saved, late = began, False
    for step in range(first, schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * schedule.rate(step, begun)
        loss = loss_at(step, torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        for optimizer in optimizers:
            optimizer.step()
        _update_ema(ema, model, schedule.ema_decay, step - begun)
        total, count, timed = total + float(loss.detach()), count + 1, timed + 1
        if (step + 1) % schedule.log_every == 0:
            seconds = (time.monotonic() - began) / timed
            rate = schedule.learning_rate * schedule.rate(step, begun)
            rows.append((step + 1, round(total / count, 5), round(rate, 8), round(seconds, 3)))
            print(f"step {step + 1}/{schedule.steps}  loss {total / count:.4f}  {seconds:.2f} s/step", flush=True)
            total, count, began, timed = 0.0, 0, time.monotonic(), 0
            late = time.monotonic() - saved > LONGEST_UNSAVED
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps or late:
            save(step + 1)
            saved, late = time.monotonic(), False
    model.load_state_dict(ema)
    model.eval()
