"""What the paper leaves open, one choice at a time: quality gained against the usual choices at equal MACs."""

from __future__ import annotations

import numpy as np

from ..load import Bench
from ..pareto import METRICS, curves
from ..stats import Interval
from ..tables.choices import Choice, choices
from ..tables.layouts import layout_of
from . import style
from .claims import Drawing, NotDrawnError, words

PSNR = next(iter(METRICS))


def ambiguities(bench: Bench) -> Drawing:
    """One point per choice: the PSNR and SSIM that it gains, with intervals."""
    if not layout_of(bench).choices:
        raise NotDrawnError
    try:
        found, prompts = curves(bench)
    except ValueError as error:
        raise NotDrawnError(str(error)) from error
    made = choices(found, prompts)
    placed = sorted((choice for choice in made if _has_gain(choice)), key=lambda choice: choice.gains[PSNR].value)
    if not placed:
        raise NotDrawnError("no choice between settings of the usual ones")
    figure, axes = style.panels(1, len(METRICS), height=0.7 + 0.17 * len(placed), sharey=True)
    heights = np.arange(len(placed))
    for panel, (metric, title) in zip(axes[0], METRICS.items(), strict=True):
        gained = [choice.gains[metric] for choice in placed]
        value, low, high = np.array(gained).T
        bars = np.nan_to_num(np.maximum([value - low, high - value], 0))
        clear = np.array([_excludes_zero(choice) for choice in gained])
        for chosen, colour in ((clear, style.RED), (~clear, style.GREY)):
            panel.errorbar(
                value[chosen], heights[chosen], xerr=bars[:, chosen], fmt="o", color=colour, capsize=2, elinewidth=0.8
            )
        lowest = [choice.lowest_gains[metric] for choice in placed]
        panel.plot(lowest, heights, "o", color=style.GREY, markerfacecolor="white", markersize=3)
        panel.axvline(0, color=style.BLACK, linewidth=0.6)
        panel.set_xlabel(f"{title} gained at equal MACs")
        panel.locator_params(axis="x", nbins=5)  # labels of SSIM are long
    axes[0, 0].set(yticks=heights, yticklabels=[f"{choice.changed} ({choice.speedup.value:.2f}×)" for choice in placed])
    title = (
        f"The paper's open choices on {bench.title}, one at a time: the quality of each minus that of the usual choices"
        f" at several α, where those cost as many MACs (in brackets: how many times fewer than no cache); {prompts}"
        " prompts, 95 % bootstrap intervals over them, red where they leave out zero;"
        " hollow the prompt that gains least."
    )
    notes = (*_gains_and_losses(placed), *_not_compared([choice for choice in made if choice not in placed]))
    return Drawing("ambiguities", "ambiguities", bench.model, title, figure, (), notes)


def _has_gain(choice: Choice) -> bool:
    return not np.isnan(choice.gains[PSNR].value)


def _excludes_zero(gained: Interval) -> bool:
    """Whether the interval leaves out zero."""
    return gained.low > 0 or gained.high < 0


def _gains_and_losses(placed: list[Choice]) -> list[str]:
    """Sentences: which choices gain PSNR, which lose, and how many do neither."""
    better = [choice for choice in reversed(placed) if choice.gains[PSNR].low > 0]
    worse = [choice for choice in placed if choice.gains[PSNR].high < 0]
    lines = [
        f"{verb}, in dB of PSNR: {'; '.join(f'{choice.changed} {words(choice.gains[PSNR])}' for choice in group)}."
        for verb, group in (("Gain", better), ("Lose", worse))
        if group
    ]
    rest = len(placed) - len(better) - len(worse)
    return [
        *lines,
        f"By PSNR the other {rest} of {len(placed)} cannot be told from the usual choice, or have no interval. One such"
        " interval in twenty leaves out zero by chance.",
    ]


def _not_compared(rest: list[Choice]) -> list[str]:
    if not rest:
        return []
    named = "; ".join(f"{choice.changed} ({choice.speedup.value:.2f}×)" for choice in rest)
    return [f"Not compared, as the usual choices have no settings on either side or no video a PSNR: {named}."]
