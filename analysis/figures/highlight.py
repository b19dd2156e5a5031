"""Which methods stand out in a figure that compares many: ours and the best of the others, or those asked for."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..load import Bench
from ..pareto import BASELINES, METRICS, Curve, curves, mean_score
from ..searches import PER_PROMPT, Search, search_of, searches
from . import style

PSNR = next(iter(METRICS))
OURS = "precisecache prediction"  # the name of LFCache's curve, as the paper defines it, in pareto.curves
BEST = "best"  # the best method that is neither of ours nor a control
HIGHLIGHT = ("controlled", "planned", OURS, BEST, "corrected")
TARGETS = (2.0, 1.5, 2.5)  # speedups; the first at which there are scores decides


@dataclass(frozen=True)
class Found:
    """A point of the best schedules that a search found: mean PSNR in dB at a speedup by MACs.

    machine, reference: of the records that it belongs beside; "" for all of the model. videos: how many were searched.
    """

    model: str
    speedup: float
    psnr: float
    machine: str = ""
    reference: str = ""
    videos: int | None = None

    def concerns(self, bench: Bench) -> bool:
        """Whether it belongs beside a bench's records."""
        wanted = ((self.model, bench.model), (self.machine, bench.machine), (self.reference, bench.reference))
        return all(own in {"", its} for own, its in wanted)


@dataclass(frozen=True)
class Options:
    """What one may choose in figures that compare methods.

    highlight: names of curves (pareto.curves) or of methods that stand out, or "best"; None: HIGHLIGHT.
    oracle: points of the best schedules that a search found.
    """

    highlight: Sequence[str] | None = None
    oracle: Sequence[Found] = ()

    def beside(self, bench: Bench) -> list[Found]:
        """The points of `oracle` that belong beside a bench's records, the slowest first; of several at one speedup
        the best."""
        best: dict[float, Found] = {}
        for point in (point for point in self.oracle if point.concerns(bench)):
            best[point.speedup] = max(point, best.get(point.speedup, point), key=lambda each: each.psnr)
        return [best[speedup] for speedup in sorted(best)]

    def check(self, benches: Sequence[Bench]) -> None:
        """Raise ValueError for a highlighted name that no record has, or an oracle of what has no records."""
        methods = {str(method) for bench in benches for method in bench.records["method"]}
        unknown = [name for name in self.highlight or () if name not in {*methods, BEST}]
        if unknown:
            names = {name for bench in benches for name in _names(bench)}
            if lost := [name for name in unknown if name not in names]:
                raise ValueError(f"nothing to highlight is called {lost[0]!r}; there are: {', '.join(sorted(names))}")
        models = sorted({bench.model for bench in benches})
        for point in self.oracle:
            if point.model not in models:
                raise ValueError(f"no records of {point.model!r}, which the oracle has; there are: {', '.join(models)}")
            if not any(point.concerns(bench) for bench in benches):
                raise ValueError(
                    f"no records of {point.model} on {point.machine} with the reference {point.reference}, which the"
                    " oracle was searched on"
                )


DEFAULT = Options()


def read_oracle(path: Path) -> list[Found]:
    """`Options.oracle` from JSON {"tiny_wan": [[1.5, 60.1], [2, 55.3]]}, or from summaries of `pcbench.oracle`.

    path: a file, or a folder, of which the summaries are read. A summary's point is the mean PSNR of the prompts' best
    schedules; there is none if all videos are identical to their references. Raises ValueError for anything else.
    """
    if path.is_dir():
        found = [point for search in searches(path) for point in _point(search)]
        if not found:
            raise ValueError(f"no summary of pcbench.oracle in {path}")
        return found
    data: Any = None
    with contextlib.suppress(ValueError):
        data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and "schedules" in data:
        return _point(search_of(data, path))
    try:
        return [Found(str(model), float(x), float(y)) for model, points in data.items() for x, y in points]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path} has neither {{model: [[speedup, PSNR], …]}} nor a summary of pcbench.oracle"
        ) from None


def _point(search: Search) -> list[Found]:
    score = float(mean_score(search.psnr[PER_PROMPT]))
    place = (search.machine, search.reference, len(search.samples))
    return [] if math.isnan(score) else [Found(search.model, search.speedup, score, *place)]


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
