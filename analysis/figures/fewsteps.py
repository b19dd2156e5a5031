"""From how many steps caching pays: what methods gain over a schedule shorter by as much, over the number of steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..load import Bench
from ..pareto import curves
from ..stats import Interval
from ..tables.budget import Point, nearest
from . import style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError
from .highlight import DEFAULT, Options, looks

NAMES = ("fewsteps", "fewsteps_tiny")  # experiments
SHORTER = "fewer_steps"  # what a user would do instead
BUDGET = 1.5
ALIKE = 0.1  # relative difference of two speedups up to which they are compared


@dataclass
class Line:
    """A method's gains in dB, by number of steps; over so many prompts. look: colour, marker and dashes, if it stands
    out."""

    gains: dict[int, Interval] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)
    look: dict[str, Any] | None = None


def alike(bench: Bench) -> str:
    """What the benches of one figure have in common: the machine, and the recipe but for its number of steps."""
    recipe = bench.raw[0]["recipe"]
    parts = {name: part for name, part in recipe.items() if name != "method"}
    parts["sampling"] = {name: value for name, value in recipe.get("sampling", {}).items() if name != "steps"}
    return json.dumps([bench.machine, parts], sort_keys=True)


def fewsteps(benches: Sequence[Bench], options: Options = DEFAULT) -> Drawing:
    """A line for each method: its gain at every number of steps, with its interval. benches: of one `alike`."""
    if benches[0].name not in NAMES:
        raise NotDrawnError
    lines: dict[str, Line] = {}
    for bench in benches:
        try:
            found, prompts = curves(bench)
        except ValueError:  # no prompt in common: these steps are not done yet
            continue
        if SHORTER not in found:
            continue
        shorter, steps = nearest(found[SHORTER], BUDGET), int(bench.records["steps"].iloc[0])
        chosen = looks(found, prompts, options.highlight)
        for name, curve in found.items():
            point = nearest(curve, BUDGET)
            if name != SHORTER and _comparable(point, shorter):
                line = lines.setdefault(name, Line())
                line.gains[steps], line.prompts[steps] = point.minus(shorter), prompts
                line.look = chosen.get(name, line.look)
    lines = {name: line for name, line in lines.items() if len(line.gains) > 1}
    if not lines:
        raise NotDrawnError(f"fewer than two numbers of steps at which methods and {SHORTER} cost alike")
    counts = " or ".join(map(str, sorted({count for line in lines.values() for count in line.prompts.values()})))
    title = (
        f"From how many steps caching pays, {benches[0].model}: PSNR at about {BUDGET:g} times fewer MACs minus that of"
        f" a schedule shorter by as much ({SHORTER}), each to the video of all steps; {counts} prompts."
    )
    model = benches[0].model
    return Drawing("fewsteps", "fewsteps", model, title, _drawn(lines), tuple(_claims(lines)))


def _comparable(point: Point, shorter: Point) -> bool:
    scored = not (np.isnan(point.scores).all() or np.isnan(shorter.scores).all())
    return scored and abs(point.speedup / shorter.speedup - 1) <= ALIKE


def _drawn(lines: dict[str, Line]) -> Figure:
    figure, axes = style.panels(1, 1, height=3.2)
    panel = axes[0, 0]
    for place, (name, line) in enumerate(sorted(lines.items(), key=lambda each: each[1].look is None)):
        look = line.look or style.muted(place)
        steps = np.array(sorted(line.gains))
        value, low, high = np.array([line.gains[count] for count in steps]).T
        panel.plot(steps, value, **look, linewidth=1.6 if line.look else 0.9, markersize=4, label=name)
        panel.fill_between(steps, low, high, color=look["color"], alpha=0.12 if line.look else 0.05, linewidth=0)
    panel.axhline(0, color=style.BLACK, linewidth=0.6)
    panel.set_xscale("log")
    ticks = sorted({count for line in lines.values() for count in line.gains})
    panel.set_xticks(ticks, [str(count) for count in ticks])
    panel.minorticks_off()
    panel.set(xlabel="steps without a cache", ylabel="PSNR gained over fewer steps, dB")
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _claims(lines: dict[str, Line]) -> list[Claim]:
    """For each number of steps: whether the best method gains anything there."""
    claims = []
    for steps in sorted({count for line in lines.values() for count in line.gains}):
        there = {name: line.gains[steps] for name, line in lines.items() if steps in line.gains}
        best = max(there, key=lambda name: there[name].value)
        claims.append(
            Claim(
                f"Does caching pay at {steps} steps?",
                "",
                f"The best method's PSNR ({best}) minus that of a schedule shorter by as much, in dB",
                there[best],
                ABOVE_ZERO,
                lines[best].prompts[steps],
            )
        )
    return claims
