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
    """The change from the step before to this one, in one guidance branch.

    feature, output: relative L1 distance of TeaCache's feature, and of the block stack's output, which the head reads.
    ratio, ratio_std: mean and standard deviation over tokens of the ratio of residual norms (MagCache's gamma).
    """

    step: int
    feature: float | None
    output: float
    ratio: float
    ratio_std: float


Video = dict[str, list[Change]]  # by guidance branch


@dataclass(kw_only=True)
class Watching(Method):
    """Computes every step; `videos` gets one entry per pipeline call. `feature`: TeaCache's name for it, or None."""

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
        # feature, output and residual norms of the step before, by branch
        self.previous: dict[str, tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]] = {}

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        name = denoiser.branch.name
        feature = look(denoiser, self.feature) if self.feature else None
        prediction = denoiser.run()
        residual = torch.linalg.vector_norm((self.output - self.input).float(), dim=-1)
        changes = self.video.setdefault(name, [])
        if name in self.previous:
            last_feature, last_output, last_residual = self.previous[name]
            ratio = residual / last_residual
            distance = None if feature is None or last_feature is None else relative_l1(feature, last_feature)
            output = relative_l1(self.output, last_output)
            changes.append(Change(denoiser.index, distance, output, float(ratio.mean()), float(ratio.std())))
        self.previous[name] = feature, self.output, residual
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
    """The calibration of `method` from some pipeline calls, as plain data. Raises ValueError if none is possible."""
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
    """Least-squares fit over all videos, branches and steps from `first_step` on (ali-vilab/TeaCache issue 2).

    The output is the block stack's, before the head, because that is what a reused step replaces. Raises ValueError
    for values that are not finite, or too few distinct ones.
    """
    changes = [c for video in videos for branch in video.values() for c in branch if c.step >= first_step]
    x, y = np.array([change.feature for change in changes], float), np.array([change.output for change in changes])
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
    """Mean ratios over the videos, per step and branch, 1.0 for the first step; one list, "all", if a step is one call.

    Raises ValueError for ratios that are not finite.
    """
    if not all(np.isfinite(change.ratio) for video in videos for branch in video.values() for change in branch):
        raise ValueError("the residuals of these videos are not finite, or zero")
    names = list(videos[0])
    keys = dict(zip(names, names if len(names) > 1 else ["all"], strict=True))

    def per_step(name: str, summary: Callable[[list[Change]], float], first: float) -> list[float]:
        steps = zip(*(video[name] for video in videos), strict=True)
        return [first, *(round(summary(list(changes)), 6) for changes in steps)]

    def per_branch(summary: Callable[[list[Change]], float], first: float) -> dict[str, list[float]]:
        return {key: per_step(name, summary, first) for name, key in keys.items()}

    return {
        "ratios": per_branch(lambda changes: float(np.mean([change.ratio for change in changes])), 1.0),
        "token_std": per_branch(lambda changes: float(np.mean([change.ratio_std for change in changes])), 0.0),
        "video_std": per_branch(lambda changes: float(np.std([change.ratio for change in changes])), 0.0),
        "samples": len(videos),
    }


def describe(data: dict[str, Any]) -> list[str]:
    """The calibration as lines of text for the terminal."""
    if "coefficients" in data:
        low, high = data["range"]
        fit = "not defined" if data["r2"] is None else f"{data['r2']:.4f}"
        lowest = float(np.polyval(data["coefficients"], np.linspace(low, high, 1000)).min())
        warning = [f"the polynomial falls below 0 inside that range, to {lowest:.4g}"] if lowest < 0 else []
        return [f"coefficients {data['coefficients']}", f"R² {fit}, valid from {low:.4g} to {high:.4g}", *warning]
    lines = []
    for name, row in data["ratios"].items():
        lines.append(f"{name}: {' '.join(f'{ratio:.4f}' for ratio in row)}")
        spreads = max(data["token_std"][name]), max(data["video_std"][name])
        lines.append(f"{name}: standard deviation at most {spreads[0]:.4f} over tokens, {spreads[1]:.4f} over videos")
    return lines
