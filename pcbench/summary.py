"""The table printed at the end of a run: one row per recipe, every number from its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from . import record
from .cost.macs import PETA
from .fidelity.metrics import CONVENTIONS, IDENTICAL, METRICS
from .job import Job, distinct
from .messages import shortened
from .store import Place

COLUMNS = ("method", "steps", "PMACs", "MACs ÷", "latency s", "speedup", "efficiency", "PSNR dB", "SSIM")
HEADLINE = ("psnr@2", "ssim@2")
CAPTION = (
    "steps: computed/all. latency: denoising loop of one prompt, median. efficiency: its speedup against the\n"
    "reference in the same process, over the MACs' ratio of that call. speedup: of all n, MACs ÷ times efficiency."
)
WIDTH = 400  # characters available, more than any table needs: rich would shorten numbers to fit a narrower console


def show(jobs: Sequence[Job]) -> None:
    """Print one table for each reference among the jobs, the reference first."""
    tables: dict[Place, list[Job]] = {}
    for job in distinct(jobs):
        tables.setdefault(job.reference.place, []).append(job)
    console = Console(highlight=False, markup=False, emoji=False, width=WIDTH)
    for rows in tables.values():
        first = rows[0]
        sampling = first.recipe.sampling
        size = f"{sampling.frames}x{sampling.height}x{sampling.width}, {sampling.steps} steps"
        title = f"{first.recipe.backbone.name}, {size}, guidance {sampling.guidance_scale:g}"
        table = Table(title=title, title_justify="left")
        records = [record.read(job) for job in rows]
        metrics = _more_metrics(rows, records)
        for name in (*COLUMNS, *map(_heading, metrics), "n"):
            table.add_column(name, justify="left" if name == "method" else "right", max_width=44)
        for job, data in zip(rows, records, strict=True):
            table.add_row(*row(job, metrics, data))
        console.print(table)
        print(CAPTION)
        for job, data in zip(rows, records, strict=True):
            if line := _failed_elsewhere(job, data):
                print(line)


def _failed_elsewhere(job: Job, data: dict[str, Any]) -> str:
    """A line about samples that failed in another run, for which the record stays failed; empty if there are none."""
    failures = [f for f in data.get("failures", []) if (f["prompt"], f["seed"]) not in set(job.run.samples)]
    if not failures:
        return ""
    first = f"{shortened(failures[0]['prompt'])!r} seed {failures[0]['seed']}: {shortened(failures[0]['error'])}"
    return f"{job.run.label}: its record stays failed, by samples of other runs ({len(failures)}), the first {first}"


def _more_metrics(jobs: Iterable[Job], records: Iterable[dict[str, Any]]) -> list[str]:
    """Metrics with a column besides PSNR and SSIM: LPIPS if it was scored, and those of the runs' other conventions."""
    summaries = [record["fidelity"] for record in records]
    requested = [name for job in jobs for convention in job.run.fidelity for name in CONVENTIONS[convention]]
    further = [name for name in dict.fromkeys(requested) if name not in HEADLINE and METRICS[name].shown]
    return [name for name in further if any(summary.get(name, {}).get("n") for summary in summaries)]


def _heading(metric: str) -> str:
    convention = metric.rpartition(".")[0]
    return f"{convention} {METRICS[metric].title} {METRICS[metric].unit}".strip()


def row(job: Job, more_metrics: Sequence[str] = (), data: dict[str, Any] | None = None) -> list[str]:
    """The cells of one run, over its own samples, from its record (read if not given). A missing value is a dash."""
    run, data = job.run, data or record.read(job)
    wanted = set(run.samples)
    samples = [s for s in data["samples"] if (s["prompt"], s["seed"]) in wanted]
    if not samples:
        scores = ["-"] * (len(HEADLINE) + len(more_metrics))
        return [run.label, *["-"] * 3, *latency_cells(data["latency"], None), *scores, "0"]
    macs = statistics.fmean(s["macs"] for s in samples)
    computed, steps = (statistics.fmean(s[name] for s in samples) for name in ("computed", "steps"))
    ratio = data["macs"]["reference_peta_per_video"] * PETA / macs
    cells = [run.label, f"{computed:.3g}/{steps:.3g}", f"{macs / PETA:.3g}", f"{ratio:.2f}x"]
    scores = [_fidelity_cell(job, samples, metric) for metric in (*HEADLINE, *more_metrics)]
    return [*cells, *latency_cells(data["latency"], ratio), *scores, str(len(samples))]


def latency_cells(latency: dict[str, Any] | None, macs_ratio: float | None) -> list[str]:
    """Cells: seconds, speedup, efficiency. The speedup is that of videos with this ratio of MACs, or with None that of
    the timed call alone."""
    if latency is None:
        return ["-"] * 3
    efficiency = latency["speedup_over_macs_speedup"]
    low, value, high = (
        latency["speedup"][part] if macs_ratio is None else macs_ratio * efficiency[part]
        for part in ("min", "median", "max")
    )
    return [
        f"{latency['denoise_seconds']['median']:.2f}",
        f"{value:.2f}x ±{(high - low) / 2:.2f}",
        f"{efficiency['median']:.2f}",
    ]


def _fidelity_cell(job: Job, samples: list[dict[str, Any]], metric: str) -> str:
    """The mean over the samples that have a value, and how many have none because they are identical."""
    if job.uncached is None:
        return "reference"
    values = [value for s in samples if (value := s["fidelity"].get(metric)) is not None]
    identical = sum(s["fidelity_notes"].get(metric) == IDENTICAL and s["fidelity"][metric] is None for s in samples)
    if not values:
        return "identical" if identical else "-"
    note = f" ({identical} identical)" if identical else ""
    return f"{METRICS[metric].over_videos(values):.{METRICS[metric].digits}f}{note}"
