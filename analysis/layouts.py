"""Which rows and columns a table has: the paper's tables 1 to 4, and the general one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cells import CELLS, Row
from .load import Bench
from .render import Cell

FIRST = {"none": 0, "pab": 1, "teacache": 2, "fastercache": 3}  # of Table 1's rows; then others, then PreciseCache
LAST = {"precisecache": 1, "base": 2, "turbo": 3, "flash": 4}
NAMES = {"pab": "PAB", "teacache": "TeaCache", "fastercache": "FasterCache", "base": "PreciseCache-base",
         "turbo": "PreciseCache-turbo", "flash": "PreciseCache-flash"}  # fmt: skip
STRATEGIES = {"prediction": "Reuse prediction (F)", "residual": "Reuse residuals (R)", "taylorseer": "TaylorSeer"}
TIMES = ("Latency (s) ↓", "Speedup ↑", "efficiency")
QUALITY = ("VBench ↑", "LPIPS ↓", "SSIM ↑", "PSNR (dB) ↑")


@dataclass(frozen=True)
class Layout:
    """label: of a row, its first cell. order: what rows are sorted by. expected: presets that should have a row.

    rest: the columns after the first. optional: those that go where no row has a number. kept: whether a record has a
    row. remark: a note of its own. curves: whether settings of a method differ in how far they go, so that one may look
    between them. choices: whether they differ in what they do, one thing at a time. merged: benches of one machine
    share a block, as each number is a bench's own.
    """

    title: str
    first: str
    rest: tuple[str, ...]
    label: Callable[[Row], str]
    order: Callable[[Row], tuple[Any, ...]]
    optional: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    kept: Callable[[Row], bool] = lambda row: True
    curves: bool = True
    choices: bool = False
    merged: bool = False
    remark: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns' heads."""
        return (self.first, *self.rest)

    def cells(self, row: Row) -> list[Cell]:
        """A row of the table."""
        return [Cell(text=self.label(row)), *(CELLS[column](row) for column in self.rest)]

    def absent(self, rows: Sequence[Row]) -> list[str]:
        """Expected presets without a record."""
        there = {row.preset for row in rows}
        return [NAMES.get(name, name) for name in self.expected if name not in there]

    def notes(self, benches: Sequence[Bench], convention: str) -> list[str]:
        """What the numbers are, and of what their intervals."""
        calls = sorted({int(n) for bench in benches for n in bench.records["timed_calls"].dropna()})
        metrics = sorted({name for bench in benches for name in _metrics(bench, convention)})
        notes = [self.remark] if self.remark else []
        if "n" in self.columns:
            notes.append("n videos. Brackets of MACs and fidelity: 95 % bootstrap intervals over prompts.")
        if calls:
            timed = (
                f"brackets: range of {' or '.join(map(str, calls))} timed calls" if calls != [1] else "one call each"
            )
            notes.append(
                "Latency: denoising loop of one prompt, median, beside the uncached call timed in turn in one process; "
                f"{timed}."
            )
            notes.append(
                "Speedup: of all n videos, MACs ÷ times the timed call's efficiency (its speedup over its own MACs' "
                "ratio), intervals multiplied; without videos the timed call's own."
            )
        if metrics:
            notes.append(
                f"Fidelity to the uncached video of the same machine: {', '.join(metrics)} (docs/fidelity.md)."
            )
        if "worst" in self.columns:
            notes.append(
                "worst: the lowest PSNR of a video; ●: no record of the block costs as few MACs at as high a PSNR; "
                "efficiency: the timed call's speedup over its own MACs' ratio."
            )
        return notes


def _metrics(bench: Bench, convention: str) -> list[str]:
    found = [Row(bench, 0, convention).metric(kind) for kind in ("psnr", "ssim", "lpips")]
    return [name for name in found if name is not None and bench.samples[name].notna().any()]


def _several(row: Row) -> bool:
    """Whether another record of the bench has the same preset."""
    return sum(Row(row.bench, n).preset == row.preset for n in range(len(row.bench.records))) > 1


def _table1_label(row: Row) -> str:
    if row.uncached:
        return f"{row.bench.model} (T = {row.record['steps']:.0f})"
    name = NAMES.get(row.preset, row.label)
    told = row.label.removeprefix(row.record["method"])
    return f"{name}{told}" if _several(row) else name


def _table1_order(row: Row) -> tuple[Any, ...]:
    return (LAST.get(row.preset, 0), FIRST.get(row.preset, len(FIRST)), *_by_macs(row))


def _by_macs(row: Row) -> tuple[Any, ...]:
    """The reference first, then what computes most; without a number last."""
    macs = row.record["macs_peta_per_video"]
    return (not row.uncached, math.inf if math.isnan(macs) else -macs, row.label)


def _factor(row: Row) -> str:
    factor = row.field("downsample_factor")
    return "×".join(map(str, factor)) if factor else ("Baseline" if row.uncached else row.label)


def _factor_order(row: Row) -> tuple[Any, ...]:
    factor = row.field("downsample_factor") or ()
    return (not row.uncached, not factor, math.prod(factor), *factor, row.label)


def _strategy(row: Row) -> str:
    reuse = row.field("reuse")
    if reuse is None or row.record["method"] != "precisecache":
        return row.label
    name = STRATEGIES.get(reuse, f"Reuse: {reuse}")
    damping = row.field("damping")
    return name if damping in (None, 1.0) else f"{name}, damping {damping:g}"


def _strategy_order(row: Row) -> tuple[Any, ...]:
    reuse = row.field("reuse")
    place = list(STRATEGIES).index(reuse) if reuse in STRATEGIES else len(STRATEGIES)
    return (not row.uncached, place, row.label)


def devices(row: Row) -> int:
    """How many devices shared the transformer's tokens."""
    return int(row.raw["recipe"].get("numerics", {}).get("parallel", 1))


def _devices_label(row: Row) -> str:
    return str(devices(row))


def _devices_order(row: Row) -> tuple[Any, ...]:
    return (row.bench.model, devices(row), row.label)


LAYOUTS = {
    "table1": Layout(
        "Efficiency and visual quality (the paper's Table 1)", "Method",
        ("MACs (P) ↓", "MACs ÷ ↑", "Speedup ↑", "Latency (s) ↓", *QUALITY, "n"),
        _table1_label, _table1_order, expected=(*FIRST, "base", "turbo", "flash"),
    ),
    "table2": Layout(
        "Latency by number of devices (the paper's Table 2)", "#devices",
        ("model", "uncached (s)", "+ PreciseCache (s)", "Speedup ↑"), _devices_label, _devices_order,
        kept=lambda row: row.record["method"] == "precisecache", curves=False, merged=True,
        remark="Each speedup is of calls timed in turn on the same devices; the paper's second, to one device, is not.",
    ),
    "table3": Layout(
        "Influence of the downsample size (the paper's Table 3)", "Factor (T×H×W)",
        ("steps computed", "MACs ÷ ↑", "Speedup ↑", "Latency (s) ↓", *QUALITY, "n"), _factor, _factor_order,
        curves=False,
    ),
    "table4": Layout(
        "What a reused step answers (the paper's Table 4)", "Strategy",
        (*QUALITY, "steps computed", "MACs ÷ ↑", "Speedup ↑", "n"), _strategy, _strategy_order,
        curves=False,
    ),
}  # fmt: skip
GENERAL = Layout(
    "", "method",
    ("steps computed", "MACs (P) ↓", "MACs ÷ ↑", *TIMES, *QUALITY, "worst", "Pareto", "n"),
    lambda row: row.label, _by_macs,
    optional=("VBench ↑", "LPIPS ↓", *TIMES, "worst", "Pareto"),
)  # fmt: skip
LAYOUTS["ambiguities"] = replace(GENERAL, curves=False, choices=True)


def layout_of(bench: Bench) -> Layout:
    """By the name of its experiment."""
    return LAYOUTS.get(bench.name, GENERAL)
