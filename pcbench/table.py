"""The table a run ends in: one row a method, every number from its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from . import record
from .config import Run
from .conventions import CONVENTIONS, IDENTICAL, METRICS
from .identity import recipe_id, sample_key
from .macs import PETA

COLUMNS = ("method", "steps", "PMACs", "MACs ÷", "latency s", "speedup", "efficiency", "PSNR dB", "SSIM")
HEADLINE = ("psnr@2", "ssim@2")
CAPTION = (
    "steps: computed/all. latency: denoising loop of one prompt, median. efficiency: its speedup against the\n"
    "reference in the same process, over the MACs' ratio of that call. speedup: of all n, MACs ÷ times efficiency."
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
        metrics = _more_metrics(rows.values())
        for name in (*COLUMNS, *map(_heading, metrics), "n"):
            table.add_column(name, justify="left" if name == "method" else "right", max_width=44)
        for run in rows.values():
            table.add_row(*row(run, metrics))
        console.print(table)
        print(CAPTION)


def _more_metrics(runs: Iterable[Run]) -> list[str]:
    """Metrics with a column beyond PSNR and SSIM: LPIPS where it was scored, and all of other conventions asked for."""
    records = [record.build(run)["fidelity"] for run in runs]
    asked = [name for run in runs for convention in run.fidelity for name in CONVENTIONS[convention]]
    beyond = [name for name in dict.fromkeys(asked) if name not in HEADLINE and not name.startswith("latent")]
    return [name for name in beyond if any(scores.get(name, {}).get("n") for scores in records)]


def _heading(metric: str) -> str:
    convention, _, name = metric.partition("@")[0].rpartition(".")
    return f"{convention} {name.upper()}".strip() + (" dB" if name == "psnr" else "")


def row(run: Run, more_metrics: Sequence[str] = ()) -> list[str]:
    """The cells of one run, over its own samples. What is missing is a dash."""
    data = record.build(run)
    wanted = {sample_key(prompt, seed) for prompt, seed in run.samples}
    samples = [s for s in data["samples"] if sample_key(s["prompt"], s["seed"]) in wanted]
    if not samples:
        scores = ["-"] * (len(HEADLINE) + len(more_metrics))
        return [run.label, *["-"] * 3, *latency_cells(data["latency"], None), *scores, "0"]
    macs = statistics.fmean(s["macs"] for s in samples)
    computed, steps = (statistics.fmean(s[name] for s in samples) for name in ("computed", "steps"))
    ratio = record.reference_macs(run) / macs
    cells = [run.label, f"{computed:.3g}/{steps:.3g}", f"{macs / PETA:.3g}", f"{ratio:.2f}x"]
    scores = [_fidelity_cell(run, samples, metric) for metric in (*HEADLINE, *more_metrics)]
    return [*cells, *latency_cells(data["latency"], ratio), *scores, str(len(samples))]


def latency_cells(latency: dict[str, Any] | None, macs_ratio: float | None) -> list[str]:
    """Seconds, speedup of the videos whose MACs' ratio is given (None: of the timed call alone), efficiency."""
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


def _fidelity_cell(run: Run, samples: list[dict[str, Any]], metric: str) -> str:
    """The mean over samples that have a value, and how many of them have none because nothing differs."""
    if run.recipe.method.NAME == "none":
        return "reference"
    values = [value for s in samples if (value := s["fidelity"].get(metric)) is not None]
    identical = sum(s["fidelity_notes"].get(metric) == IDENTICAL and s["fidelity"][metric] is None for s in samples)
    if not values:
        return "identical" if identical else "-"
    digits = 2 if "psnr" in metric else 4
    told = f" ({identical} identical)" if identical else ""
    return f"{METRICS[metric].over_videos(values):.{digits}f}{told}"
