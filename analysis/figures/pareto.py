"""Quality against speed: a few methods stand out, the rest is grey; a panel an approach, names beside the lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..approaches import TITLES
from ..load import Bench
from ..pareto import METRICS, Curve, curves, mean_score, paired, short_names, worst_score
from ..stats import Interval, bootstrap, interval
from ..tables.layouts import layout_of
from . import fewsteps, style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError
from .highlight import DEFAULT, OURS, TARGETS, Options, looks
from .labels import Line, place

PSNR, SSIM = METRICS
RIVALS = ("pab", "teacache", "fastercache")  # the paper's Table 1
FEW = 8  # curves that share a panel, whatever their approach
MANY = 10  # curves of one approach, above which each of its methods gets a panel if it has several
WRAP = 24  # letters of a line of a name
SIZE = 8  # points of a name
HIGHER = 0.12  # inches that a panel grows with every name in it
ORACLE = "best schedule found"


@dataclass(frozen=True)
class View:
    """What is drawn against what. metric: a key of METRICS. latency: whether speed is by latency, or by MACs."""

    metric: str = PSNR
    latency: bool = False

    @property
    def name(self) -> str:
        """Of its figures' kind."""
        return "pareto-latency" if self.latency else "pareto" if self.metric == PSNR else "pareto-ssim"

    @property
    def speed(self) -> str:
        return f"speedup by {'latency' if self.latency else 'MACs'}"

    @property
    def quality(self) -> str:
        return "PSNR, dB" if self.metric == PSNR else "1 − SSIM (better upwards)"

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """Where scores are drawn: SSIM's distance from 1, on a logarithmic axis, on which 0 has no place."""
        return scores if self.metric == PSNR else np.where(scores < 1, 1 - scores, np.nan)


BY_MACS, BY_SSIM, BY_LATENCY = View(), View(SSIM), View(latency=True)


def pareto(bench: Bench, view: View = BY_MACS, options: Options = DEFAULT) -> Drawing:
    """One view of every curve, in a row of panels for each approach. Open choices and fewsteps have their own."""
    found, prompts = _curves(bench, view)
    oracle = options.beside(bench) if view == BY_MACS else []
    best = [(point.speedup, point.psnr) for point in oracle]
    figure = _figure(found, prompts, view, looks(found, prompts, options.highlight), best)
    by = f" on {bench.machine}" if view.latency else ""
    title = (
        f"Quality against {view.speed}{by}, {bench.experiment} on {bench.title}: {prompts} prompts that all records"
        " have, against the uncached videos: their mean with 95 % intervals, and the worst of them."
    )
    if view.metric == PSNR:
        title += " Videos identical to their reference have no PSNR and no say in its mean."
    if len(_groups(found)) > 1:
        title += " A panel has the methods of one approach in dark grey, the highlighted ones in colour, others pale."
    if oracle:
        videos = sorted({point.videos for point in oracle if point.videos})
        over = f", over {' or '.join(map(str, videos))} videos" if videos else ""
        title += f" Dashed: the {ORACLE} by a search, which knows the outcome{over}."
    claims, notes = _answers(found, prompts) if view == BY_MACS else ((), ())
    return Drawing(view.name, view.name, bench.model, title, figure, claims, notes)


def _curves(bench: Bench, view: View) -> tuple[dict[str, Curve], int]:
    """The curves that the view has points of, and the number of prompts."""
    if layout_of(bench).choices or bench.name in fewsteps.NAMES:  # they have figures of their own
        raise NotDrawnError
    try:
        found, prompts = curves(bench)
    except ValueError as error:
        raise NotDrawnError(str(error)) from error
    scored = {name: curve for name, curve in found.items() if not np.isnan(view.shown(curve.scores[view.metric])).all()}
    timed = {name: curve for name, curve in scored.items() if not (view.latency and np.isnan(curve.efficiency).any())}
    if len(timed) < 2:
        raise NotDrawnError(f"fewer than two methods have {'scores and latency' if view.latency else 'scores'}")
    return timed, prompts


def _groups(found: dict[str, Curve]) -> dict[str, list[str]]:
    """Title -> the curves of a panel: all of them if they are few, else those of an approach, or of a method."""
    if len(found) <= FEW:
        return {"": list(found)}
    groups: dict[str, list[str]] = {}
    for approach in dict.fromkeys([*TITLES, *sorted({curve.approach for curve in found.values()})]):
        members = [name for name, curve in found.items() if curve.approach == approach]
        methods = dict.fromkeys(found[name].fields["name"] for name in members)
        if len(members) > max(MANY, 2 * len(methods)) or len(members) > len(methods) == 1:
            groups |= {each: [name for name in members if found[name].fields["name"] == each] for each in methods}
        elif members:
            groups[TITLES.get(approach, approach)] = members
    return groups


def _figure(
    found: dict[str, Curve],
    prompts: int,
    view: View,
    chosen: dict[str, dict[str, Any]],
    oracle: Sequence[tuple[float, float]],
) -> Figure:
    """A row of two panels for each group: the mean over prompts, and the worst of them."""
    groups, names = _groups(found), short_names(found)
    heights = [1.25 + HIGHER * len({*members, *chosen}) for members in groups.values()]
    figure, axes = style.panels(
        len(groups), 2, height=0.5 + sum(heights), sharex=True, sharey=True, height_ratios=heights
    )
    means = {name: mean_points(curve, prompts, view) for name, curve in found.items()}
    lowest = {name: _worst(curve, prompts, view) for name, curve in found.items()}
    lined = []
    for row, (title, members) in zip(axes, groups.items(), strict=True):
        row[0].set_title(title.replace("_", " "), loc="left", weight="bold")
        inside = {name: names[name].removeprefix(f"{title.replace('_', ' ')}, ") for name in members}  # of one method
        for panel, points, what in zip(row, (means, lowest), ("mean", "worst prompt"), strict=True):
            panel.set_title(what, loc="right" if title else "left")
            best = oracle if points is means else ()
            lined.append((panel, draw_panel(panel, points, members, chosen, names | inside, best)))
        row[0].set_ylabel(view.quality)
    axes[0, 0].margins(y=0.1)
    style.over_speedups(axes[0, 0])
    if view.metric == SSIM:
        axes[0, 0].set_yscale("log")
        axes[0, 0].invert_yaxis()
    for panel in axes[-1]:
        panel.set_xlabel(view.speed)
    place(figure, lined, SIZE)
    return figure


@dataclass(frozen=True)
class Points:
    """A curve as it is drawn, in the order of speed, all (settings,). low, high: an interval, NaN where there is none.

    filled: whether its markers are.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    filled: bool = True


def mean_points(curve: Curve, prompts: int, view: View) -> Points:
    """The mean over prompts, with its interval."""
    x = curve.speedups(np.arange(prompts), view.latency)
    order = np.argsort(x)
    found = np.array([_mean(scores, prompts) for scores in curve.scores[view.metric]])[order]
    mean, low, high = view.shown(found).T
    return Points(x[order], mean, low, high)


def _mean(scores: np.ndarray, prompts: int) -> Interval:
    return bootstrap(lambda chosen: mean_score(scores[chosen]), prompts, resamples=500)


def _worst(curve: Curve, prompts: int, view: View) -> Points:
    """The worst prompt."""
    x = curve.speedups(np.arange(prompts), view.latency)
    order, nothing = np.argsort(x), np.full(len(x), np.nan)
    return Points(x[order], view.shown(worst_score(curve.scores[view.metric]))[order], nothing, nothing, filled=False)


def draw_panel(
    axes: Axes,
    points: dict[str, Points],
    members: list[str],
    chosen: dict[str, dict[str, Any]],
    names: dict[str, str],
    oracle: Sequence[tuple[float, float]],
) -> list[Line]:
    """Draw a panel: its members, the highlighted curves, and all others as a pale background. Returns the lines."""
    lines = []
    for name in sorted(points.keys() - set(members) - chosen.keys()):
        axes.plot(points[name].x, points[name].y, color=style.PALE, linewidth=0.7, zorder=1)
    for name in [*chosen, *(name for name in members if name not in chosen)]:
        own, stands_out, at = name in members, name in chosen, points[name]
        look = chosen.get(name) or style.muted(members.index(name))
        axes.plot(
            at.x, at.y, linewidth=1.4 if own and stands_out else 0.8, markersize=4 if stands_out else 3.2,
            markerfacecolor=look["color"] if at.filled else "white", zorder=4 if stands_out else 3, **look,
        )  # fmt: skip
        if own and stands_out:
            axes.fill_between(at.x, at.low, at.high, color=look["color"], alpha=0.15, linewidth=0, zorder=2)
        elif own:
            axes.vlines(at.x, at.low, at.high, color=look["color"], linewidth=0.5, alpha=0.35, zorder=2)
        known = ~np.isnan(at.y)
        text = textwrap.fill(names[name], WRAP)
        lines.append(Line(at.x[known], at.y[known], text, look["color"], "bold" if stands_out else "normal"))
    if oracle:
        x, y = np.array(oracle).T
        axes.plot(x, y, color=style.BLACK, linestyle=(0, (5, 2)), linewidth=1.2, zorder=4)
        lines.insert(0, Line(x, y, ORACLE, style.BLACK))
    return lines


def _answers(found: dict[str, Curve], prompts: int) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """LFCache beside the methods of the paper's Table 1, and notes: which are not compared, and the best curves."""
    claims = {rival: _against(found, prompts, rival) for rival in RIVALS if _curves_of(found, rival)}
    notes = _leaders(found, prompts)
    if apart := [rival for rival, claim in claims.items() if claim is None and OURS in found]:
        speeds = ", ".join(f"{target:g}×" for target in sorted(TARGETS))
        notes += (
            f"Not compared with LFCache at {speeds}, where not both have settings around it: {', '.join(apart)}.",
        )
    return tuple(claim for claim in claims.values() if claim is not None), notes


def _curves_of(found: dict[str, Curve], method: str) -> list[Curve]:
    return [curve for name, curve in found.items() if name.split()[0] == method]


def _against(found: dict[str, Curve], prompts: int, rival: str) -> Claim | None:
    """PreciseCache's LFCache against a method of Table 1 at equal MACs; None if at no target both have a score, or if
    other prompts would not have had one there."""
    rival_curves = _curves_of(found, rival)
    lfcache = found.get(OURS)
    if lfcache is None:
        return None
    for target in TARGETS:
        for curve in rival_curves:
            gap = paired(lfcache, target, other=curve, metric=PSNR, prompts=prompts)
            measured = interval(gap[0], gap[1:])
            if not np.isnan(measured).any():
                return Claim(
                    f"At {target:g}× by MACs, is LFCache (PreciseCache) closer to no cache than {curve.name}?",
                    f"it is better than {rival} at higher speed (Table 1)",
                    "Its PSNR minus theirs, in dB,",
                    measured,
                    ABOVE_ZERO,
                    prompts,
                )
    return None


def _leaders(found: dict[str, Curve], prompts: int) -> tuple[str, ...]:
    """A note of the three best curves at each speedup; empty without scores."""
    everything, lines = np.arange(prompts), []
    for target in sorted(TARGETS):
        scores = {name: curve.at(PSNR, target, False, everything) for name, curve in found.items()}
        best = sorted((name for name in scores if not np.isnan(scores[name])), key=lambda name: -scores[name])[:3]
        if best:
            lines.append(f"at {target:g}× {', '.join(f'{name} {scores[name]:.1f}' for name in best)}")
    return (f"The best PSNR in dB, by MACs: {'; '.join(lines)}.",) if lines else ()
