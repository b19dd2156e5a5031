"""Run the schedules that a search found as ordinary recipes, and sum up what they reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from methods import ReplayConfig

from .. import stages
from ..config import Run
from ..cost.timesteps import num_steps
from ..job import job_of
from ..record import read
from ..store import write_json
from .best import decibels

PSNR = "psnr@2"


def report(run: Run, path: Path, reuse: str, found: dict[str, list[tuple[str, float]]]) -> Iterator[str]:
    """Write the summary, and give it as lines. run: uncached. found: per kind, letters and error of each sample."""
    rows = {kind: _row(run, reuse, each) for kind, each in found.items()}
    samples = [{"prompt": prompt, "seed": seed} for prompt, seed in run.samples]
    backbone, steps, job = run.recipe.backbone, num_steps(run.recipe), job_of(run)
    computed = next(iter(found.values()))[0][0].count("F")
    write_json(path, {
        "model": backbone.name, "revision": backbone.revision, "reuse": reuse, "steps": computed, "of": steps,
        "machine": job.place.machine, "reference": job.id, "samples": samples, "schedules": rows,
    })  # fmt: skip
    yield f"{backbone.name}, {computed} of {steps} steps computed, reuse={reuse}, {len(samples)} samples"
    yield f"{'schedule':20}{'latents dB':>12}{'PSNR dB':>10}{'worst':>8}"
    for kind, row in rows.items():
        latents, psnr = statistics.fmean(row["latent_db"]), [value for value in row["psnr"] if value is not None]
        shown = f"{statistics.fmean(psnr):10.2f}{min(psnr):8.2f}" if psnr else "  every video is identical"
        yield f"{kind:20}{latents:12.2f}{shown}"
    yield f"written to {path}"


def _row(run: Run, reuse: str, each: list[tuple[str, float]]) -> dict[str, Any]:
    """PSNR and the latents' signal-to-error ratio, both in dB, of each sample under its schedule."""
    psnr: list[float | None] = []
    for (prompt, seed), (actions, _) in zip(run.samples, each, strict=True):
        method = ReplayConfig(actions=actions, reuse=reuse)
        recipe = replace(run.recipe, method=method)
        replayed = replace(
            run,
            label="replay",
            recipe=recipe,
            prompts=[prompt],
            seeds=[seed],
            stages=("generate", "score"),
            fidelity=("raw",),
        )
        job = job_of(replayed)
        stages.execute(job, lambda line: None)
        samples = read(job)["samples"]
        psnr += [s["fidelity"][PSNR] for s in samples if (s["prompt"], s["seed"]) == (prompt, seed)]
    return {
        "actions": [actions for actions, _ in each],
        "latent_db": [round(decibels(error), 3) for _, error in each],
        "psnr": psnr,
    }
