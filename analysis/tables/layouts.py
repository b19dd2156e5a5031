"""Which rows and columns a table has: the paper's tables 1 to 4, and the general one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..load import NO_CACHE, Bench
from .cells import COLUMNS, Column, Row, score_of

# Preset (a choice of conf/method/) -> its name in Table 1; rows of PreciseCache are in this order.
NAMES = {
    "pab": "PAB",
    "pab_246": "PAB",
    "teacache": "TeaCache",
    "fastercache": "FasterCache",
    "fastercache_opensora": "FasterCache",
    **{f"precisecache_{name}": f"PreciseCache-{name}" for name in ("base", "turbo", "flash")},
    **{f"precisecache_trial_{name}": f"PreciseCache-{name} (trial to trial)" for name in ("base", "turbo", "flash")},
}
EXPECTED = (NO_CACHE, *dict.fromkeys(name for preset, name in NAMES.items() if "_trial_" not in preset))
FIRST = ("none", "pab", "teacache", "fastercache")  # methods at the top of Table 1; then others, then PreciseCache
STRATEGIES = {"prediction": "Reuse prediction (F)", "residual": "Reuse residuals (R)", "taylorseer": "TaylorSeer"}
TIMES = ("latency", "speedup", "efficiency")
MEMORY_NOTE = (
    "Peak memory: the most on the GPU while denoising, weights included, decoding not; torch counts none on a CPU, and "
    "where no record has any there is no column."
)
QUALITY = ("vbench", "lpips", "ssim", "psnr")


@dataclass(frozen=True)
class Layout:
    """label: the first cell of a row. order: the sort key of rows. expected: names of NAMES that should have a row.

    rest: the columns after the first, by their keys in COLUMNS. optional: columns left out where no row has a number.
    every_metric: whether metrics without a column in COLUMNS get one where a record has them. kept: whether a record
    has a row. remark: an additional note. curves: whether settings of a method differ only in degree, so that one may
    interpolate between them. choices: whether they differ in what they do, one thing at a time. budgets: the speedups
    by MACs to which every method was tuned. merged: whether benches of one machine share a block, because no number
    compares two benches.
    """

    title: str
    first: str
    rest: tuple[str, ...]
    label: Callable[[Row], str]
    order: Callable[[Row], tuple[Any, ...]]
    optional: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    every_metric: bool = False
    kept: Callable[[Row], bool] = lambda row: True
    curves: bool = True
    choices: bool = False
    budgets: tuple[float, ...] = ()
    merged: bool = False
    remark: str = ""

    def with_more(self) -> Layout:
        """This layout with the columns that the paper's tables lack: the worst PSNR beside PSNR, and peak memory."""
        rest = list(self.rest)
        if "psnr" in rest and "worst" not in rest:
            rest.insert(rest.index("psnr") + 1, "worst")
        if "memory" not in rest:
            rest.insert(len(rest) - (rest[-1] == "count"), "memory")
        return replace(self, rest=tuple(rest))

    def columns(self, benches: Sequence[Bench], convention: str) -> dict[str, Column]:
        """The columns after the first, by key, in order; metrics without a place of their own after the worst PSNR."""
        found: dict[str, Column] = {}
        last = "worst" if "worst" in self.rest else "psnr"
        for key in self.rest:
            found[key] = COLUMNS[key]
            if key == last and self.every_metric:
                more = [metric for bench in benches for metric in bench.metrics if metric.convention == convention]
                found |= {
                    metric.kind: Column(metric.heading, score_of(metric.kind))
                    for metric in more
                    if metric.shown and metric.kind not in COLUMNS
                }
        return found

    def absent(self, rows: Sequence[Row]) -> list[str]:
        """Expected names (of NAMES) without a record."""
        present = {NO_CACHE if row.uncached else NAMES.get(row.preset or "") for row in rows}
        return [name for name in self.expected if name not in present]

    def notes(self, benches: Sequence[Bench], convention: str) -> list[str]:
        """What the numbers are, and what their intervals are over."""
        calls = sorted({int(n) for bench in benches for n in bench.records["timed_calls"].dropna()})
        prompts = max((int(bench.records["timed_prompts"].max()) for bench in benches), default=1)
        metrics = sorted({name for bench in benches for name in _metrics(bench, convention)})
        notes = [self.remark] if self.remark else []
        if "count" in self.rest:
            notes.append("n videos. Brackets of MACs and fidelity: 95 % bootstrap intervals over prompts.")
        if calls:
            timed = (
                f"brackets: range of {' or '.join(map(str, calls))} timed calls" if calls != [1] else "one call each"
            )
            sample = "one prompt" if prompts <= 1 else f"{prompts} prompts"
            notes.append(
                f"Latency: denoising loop of {sample}, median, beside the uncached call timed in turn in one process; "
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
        sizes = {tuple(size) for bench in benches for name in metrics for size in _rescaled(bench, name)}
        for height, width in sorted(sizes):
            notes.append(f"Compared at {height}×{width}: its official writer rescales to multiples of 16.")
        if "front" in self.rest:
            notes.append(
                "worst: the lowest PSNR of a video; ●: no record of the block costs as few MACs at as high a PSNR; "
                "efficiency: the timed call's speedup over its own MACs' ratio."
            )
        elif "worst" in self.rest:
            notes.append("worst: the lowest PSNR of a video.")
        if "memory" in self.optional and calls:
            notes.append(MEMORY_NOTE)
        return notes


def _metrics(bench: Bench, convention: str) -> list[str]:
    found = [Row(bench, 0, convention).metric(kind) for kind in ("psnr", "ssim", "lpips")]
    return [name for name in found if name is not None and bench.samples[name].notna().any()]


def _rescaled(bench: Bench, metric: str) -> list[list[int]]:
    """The sizes, height and width, to which a convention's mp4 files were rescaled, as records say."""
    found = (record.get("fidelity", {}).get(metric, {}).get("compared_at") for record in bench.raw)
    return [size for size in found if size]


def _table1_label(row: Row) -> str:
    if row.uncached:
        return f"{row.bench.model} (T = {row.record['steps']:.0f})"
    return NAMES.get(row.preset or "", row.label)


def _table1_order(row: Row) -> tuple[Any, ...]:
    method, names = row.record["method"], list(NAMES)
    named = names.index(row.preset) if row.preset in names else 0
    first = FIRST.index(method) if method in FIRST else len(FIRST)
    return (method == "precisecache", first, named if method == "precisecache" else 0, *_by_macs(row))


def _by_macs(row: Row) -> tuple[Any, ...]:
    """The reference first, then by falling MACs; records without MACs last."""
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
    options = {each: row.field(each) for each in ("damping", "blend")}
    return ", ".join([name, *(f"{each} {value:g}" for each, value in options.items() if value not in (None, 1.0))])


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
        ("macs", "macs_ratio", "speedup", "latency", *QUALITY, "count"),
        _table1_label, _table1_order, expected=EXPECTED,
    ),
    "table2": Layout(
        "Latency by number of devices (the paper's Table 2)", "#devices",
        ("model", "uncached_latency", "cached_latency", "speedup"), _devices_label, _devices_order,
        kept=lambda row: row.record["method"] == "precisecache", curves=False, merged=True,
        remark="Each speedup is of calls timed in turn on the same devices; the paper's second, to one device, is not.",
    ),
    "table3": Layout(
        "Influence of the downsample size (the paper's Table 3)", "Factor (T×H×W)",
        ("steps", "macs_ratio", "speedup", "latency", *QUALITY, "count"), _factor, _factor_order,
        curves=False,
    ),
    "table4": Layout(
        "What a reused step answers (the paper's Table 4)", "Strategy",
        (*QUALITY, "steps", "macs_ratio", "speedup", "count"), _strategy, _strategy_order,
        curves=False,
    ),
}  # fmt: skip
GENERAL = Layout(
    "", "method",
    ("steps", "macs", "macs_ratio", *TIMES, "memory", "vbench2", *QUALITY, "worst", "front", "count"),
    lambda row: row.label, _by_macs,
    optional=("vbench", "vbench2", "lpips", *TIMES, "memory", "front"), every_metric=True,
)  # fmt: skip
LAYOUTS["ambiguities"] = replace(GENERAL, curves=False, choices=True)
LAYOUTS |= dict.fromkeys(("budget", "budget_tiny"), replace(GENERAL, budgets=(1.5, 2.0, 2.5, 3.0)))


def layout_of(bench: Bench) -> Layout:
    """The layout of a bench, by the name of its experiment."""
    return LAYOUTS.get(bench.name, GENERAL)
