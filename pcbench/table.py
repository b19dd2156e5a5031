"""The table a run ends in: one row a method, every number from its record."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from . import record
from .config import Run
from .identity import recipe_id, sample_key
from .macs import PETA

COLUMNS = ("method", "steps", "PMACs", "MACs ÷", "latency s", "speedup", "efficiency", "PSNR dB", "SSIM", "n")
CAPTION = (
    "steps: computed/all. latency: denoising loop, median. speedup: against the reference in the same process,\n"
    "± half the range. efficiency: that speedup over the MACs' ratio of the same call."
)
WIDTH = 400  # of the canvas, not of the table: rich shortens numbers to fit, and a number is never to be shortened


def show(runs: list[Run]) -> None:
    """Print one table for each reference among the runs, the reference first."""
    tables: dict[str, dict[str, Run]] = {}
    for run in runs:
        reference = recipe_id(run.recipe.reference)
        rows = tables.setdefault(reference, {reference: run.reference})
        rows[recipe_id(run.recipe)] = run
    console = Console(highlight=False, width=WIDTH)
    for rows in tables.values():
        first = next(iter(rows.values()))
        sampling = first.recipe.sampling
        size = f"{sampling.frames}x{sampling.height}x{sampling.width}, {sampling.steps} steps"
        title = f"{first.recipe.backbone.name}, {size}, guidance {sampling.guidance_scale:g}"
        table = Table(title=title, title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "method" else "right", max_width=44)
        for run in rows.values():
            table.add_row(*row(run))
        console.print(table)
        print(CAPTION)


def row(run: Run) -> list[str]:
    """The cells of one run, over its own samples. What is missing is a dash."""
    data = record.build(run)
    wanted = {sample_key(prompt, seed) for prompt, seed in run.samples}
    samples = [s for s in data["samples"] if sample_key(s["prompt"], s["seed"]) in wanted]
    if not samples:
        return [run.label, *["-"] * (len(COLUMNS) - 2), "0"]
    macs = statistics.fmean(s["macs"] for s in samples)
    computed, steps = (statistics.fmean(s[name] for s in samples) for name in ("computed", "steps"))
    cells = [
        run.label,
        f"{computed:.3g}/{steps:.3g}",
        f"{macs / PETA:.3g}",
        f"{record.reference_macs(run) / macs:.2f}x",
    ]
    return [*cells, *_latency_cells(data["latency"]), *_fidelity_cells(run, samples), str(len(samples))]


def _latency_cells(latency: dict[str, Any] | None) -> list[str]:
    if latency is None:
        return ["-"] * 3
    speedup, ratio = latency["speedup"], latency["speedup_over_macs_speedup"]
    return [
        f"{latency['denoise_seconds']['median']:.2f}",
        f"{speedup['median']:.2f}x ±{(speedup['max'] - speedup['min']) / 2:.2f}",
        f"{ratio['median']:.2f}",
    ]


def _fidelity_cells(run: Run, samples: list[dict[str, Any]]) -> list[str]:
    if run.recipe.method.NAME == "none":
        return ["reference", "reference"]
    cells = []
    for metric, digits in (("psnr@1", 2), ("ssim@2", 4)):
        values = [s["fidelity"][metric] for s in samples if metric in s["fidelity"]]
        cells.append(f"{statistics.fmean(values):.{digits}f}" if values else "-")
    return cells
