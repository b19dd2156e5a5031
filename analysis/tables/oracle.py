"""What each method reaches of what a search finds: the share of the best schedule's gain over the uniform one.

`python -m pcbench.oracle` writes a summary for a number of computed steps. Those in an experiment's folder `oracle`
make a table: of the schedules that were searched, and of every method's setting at that cost, the PSNR over the videos
that were searched, and where it is between the uniform schedule (0 %) and each video's best one (100 %).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..load import Bench
from ..pareto import PSNR, SPECS, Curve, curves, mean_score, short_names
from ..render import Block, Cell, Table
from ..searches import FOR_ALL, PER_PROMPT, UNIFORM, Search, searches
from .budget import TOLERANCE, nearest

KINDS = {UNIFORM: "evenly spaced", FOR_ALL: "the best for all videos", PER_PROMPT: "each video's best"}


def tables(name: str, benches: Sequence[Bench]) -> list[Table]:
    """The table of an experiment, with a block for each bench, payload and set of videos; [] where nothing was
    searched."""
    found = [(bench, group) for bench in benches for group in _groups(bench)]
    budgets = sorted({budget for _, group in found for budget in group})
    blocks = [Block(_heading(bench, group), list(_rows(bench, group, budgets))) for bench, group in found]
    if not blocks:
        return []
    notes = [
        "In parentheses the share of the gain of each video's best schedule over the evenly spaced one, at the same"
        " number of computed steps and with the payload that the block names, that the mean reaches; over the videos"
        " of which all three have a PSNR.",
        f"A method's setting counts if its MACs are within {TOLERANCE:.0%} of that. A search looks at the uncached"
        " video, so no method can do what it does. It is a local one, by the latents' error: better ones may exist.",
    ]
    columns = ("schedule", *(f"PSNR (dB) at {budget:g}×" for budget in budgets))
    return [Table(f"{name}-oracle", f"{name}: how much of the best schedule's gain", columns, blocks, notes)]


def _groups(bench: Bench) -> list[dict[float, Search]]:
    """The searches of a bench by budget, apart for each payload and set of videos."""
    groups: dict[tuple[str, frozenset[tuple[str, int]]], dict[float, Search]] = {}
    for search in searches(bench.root / "oracle"):
        if search.concerns(bench):
            groups.setdefault((search.reuse, frozenset(search.samples)), {})[search.speedup] = search
    return list(groups.values())


def _heading(bench: Bench, group: Mapping[float, Search]) -> str:
    search = next(iter(group.values()))
    count = len(search.samples)
    return f"{bench.heading}: {count} video{'s' if count > 1 else ''}, reuse={search.reuse}"


def _rows(bench: Bench, group: Mapping[float, Search], budgets: Sequence[float]) -> Iterator[list[Cell]]:
    def row(title: str, scores: Mapping[float, np.ndarray]) -> list[Cell]:
        return [Cell(text=title), *(_cell(scores[b], group[b]) if b in scores else Cell() for b in budgets)]

    for kind, title in KINDS.items():
        scores = {budget: search.psnr[kind] for budget, search in group.items() if kind in search.psnr}
        if any(_scored(each) for each in scores.values()):
            yield row(title, scores)
    with contextlib.suppress(ValueError):  # no prompt in common
        found, _ = curves(bench)
        names = short_names(found)
        reached = {curve: dict(_of_method(bench, found[curve], group)) for curve in found}
        known = {curve: scores for curve, scores in reached.items() if scores}
        first = {curve: mean_score(known[curve].get(budgets[0], np.array([]))) for curve in known}
        for curve in sorted(known, key=lambda curve: -np.nan_to_num(first[curve], nan=-1.0)):
            yield row(names[curve], known[curve])


def _of_method(bench: Bench, curve: Curve, group: Mapping[float, Search]) -> Iterator[tuple[float, np.ndarray]]:
    """PSNR of the videos that were searched, of a method's setting at a search's cost, where it has one with scores."""
    for budget, search in group.items():
        point = nearest(curve, budget)
        if point.reached:
            identity = bench.records.loc[bench.records["label"] == curve.labels[point.place], "id"].iloc[0]
            samples = bench.samples[bench.samples["id"] == identity].set_index(["prompt", "seed"])
            scores = np.array([samples[PSNR].get(key) for key in search.samples], dtype=float)
            if _scored(scores):
                yield budget, scores


def _scored(scores: np.ndarray) -> bool:
    return not np.isnan(scores).all()


def _cell(scores: np.ndarray, search: Search) -> Cell:
    """The mean, and its share; no share where the search has found nothing better than evenly spaced steps."""
    if not _scored(scores):
        return Cell()
    mean = f"{mean_score(scores):{SPECS[PSNR]}}"
    low, high = search.psnr[UNIFORM], search.psnr[PER_PROMPT]
    shared = ~np.isnan(scores + low + high)
    gain = (high - low)[shared].sum()
    return Cell(text=f"{mean} ({(scores - low)[shared].sum() / gain:.0%})" if gain > 0 else mean)
