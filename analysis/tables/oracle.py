"""What each method reaches of what a search finds: the share of the best schedule's gain over the uniform one.

`python -m pcbench.oracle` writes a summary for a number of computed steps. Those in an experiment's folder `oracle`
make a table: of the schedules that were searched, and of every method's setting at that cost, the PSNR over the videos
that were searched, and where it is between the uniform schedule (0 %) and each video's best one (100 %).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..load import Bench
from ..pareto import PSNR, SPECS, curves, mean_score, short_names
from ..render import Block, Cell, Table
from .budget import TOLERANCE, nearest

UNIFORM, BEST = "uniform", "best per prompt"  # kinds of schedules in a summary
KINDS = {UNIFORM: "evenly spaced", "best for all": "the best for all videos", BEST: "each video's best"}


def tables(name: str, benches: Sequence[Bench]) -> list[Table]:
    """The table of an experiment; [] where nothing was searched."""
    found = [(bench, summaries(bench)) for bench in benches]
    budgets = sorted({_budget(each) for _, known in found for each in known})
    blocks = [Block(_heading(bench, known), list(_rows(bench, known, budgets))) for bench, known in found if known]
    if not blocks:
        return []
    notes = [
        "In parentheses the share of the gain of each video's best schedule over the evenly spaced one, at the same"
        " number of computed steps and with the same line as payload, that the mean reaches.",
        f"A method's setting counts if its MACs are within {TOLERANCE:.0%} of that. A search looks at the uncached"
        " video, so no method can do what it does. It is a local one, by the latents' error: better ones may exist.",
    ]
    columns = ("schedule", *(f"PSNR (dB) at {budget:g}×" for budget in budgets))
    return [Table(f"{name}-oracle", f"{name}: how much of the best schedule's gain", columns, blocks, notes)]


def summaries(bench: Bench) -> list[dict[str, Any]]:
    """The summaries of searches on a bench's model, the highest numbers of computed steps first."""
    found = []
    for path in sorted((bench.root / "oracle").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if "schedules" in data and data["model"] == bench.model:
            found.append(data)
    return sorted(found, key=lambda data: -data["steps"])


def _budget(summary: Mapping[str, Any]) -> float:
    return float(summary["of"] / summary["steps"])


def _heading(bench: Bench, known: Sequence[Mapping[str, Any]]) -> str:
    return f"{bench.heading}: {len(known[0]['samples'])} videos"


def _rows(bench: Bench, known: Sequence[Mapping[str, Any]], budgets: Sequence[float]) -> Iterator[list[Cell]]:
    at = {_budget(each): each for each in known}
    for kind, words in KINDS.items():
        scores = [_mean(at[b]["schedules"].get(kind, {}).get("psnr")) if b in at else np.nan for b in budgets]
        if not np.isnan(scores).all():
            yield [Cell(text=words), *(_cell(score, at.get(b)) for score, b in zip(scores, budgets, strict=True))]
    with contextlib.suppress(ValueError):  # no prompt in common
        found, _ = curves(bench)
        names = short_names(found)
        rows = {curve: [_of_method(bench, found[curve], at.get(budget)) for budget in budgets] for curve in found}
        known_rows = {curve: scores for curve, scores in rows.items() if not np.isnan(scores).all()}
        for curve in sorted(known_rows, key=lambda curve: -np.nan_to_num(known_rows[curve][0], nan=-1.0)):
            cells = (_cell(score, at.get(b)) for score, b in zip(known_rows[curve], budgets, strict=True))
            yield [Cell(text=names[curve]), *cells]


def _of_method(bench: Bench, curve: Any, summary: Mapping[str, Any] | None) -> float:
    """Mean PSNR, over the videos that were searched, of a method's setting at the search's cost; NaN without one."""
    if summary is None:
        return np.nan
    point = nearest(curve, _budget(summary))
    if not point.reached:
        return np.nan
    identity = bench.records.loc[bench.records["label"] == curve.labels[point.place], "id"].iloc[0]
    samples = bench.samples[bench.samples["id"] == identity].set_index(["prompt", "seed"])
    wanted = [(each["prompt"], each["seed"]) for each in summary["samples"]]
    return _mean([samples[PSNR].get(key) for key in wanted])


def _mean(scores: Sequence[float | None] | None) -> float:
    return np.nan if not scores else float(mean_score(np.array([np.nan if s is None else s for s in scores], float)))


def _cell(score: float, summary: Mapping[str, Any] | None) -> Cell:
    if summary is None or np.isnan(score):
        return Cell()
    low, high = (_mean(summary["schedules"][kind]["psnr"]) for kind in (UNIFORM, BEST))
    if high == low:  # the search has found nothing better than evenly spaced steps
        return Cell(text=f"{score:{SPECS[PSNR]}}")
    return Cell(text=f"{score:{SPECS[PSNR]}} ({(score - low) / (high - low):.0%})")
