"""What the report shows, as plain data: benches of methods and their prompts, from records alone.

A bench is what may share a table: one results folder, one machine, one model, one uncached reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pcbench.store import Place

from .. import load
from ..load import EFFICIENCY, Bench
from ..metrics import Metric, metric_of
from ..pareto import kind_of
from ..stats import bootstrap

DIGITS = 5  # significant, of every number in the page
# the order of metrics; others follow by name
FIRST = ("psnr@2", "psnr@1", "ssim@2", "lpips@1", "temporal_psnr@1", "sharpness@1")
Key = tuple[str, int]  # prompt and seed


def benches(results: Path) -> list[dict[str, Any]]:
    """Every bench under a results folder, each with `methods`, `metrics`, `prompts`. ValueError if there is none."""
    return [_bench(bench, results) for bench in load.benches(results)]


def _bench(bench: Bench, results: Path) -> dict[str, Any]:
    records, scores, reference = bench.raw, bench.samples, bench.reference
    metrics = described(bench.metrics)
    rows = (row for _, row in bench.records.iterrows())
    methods = [_method(record, row, scores, metrics) for record, row in zip(records, rows, strict=True)]
    methods.sort(key=lambda method: (method["id"] != reference, method["macs"] or math.inf, method["label"]))
    return {
        "experiment": "" if bench.root == results else bench.experiment,
        "machine": bench.machine,
        "model": bench.model,
        "reference": reference,
        "hardware": records[0]["machine"],
        "sampling": _sampling(bench),
        "metrics": metrics,
        "methods": methods,
        "prompts": prompts_of(records, scores, metrics),
        "videos": {record["id"]: _videos(bench, record) for record in records},
    }


def _sampling(bench: Bench) -> dict[str, Any]:
    """The reference's frames, size and steps; those of another record where the reference has none."""
    return (bench.uncached or bench.raw[0])["recipe"].get("sampling", {})


def described(metrics: Iterable[Metric]) -> list[dict[str, Any]]:
    """Metrics in the page's order, each with name, title, whether lower is better, and its ideal if it has one."""
    first = {name: place for place, name in enumerate(FIRST)}
    metrics = sorted(metrics, key=lambda metric: (first.get(metric.name, len(FIRST)), metric.name))
    return [
        {"name": metric.name, "title": metric.words, "lower": metric.lower_is_better}
        | ({} if metric.ideal is None else {"ideal": metric.ideal})
        for metric in metrics
    ]


def _method(
    record: dict[str, Any], row: pd.Series, samples: pd.DataFrame, metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    taken = record["samples"]
    scores = samples[samples["id"] == record["id"]]
    return {
        "id": record["id"],
        "method": record["recipe"]["method"]["name"],
        "label": row["label"],
        "curve": " ".join(
            map(str, [*kind_of(method := record["recipe"]["method"]).values(), method.get("version", 1)])
        ),
        "error": record.get("error"),
        "computed": short(_mean(s["computed"] for s in taken)),
        "steps": taken[0]["steps"] if taken else None,
        "pmacs": short(row["macs_peta_per_video"]),
        "macs": short(row["macs_speedup"]),
        "latency": short(row["denoise_seconds_median"]),
        "speedup": short(row["overall_speedup_median"]),
        "speedup_range": [short(row[f"overall_speedup_{end}"]) for end in ("min", "max")],
        "efficiency": short(row[f"{EFFICIENCY}_median"]),
        "n": len(taken),
        "scores": scores_of(scores, metrics),
    }


def scores_of(samples: pd.DataFrame, metrics: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By metric, mean and interval over one setting's samples; without the metrics of which it has no value."""
    return {m["name"]: _score(samples, m["name"]) for m in metrics if samples[m["name"]].notna().any()}


def _mean(values: Iterator[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def _score(samples: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Mean over videos that have a value, and its 95 % interval over prompts (None for a single prompt)."""
    values = samples[samples[metric].notna()]
    clusters = [group[metric].to_numpy(float) for _, group in values.groupby("prompt")]
    low: float | None = None
    high: float | None = None
    if len(clusters) > 1:
        totals, counts = np.array([c.sum() for c in clusters]), np.array([len(c) for c in clusters])
        _, low, high = bootstrap(lambda i: totals[i].sum(-1) / counts[i].sum(-1), len(clusters), resamples=500)
    return {"mean": short(values[metric].mean()), "low": short(low), "high": short(high), "n": len(values)}


def prompts_of(
    records: Sequence[dict[str, Any]], samples: pd.DataFrame, metrics: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every (prompt, seed), the worst by the first metric first, with the scores and traces of each method's sample."""
    found: dict[Key, dict[str, Any]] = {}
    for record in records:
        for sample in record["samples"]:
            entry = found.setdefault((sample["prompt"], sample["seed"]), {"scores": {}, "samples": {}})
            entry["samples"][record["id"]] = _sample(sample)
    for row in samples.to_dict("records"):
        scores = {m["name"]: short(row[m["name"]]) for m in metrics}
        found[row["prompt"], row["seed"]]["scores"][row["id"]] = {k: v for k, v in scores.items() if v is not None}
    several = len({seed for _, seed in found}) > 1
    prompts = [
        {"prompt": prompt, "seed": seed, "title": f"{prompt} (seed {seed})" if several else prompt, **entry}
        for (prompt, seed), entry in found.items()
    ]
    return sorted(prompts, key=lambda p: (_worst(p["scores"], metrics), p["prompt"], p["seed"]))


def _worst(scores: dict[str, dict[str, float]], metrics: list[dict[str, Any]]) -> float:
    """How good the worst score of a prompt is; of one without any, better than all."""
    if not metrics:
        return 0.0
    first = metrics[0]
    values = [row[first["name"]] for row in scores.values() if first["name"] in row]
    ideal = first.get("ideal")
    return min(
        (-abs(v - ideal) if ideal is not None else -v if first["lower"] else v for v in values), default=math.inf
    )


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """What the strip of steps and its text need of a sample."""
    trace = sample.get("trace") or {}
    return {
        "computed": sample["computed"],
        "macs": sample["macs"],
        "notes": [*sample.get("notes", []), *_unscored(sample.get("fidelity_notes", {}))],
        "actions": trace.get("actions", ""),
        "sizes": trace.get("trial_size"),
        **{name: _series(trace.get(name)) for name in ("sigma", "indicator", "accumulated", "threshold")},
    }


def _unscored(notes: dict[str, str]) -> list[str]:
    """Why scores are missing, each reason once; only videos identical to the reference are worth a note."""
    return sorted({f"{metric_of(name).words}: {why}" for name, why in notes.items() if "identical" in why})


def _series(values: list[float | None] | None) -> list[float | None] | None:
    """A row of the trace, rounded; None if it has no value."""
    return [short(value) for value in values] if values and any(v is not None for v in values) else None


def short(value: float | None) -> float | None:
    """A number to `DIGITS` significant digits; None if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def _videos(bench: Bench, record: dict[str, Any]) -> dict[Key, tuple[Path, Path]]:
    """By prompt and seed, a record's video: where it is, and where among the page's media it belongs."""
    place = Place(bench.root, bench.machine, bench.model, record["recipe"]["method"]["name"], record["id"])
    return {key: (path, path.relative_to(bench.root / "samples")) for key, path in place.videos().items()}
