"""Which methods stand out in a figure that compares many: ours and the best of the others, or those asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..load import Bench
from ..pareto import BASELINES, METRICS, Curve, curves
from . import style

PSNR = next(iter(METRICS))
OURS = "precisecache prediction"  # the name of LFCache's curve, as the paper defines it, in pareto.curves
BEST = "best"  # the best method that is neither of ours nor a control
HIGHLIGHT = ("controlled", "planned", OURS, BEST, "corrected")
PER_PROMPT = "best per prompt"  # the kind of schedule in a summary of pcbench.oracle
TARGETS = (2.0, 1.5, 2.5)  # speedups; the first at which there are scores decides


@dataclass(frozen=True)
class Options:
    """What one may choose in figures that compare methods.

    highlight: names of curves (pareto.curves) or of methods that stand out, or "best"; None: HIGHLIGHT.
    oracle: by model, points (speedup by MACs, PSNR in dB) of the best schedules that a search found.
    """

    highlight: Sequence[str] | None = None
    oracle: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def check(self, benches: Sequence[Bench]) -> None:
        """Raise ValueError for a highlighted name that no record has, or an oracle of a model without records."""
        methods = {str(method) for bench in benches for method in bench.records["method"]}
        unknown = [name for name in self.highlight or () if name not in {*methods, BEST}]
        if unknown:
            names = {name for bench in benches for name in _names(bench)}
            if lost := [name for name in unknown if name not in names]:
                raise ValueError(f"nothing to highlight is called {lost[0]!r}; there are: {', '.join(sorted(names))}")
        models = sorted({bench.model for bench in benches})
        if lost := [model for model in self.oracle if model not in models]:
            raise ValueError(f"no records of {lost[0]!r}, which the oracle has; there are: {', '.join(models)}")


DEFAULT = Options()


def read_oracle(path: Path) -> dict[str, list[tuple[float, float]]]:
    """`Options.oracle` from JSON {"tiny_wan": [[1.5, 60.1], [2, 55.3]]}, or from summaries of `pcbench.oracle`.

    path: a file, or a folder, of whose files the summaries are read. A summary's point is the mean PSNR of the prompts'
    best schedules; of several at one speedup the best counts. Raises ValueError for anything else.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            data = json.loads(file.read_text(encoding="utf-8"))
            if path.is_dir() and not (isinstance(data, dict) and "schedules" in data):
                continue
            for model, points in (_summary(data) if "schedules" in data else data).items():
                best = found.setdefault(str(model), {})
                for speedup, score in points:
                    best[float(speedup)] = max(float(score), best.get(float(speedup), -math.inf))
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(
            f"{path} has neither {{model: [[speedup, PSNR], …]}} nor a summary of pcbench.oracle"
        ) from None
    if not found:
        raise ValueError(f"no summary of pcbench.oracle in {path}")
    return {model: sorted(best.items()) for model, best in found.items()}


def _summary(data: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """The one point of a summary: steps that are left out cost nothing, so its speedup is a ratio of steps."""
    scores = [score for score in data["schedules"][PER_PROMPT]["psnr"] if score is not None]
    return {data["model"]: [(data["of"] / data["steps"], fmean(scores))]}


def _names(bench: Bench) -> list[str]:
    try:
        return list(curves(bench)[0])
    except ValueError:  # no prompt in common
        return []


def looks(found: Mapping[str, Curve], prompts: int, highlight: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of the highlighted curves, in the order in which they were asked for."""
    apart = {name.split()[0] for name in (*HIGHLIGHT, *BASELINES)}
    others = {name: curve for name, curve in found.items() if curve.fields["name"] not in apart}
    named = [
        _best(others, prompts)
        if want == BEST
        else [name for name in found if want in {name, found[name].fields["name"]}]
        for want in (HIGHLIGHT if highlight is None else highlight)
    ]
    one_each = all(len(names) <= 1 for names in named)
    chosen = [(slot, name) for slot, names in enumerate(named) for name in names]
    return {name: style.highlighted(slot if one_each else place) for place, (slot, name) in enumerate(chosen)}


def _best(found: Mapping[str, Curve], prompts: int) -> list[str]:
    """The name of the curve with the highest PSNR at the first of TARGETS that any has a setting around; or []."""
    for target in TARGETS:
        scores = {name: curve.at(PSNR, target, False, np.arange(prompts)) for name, curve in found.items()}
        known = [name for name in scores if not np.isnan(scores[name])]
        if known:
            return [max(known, key=lambda name: scores[name])]
    return []
