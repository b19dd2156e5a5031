"""Every method at the same budgets: a row of panels for each model, a panel for each budget, a line for each method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..load import Bench, names_of
from ..pareto import Curve, curves, short_names
from ..tables.budget import TOLERANCE, Point, points, reached
from ..tables.layouts import layout_of
from . import style
from .claims import Drawing, NotDrawnError
from .highlight import DEFAULT, Options, looks

WRAP = 24  # letters of a line of a row's title
ROW, EDGES = 0.14, 0.3  # inches of a method's line, and of what is above and below a panel


def budget(benches: Sequence[Bench], options: Options = DEFAULT) -> Drawing:
    """PSNR of every method at every budget: mean with its interval, and the worst prompt."""
    budgets = layout_of(benches[0]).budgets
    if not budgets:
        raise NotDrawnError
    drawn = []
    for bench in benches:
        found, prompts = _curves(bench)
        if len(found) > 1:
            drawn.append((bench, found, prompts))
    if not drawn:
        raise NotDrawnError("fewer than two methods have scores on common prompts")
    budgets = reached([found for _, found, _ in drawn], budgets)
    heights = [EDGES + ROW * len(found) for _, found, _ in drawn]
    figure, axes = style.panels(
        len(drawn), len(budgets), height=sum(heights) + 0.4, sharex="row", sharey="row", height_ratios=heights
    )
    for panel, target in zip(axes[0], budgets, strict=True):
        panel.set_title(f"{target:g}× fewer MACs")
    titles = names_of([bench for bench, _, _ in drawn])
    for row, title, (_, found, prompts) in zip(axes, titles, drawn, strict=True):
        at = points(found, budgets)
        chosen = looks(found, prompts, options.highlight)
        for number, panel in enumerate(row):
            _draw(panel, {name: each[number] for name, each in at.items()}, chosen)
        _name(row[0], at, short_names(found), chosen)
        row[0].set_ylabel(textwrap.fill(title, WRAP), weight="bold", size="larger")
    for panel in axes[-1]:
        panel.set_xlabel("PSNR, dB")
    marks = [
        Line2D([], [], color=style.DARK, marker="o", label="mean and its 95 % interval"),
        Line2D([], [], color=style.DARK, marker="o", markerfacecolor="white", linestyle="", label="worst prompt"),
        Line2D([], [], color=style.GREY, marker="x", linestyle="", label="no setting within the budget"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    counts = " or ".join(map(str, sorted({prompts for _, _, prompts in drawn})))
    title = (
        f"Every method tuned to the same budgets, {benches[0].experiment}: PSNR to the uncached video over"
        f" {counts} prompts at {', '.join(f'{target:g}' for target in budgets)} times fewer"
        f" MACs, within {TOLERANCE:.0%}; × where a method has no setting there, the best first."
    )
    models = ", ".join(dict.fromkeys(bench.model for bench, _, _ in drawn))
    return Drawing("budget", "budget", models, title, figure)


def _curves(bench: Bench) -> tuple[dict[str, Curve], int]:
    try:
        return curves(bench)
    except ValueError:  # no prompt in common
        return {}, 0


def _draw(axes: Axes, at: Mapping[str, Point], chosen: Mapping[str, dict[str, Any]]) -> None:
    """A panel: the methods from top to bottom."""
    for place, (name, point) in enumerate(at.items()):
        color = chosen[name]["color"] if name in chosen else style.DARK
        marker = chosen[name]["marker"] if name in chosen else "o"
        height = -place
        if name in chosen:
            axes.axhspan(height - 0.5, height + 0.5, color=color, alpha=0.08, linewidth=0)
        if not point.reached:
            axes.plot(0.02, height, "x", color=style.GREY, markersize=4, transform=axes.get_yaxis_transform())
            continue
        mean = point.mean
        axes.plot([mean.low, mean.high], [height, height], color=color, linewidth=1.6 if name in chosen else 1)
        axes.plot(mean.value, height, marker, color=color, markersize=4.5 if name in chosen else 3.5)
        axes.plot(point.worst, height, marker, color=color, markerfacecolor="white", markersize=3.5)
    axes.set_ylim(-len(at) + 0.5, 0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)


def _name(axes: Axes, at: Mapping[str, Any], names: Mapping[str, str], chosen: Mapping[str, dict[str, Any]]) -> None:
    """The methods' names beside their lines."""
    axes.set_yticks(-np.arange(len(at)), [names[name] for name in at])
    for label, name in zip(axes.get_yticklabels(), at, strict=True):
        if name in chosen:
            label.set(color=chosen[name]["color"], weight="bold")
