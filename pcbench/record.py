"""The record of one (recipe, machine): a pure function of the sample, score and latency files on disk.

Made again from the same files it is the same text; nothing in it depends on when or in what order they came to be.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from typing import Any

from . import backbones, observe, provenance
from .config import Run
from .conventions import IDENTICAL, METRICS
from .generate import place
from .identity import recipe_id
from .macs import PETA, forward_macs, trace_macs
from .store import SampleFiles, read_json, write_json
from .vbench import results

SCHEMA = 2
LETTERS = {"full": "F", "partial": "p", "reuse": "r"}


def write(run: Run, error: str | None = None) -> dict[str, Any]:
    """Write the run's record and return it; `error` marks it as failed."""
    data = build(run, error)
    write_json(place(run).record, data)
    return data


def build(run: Run, error: str | None = None) -> dict[str, Any]:
    """The record as plain data. It covers every sample of the recipe on this machine, whichever run made it."""
    here, recipe = place(run), run.recipe
    pairs = list(here.traces())
    vbench = results.per_sample(here.folder)
    samples = [_sample(run, files, trace) | {"vbench": vbench.get(files.stem.name, {})} for files, trace in pairs]
    latency = read_json(here.latency)
    revisions = [trace["revision"] for _, trace in pairs]
    observations = [_who(trace) | found for files, trace in pairs if (found := observe.stored(files))]
    return {
        "schema": SCHEMA,
        "id": here.id,
        "reference": recipe_id(recipe.reference),
        "status": "ok" if error is None else "failed",
        "error": error,
        "recipe": {
            "backbone": asdict(recipe.backbone),
            "sampling": asdict(recipe.sampling),
            "method": {"name": recipe.method.NAME, "version": recipe.method.VERSION, **asdict(recipe.method)},
            "numerics": asdict(recipe.numerics),
        },
        "machine": provenance.machine(),
        "revisions": [r for i, r in enumerate(revisions) if r not in revisions[:i]],
        "macs": _macs(run, samples),
        "fidelity": _fidelity([_entries(files) for files, _ in pairs]),
        "vbench": results.summary(here.folder),
        "latency": None if latency is None else _latency(run, latency),
        "samples": samples,
        **({"observations": observations} if observations else {}),
    }


def _who(trace: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": trace["prompt"], "seed": trace["seed"]}


def _sample(run: Run, files: SampleFiles, trace: dict[str, Any]) -> dict[str, Any]:
    steps = trace["steps"]
    entries = _entries(files)
    return {
        **_who(trace),
        "steps": len(steps),
        "computed": sum(step["action"] != "reuse" for step in steps),
        "partial": sum(step["action"] == "partial" for step in steps),
        "macs": _price(run, trace),
        "fidelity": {name: entry["value"] for name, entry in entries.items()},
        "fidelity_notes": {name: entry["note"] for name, entry in entries.items() if entry["note"]},
        "seconds": trace["seconds"],
        "notes": trace["notes"],
        "trace": {
            "actions": "".join(LETTERS[step["action"]] for step in steps),
            **{name: [step[name] for step in steps] for name in ("sigma", "indicator", "accumulated", "threshold")},
            "trial_size": next((call["size"] for step in steps for call in step["calls"] if call["trial"]), None),
        },
    }


def _price(run: Run, trace: dict[str, Any]) -> int:
    family = backbones.family(run.recipe.backbone)
    return trace_macs(family.TRANSFORMER, backbones.transformer_config(run.recipe.backbone), trace)


def reference_macs(run: Run) -> int:
    """MACs of one uncached generation, from the recipe alone."""
    backbone = run.recipe.backbone
    family, config = backbones.family(backbone), backbones.transformer_config(backbone)
    one = forward_macs(family.TRANSFORMER, config, family.arguments(run.recipe, config))
    return one * family.branches(run.recipe) * run.recipe.sampling.steps


def _macs(run: Run, samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not samples:
        return None
    full = reference_macs(run)
    mean = statistics.fmean(s["macs"] for s in samples)
    return {"peta_per_video": mean / PETA, "reference_peta_per_video": full / PETA, "speedup": full / mean}


def _latency(run: Run, latency: dict[str, Any]) -> dict[str, Any]:
    trace = latency.pop("trace")
    macs_speedup = reference_macs(run) / _price(run, trace)
    ratios = [value / macs_speedup for value in latency["speedup"]["values"]]
    of_macs = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {**latency, "macs_speedup_of_this_sample": macs_speedup, "speedup_over_macs_speedup": of_macs}


def _entries(files: SampleFiles) -> dict[str, Any]:
    """A sample's fidelity by metric. What was scored by an older definition does not count."""
    metrics = (read_json(files.fidelity) or {}).get("metrics", {})
    return {name: metrics[name] for name in METRICS if name in metrics}


def _fidelity(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each metric, over all samples: the mean as its convention takes it, with a 95 % half-width (normal, of videos
    taken equally) and the worst; how many videos have a value (n), have none for being identical, were not scored."""
    summaries = {}
    for name in sorted({name for entries in samples for name in entries}):
        entries = [entries[name] for entries in samples if name in entries]
        values = [entry["value"] for entry in entries if entry["value"] is not None]
        identical = sum(entry["value"] is None and entry["note"] == IDENTICAL for entry in entries)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        worst = max if METRICS[name].lower_is_better else min
        summaries[name] = {
            "mean": METRICS[name].over_videos(values) if values else None,
            "half_width_95": 1.96 * spread / math.sqrt(len(values)) if values else None,
            "worst": worst(values) if values else None,
            "n": len(values),
            "identical": identical,
            "unscored": len(samples) - len(values) - identical,
        }
    return summaries
