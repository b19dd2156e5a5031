"""Which methods stand out in a figure that compares many: ours and the best of the others, or those asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..load import Bench
from ..pareto import BASELINES, METRICS, Curve, curves
from . import style

PSNR = next(iter(METRICS))
OURS = "precisecache prediction"  # the name of LFCache's curve, as the paper defines it, in pareto.curves
HIGHLIGHT = ("controlled", "planned", OURS)  # and the best of the others
TARGETS = (2.0, 1.5, 2.5)  # speedups; the first at which there are scores decides


@dataclass(frozen=True)
class Options:
    """What one may choose in figures that compare methods.

    highlight: names of curves (pareto.curves) or of methods that stand out; None: HIGHLIGHT and the best of the others.
    oracle: by model, points (speedup by MACs, PSNR in dB) of the best schedules that a search found.
    """

    highlight: Sequence[str] | None = None
    oracle: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def check(self, benches: Sequence[Bench]) -> None:
        """Raise ValueError for a highlighted name that no record has, or an oracle of a model without records."""
        methods = {str(method) for bench in benches for method in bench.records["method"]}
        unknown = [name for name in self.highlight or () if name not in methods]
        if unknown:
            names = {name for bench in benches for name in _names(bench)}
            if lost := [name for name in unknown if name not in names]:
                raise ValueError(f"nothing to highlight is called {lost[0]!r}; there are: {', '.join(sorted(names))}")
        models = sorted({bench.model for bench in benches})
        if lost := [model for model in self.oracle if model not in models]:
            raise ValueError(f"no records of {lost[0]!r}, which the oracle has; there are: {', '.join(models)}")


DEFAULT = Options()


def read_oracle(path: Path) -> dict[str, list[tuple[float, float]]]:
    """`Options.oracle` from JSON: {"tiny_wan": [[1.5, 60.1], [2, 55.3]]}. Raises ValueError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(model): [(float(speed), float(score)) for speed, score in points] for model, points in data.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{path} is not JSON of the form {{model: [[speedup, PSNR], …]}}") from None


def _names(bench: Bench) -> list[str]:
    try:
        return list(curves(bench)[0])
    except ValueError:  # no prompt in common
        return []


def looks(found: Mapping[str, Curve], prompts: int, highlight: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of the highlighted curves, in the order in which they were asked for."""
    wanted = list(HIGHLIGHT if highlight is None else highlight)
    named = [[name for name in found if want in {name, found[name].fields["name"]}] for want in wanted]
    if highlight is None:
        ours = {name.split()[0] for name in (*wanted, *BASELINES)}
        others = {name: curve for name, curve in found.items() if curve.fields["name"] not in ours}
        named.append(_best(others, prompts))
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
