"""What runs would cost, before anything is loaded: MACs, device hours, memory, disk, videos still to make.

Nothing here needs weights or a GPU. Every estimate comes with its basis and its assumptions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import target
from .compose import run_from
from .config import ConfigError
from .cost.estimate import Price, price_of
from .cost.macs import PETA, reference_macs
from .cost.memory import GIB, needed
from .cost.pace import in_words, pace_of
from .job import Job, distinct
from .observe import stage as observe
from .sampling import latency
from .store import records
from .vbench import hours as vbench
from .vbench.dimensions import VBENCH

# Peak of dense bfloat16 (= float16) matrix products in TFLOPS, and memory in GB, as in the vendors' data sheets.
GPUS: dict[str, tuple[float, int]] = {
    "A100": (312, 80),
    "A800": (312, 80),
    "H100": (989, 80),
    "H800": (989, 80),
    "H20": (148, 96),
    "H200": (989, 141),
    "B200": (2250, 180),
    "L40S": (362, 48),
    "RTX4090": (165, 24),
    "MI300X": (1307, 192),
}
# The paper's Table 1 latencies on four A800 imply 21 (Open-Sora), 32 (HunyuanVideo), 46 (CogVideoX), 58 % (Wan).
UTILISATION = 0.45
BYTES_PER_PIXEL = 0.05  # rough size of an mp4
STYLES = ("true", "json", "table1")
CALIBRATION = 8  # prompts that are enough to calibrate with
WIDTH = 400  # characters a line: in a narrower table, rich would shorten numbers


@dataclass(frozen=True)
class Device:
    """A named GPU, and the share of its peak that denoising reaches."""

    name: str = "H200"
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        if self.name not in GPUS:
            raise ConfigError(f"unknown plan_gpu {self.name!r}; known: {', '.join(GPUS)}")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"plan_utilisation is a share above 0 and at most 1, not {self.utilisation}")

    def seconds(self, macs: float) -> float:
        """Seconds for this many MACs, of two floating-point operations each."""
        return 2 * macs / (GPUS[self.name][0] * 1e12 * self.utilisation)

    @property
    def words(self) -> str:
        peak, _ = GPUS[self.name]
        return f"{self.name} at {self.utilisation:.0%} of its {peak:g} TFLOPS (dense bfloat16)"


def style_of(plan: Any) -> str | None:
    """The style of plan that `plan=…` asks for; None for no plan. Raises ConfigError for an unknown style."""
    style = str(plan).lower()
    if style in ("false", "none"):
        return None
    if style not in STYLES:
        raise ConfigError(f"plan must be false, {', '.join(STYLES)}, not {plan!r}")
    return style


def show(
    jobs: Sequence[Job], style: str = "true", device: Device | None = None, say: Callable[[str], None] = print
) -> None:
    """Print the plan of the jobs and of the references they need, as a table or as one JSON document."""
    device = device or Device()
    all_priced = priced(jobs)
    rows = [at_budget(row(job, price, device), job, device) for job, price in all_priced]
    total = totals(rows)
    looked = {(each.place.record, each.run.observe): each for job in jobs for each in (job.reference, job)}
    observations = [todo for job in looked.values() if (todo := observation(job, device)) is not None]
    timings = timed_calls([job for job, _ in all_priced], rows)
    if style == "json":
        document = {
            "runs": rows,
            "totals": total,
            "observations": observations,
            "timings": timings,
            "assumptions": device.words,
        }
        say(json.dumps(document, indent=1, allow_nan=False))
    else:
        beside = [*map(_in_words, observations), *(_timed_in_words(each, device) for each in timings)]
        for line in [*table(rows, total, device), *beside, time_here(jobs, rows, [*observations, *timings])]:
            say(line)


def timed_calls(jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls still to be timed for each model, as plain data; those that warm up are not counted."""
    prices = {job.place: row["pmacs"] for job, row in zip(jobs, rows, strict=True)}
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for each in dict.fromkeys((job, job.reference)) if (count := latency.calls(job)) else ():
            of_model = found.setdefault(job.place.model, {"model": job.place.model, "calls": 0, "pmacs": 0.0})
            of_model["calls"] += count
            of_model["pmacs"] += count * prices[each.place]
    return list(found.values())


def time_here(jobs: Sequence[Job], rows: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]]) -> str:
    """How long the missing work takes on this machine, as far as records tell, as a line for people."""
    pmacs: dict[str, float] = {}
    for planned in rows:
        pmacs[planned["model"]] = pmacs.get(planned["model"], 0.0) + planned["videos_missing"] * planned["pmacs"]
    for todo in beside:
        pmacs[todo["model"]] += todo["pmacs"]
    machine = jobs[0].place.machine
    known = [record for folder in {job.run.results for job in jobs} for record in known_records(folder)]
    paces = {model: pace_of(known, model, machine) for model, work in pmacs.items() if work > 0}
    minutes = {model: pmacs[model] * PETA * pace.seconds / 60 for model, pace in paces.items() if pace is not None}
    return in_words(minutes, paces) if paces else "nothing to denoise"


def calibration(words: Sequence[str]) -> str:
    """What calibrating the method of a command line would cost, as a line for people."""
    rest = [word for word in words if not word.startswith(("method", "prompts.limit"))]
    run = run_from([*rest, "method=none", f"prompts.limit={CALIBRATION}"])
    macs = len(run.samples) * price_of(run).expected.total
    device = Device()
    return (
        f"a calibration takes {len(run.samples)} videos without a cache ({_number(macs / PETA)} PMACs,"
        f" {_number(device.seconds(macs) / 3600)} GPU hours of an {device.words}), and prints how well it fits"
    )


def priced(jobs: Sequence[Job]) -> list[tuple[Job, Price]]:
    """Every distinct recipe among the jobs and their references, with the price of one video."""
    recipes = distinct(jobs)
    known = {folder: known_records(folder) for folder in {job.run.results for job in jobs}}
    return [(job, price_of(job.run, known[job.run.results])) for job in recipes]


def known_records(results: Path) -> list[dict[str, Any]]:
    """The records of a results folder; if it has none, those published under it (results/README.md)."""
    own = list(records(results))
    published = [folder for root in (results, *results.parents) for folder in sorted(root.glob("published/*"))]
    return own or [record for folder in published for record in records(folder)]


def row(job: Job, price: Price, device: Device) -> dict[str, Any]:
    """One recipe's plan as plain data; everything that is not a total is per video."""
    run, recipe, count = job.run, job.recipe, len(job.missing()) if "generate" in job.run.stages else 0
    parts = needed(run, price.rehearsal)
    seconds = device.seconds(price.expected.total)
    timed = latency.stored(job)
    return {
        "model": recipe.backbone.name,
        "method": run.label,
        "id": job.id,
        "size": [recipe.sampling.frames, recipe.sampling.height, recipe.sampling.width],
        "steps": price.steps,
        "computed_steps": price.computed,
        "partial_steps": price.partial,
        "basis": price.basis,
        "assumed": price.assumed,
        "pmacs": price.expected.total / PETA,
        "pmacs_linear": price.expected.linear / PETA,
        "pmacs_attention": price.expected.attention / PETA,
        "pmacs_lower": price.lower.total / PETA,
        "pmacs_upper": price.upper.total / PETA,
        "pflops": 2 * price.expected.total / PETA,
        "trial_pmacs": price.trial.total / PETA,
        "trial_overhead": price.trial.total / reference_macs(job),
        "weights_gib": parts[0] / GIB,
        "activations_gib": parts[1] / GIB,
        "cache_gib": parts[2] / GIB,
        "cache_cpu_gib": price.rehearsal.waiting / recipe.numerics.parallel / GIB,
        "peak_gib": sum(parts) / GIB,
        "fits_gpu": sum(parts) < GPUS[device.name][1] * 1e9,
        "gpu": device.name,
        "utilisation": device.utilisation,
        "gpu_seconds": seconds,
        "measured_seconds": None if timed is None else timed["denoise_seconds"]["median"],
        "videos": len(run.samples),
        "videos_missing": count,
        "scorings": dict(vbench.scorings(run)),
        "gpu_hours_missing": count * seconds / 3600,
        "disk_mb_missing": count * _disk_bytes(job) / 1e6,
    }


def at_budget(planned: dict[str, Any], job: Job, device: Device) -> dict[str, Any]:
    """A recipe's plan with the cost that its run's budget asks for, where that is a speedup or a number of steps.

    The setting is not known before trials are made, which the assumption says; their cost is not in it.
    """
    if job.run.budget is None:
        return planned
    goal = target.parse(job.run.budget)
    notes = f"set to {goal} first, by some five settings on 2 to 8 of the prompts; they are not counted"
    share = {"x": 1 / goal.value, "steps": goal.value / planned["steps"]}.get(goal.unit)
    changed = {"method": f"{planned['method']} {goal}", "videos_missing": planned["videos"], "assumed": notes}
    if share is not None:
        ratio = share * reference_macs(job) / PETA / planned["pmacs"]
        scaled = ("pmacs", "pmacs_linear", "pmacs_attention", "pflops", "gpu_seconds", "trial_pmacs", "trial_overhead")
        changed |= {name: planned[name] * ratio for name in scaled}
        changed |= {"pmacs_lower": changed["pmacs"], "pmacs_upper": changed["pmacs"]}
        changed |= {"computed_steps": share * planned["steps"], "partial_steps": 0, "basis": "budget"}
    hours = planned["videos"] * changed.get("gpu_seconds", planned["gpu_seconds"]) / 3600
    return (
        planned | changed | {"gpu_hours_missing": hours, "disk_mb_missing": planned["videos"] * _disk_bytes(job) / 1e6}
    )


def observation(job: Job, device: Device) -> dict[str, Any] | None:
    """What observing a recipe's samples still costs (observe/stage.py), apart from the totals. None for no work."""
    todo = observe.plan(job)
    return None if todo is None else {**todo, "gpu_hours": device.seconds(todo["pmacs"] * PETA) / 3600}


def _in_words(todo: dict[str, Any]) -> str:
    return (
        f"observe, beside that: {todo['model']} {todo['method']}, {todo['samples']} samples:"
        f" {todo['full_steps']} steps at full size ({_number(todo['generations'])} videos' worth), {todo['trials']}"
        f" trials, {todo['decodes']} videos to decode: {_number(todo['pmacs'])} PMACs,"
        f" {_number(todo['gpu_hours'])} GPU hours"
    )


def _timed_in_words(each: dict[str, Any], device: Device) -> str:
    cost = f"{_number(each['pmacs'])} PMACs, {_number(device.seconds(each['pmacs'] * PETA) / 3600)} GPU hours"
    return f"time, beside that: {each['model']}, {each['calls']} calls: {cost}"


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over the videos still to make: PMACs (10^15 MACs; expected, least, most), GPU hours, disk and memory.
    scorings: by VBench's edition, the videos it scores, each once for every dimension."""

    def total(name: str) -> float:
        return math.fsum(row["videos_missing"] * row[name] for row in rows)

    return {
        "recipes": len(rows),
        "videos": sum(row["videos"] for row in rows),
        "videos_missing": sum(row["videos_missing"] for row in rows),
        **{name: total(name) for name in ("pmacs", "pmacs_lower", "pmacs_upper", "pflops")},
        "gpu_hours": math.fsum(row["gpu_hours_missing"] for row in rows),
        "scorings": dict(sum((Counter(row["scorings"]) for row in rows), Counter())),
        "disk_mb": math.fsum(row["disk_mb_missing"] for row in rows),
        "peak_gib": max((row["peak_gib"] for row in rows), default=0.0),
    }


def _disk_bytes(job: Job) -> float:
    sampling, shapes = job.recipe.sampling, job.family.arguments(job.recipe, job.config)
    latent = 4.0 * math.prod(shapes["hidden_states"])
    return latent + BYTES_PER_PIXEL * sampling.height * sampling.width * sampling.frames


COLUMNS = (
    "run", "steps", "PMACs", "linear", "attention", "PFLOPs", "least-most", "trials", "kept GiB", "peak GiB",
    "GPU s", "GPU h", "disk MB", "videos",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]], total: dict[str, Any], device: Device) -> list[str]:
    """The plan as lines of text, with notes on what was assumed."""
    grid = Table()
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    notes: dict[str, int] = {}
    for planned in rows:
        number = notes.setdefault(planned["assumed"], len(notes) + 1)
        grid.add_row(*_cells(planned, number))
    console = Console(highlight=False, width=WIDTH)
    with console.capture() as captured:
        console.print(grid)
    lines = captured.get().rstrip().splitlines()
    lines += [f"[{number}] {text}" for text, number in notes.items()]
    lines.append("steps: computed, p in part, of all. PMACs, PFLOPs, GPU s: one video, denoising alone.")
    lines.append(
        "GPU h, disk: the videos missing. least-most: PMACs, whatever the data. trials: of the uncached PMACs."
    )
    lines.append("peak: transformer, activations, caches; without text encoder and VAE. * more than the GPU has.")
    lines.append(f"GPU s, GPU h: {device.words}; the paper's latencies imply 21 to 58 % of an A800's.")
    for planned in rows:
        if planned["cache_cpu_gib"]:
            gib = f"{planned['cache_cpu_gib']:.1f} GiB of the CPU's memory for each GPU"
            lines.append(f"kept on the CPU: {planned['model']} {planned['method']}, {gib}")
        if (seconds := planned["measured_seconds"]) is not None:
            lines.append(f"timed on this machine: {planned['model']} {planned['method']}, {seconds:.3g} s a video")
    for edition, count in total["scorings"].items():
        lines.append(
            f"{edition} then scores {count} videos, each once for every dimension: {scoring_time(edition, count)}"
        )
    pmacs, least, most, gpu = (_number(total[n]) for n in ("pmacs", "pmacs_lower", "pmacs_upper", "gpu_hours"))
    lines.append(
        f"{total['recipes']} recipes, {total['videos_missing']} videos to make: {pmacs} PMACs ({least} to {most}),"
        f" {gpu} GPU hours, {total['disk_mb']:.1f} MB, up to {total['peak_gib']:.1f} GiB"
    )
    return lines


def scoring_time(edition: str, count: int) -> str:
    """How long scoring takes, as far as that is known."""
    if edition != VBENCH.title:
        return "how long that takes is published nowhere"
    return f"{_number(vbench.hours(count))} hours of an H100, at half a day for all of VBench (Vchitect/VBench#195)"


def _cells(planned: dict[str, Any], note: int) -> list[str]:
    open_ended = planned["pmacs_lower"] < planned["pmacs_upper"]
    return [
        f"{planned['model']} {planned['method']} ",
        f"{_steps(planned)}/{planned['steps']} \\[{note}]",
        *(_number(planned[name]) for name in ("pmacs", "pmacs_linear", "pmacs_attention", "pflops")),
        f"{_number(planned['pmacs_lower'])}-{_number(planned['pmacs_upper'])}" if open_ended else "",
        f"{planned['trial_overhead']:.1%}" if planned["trial_pmacs"] else "",
        f"{planned['cache_gib']:.1f}" if planned["cache_gib"] else "",
        f"{planned['peak_gib']:.1f}{' ' if planned['fits_gpu'] else '*'}",
        _number(planned["gpu_seconds"]),
        _number(planned["gpu_hours_missing"]),
        f"{planned['disk_mb_missing']:.1f}",
        f"{planned['videos_missing']}/{planned['videos']}",
    ]


def _steps(planned: dict[str, Any]) -> str:
    computed, partial = planned["computed_steps"], planned["partial_steps"]
    return f"{computed - partial:.3g}+{partial}p" if partial else f"{computed:.3g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
