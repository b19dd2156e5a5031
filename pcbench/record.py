"""The record of one (recipe, machine): a pure function of the sample, score and latency files on disk.

Made again from the same files it is the same text; nothing in it depends on when or in what order they came to be.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from typing import Any

from . import provenance
from .cost.macs import PETA, reference_macs, trace_macs
from .fidelity import stage as fidelity
from .fidelity.metrics import IDENTICAL, METRICS
from .job import Job
from .observe import stage as observe
from .sampling import latency
from .store import DamagedError, Place, read_json, read_record, write_record
from .store.atomic import alone
from .vbench import results

SCHEMA = 3
LETTERS = {"full": "F", "partial": "p", "reuse": "r"}


def write(job: Job, error: str | None = None) -> dict[str, Any]:
    """Write the job's record and return it; `error` marks it as failed.

    Raises FileNotFoundError, when it is written, if samples that the run has made, or its reference, are gone.
    """
    here, gone = job.place, _gone(job) if error is None and "generate" in job.run.stages else None
    with alone(here.folder):  # of two processes the later one has seen what the earlier one made
        data = build(job, error or gone)
        write_record(here.record, data)
    if gone:
        raise FileNotFoundError(gone)
    return data


def _gone(job: Job) -> str | None:
    """What of the samples and their references is not there at the end."""
    lacking = {"samples": job.missing(), "references": job.reference.missing()}
    return next(
        (
            f"{len(samples)} of {len(job.run.samples)} {kind} are not there at the end, as if the folder had been"
            " deleted meanwhile; the same command makes them again"
            for kind, samples in lacking.items()
            if samples
        ),
        None,
    )


def read(job: Job) -> dict[str, Any]:
    """The job's record as on disk; made from the samples where it is not there or damaged, and not written."""
    try:
        return read_record(job.place.record, sums=False)  # integrity.check has seen to them
    except (FileNotFoundError, DamagedError):
        return build(job)


def build(job: Job, error: str | None = None) -> dict[str, Any]:
    """The record as plain data. It covers every sample of the recipe on this machine, whichever run made it."""
    run, here, recipe = job.run, job.place, job.recipe
    pairs = list(here.traces())
    vbench = results.per_sample(here.folder)
    entries = [fidelity.at_any_rate(job, files)[1] for files, _ in pairs]
    samples = [
        _sample(job, trace, scores) | {"vbench": vbench.get(files.stem.name, {})}
        for (files, trace), scores in zip(pairs, entries, strict=True)
    ]
    timed = latency.stored(job)
    revisions = [trace["revision"] for _, trace in pairs]
    failures = _failures(here)
    lines = [f"{each['prompt']!r} seed {each['seed']}: {each['error']}" for each in failures]
    observations = [_who(trace) | found for files, trace in pairs if (found := observe.stored(files))]
    return {
        "schema": SCHEMA,
        "id": job.id,
        "reference": job.reference.id,
        "status": "failed" if error or failures else "ok",
        "error": error or "; ".join(lines) or None,
        "preset": run.preset,
        "recipe": {
            "backbone": asdict(recipe.backbone),
            "sampling": asdict(recipe.sampling),
            "method": {"name": recipe.method.NAME, "version": recipe.method.VERSION, **asdict(recipe.method)},
            "numerics": asdict(recipe.numerics),
        },
        "machine": provenance.machine_of(run),
        "revisions": [r for i, r in enumerate(revisions) if r not in revisions[:i]],
        "macs": _macs(job, samples),
        "fidelity": _fidelity(entries),
        "vbench": results.summary(here.folder),
        "latency": None if timed is None else _latency(job, timed),
        "samples": samples,
        **({"failures": failures} if failures else {}),
        **({"observations": observations} if observations else {}),
    }


def _failures(here: Place) -> list[dict[str, Any]]:
    """The samples that were tried and are not there: prompt, seed and error of each."""
    paths = sorted(here.folder.glob("*.failed.json"))
    tried = [(here.sample(path.name.removesuffix(".failed.json")), read_json(path)) for path in paths]
    return [failure for files, failure in tried if failure and not files.complete]


def _who(trace: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": trace["prompt"], "seed": trace["seed"]}


def _sample(job: Job, trace: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    steps = trace["steps"]
    return {
        **_who(trace),
        "steps": len(steps),
        "computed": sum(step["action"] != "reuse" for step in steps),
        "partial": sum(step["action"] == "partial" for step in steps),
        "macs": _price(job, trace),
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


def _price(job: Job, trace: dict[str, Any]) -> int:
    return trace_macs(job.family.TRANSFORMER, job.config, trace)


def _macs(job: Job, samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not samples:
        return None
    full = reference_macs(job)
    mean = statistics.fmean(s["macs"] for s in samples)
    return {"peta_per_video": mean / PETA, "reference_peta_per_video": full / PETA, "speedup": full / mean}


def _latency(job: Job, timed: dict[str, Any]) -> dict[str, Any]:
    """The timings with the MACs' ratio of each timed sample; the overall ratio is of their MACs together."""
    full, prompts, efficiencies = reference_macs(job), [], []
    for each in timed["prompts"]:
        ratio = full / _price(job, each["trace"])
        efficiencies += [value / ratio for value in each["speedup"]["values"]]
        prompts.append({name: value for name, value in each.items() if name != "trace"} | {"macs_speedup": ratio})
    together = statistics.harmonic_mean([each["macs_speedup"] for each in prompts])
    return {
        **timed,
        "macs_speedup_of_timed": together,
        "speedup_over_macs_speedup": latency.spread(efficiencies),
        "prompts": prompts,
    }


def _fidelity(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each metric, over all samples: the mean as its convention takes it, with a 95 % half-width (normal, of videos
    taken equally) and the worst; how many videos have a value (n), have none for being identical, were not scored;
    and what the metric is called."""
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
            **METRICS[name].description,
        }
    return summaries
