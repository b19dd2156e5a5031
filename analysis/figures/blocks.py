"""Figure 6: how much each transformer block changes its input."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from ..load import Bench
from . import style
from .claims import Claim, Drawing, NotDrawnError, at_least, at_most, over_prompts, words
from .measures import Entry, entries, spearman

BLOCKS = "blocks@1"
SHOWN = 6  # denoising steps that are drawn
PIVOTAL = 2.0  # times its even share: the least change that makes the top quarter pivotal
QUIET = 0.5  # times its even share: the most change that the lower half may make


def fig6(bench: Bench) -> Drawing:
    """Share of each block in the change made by all blocks, and the cumulative share of the top blocks."""
    seen = entries(bench, BLOCKS)
    shares = np.mean([_shares(entry) for entry in seen], axis=0)  # (steps, blocks)
    steps, count = shares.shape
    if count < 2:
        raise NotDrawnError("there is but one block")
    figure, axes = style.panels(1, 2, height=2.5, width_ratios=(3, 2))
    numbers, colours = np.arange(count), mpl.colormaps[style.SEQUENTIAL]
    for step in np.unique(np.linspace(0, steps - 1, SHOWN).round().astype(int)):
        axes[0, 0].plot(numbers, shares[step], color=colours(step / max(steps - 1, 1)), marker="o", markersize=3)
    axes[0, 0].axhline(1 / count, color=style.GREY, linestyle="--", linewidth=0.8, label="even")
    axes[0, 0].set(title="(a) by block", xlabel="transformer block", ylabel="share of the change", ylim=(0, None))
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].legend()
    figure.colorbar(ScalarMappable(Normalize(0, steps - 1), colours), ax=axes[0, 0], label="denoising step", pad=0.01)
    top = np.array([np.append(0, np.sort(_shares(entry), axis=1)[:, ::-1].cumsum(1).mean(0)) for entry in seen])
    ranks = np.arange(count + 1)
    for line in top:
        axes[0, 1].plot(ranks, line, color=style.BLUE, linewidth=0.5, alpha=0.5)
    axes[0, 1].plot(
        ranks, top.mean(0), color=style.BLUE, marker="o", markersize=3 if count < 20 else 0, label="measured"
    )
    axes[0, 1].plot(ranks, ranks / count, color=style.GREY, linestyle="--", linewidth=0.8, label="even")
    axes[0, 1].set(title="(b) most important first", xlabel="blocks", ylabel="share of the change", ylim=(0, 1.02))
    axes[0, 1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 1].legend(loc="lower right")
    title = (
        f"Figure 6 on {bench.title}: what each of {count} blocks adds to its input, RMS, as a share of what all add;"
        " (a) mean over prompts, (b) mean over steps."
    )
    return Drawing("fig6", "fig6", bench.model, title, figure, _claims(seen, count), (_ranking(seen),))


def _shares(entry: Entry) -> np.ndarray:
    """Each block's share of the change, (steps, blocks); every step sums to 1."""
    values = np.array(entry[BLOCKS]["rms"], dtype=float)
    return values / values.sum(1, keepdims=True)


def _share_over_even(entry: Entry, first: int, last: int) -> float:
    """Share of the blocks from rank `first` up to `last`, mean over steps, divided by their even share."""
    ordered = np.sort(_shares(entry), axis=1)[:, ::-1]
    return float(ordered[:, first:last].sum(1).mean() / ((last - first) / ordered.shape[1]))


def _claims(seen: list[Entry], count: int) -> tuple[Claim, ...]:
    prompt_names = [entry["prompt"] for entry in seen]
    quarter, half = max(1, round(count / 4)), count // 2
    top, prompts = over_prompts([_share_over_even(entry, 0, quarter) for entry in seen], prompt_names, geometric=True)
    quiet, _ = over_prompts([_share_over_even(entry, half, count) for entry in seen], prompt_names, geometric=True)
    return (
        Claim(
            "Are few blocks pivotal?",
            "only a subset of blocks makes notable modifications (§3.4, fig. 6)",
            f"The change made by the top {quarter} of {count} blocks of each step over their even share,"
            f" {quarter / count:.0%},",
            top,
            at_least(PIVOTAL),
            prompts,
        ),
        Claim(
            "Do the others do next to nothing?",
            "the remaining blocks have minimal impact (§3.4, fig. 6)",
            f"The change made by the lower {count - half} of {count} over their even share",
            quiet,
            at_most(QUIET),
            prompts,
        ),
    )


def _ranking(seen: list[Entry]) -> str:
    """A note on whether a step's ranking, which BlockCache keeps, holds at the next step."""

    def correlation(entry: Entry) -> float:
        shares = _shares(entry)
        return float(pd.Series([spearman(a, b) for a, b in itertools.pairwise(shares)]).mean())

    found, count = over_prompts([correlation(entry) for entry in seen], [entry["prompt"] for entry in seen])
    return (
        "BlockCache goes by the ranking of an earlier step: the rank correlation of the blocks' changes between"
        f" adjacent steps is {words(found)}, n = {count}."
    )
