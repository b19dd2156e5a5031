"""How much a transformer's input and output change from step to step: TeaCache's polynomial, MagCache's ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from methods import Method, apply
from methods.engine.anatomy import Anatomy, anatomy_of
from methods.engine.denoiser import Denoiser, ModuleCall
from methods.engine.method import Rule
from methods.engine.reuse import hidden_of, video_of
from methods.teacache import TeaCacheConfig, look, relative_l1

DEGREE = 4  # of the published polynomials
# The set for retention steps was fitted without the steps that are computed anyway (ali-vilab/TeaCache issue 39).
FIRST_STEP = {"teacache": 1, "teacache_retention": 5}
MEASURES = (*FIRST_STEP, "magcache")


@dataclass
class Change:
    """From one step to the next, in one guidance branch.

    feature, output: relative L1 distance of TeaCache's feature, and of the block stack's output, what the head reads.
    ratio, ratio_std: of the norms of the tokens' residuals, mean and standard deviation over tokens (MagCache's gamma).
    """

    step: int
    feature: float | None
    output: float
    ratio: float
    ratio_std: float


Video = dict[str, list[Change]]  # by guidance branch


@dataclass(kw_only=True)
class Watching(Method):
    """Computes every step; `videos` gets one entry a pipeline call. `feature` is TeaCache's, None for none."""

    feature: str | None = None
    videos: list[Video] = field(default_factory=list)

    NAME: ClassVar[str] = "calibrate"
    EXPECTS_REUSE: ClassVar[bool] = False

    def rule(self) -> Rule:
        self.videos.append({})
        return _Watch(self.feature, self.videos[-1])

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        blocks = anatomy.blocks(transformer)
        return list(dict.fromkeys((blocks[0].path, blocks[-1].path)))


class _Watch(Rule):
    def __init__(self, feature: str | None, video: Video) -> None:
        self.feature, self.video = feature, video
        self.before: dict[str, tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]] = {}  # by branch

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        name = denoiser.branch.name
        feature = look(denoiser, self.feature) if self.feature else None
        prediction = denoiser.run()
        residual = torch.linalg.vector_norm((self.output - self.input).float(), dim=-1)
        changes = self.video.setdefault(name, [])
        if name in self.before:
            last_feature, last_output, last_residual = self.before[name]
            ratio = residual / last_residual
            moved = None if feature is None or last_feature is None else relative_l1(feature, last_feature)
            output = relative_l1(self.output, last_output)
            changes.append(Change(denoiser.index, moved, output, float(ratio.mean()), float(ratio.std())))
        self.before[name] = feature, self.output, residual
        return prediction

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        first, last = denoiser.blocks[0], denoiser.blocks[-1]
        if call.path == first.path:
            self.input = hidden_of(first, call)
        output = call.run()
        if call.path == last.path:
            self.output = video_of(last, output)
        return output


def measure(pipe: Any, method: str, calls: Iterable[Callable[[], Any]]) -> dict[str, Any]:
    """The calibration of `method` from some pipeline calls, as plain data. Raises ValueError if it cannot be had."""
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError(f"{method}: a pipeline of two transformers cannot be calibrated")
    anatomy, feature = anatomy_of(pipe.transformer), None
    if method in FIRST_STEP:
        config = TeaCacheConfig(retention_steps=method == "teacache_retention", coefficients=[1.0, 0.0])
        feature = config.for_backbone(anatomy).feature(anatomy)
    watching = Watching(feature=feature)
    with apply(pipe, watching):
        for call in calls:
            call()
    fitted = polynomial(watching.videos, FIRST_STEP[method]) if feature else ratios(watching.videos)
    return {**({"feature": feature} if feature else {}), **fitted}


def polynomial(videos: list[Video], first_step: int = 1) -> dict[str, Any]:
    """Least squares over all videos, branches and steps from `first_step` (ali-vilab/TeaCache issue 2).

    The output is the block stack's, before the head: that is what a reused step stands in for.
    """
    changes = [each for video in videos for branch in video.values() for each in branch if each.step >= first_step]
    x, y = np.array([each.feature for each in changes], float), np.array([each.output for each in changes])
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the features or outputs of these videos are not finite")
    if len(set(x.tolist())) <= DEGREE:
        raise ValueError(
            f"a polynomial of degree {DEGREE} needs more than {DEGREE} steps to look at: ask for more steps"
        )
    coefficients = np.polyfit(x, y, DEGREE)
    residual = y - np.polyval(coefficients, x)
    return {
        "coefficients": coefficients.tolist(),
        "r2": float(1 - residual.var() / y.var()) if y.var() else None,
        "range": [float(x.min()), float(x.max())],
        "output_range": [float(y.min()), float(y.max())],
        "samples": len(changes),
    }


def ratios(videos: list[Video]) -> dict[str, Any]:
    """Mean ratios over the videos, 1.0 for the first step; one list, "all", where a step is one call."""
    if not all(np.isfinite(each.ratio) for video in videos for branch in video.values() for each in branch):
        raise ValueError("the residuals of these videos are not finite, or zero")
    names = list(videos[0])
    keys = dict(zip(names, names if len(names) > 1 else ["all"], strict=True))

    def each_step(name: str, of: Callable[[list[Change]], float], first: float) -> list[float]:
        return [first, *(round(of(list(step)), 6) for step in zip(*(video[name] for video in videos), strict=True))]

    def over(of: Callable[[list[Change]], float], first: float) -> dict[str, list[float]]:
        return {key: each_step(name, of, first) for name, key in keys.items()}

    return {
        "ratios": over(lambda step: float(np.mean([each.ratio for each in step])), 1.0),
        "token_std": over(lambda step: float(np.mean([each.ratio_std for each in step])), 0.0),
        "video_std": over(lambda step: float(np.std([each.ratio for each in step])), 0.0),
        "samples": len(videos),
    }


def describe(data: dict[str, Any]) -> list[str]:
    """What was measured, for people."""
    if "coefficients" in data:
        low, high = data["range"]
        fit = "not defined" if data["r2"] is None else f"{data['r2']:.4f}"
        lowest = float(np.polyval(data["coefficients"], np.linspace(low, high, 1000)).min())
        below = [f"the polynomial falls below 0 inside that range, to {lowest:.4g}"] if lowest < 0 else []
        return [f"coefficients {data['coefficients']}", f"R² {fit}, valid from {low:.4g} to {high:.4g}", *below]
    lines = []
    for name, row in data["ratios"].items():
        lines.append(f"{name}: {' '.join(f'{each:.4f}' for each in row)}")
        spreads = max(data["token_std"][name]), max(data["video_std"][name])
        lines.append(f"{name}: standard deviation at most {spreads[0]:.4f} over tokens, {spreads[1]:.4f} over videos")
    return lines
