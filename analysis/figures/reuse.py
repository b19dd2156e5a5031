"""Figure 2: the same number of steps reused at high noise alone, or at low noise alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ..load import Bench
from . import style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError, over_prompts, words

PSNR, SSIM = "psnr@2", "ssim@2"
Pair = dict[str, dict[str, Any]]  # "high noise" and "low noise" -> a record


def pairs(bench: Bench) -> dict[int, Pair]:
    """Number of reused steps -> the two replayed schedules that reuse in one half alone, where both exist."""
    found: dict[int, Pair] = {}
    for record, actions in _replayed(bench):
        half = len(actions) // 2
        early, late = actions[:half].count("r"), actions[half:].count("r")
        if (early > 0) != (late > 0):
            found.setdefault(early + late, {})["high noise" if early else "low noise"] = record
    return {count: pair for count, pair in sorted(found.items()) if len(pair) == 2}


def _replayed(bench: Bench) -> Iterator[tuple[dict[str, Any], str]]:
    for record in bench.raw:
        method = record["recipe"]["method"]
        if method["name"] == "replay" and record["samples"]:
            yield record, method["actions"]


def fig2(bench: Bench) -> Drawing:
    """PSNR and SSIM of each prompt, reused early and reused late."""
    found = pairs(bench)
    if not found:
        raise NotDrawnError("no schedules replayed that reuse steps in one half alone")
    tables = {count: _scores(bench, pair) for count, pair in found.items()}
    if not any(len(table) for table in tables.values()):
        raise NotDrawnError("the replayed schedules were not scored")
    figure, axes = style.panels(1, 2, height=2.5)
    colours = dict(zip(tables, style.CYCLE, strict=False))
    for panel, metric, label in zip(axes[0], (PSNR, SSIM), ("PSNR, dB", "SSIM"), strict=True):
        for number, (count, table) in enumerate(tables.items()):
            place = np.array([0, 1]) + 2.5 * number
            for _, row in table.iterrows():
                ends = [row[f"{metric} high noise"], row[f"{metric} low noise"]]
                panel.plot(place, ends, color=colours[count], marker="o", markersize=3, linewidth=0.7, alpha=0.8)
        panel.set_ylabel(label)
        panel.set_xticks([0, 1] + [x for n in range(1, len(tables)) for x in (2.5 * n, 2.5 * n + 1)])
        names = [f"{half}\n{count} steps" for count in tables for half in ("high noise", "low noise")]
        panel.set_xticklabels(names)
        panel.set_xlim(-0.4, 2.5 * (len(tables) - 1) + 1.4)
    title = (
        f"Figure 2 on {bench.title}: the same number of steps reused in the first half of the call (high noise) or in"
        " the second (low noise), against the video without cache. A line is a prompt."
    )
    claims = tuple(_claim(count, table) for count, table in tables.items())
    return Drawing("fig2", "fig2", bench.model, title, figure, claims)


def _scores(bench: Bench, pair: Pair) -> pd.DataFrame:
    """One row per sample that both have: its PSNR and SSIM in each."""
    halves = []
    for name, record in pair.items():
        samples = bench.samples[bench.samples["id"] == record["id"]].set_index(["prompt", "seed"])
        halves.append(samples.reindex(columns=[PSNR, SSIM]).add_suffix(f" {name}"))
    return pd.concat(halves, axis=1, join="inner").dropna(how="all").sort_index()


def _claim(count: int, table: pd.DataFrame) -> Claim:
    prompt_names = list(table.index.get_level_values("prompt"))
    gap, prompts = over_prompts(list(table[f"{PSNR} low noise"] - table[f"{PSNR} high noise"]), prompt_names)
    late = over_prompts(list(table[f"{PSNR} low noise"]), prompt_names)[0]
    return Claim(
        f"With {count} steps reused, does reuse at low noise cost less than at high noise?",
        "early it significantly affects the video, at low noise its impact is negligible (fig. 2)",
        "PSNR with reuse at low noise minus PSNR with reuse at high noise, prompt by prompt, in dB,",
        gap,
        ABOVE_ZERO,
        prompts,
        more=f"At low noise it is {words(late)} dB.",
    )
