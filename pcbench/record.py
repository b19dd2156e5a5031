"""The record of one (recipe, machine): a pure function of the sample, score and latency files on disk.

The same files always give the same text; nothing in it depends on when or in what order they were written.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from . import provenance
from .cost.macs import PETA, reference_macs, trace_macs
from .fidelity import stage as fidelity
from .fidelity.summary import summarise
from .identity import described, exact
from .job import Job
from .observe import stage as observe
from .sampling import latency
from .store import DamagedError, Place, read_json, read_record, write_record
from .store.atomic import alone
from .vbench import results
from .vbench.dimensions import VBENCH2

SCHEMA = 3
LETTERS = {"full": "F", "partial": "p", "reuse": "r"}


def write(job: Job, error: str | None = None, finished: bool = True) -> dict[str, Any]:
    """Write the job's record and return it; `error` marks it as failed. Samples may be missing unless it is `finished`.

    Raises FileNotFoundError if samples of the run or of its reference have disappeared, after writing it; and without
    writing it, if the present record has samples that are neither there nor to be made by this run.
    """
    place, whole = job.place, finished and error is None and "generate" in job.run.stages
    loss = _loss(job) if whole else None
    with alone(place.folder):  # of two processes, the later one includes what the earlier one made
        data = build(job, error or loss)
        _keep_what_is_known(job, data)
        write_record(place.record, data)
    if loss:
        raise FileNotFoundError(loss)
    return data


def _keep_what_is_known(job: Job, data: dict[str, Any]) -> None:
    """Raise FileNotFoundError if `data` lacks samples of the present record that nobody is about to make."""
    try:
        present = read_record(job.place.record, sums=False)["samples"]
    except (FileNotFoundError, DamagedError):
        return
    kept = {(sample["prompt"], sample["seed"]) for sample in data["samples"]}
    coming = set(job.whole.run.samples) if "generate" in job.run.stages else set()
    lost = [sample for sample in present if (sample["prompt"], sample["seed"]) not in kept | coming]
    if lost:
        raise FileNotFoundError(
            f"{len(lost)} of the record's {len(present)} samples are no longer in {job.place.folder}: the record is"
            " left as it is; put their files back, make them again with stage generate, or delete the record"
        )


def _loss(job: Job) -> str | None:
    """The error message if samples or their references are missing at the end of the run, else None."""
    for kind, whose in {"samples": job, "references": job.reference}.items():
        missing = whose.missing()
        unexplained = [sample for sample in missing if not whose.files(*sample).failure.exists()]
        if unexplained:
            return (
                f"{len(unexplained)} of {len(job.run.samples)} {kind} are not there at the end, as if the folder had"
                " been deleted meanwhile; the same command makes them again"
            )
        if missing:
            return f"{len(missing)} of {len(job.run.samples)} {kind} could not be made; the same command tries again"
    return None


def read(job: Job) -> dict[str, Any]:
    """The job's record from disk; if missing or damaged, it is built from the samples but not written."""
    try:
        return read_record(job.place.record, sums=False)  # integrity.check has already checked the checksums
    except (FileNotFoundError, DamagedError):
        return build(job)


def build(job: Job, error: str | None = None) -> dict[str, Any]:
    """The record as plain data. It covers every sample of the recipe on this machine, whichever run made it."""
    run, place, recipe = job.run, job.place, job.recipe
    pairs = list(place.traces())
    vbench = results.per_sample(place.folder)
    entries = fidelity.at_one_rate(job, [files for files, _ in pairs])
    samples = [
        _sample(job, trace, scores) | {"vbench": vbench.get(files.stem.name, {})}
        for (files, trace), scores in zip(pairs, entries, strict=True)
    ]
    timed = latency.known(job)
    revisions = [trace["revision"] for _, trace in pairs]
    failures = _failures(place)
    lines = [f"{failure['prompt']!r} seed {failure['seed']}: {failure['error']}" for failure in failures]
    observations = [_prompt_and_seed(trace) | found for files, trace in pairs if (found := observe.stored(files))]
    return {
        "schema": SCHEMA,
        "id": job.id,
        "reference": job.reference.id,
        "status": "failed" if error or failures else "ok",
        "error": error or "; ".join(lines) or None,
        "preset": run.preset if exact(recipe.method) == recipe.method else None,
        "approach": recipe.method.APPROACH,
        "recipe": {
            "backbone": asdict(recipe.backbone),
            "sampling": asdict(recipe.sampling),
            "method": described(recipe.method),
            "numerics": asdict(recipe.numerics),
        },
        "machine": provenance.machine_of(run),
        "revisions": [r for i, r in enumerate(revisions) if r not in revisions[:i]],
        "macs": _macs(job, samples),
        "fidelity": summarise(entries),
        "vbench": results.summary(place.folder),
        **({"vbench2": of_vbench2} if (of_vbench2 := results.summary(place.folder, VBENCH2)) else {}),
        "latency": None if timed is None else _latency(job, timed),
        "samples": samples,
        **({"failures": failures} if failures else {}),
        **({"observations": observations} if observations else {}),
    }


def _failures(place: Place) -> list[dict[str, Any]]:
    """The samples that were tried but do not exist: prompt, seed and error of each."""
    paths = sorted(place.folder.glob("*.failed.json"))
    tried = [(place.sample(path.name.removesuffix(".failed.json")), read_json(path)) for path in paths]
    return [
        {name: value for name, value in failure.items() if name not in ("launch", "workers")}
        for files, failure in tried
        if failure and not files.complete
    ]


def _prompt_and_seed(trace: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": trace["prompt"], "seed": trace["seed"]}


def _sample(job: Job, trace: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    steps = trace["steps"]
    return {
        **_prompt_and_seed(trace),
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
    """The timings with each timed sample's speedup by MACs; the overall one is the ratio of their total MACs."""
    full, prompts, efficiencies = reference_macs(job), [], []
    for sample in timed["prompts"]:
        ratio = full / _price(job, sample["trace"])
        efficiencies += [value / ratio for value in sample["speedup"]["values"]]
        prompts.append({name: value for name, value in sample.items() if name != "trace"} | {"macs_speedup": ratio})
    overall = statistics.harmonic_mean([sample["macs_speedup"] for sample in prompts])
    return {
        **timed,
        "macs_speedup_of_timed": overall,
        "speedup_over_macs_speedup": latency.spread(efficiencies),
        "prompts": prompts,
    }
