"""How every figure looks: one palette, one font, sizes of a paper's column, files that repeat bit for bit."""

from __future__ import annotations

import functools
import gc
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from pcbench.store import write_whole

COLUMN, PAGE = 3.35, 6.9  # widths in inches: one column of a paper, both columns
DPI = 200
UNDATED: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
# Okabe and Ito's colours, which the colour-blind tell apart too.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK, YELLOW)
GREY = "#888888"
DARK, PALE = "#666666", "#E2E2E2"
NARROWEST = 1.4  # high over low end of an axis of speedups, at least
MARKERS = "osD^vP<X>*"
SEQUENTIAL = "cividis"  # colour map for ordered values; uniform for the colour-blind too
# The marker says what a method skips, the colour which method it is.
LOOKS = {
    # whole steps, by an indicator
    "precisecache": (RED, "o"),
    "teacache": (BLUE, "o"),
    "seacache": (GREEN, "o"),
    "easycache": (PINK, "o"),
    "magcache": (SKY, "o"),
    "adacache": (ORANGE, "o"),
    "sencache": (GREY, "o"),
    "controlled": (BLACK, "o"),
    # blocks of a step
    "first_block_cache": (BLUE, "s"),
    "dbcache": (GREEN, "s"),
    "dicache": (PINK, "s"),
    # attention, or a guidance branch
    "pab": (PINK, "^"),
    "fastercache": (GREEN, "^"),
    # features, on a schedule
    "taylorseer": (ORANGE, "v"),
    "fora": (SKY, "v"),
    # whole steps, on a schedule
    "planned": (BLUE, "x"),
    "searched": (RED, "x"),
    "uniform": (BLACK, "x"),
    "fewer_steps": (GREY, "x"),
    "replay": (GREY, "+"),
}
OTHERS = "D"  # the marker of methods that are not listed
DASHES = ("-", "--", ":", "-.")
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "pdf.fonttype": 42,  # fonts embedded as TrueType, which journals ask for
    "svg.hashsalt": "pcbench",
}


def styled() -> AbstractContextManager[None]:
    """The style, for as long as the context lasts; a notebook's own settings stay as they are."""
    settings: Any = {name: v for name, v in mpl.rcParamsDefault.items() if not name.startswith("backend")} | RC
    return mpl.rc_context(settings)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, which would look at every record and every figure again and again to find nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def panels(rows: int, columns: int, width: float = PAGE, height: float = 2.2, **options: Any) -> tuple[Figure, Any]:
    """A figure without a window, and its axes, an array (rows, columns). width, height: inches."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a pdf or png file; the same figure gives the same bytes, at any time."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=UNDATED[kind])
    return buffer.getvalue()


def save(figure: Figure, stem: Path) -> None:
    """Write <stem>.pdf and <stem>.png."""
    for kind in UNDATED:
        write_whole(
            stem.with_name(f"{stem.name}.{kind}"), functools.partial(Path.write_bytes, data=rendered(figure, kind))
        )


def of_method(method: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and dashes of a method's line; `variant` numbers the lines of one method."""
    colour, marker = LOOKS.get(method, (CYCLE[sum(map(ord, method)) % len(CYCLE)], OTHERS))
    return {"color": colour, "marker": marker, "linestyle": DASHES[variant % len(DASHES)]}


def highlighted(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a line that stands out; `number` says which: 0, 1, …"""
    colours = (BLACK, BLUE, RED, GREEN, PINK, ORANGE)
    dashes = ("-", "-", "--", "-.", ":", "--")
    place = number % len(colours)
    return {"color": colours[place], "marker": MARKERS[number % len(MARKERS)], "linestyle": dashes[place]}


def muted(number: int) -> dict[str, Any]:
    """The same of a line that does not stand out; `number` tells those of a panel apart."""
    return {"color": DARK, "marker": MARKERS[number % len(MARKERS)], "linestyle": DASHES[number % len(DASHES)]}


def by_prompt(axes: Axes, steps: np.ndarray, values: Sequence[np.ndarray]) -> None:
    """One thin line per prompt, and their median on top. Steps without any value are left out."""
    table = np.array(values, dtype=float)
    has_value = ~np.isnan(table).all(0)
    for number, line in enumerate(table):
        axes.plot(steps[has_value], line[has_value], color=CYCLE[number % 6], linewidth=0.6, alpha=0.6)
    axes.plot(steps[has_value], np.nanmedian(table[:, has_value], 0), color=BLACK, linewidth=1.4, label="median")


def over_speedups(axes: Axes) -> None:
    """A logarithmic axis of speedups, with round numbers on it, and room for names at the right end."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    short = max(0.0, np.log(NARROWEST * low / high)) / 2
    low, high = low * np.exp(-short), high * np.exp(short)
    axes.set_xlim(low, high * (high / low) ** 0.08)
    spacing = 0.11 * np.log(axes.get_xlim()[1] / low)  # of two ticks, at least
    places: list[float] = []
    for speedup in (1, 2, 4, 3, 1.5, 6, 5, 8, 10, 2.5, 1.2, 1.3, 1.4, 1.6, 1.8, 1.1, 1.7, 1.9, 0.8, 0.9):
        if low <= speedup <= axes.get_xlim()[1] and all(abs(np.log(speedup / place)) > spacing for place in places):
            places.append(speedup)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.xaxis.set_minor_locator(NullLocator())


def over_steps(axes: Axes, count: int) -> None:
    """Name the axis of denoising steps: 0 is the noisiest."""
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_xlabel("denoising step (noise → video)")
