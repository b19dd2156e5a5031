"""How much a prediction changes with the latent and with the timestep: SenCache's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from methods import Method, apply
from methods.engine.denoiser import Denoiser
from methods.engine.method import Rule

from ..observe.watch import rms

Row = tuple[float, float, float]  # timestep from 0 to 1, change with the latent, change with the timestep


@dataclass(kw_only=True)
class Watching(Method):
    """Computes every step, and the conditional branch of each twice more; `videos` gets a table a pipeline call."""

    videos: list[list[Row]] = field(default_factory=list)

    NAME: ClassVar[str] = "calibrate"
    EXPECTS_REUSE: ClassVar[bool] = False

    @property
    def needs_noise_level(self) -> bool:
        return True

    def rule(self) -> Rule:
        self.videos.append([])
        return _Watch(self.videos[-1])


class _Watch(Rule):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.before: tuple[float, dict[str, Any], torch.Tensor] | None = None  # level, arguments, prediction

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        prediction, anatomy, level = denoiser.run(), denoiser.anatomy, denoiser.time
        if anatomy.is_unconditional(denoiser.branch.name):
            return prediction
        inputs, own = denoiser.branch.inputs, prediction
        if denoiser.batched:
            first = anatomy.BATCHED == "cond_first"
            inputs, own = anatomy.part_of_batch(inputs, first), prediction.chunk(2)[0 if first else 1]
        if self.before is not None:
            level_before, arguments, predicted = self.before
            if level == level_before:
                raise ValueError("sencache: the timestep does not change from step to step")
            latent = anatomy.as_prediction(inputs["hidden_states"])
            moved = rms(anatomy.used(latent - anatomy.as_prediction(arguments["hidden_states"])))
            by_latent, by_level = (
                rms(anatomy.used(denoiser.compute({**arguments, name: inputs[name]}) - predicted))
                for name in ("hidden_states", "timestep")
            )
            self.rows.append((level_before, by_latent / moved, by_level / abs(level - level_before)))
        self.before = level, inputs, own
        return prediction


def measure(pipe: Any, calls: Iterable[Callable[[], Any]]) -> dict[str, Any]:
    """Mean sensitivities over some uncached calls, by timestep, as plain data.

    Between a step and the next, (x, t) and (x', t'): latent: rms(F(x', t) - F(x, t)) / rms(x' - x); level: rms(F(x, t')
    - F(x, t)) / |t' - t|, timesteps from 0 to 1; F is the conditional prediction, x the sampler's own latents. The last
    step has no next one and no row. Raises ValueError if there is nothing to measure.

    The official script (Wan2.1/sensitivity_calculation.py) measures the same at latents made from real videos and
    noise, with a step of the sampler without guidance, and keeps norms that depend on the latent's size.
    """
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError("sencache: a pipeline of two transformers cannot be calibrated")
    watching = Watching()
    with apply(pipe, watching):
        for call in calls:
            call()
    table = np.array(watching.videos)  # (videos, steps - 1, 3)
    if not table.size:
        raise ValueError("sencache needs two steps to look at: ask for more steps")
    if not np.isfinite(table).all():
        raise ValueError("the predictions of these videos are not finite, or the latent does not change")
    mean, spread = table.mean(axis=0), table.std(axis=0)

    def column(values: np.ndarray, which: int) -> list[float]:
        return [float(f"{value:.6g}") for value in values[:, which]]

    return {
        "levels": column(mean, 0),
        "latent": column(mean, 1),
        "level": column(mean, 2),
        "video_std": {"latent": column(spread, 1), "level": column(spread, 2)},
        "samples": len(table),
    }


def describe(data: dict[str, Any]) -> list[str]:
    """The table as lines of text for the terminal: by thirds of the steps."""
    lines = []
    for name in ("latent", "level"):
        parts = (float(np.mean(part)) for part in np.array_split(np.array(data[name]), 3))
        spread = float(np.mean(np.array(data["video_std"][name]) / np.maximum(data[name], 1e-12)))
        thirds = " ".join(f"{part:.4g}" for part in parts)
        lines.append(f"by {name}, means of three thirds of the steps: {thirds}; spread over videos {spread:.1%}")
    return lines
