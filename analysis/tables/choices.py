"""One choice at a time: the quality that a setting gains or loses against the usual choices, at equal MACs.

A choice changes the number of computed steps and the quality at once, so its quality alone says nothing. It is compared
with the line through several settings of the usual choices (PreciseCache at several α), where that costs as much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..load import Bench
from ..pareto import METRICS, SPECS, Curve, at_least, curves, paired, resampled, worst_score
from ..render import Block, Cell, Table
from ..stats import Interval, interval


@dataclass(frozen=True)
class Choice:
    """A curve of one setting, beside the curve of several settings that differs from it in least.

    changed: what it does differently: "norm l2". usual: the other curve's name. speedup: by MACs. scores, gains: by
    metric; a gain is the score minus the other curve's at that speedup, on the same prompts, NaN where that curve has
    no settings around it. All with 95 % intervals over prompts. lowest_gains: of the prompt that gains least, where
    speeds are means over prompts.
    """

    changed: str
    usual: str
    speedup: Interval
    scores: dict[str, Interval]
    gains: dict[str, Interval]
    lowest_gains: dict[str, float]


def choices(found: dict[str, Curve], prompts: int) -> list[Choice]:
    """Every curve of `pareto.curves` with one setting, beside one of the same method with several; sorted by name."""
    lines = [curve for curve in found.values() if len(curve.labels) > 1]
    made = []
    for curve in found.values():
        usual = [line for line in lines if line.fields["name"] == curve.fields["name"]]
        if len(curve.labels) == 1 and usual:
            made.append(_choice(curve, min(usual, key=lambda line: _distance(curve, line)), prompts))
    return sorted(made, key=lambda choice: (choice.usual, choice.changed))


def _changed(curve: Curve, usual: Curve) -> dict[str, Any]:
    return {name: value for name, value in curve.fields.items() if value != usual.fields[name]}


def _distance(curve: Curve, usual: Curve) -> tuple[int, float]:
    """How many choices differ; then by how much in numbers: a cache rate is nearer to another rate than to none."""
    changed = _changed(curve, usual)
    numbers = [abs(value - usual.fields[name]) for name, value in changed.items() if isinstance(value, int | float)]
    return len(changed), sum(numbers)


def _choice(curve: Curve, usual: Curve, prompts: int) -> Choice:
    scores, gains, lowest = {}, {}, {}
    for metric in METRICS:
        speeds, values = (drawn[:, 0] for drawn in resampled(curve, metric, False, prompts))  # speeds are of any metric
        scores[metric] = interval(values[0], values[1:])
        gain = paired(curve, speeds, other=usual, metric=metric, prompts=prompts)
        gains[metric] = interval(gain[0], gain[1:])
        lowest[metric] = float(worst_score(curve.scores[metric][0] - at_least(usual, metric, float(speeds[0]))))
    changed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _changed(curve, usual).items())
    return Choice(changed, usual.name, interval(speeds[0], speeds[1:]), scores, gains, lowest)


def tables(name: str, benches: Sequence[Bench]) -> list[Table]:
    """The choices of every bench, a block for each curve that they are compared with; [] if there are none."""
    blocks = []
    for bench in benches:
        with contextlib.suppress(ValueError):  # no prompt in common
            found, prompts = curves(bench)
            made = choices(found, prompts)
            for usual in dict.fromkeys(choice.usual for choice in made):
                compared = [choice for choice in made if choice.usual == usual]
                heading = f"{bench.heading}: beside {usual} at {len(found[usual].labels)} settings, {prompts} prompts"
                blocks.append(Block(heading, [_row(choice) for choice in compared]))
    heads = [head for title in METRICS.values() for head in (f"{title} ↑", f"{title}, gained")]
    notes = [
        "Gained: the score minus that of the usual choices at equal MACs, prompt by prompt, on straight lines between "
        "their settings; – where no two of them lie on either side. Brackets: 95 % bootstrap intervals over prompts.",
    ]
    table = Table(f"{name}-choices", f"{name}: one choice at a time", ("choice", "MACs ÷ ↑", *heads), blocks, notes)
    return [table] if blocks else []


def _row(choice: Choice) -> list[Cell]:
    row = [Cell(text=choice.changed), Cell(*choice.speedup, unit="×")]
    for metric, spec in SPECS.items():
        row += [Cell(*choice.scores[metric], spec=spec), Cell(*choice.gains[metric], spec=f"+{spec}")]
    return row
