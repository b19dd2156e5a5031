"""A comparison of folders of videos (`python -m pcbench.compare`) as what the report shows: one bench, no speeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pcbench.store import fitting

from ..metrics import metric_of
from . import data

FILE = "comparison.json"
SEED = 0  # a pair is a file name, here in the place of a prompt and its seed


def is_one(results: Path) -> bool:
    """Whether a folder holds a comparison."""
    return (results / FILE).is_file()


def benches(results: Path) -> list[dict[str, Any]]:
    """The comparison in a folder as a list of one bench, of the form of `data.benches`.

    Raises ValueError if its file is damaged.
    """
    try:
        found = json.loads((results / FILE).read_text(encoding="utf-8"))
        return [_bench(found)]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{results / FILE} is damaged ({error}): compare the folders again") from error


def _bench(found: dict[str, Any]) -> dict[str, Any]:
    reference, folders = found["reference"], found["folders"]
    summaries = [{"fidelity": folder["fidelity"]} for folder in folders]
    rows = [
        {"id": folder["id"], "prompt": video["name"], "seed": SEED, **video["fidelity"]}
        for folder in folders
        for video in folder["videos"]
    ]
    names = sorted({name for folder in folders for name in folder["fidelity"]})
    frame = pd.DataFrame(rows, columns=["id", "prompt", "seed", *names]).astype(dict.fromkeys(names, float))
    metrics = data.described(metric_of(name, summaries) for name in names if frame[name].notna().any())
    names_of_videos = [video["name"] for video in folders[0]["videos"]]
    uncached = {"samples": [_sample(name, {}) for name in names_of_videos], "id": reference["id"]}
    records = [uncached] + [
        {"id": folder["id"], "samples": [_sample(v["name"], v["fidelity_notes"]) for v in folder["videos"]]}
        for folder in folders
    ]
    return {
        "comparison": True,
        "experiment": "",
        "machine": found["machine"]["name"],
        "model": f"against {reference['label']}",
        "reference": reference["id"],
        "hardware": found["machine"],
        "sampling": {},
        "metrics": metrics,
        "methods": [_method(folder, frame, metrics, len(names_of_videos)) for folder in [reference, *folders]],
        "prompts": data.prompts_of(records, frame, metrics),
        "videos": {
            folder["id"]: {(name, SEED): _file(folder, name) for name in names_of_videos}
            for folder in [reference, *folders]
        },
    }


def _file(folder: dict[str, Any], name: str) -> tuple[Path, Path]:
    """Where a folder's video is, and where the page has it."""
    return Path(folder["path"]) / folder.get("files", {}).get(name, name), Path(folder["id"]) / fitting(name)


def _method(folder: dict[str, Any], frame: pd.DataFrame, metrics: list[dict[str, Any]], videos: int) -> dict[str, Any]:
    """A folder in the place of a method's setting, whose speeds are not known."""
    unknown = ("error", "computed", "steps", "pmacs", "macs", "latency", "speedup", "efficiency")
    scores = frame[frame["id"] == folder["id"]]
    shown = folder["label"].replace(" ", "\u00a0")  # the page takes words after a space for a method's fields
    return {
        **dict.fromkeys(unknown),
        "id": folder["id"],
        "method": shown,
        "label": shown,
        "curve": folder["id"],
        "speedup_range": [None, None],
        "n": videos,
        "scores": data.scores_of(scores, metrics),
    }


def _sample(name: str, notes: dict[str, str]) -> dict[str, Any]:
    return {"prompt": name, "seed": SEED, "computed": None, "macs": None, "fidelity_notes": notes}
