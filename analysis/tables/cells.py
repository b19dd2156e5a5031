"""The columns of tables: one function per column, from a row (a record of a bench) to a cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pandas as pd

from ..load import EFFICIENCY, NO_CACHE, Bench
from ..metrics import PEAK_MEMORY, RAW, metric_of
from ..render import Cell
from ..stats import Interval, mean_interval
from .videos import on_front

PETA, GIB = 1e15, 2**30
NOT_TIMED = "latency was not measured (stages without latency)"
NO_GPU = "peak memory is that of a GPU; torch counts none on a CPU"
IDENTICAL = "every video is identical to its reference, whose PSNR is infinite"


@dataclass(frozen=True)
class Row:
    """A record of a bench, by its number in it; `convention`: whose fidelity scores."""

    bench: Bench
    number: int
    convention: str = RAW

    @cached_property
    def record(self) -> pd.Series:
        """Its row of `bench.records`."""
        return self.bench.records.iloc[self.number]

    @property
    def raw(self) -> dict[str, Any]:
        """The record itself."""
        return self.bench.raw[self.number]

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Its rows of `bench.samples`."""
        return self.bench.samples[self.bench.samples["id"] == self.record["id"]]

    @cached_property
    def macs(self) -> Interval:
        """PMACs a video, with an interval over prompts."""
        return mean_interval(self.samples["macs"] / PETA, self.samples["prompt"])

    @property
    def label(self) -> str:
        """The method with the fields in which the bench's records of it differ."""
        return str(self.record["label"])

    @property
    def preset(self) -> str | None:
        """The choice in conf/method/ whose settings are all the record's, as the record says; None for other settings,
        and for older records, which do not say."""
        return self.raw.get("preset")

    @property
    def uncached(self) -> bool:
        """Whether this is the reference."""
        return bool(self.record["method"] == NO_CACHE)

    @property
    def failed(self) -> bool:
        """Whether the run ended in an error."""
        return bool(self.record["status"] == "failed")

    def field(self, name: str) -> Any:
        """A field of the method's config; None if it has none of that name."""
        return self.record["fields"].get(name)

    def metric(self, kind: str) -> str | None:
        """The full name of the newest version of "psnr", "ssim", "lpips", … by which a video of the bench was scored;
        if none was, of the newest known; None if there is none."""
        prefix = "" if self.convention == RAW else f"{self.convention}."
        known = [name for name in self.bench.samples if str(name).startswith(f"{prefix}{kind}@")]
        scored = [name for name in known if self.bench.samples[name].notna().any()]
        return max(scored or known, default=None)

    def why(self, kind: str) -> str:
        """Why the row has no score of a kind; empty for the reference, which is compared with nothing."""
        if self.uncached:
            return ""
        if self.failed:
            return "the run failed"
        name = self.metric(kind)
        notes = [sample.get("fidelity_notes", {}).get(name) for sample in self.raw["samples"]] if name else []
        reasons = list(dict.fromkeys(note for note in notes if note))
        if kind == "psnr" and reasons and all(note and "identical" in note for note in notes):
            return IDENTICAL
        return reasons[0] if reasons else f"{kind.upper()} was not scored"


def steps_computed(row: Row) -> Cell:
    """Steps at which the transformer ran, and all steps; means over videos."""
    if not len(row.samples):
        return Cell()
    computed, steps = row.samples["computed"].mean(), row.samples["steps"].mean()
    return Cell(text=f"{computed:.3g}/{steps:.3g}")


def macs(row: Row) -> Cell:
    """PMACs a video, with an interval over prompts."""
    return Cell(*row.macs, spec=".3g")


def macs_ratio(row: Row) -> Cell:
    """MACs of the uncached video over the mean of the row's, with an interval over prompts."""
    return Cell(*_macs_ratio(row), unit="×")


def latency(row: Row) -> Cell:
    """Seconds of the denoising loop of one prompt: median, and range of the timed calls."""
    return _timed(row, "denoise_seconds", "")


def uncached_latency(row: Row) -> Cell:
    """Seconds of the uncached calls timed in turn with it: median, and range."""
    return _timed(row, "reference_denoise_seconds", "")


def speedup(row: Row) -> Cell:
    """The overall speedup (`load_records`), with the MACs' interval over prompts times the timed calls' range."""
    value, low, high = (a * b for a, b in zip(_macs_ratio(row), _times(row, EFFICIENCY), strict=True))
    return _timed(row, "overall_speedup", "×") if math.isnan(value) else Cell(value, low, high, unit="×")


def efficiency(row: Row) -> Cell:
    """The timed call's speedup over its own MACs' ratio: 1 where a reused step costs no time."""
    return _timed(row, EFFICIENCY, "")


def _macs_ratio(row: Row) -> tuple[float, float, float]:
    reference = row.record["macs_reference_peta_per_video"]
    return reference / row.macs.value, reference / row.macs.high, reference / row.macs.low


def _timed(row: Row, name: str, unit: str) -> Cell:
    return Cell(*_times(row, name), unit=unit, why="the run failed" if row.failed else NOT_TIMED)


def _times(row: Row, name: str) -> tuple[float, float, float]:
    """Median, minimum and maximum of the timed calls."""
    return row.record[f"{name}_median"], row.record[f"{name}_min"], row.record[f"{name}_max"]


def memory(row: Row) -> Cell:
    """Most GiB on the GPU in the timed call's denoising, weights included; torch does not count those of a CPU."""
    why = "the run failed" if row.failed else NO_GPU if row.raw.get("latency") else NOT_TIMED
    return Cell(row.record["peak_gpu_bytes"] / GIB, spec=PEAK_MEMORY.spec, why=why)


def vbench(row: Row, entry: str = "vbench", title: str = "VBench") -> Cell:
    """The total of VBench or VBench-2.0 in %, where the official protocol is complete."""
    suites = row.raw.get(entry) or []
    total = next((suite["total"] for suite in suites if suite.get("total") is not None), None)
    if total is not None:
        return Cell(100 * total, unit="%")
    if suites:
        missing = suites[0]["missing"]
        return Cell(why=f"{title}'s protocol is incomplete: {missing[0]}, and {len(missing) - 1} more")
    return Cell(why=f"{title} was not scored (score.vbench)")


def score_of(kind: str) -> Callable[[Row], Cell]:
    """The column function of a kind of metric ("psnr"): the mean over videos, with an interval over prompts.

    The mean is the record's own: a convention may average otherwise, as VideoSys does over batches of 16 videos. Then
    the interval is as far from it as that of the plain mean is from the plain mean.
    """

    def score(row: Row) -> Cell:
        name = row.metric(kind)
        if name is None:
            return Cell(why=row.why(kind))
        plain = mean_interval(row.samples[name], row.samples["prompt"])
        own = row.raw.get("fidelity", {}).get(name, {}).get("mean")
        found = plain if own is None else Interval(*(end + own - plain.value for end in plain))
        return Cell(*found, spec=metric_of(name, row.bench.raw).spec, why=row.why(kind))

    return score


def lowest(row: Row) -> Cell:
    """The PSNR of the worst video."""
    name = row.metric("psnr")
    return Cell(None if name is None else row.samples[name].min(), why=row.why("psnr"))


def front(row: Row) -> Cell:
    """Whether no record is as cheap and as good and better in one."""
    name = row.metric("psnr")
    return Cell(text="●") if name and on_front(row.bench, row.record["id"], name) else Cell()


def count(row: Row) -> Cell:
    """Number of videos."""
    return Cell(len(row.samples), spec="d")


def model(row: Row) -> Cell:
    """The backbone's name."""
    return Cell(text=row.bench.model)


def machine(row: Row) -> Cell:
    """The machine's name."""
    return Cell(text=row.bench.machine)


@dataclass(frozen=True)
class Column:
    """heading: what a reader sees. cell: the function from a row to its cell."""

    heading: str
    cell: Callable[[Row], Cell]


COLUMNS = {
    "steps": Column("steps computed", steps_computed),
    "macs": Column("MACs (P) ↓", macs),
    "macs_ratio": Column("MACs ÷ ↑", macs_ratio),
    "speedup": Column("Speedup ↑", speedup),
    "latency": Column("Latency (s) ↓", latency),
    "efficiency": Column("efficiency", efficiency),
    "memory": Column(PEAK_MEMORY.heading, memory),
    "vbench": Column("VBench ↑", vbench),
    "vbench2": Column("VBench-2.0 ↑", partial(vbench, entry="vbench2", title="VBench-2.0")),
    "lpips": Column("LPIPS ↓", score_of("lpips")),
    "ssim": Column("SSIM ↑", score_of("ssim")),
    "psnr": Column("PSNR (dB) ↑", score_of("psnr")),
    "worst": Column("worst", lowest),
    "front": Column("Pareto", front),
    "count": Column("n", count),
    "uncached_latency": Column("uncached (s)", uncached_latency),
    "cached_latency": Column("+ PreciseCache (s)", latency),
    "model": Column("model", model),
    "machine": Column("machine", machine),
}
