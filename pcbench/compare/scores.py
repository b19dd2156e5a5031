"""Scores of every pair, kept in a file each, so that a comparison that was stopped goes on where it was.

OUT/scores/<folder>/<video>.json has the entries of one pair (as <sample>.fidelity.json has: value, values of the
frames, identical frames, note), and OUT/comparison.json everything that a table or a page shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import provenance
from ..fidelity.metrics import CONVENTIONS, LATENTS, METRICS
from ..fidelity.stage import Entry, measure, settled
from ..fidelity.summary import summarise
from ..messages import shortened
from ..sampling.video import read_mp4
from ..store import fitting, read_json, write_json, write_sealed
from .pairs import Folder

# On files that exist already it is `easycache`: the two differ in how the mp4 is written, not in what is computed.
SAME = {"easycache_hunyuan"}
COMPARABLE = tuple(name for name in CONVENTIONS if name not in SAME)
Scores = dict[str, dict[str, dict[str, Entry]]]  # folder's label -> video's name -> metric -> entry


def metrics_of(conventions: Sequence[str]) -> list[str]:
    """The metrics of these conventions that need only frames; the latents of a given video are not known."""
    return [n for c in conventions for n, metric in CONVENTIONS[c].items() if metric.source != LATENTS]


class Kept:
    """The scores of pairs on disk. A pair's are valid as long as neither file has changed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._sums: dict[Path, str] = {}

    def path(self, folder: Folder, name: str) -> Path:
        """Where the scores of a folder's video are."""
        return self.out / "scores" / slug(folder.label) / f"{fitting(name)}.json"

    def read(self, folder: Folder, reference: Folder, name: str) -> dict[str, Entry]:
        """The entries of known metrics that are valid for these two files."""
        data = read_json(self.path(folder, name)) or {}
        if data.get("files") != self._files(folder, reference, name):
            return {}
        return {metric: entry for metric, entry in data["metrics"].items() if metric in METRICS}

    def write(self, folder: Folder, reference: Folder, name: str, entries: dict[str, Entry]) -> None:
        """Keep the entries of a pair."""
        write_sealed(self.path(folder, name), {"files": self._files(folder, reference, name), "metrics": entries})

    def _files(self, folder: Folder, reference: Folder, name: str) -> list[str]:
        return [self._sum(folder.files[name]), self._sum(reference.files[name])]

    def _sum(self, path: Path) -> str:
        if path not in self._sums:
            self._sums[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._sums[path]


def slug(label: str) -> str:
    """A folder's label as a file name: readable, and different for different labels."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:40] or "folder"
    return f"{readable}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def score(
    reference: Folder, others: Sequence[Folder], metrics: Sequence[str], device: str, kept: Kept,
    say: Callable[[int, int, str], None],
) -> tuple[Scores, list[str]]:  # fmt: skip
    """Score every pair, video by video, so that a reference is decoded once for all folders. A pair that fails
    is a line of the list returned, its scores have no value, and the others go on.

    `say` is told how many of how many pairs are done, and the latest.
    """
    scores: Scores = {folder.label: {} for folder in others}
    failed: list[str] = []
    total, done = len(reference.files) * len(others), 0
    for name, path in reference.files.items():
        frames: np.ndarray | None = None
        for folder in others:
            entries = kept.read(folder, reference, name)
            missing = [metric for metric in metrics if not settled(metric, entries.get(metric))]
            try:
                if missing:
                    frames = read_mp4(path) if frames is None else frames
                    video = read_mp4(folder.files[name])
                    entries |= {metric: measure(metric, video, frames, device) for metric in missing}
                    kept.write(folder, reference, name, entries)
            except Exception as error:  # ffmpeg's complaints come as OSError, RuntimeError and others
                failed.append(f"{folder.label}: {shortened(name)}: {shortened(error, 120)}")
                none: Entry = {"value": None, "frames": [], "identical": None, "note": str(error)}
                entries |= dict.fromkeys(missing, none)
            scores[folder.label][name] = {metric: entries[metric] for metric in metrics}
            done += 1
            say(done, total, name if missing else "")
    return scores, failed


def write(out: Path, reference: Folder, others: Sequence[Folder], scores: Scores, device: str) -> dict[str, Any]:
    """Write OUT/comparison.json and return its content."""
    data = {
        "schema": 1,
        "reference": _place(reference),
        "folders": [
            {
                **_place(folder),
                "fidelity": summarise(list(scores[folder.label].values())),
                "videos": [_video(name, entries) for name, entries in scores[folder.label].items()],
            }
            for folder in others
        ],
        "machine": provenance.machine(device),
    }
    write_json(out / "comparison.json", data)
    return data


def _place(folder: Folder) -> dict[str, Any]:
    other = {name: path.name for name, path in folder.files.items() if path.name != name}
    named = {"files": other} if other else {}  # on disk, where names are written in another form
    return {"label": folder.label, "id": slug(folder.label), "path": str(folder.path.resolve()), **named}


def _video(name: str, entries: dict[str, Entry]) -> dict[str, Any]:
    return {
        "name": name,
        "fidelity": {metric: entry["value"] for metric, entry in entries.items()},
        "fidelity_notes": {metric: entry["note"] for metric, entry in entries.items() if entry["note"]},
    }
