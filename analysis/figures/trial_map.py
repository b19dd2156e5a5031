"""The trial as a measuring instrument: which of its settings foretells the impact, and how far it is from full size."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..load import Bench, names_of
from ..stats import Interval
from . import style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError, at_most, over_prompts, words
from .measures import FACTOR, Entry, array, entries, ratio, spearman
from .sizes import FULL, KINDS, ORDER, times
from .steps import IMPACT

TRIAL = "trial@2"
RADIUS, ALL, MODE = "1/5", "all", "nearest-exact"  # PreciseCache's radius and operator; no filter
NO_OPERATOR = "none"  # what the full size is listed under
EDGE = 0.5  # the rank correlation below which a cell's number is written in white


def trial_map(bench: Bench) -> Drawing:
    """Rank correlation of a trial's LFD with the impact of reuse, for every factor, operator and radius."""
    seen = entries(bench, TRIAL, IMPACT)
    factors, modes, radii = _settings(seen)
    figure, axes = style.panels(len(KINDS), len(modes), height=4.2, sharex=True, sharey=True)
    for row, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for panel, mode in zip(row, modes, strict=True):
            cells = np.array([[_tracking(seen, f, mode, r, kind)[0].value for f in factors] for r in radii])
            panel.imshow(cells, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
            _label(panel, cells, factors, radii)
            panel.set_title(mode)
        row[0].set_ylabel(f"{title[:3]} radius, share of the side")
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="rank correlation with the impact", shrink=0.7)
    title = (
        f"The trial's settings on {bench.title}: Spearman's rank correlation over steps of the LFD with the impact of"
        f" reuse (MSE of the video, figure 3a), mean over prompts, by factor (frames × height × width), radius of the"
        f" low-pass disk (all: no filter) and downsampling operator. {'; '.join(KINDS.values())}."
    )
    claims = tuple(_low_frequencies_help(seen, factor) for factor in (FULL, FACTOR) if factor in factors)
    return Drawing("trial-map", "trial-map", bench.model, title, figure, claims, _best(seen, factors, modes, radii))


def _settings(seen: list[Entry]) -> tuple[list[str], list[str], list[str]]:
    """Factors, operators and radii that every entry has, in the order of Table 3 and of the record."""
    first = seen[0][TRIAL]
    factors = [factor for factor in ORDER if all(factor in entry[TRIAL] for entry in seen)]
    small = [factor for factor in factors if factor != FULL]
    if not small:
        raise NotDrawnError("no size but the full one was looked at")
    modes = list(first[small[0]])
    return factors, modes, list(first[small[0]][modes[0]])


def _series(entry: Entry, factor: str, mode: str, radius: str, kind: str) -> np.ndarray:
    return array(entry[TRIAL][factor][NO_OPERATOR if factor == FULL else mode][radius][kind])


def _rhos(seen: list[Entry], factor: str, mode: str, radius: str, kind: str) -> list[float]:
    return [
        spearman(_series(entry, factor, mode, radius, kind), array(entry[IMPACT]["whole"]["video_mse"]))
        for entry in seen
    ]


def _tracking(seen: list[Entry], factor: str, mode: str, radius: str, kind: str) -> tuple[Interval, int]:
    return over_prompts(_rhos(seen, factor, mode, radius, kind), [entry["prompt"] for entry in seen])


def _label(axes: Axes, cells: np.ndarray, factors: list[str], radii: list[str]) -> None:
    for (row, column), value in np.ndenumerate(cells):
        color = "white" if value < EDGE else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=6.5)
    names = ["full" if factor == FULL else times(factor) for factor in factors]
    axes.set_xticks(range(len(factors)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(radii)), radii)
    axes.grid(visible=False)
    axes.tick_params(length=0)


def _low_frequencies_help(seen: list[Entry], factor: str) -> Claim:
    name = "the full size" if factor == FULL else f"a trial of {times(factor)}"
    low, every = (_rhos(seen, factor, MODE, radius, "adjacent") for radius in (RADIUS, ALL))
    found, count = over_prompts([a - b for a, b in zip(low, every, strict=True)], [entry["prompt"] for entry in seen])
    return Claim(
        f"Do the low frequencies of {name} tell the impact better than all frequencies?",
        "the plain difference does not align with the impact, its low frequencies do (§3.2)",
        f"Rank correlation with the impact at radius {RADIUS} minus without a filter, prompt by prompt,",
        found,
        ABOVE_ZERO,
        count,
    )


def _best(seen: list[Entry], factors: list[str], modes: list[str], radii: list[str]) -> tuple[str, ...]:
    """A sentence for each kind of LFD: its best setting below full size, and the paper's own beside it."""
    notes = []
    for kind, title in KINDS.items():
        found = {
            (factor, mode, radius): _tracking(seen, factor, mode, radius, kind)[0]
            for factor in factors
            if factor != FULL
            for mode in modes
            for radius in radii
        }
        factor, mode, radius = best = max(found, key=lambda each: np.nan_to_num(found[each].value, nan=-1))
        paper = found.get((FACTOR, MODE, RADIUS))
        notes.append(
            f"{title}: best is {times(factor)}, {mode}, radius {radius}, with {words(found[best])}; chosen on these"
            f" prompts, so a little too high."
            + (f" {times(FACTOR)}, {MODE}, {RADIUS} has {words(paper)}." if paper is not None else "")
        )
    return tuple(notes)


def gap(benches: Sequence[Bench]) -> Drawing:
    """The trial's distance from the full-size prediction of its own step, in units of the LFD, for every model."""
    observed = []
    for bench in benches:
        with contextlib.suppress(NotDrawnError):
            observed.append((bench, entries(bench, TRIAL)))
    if not observed:
        raise NotDrawnError("no record with trial observed")
    lines = dict(zip(names_of([bench for bench, _ in observed]), (seen for _, seen in observed), strict=True))
    modes = list(dict.fromkeys(mode for seen in lines.values() for mode in _settings(seen)[1]))
    figure, axes = style.panels(1, len(modes), height=2.9, sharey=True)
    shown = [f for f in ORDER if f != FULL and any(f in _settings(seen)[0] for seen in lines.values())]
    for panel, mode in zip(axes[0], modes, strict=True):
        for number, (model, seen) in enumerate(lines.items()):
            _gap_line(panel, seen, mode, shown, number, len(lines), model)
        panel.axhline(1, color=style.GREY, linewidth=0.6, linestyle="--")
        panel.set(title=mode, yscale="log", xlim=(-0.5, len(shown) - 0.5))
        panel.set_xticks(range(len(shown)), [times(factor) for factor in shown], rotation=45, ha="right")
    axes[0, 0].set_ylabel("gap ÷ LFD at full size")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(lines))
    title = (
        "How far a trial is from the full size: the low-pass difference of a trial's prediction and the downsampled"
        f" full-size prediction of the same step (radius {RADIUS}), over the LFD of adjacent steps at full size;"
        " geometric mean over steps and prompts, with 95 % intervals, by factor and downsampling operator. Algorithm 1"
        " adds this gap to every LFD it compares with the threshold."
    )
    claims = tuple(_gap_claim(seen, model) for model, seen in lines.items() if FACTOR in _settings(seen)[0])
    models = ", ".join(dict.fromkeys(bench.model for bench, _ in observed))
    return Drawing("gap", "gap", models, title, figure, claims)


def _gap(seen: list[Entry], factor: str, mode: str) -> tuple[Interval, int]:
    ratios = [
        ratio(_series(entry, factor, mode, RADIUS, "gap"), _series(entry, FULL, mode, RADIUS, "adjacent"))
        for entry in seen
    ]
    return over_prompts(ratios, [entry["prompt"] for entry in seen], geometric=True)


def _gap_line(axes: Axes, seen: list[Entry], mode: str, shown: list[str], number: int, count: int, model: str) -> None:
    """One model's points; beside each other where models share a factor."""
    has = [place for place, factor in enumerate(shown) if factor in _settings(seen)[0]]
    value, low, high = np.array([_gap(seen, shown[place], mode)[0] for place in has]).T
    x = np.array(has) + 0.12 * (number - (count - 1) / 2)
    look = style.highlighted(number)
    axes.errorbar(
        x, value, yerr=np.nan_to_num(np.maximum([value - low, high - value], 0)), capsize=2, elinewidth=0.8,
        color=look["color"], marker=look["marker"], linewidth=0.8, label=model,
    )  # fmt: skip


def _gap_claim(seen: list[Entry], model: str) -> Claim:
    found, count = _gap(seen, FACTOR, MODE)
    return Claim(
        f"Is the gap between trial and full size smaller than what it is added to, on {model}?",
        "downsampling has little effect on the LFD (fig. 5)",
        f"The gap at {times(FACTOR)} over the LFD at full size, geometric mean over steps,",
        found,
        at_most(1),
        count,
        model=model,
    )
