"""Frames of the same prompts side by side, method by method: figure 7, and the videos behind figure 2."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke

from pcbench.store import Place

from ..load import Bench
from ..tables.layouts import NAMES
from . import style
from .claims import Drawing, NotDrawnError
from .reuse import pairs

FRAMES, ROWS = 4, 10
LABEL = 18  # letters of a line of a row's title
EXPERIMENTS = ("table1", "fig7")
PSNR = "psnr@2"
Key = tuple[str, int]


def fig7(bench: Bench) -> Drawing:
    """Every method of Table 1 on two prompts."""
    if bench.name not in EXPERIMENTS:
        raise NotDrawnError
    rows = bench.records[bench.records["samples"] > 0].sort_values(
        ["macs_peta_per_video"], ascending=False, kind="stable"
    )
    chosen = pd.concat([rows[rows["id"] == bench.reference], rows[rows["id"] != bench.reference]]).head(ROWS)
    figure, keys = strips(bench, {row["id"]: title_of(bench, row) for _, row in chosen.iterrows()})
    title = (
        f"Figure 7 on {bench.title}: {FRAMES} frames of every method, with the PSNR of the video to the uncached one."
        f" The prompts: {_quoted(keys)}, by mean PSNR of the methods the worst and the middle one."
    )
    return Drawing("fig7", "fig7", bench.model, title, figure)


def title_of(bench: Bench, row: pd.Series) -> str:
    """A record's name in Table 1, or its label."""
    preset = next(record.get("preset") for record in bench.raw if record["id"] == row["id"])
    return str(NAMES.get(preset or "", row["label"]))


def fig2(bench: Bench) -> Drawing:
    """The videos of figure 2: no cache, reuse at high noise, reuse at low noise."""
    found = pairs(bench)
    if not found:
        raise NotDrawnError("no schedules replayed that reuse steps in one half alone")
    count, pair = max(found.items())
    rows = {
        bench.reference: "no cache",
        **{pair[half]["id"]: f"{half} reused" for half in ("high noise", "low noise")},
    }
    figure, keys = strips(bench, rows)
    title = (
        f"Figure 2 on {bench.title}, the videos: {count} steps reused at high noise alone, or at low noise alone."
        f" The prompts: {_quoted(keys)}, by mean PSNR the worst and the middle one."
    )
    return Drawing("fig2-videos", "fig2-videos", bench.model, title, figure)


def _quoted(keys: list[Key]) -> str:
    return " and ".join(f"“{prompt}”" for prompt, _ in keys)


def strips(bench: Bench, rows: dict[str, str]) -> tuple[Any, list[Key]]:
    """A figure, one row per record and a block of frames per prompt; and the prompts and seeds shown. rows: the labels
    by the records' ids, since two records may have one label."""
    videos = {identity: _videos(bench, identity) for identity in rows}
    common = set.intersection(*(set(found) for found in videos.values()))
    if not common:
        raise NotDrawnError(f"no videos that all methods have under {bench.root / 'samples'}")
    keys = _worst_and_middle(bench, list(rows), common)
    shown = {(identity, key): _frames(videos[identity][key]) for identity in rows for key in keys}
    height, width = next(iter(shown.values())).shape[1:3]
    columns = FRAMES * len(keys)
    across = (style.PAGE - 0.9) / columns
    figure, axes = style.panels(len(rows), columns, height=len(rows) * (across * height / width + 0.03) + 0.3)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.008, h_pad=0.008, wspace=0, hspace=0)
    for line, (identity, label) in enumerate(rows.items()):
        for block, key in enumerate(keys):
            for place, frame in enumerate(shown[identity, key]):
                axes[line, block * FRAMES + place].imshow(frame, interpolation="lanczos")
            _score(axes[line, (block + 1) * FRAMES - 1], bench, identity, key)
        axes[line, 0].set_ylabel(textwrap.fill(label, LABEL), rotation=0, ha="right", va="center", fontsize=6.5)
    for panel in axes.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure, keys


def _score(axes: Any, bench: Bench, identity: str, key: Key) -> None:
    value = _psnr(bench, identity).get(key, np.nan)
    if np.isnan(value):
        return
    text = axes.text(
        0.96, 0.05, f"{value:.1f} dB", transform=axes.transAxes, ha="right", va="bottom", fontsize=6, color="white"
    )
    text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _psnr(bench: Bench, identity: str) -> dict[Key, float]:
    samples = bench.samples[bench.samples["id"] == identity]
    values = samples[PSNR] if PSNR in samples else pd.Series(np.nan, samples.index)
    return dict(zip(zip(samples["prompt"], samples["seed"], strict=True), values, strict=True))


def _worst_and_middle(bench: Bench, identities: list[str], common: set[Key]) -> list[Key]:
    """The worst and the middle of the prompts that all have, by mean PSNR; those without PSNR come last."""
    table = pd.DataFrame([_psnr(bench, identity) for identity in identities]).mean()
    means = {key: table.get(key, np.nan) for key in common}
    order = sorted(common, key=lambda key: (np.nan_to_num(means[key], nan=np.inf), key))
    return list(dict.fromkeys([order[0], order[len(order) // 2]]))


def _videos(bench: Bench, identity: str) -> dict[Key, Path]:
    """The mp4 files of one record by prompt and seed."""
    method = bench.records.loc[bench.records["id"] == identity, "method"]
    if not len(method):
        raise NotDrawnError("no record of the uncached videos")
    return Place(bench.root, bench.machine, bench.model, str(method.iloc[0]), identity).videos()


def _frames(path: Path) -> np.ndarray:
    """FRAMES frames of a video, evenly from the first to the last: (FRAMES, H, W, 3)."""
    try:
        import imageio.v3 as iio
    except ImportError as error:
        raise NotDrawnError("frames are read with imageio: pip install 'imageio[ffmpeg]'") from error
    video = iio.imread(path, plugin="FFMPEG")
    return video[np.linspace(0, len(video) - 1, FRAMES).round().astype(int)]
