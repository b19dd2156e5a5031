"""Results of VBench and VBench-2.0, one file per dimension next to the samples; how a record summarises them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..store import read_json
from . import formula
from .dimensions import DIMENSIONS, VBENCH, members, of
from .edition import Dimension, Edition
from .process import WorkerError
from .tasks import STANDARD, Task

LEFT_OUT = "left out by definition"
WITH_FIRST = "scored with its prompt's first sample"
INVALID = -1  # what VBench-2.0 gives a video that it leaves out


def path_of(folder: Path, suite: str, dimension: str) -> Path:
    """The file of a dimension's result on a suite, under the folder of the recipe's samples."""
    return folder / "vbench" / suite[:12] / f"{dimension}.json"


def checked(task: Task, answer: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """The dimension's score, and each sample's. Raises WorkerError if VBench's answer is not a complete result."""
    dimension = task.dimension
    names = {video.name: video.sample for video in task.videos}
    values = {names.get(name, name): value for name, value in answer["videos"].items()}
    if dimension.leaves_out:
        values = {sample: value for sample, value in values.items() if value != INVALID}
    if stray := sorted(set(values) - set(names.values())):
        raise WorkerError(f"scored a video that is not the run's: {stray[0]}", "")
    first = {video.prompt: video.sample for video in reversed(task.videos)}
    due = list(first.values() if dimension.together else names.values())
    unscored = [sample for sample in due if sample not in values]
    if unscored and not dimension.leaves_out:
        raise WorkerError(
            f"{dimension.edition.title} scored {len(values)} of {len(due)} videos and said nothing;"
            f" the first without: {unscored[0]}", "",
        )  # fmt: skip
    wrong = [name for name, value in {"the score": answer["score"], **values}.items() if not _is_number(value)]
    if wrong:
        raise WorkerError(f"not a number: {wrong[0]}", "")
    return float(answer["score"]), {sample: float(value) for sample, value in values.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)


def summary(folder: Path, edition: Edition = VBENCH) -> list[dict[str, Any]]:
    """The record's entry for every suite (prompts and seeds) that was scored: its dimensions; the groups' scores
    (VBench's Quality and Semantic) and the total if the official protocol is complete, else None; what is missing."""
    return [_suite(results, edition) for results in _by_suite(folder, of(edition))]


def per_sample(folder: Path) -> dict[str, dict[str, float]]:
    """Every sample's scores by dimension, on the dimension's own scale (imaging_quality's is 0 to 100)."""
    scores: dict[str, dict[str, float]] = {}
    for results in _by_suite(folder, DIMENSIONS.values()):
        for name, result in results.items():
            for sample, value in result["samples"].items():
                scores.setdefault(sample, {})[name] = value
    return scores


def _by_suite(folder: Path, dimensions: Iterable[Dimension]) -> list[dict[str, dict[str, Any]]]:
    """For each suite, in order of its hash, the results of these dimensions by name."""
    names = [dimension.name for dimension in dimensions]
    suites = []
    for place in sorted((folder / "vbench").glob("*/")):
        results = {name: read_json(place / f"{name}.json") for name in names}
        suites.append({name: result for name, result in results.items() if result is not None})
    return [results for results in suites if results]


def _suite(results: dict[str, dict[str, Any]], edition: Edition) -> dict[str, Any]:
    suite = next(iter(results.values()))["suite"]
    encoders = {result["encoder"] for result in results.values() if result["encoder"]}
    missing = {name: why for name in members(edition) if (why := _short(name, results.get(name))) is not None}
    raw = {name: result["score"] for name, result in results.items() if name not in missing}
    totals: dict[str, float | None] = {}
    for name in (*edition.shares, "total"):
        try:
            totals[name] = formula.total(raw, edition) if name == "total" else formula.group(raw, name)
        except ValueError:  # the dimensions it needs are in `missing`
            totals[name] = None
    return {
        **suite,
        "encoder": "; ".join(sorted(encoders)) or None,
        "dimensions": {name: _dimension(name, result) for name, result in results.items()},
        **totals,
        "missing": [f"{name}: {why}" for name, why in missing.items()],
    }


def _dimension(name: str, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "score": result["score"],
        **({"reason": result["reason"]} if result["reason"] else {}),
        "definition": result["definition"],
        "version": result["version"],
        "mode": result["mode"],
        "n": len(result["samples"]),
        "unscored": dict(Counter(result["unscored"].values())),
        "official": DIMENSIONS[name].official,
    }


def _short(name: str, result: dict[str, Any] | None) -> str | None:
    """What a dimension still lacks for the official protocol; None if nothing."""
    if result is None:
        return "not scored"
    if result["score"] is None:
        return result["reason"]
    if result["mode"] != STANDARD:
        return f"on prompts that are not {DIMENSIONS[name].edition.title}'s"
    done = len(result["samples"]) + sum(why.startswith((LEFT_OUT, WITH_FIRST)) for why in result["unscored"].values())
    wanted = DIMENSIONS[name].official
    return None if done >= wanted else f"{done} of {wanted} videos"
