"""The printed table of a comparison: a row for each folder, a block for each convention, and the worst pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..fidelity.metrics import CONVENTIONS, IDENTICAL, METRICS, convention_of
from ..messages import shortened

WORST = 3  # pairs named for each folder


def lines(data: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    """The table as Markdown, and the lines under it. `data` is the content of comparison.json."""
    folders = data["folders"]
    shown = [name for name in metrics if METRICS[name].shown and any(_scored(f, name) for f in folders)]
    text = [f"against {data['reference']['label']}; mean ± half of its 95 % interval over videos, and the worst video"]
    for convention in CONVENTIONS:
        names = [name for name in shown if convention_of(name) == convention]
        if names:
            headings = [f"{METRICS[name].title} {METRICS[name].unit}".strip() for name in names]
            text += ["", f"| {convention} | {' | '.join(headings)} | n |", f"| --- |{' ---: |' * (len(names) + 1)}"]
            text += [_row(folder, names) for folder in folders]
    if shown:
        text += ["", *(_worst(folder, shown[0]) for folder in folders)]
    return [*text, *_unscored(folders, metrics)]


def _scored(folder: dict[str, Any], name: str) -> bool:
    return bool(folder["fidelity"][name]["n"] or folder["fidelity"][name]["identical"])


def _row(folder: dict[str, Any], names: Sequence[str]) -> str:
    cells = [_cell(folder["fidelity"][name], METRICS[name].digits) for name in names]
    return f"| {folder['label']} | {' | '.join(cells)} | {len(folder['videos'])} |"


def _cell(summary: dict[str, Any], digits: int) -> str:
    if summary["mean"] is None:
        return "identical" if summary["identical"] else "–"
    spread = f" ± {summary['half_width_95']:.{digits}f}" if summary["n"] > 1 else ""
    identical = f", {summary['identical']} identical" if summary["identical"] else ""
    return f"{summary['mean']:.{digits}f}{spread} ({summary['worst']:.{digits}f}{identical})"


def _worst(folder: dict[str, Any], name: str) -> str:
    """The pairs with the worst score in a metric, the worst first."""
    metric, left = METRICS[name], {v["name"]: v["fidelity"][name] for v in folder["videos"]}
    values = {video: value for video, value in left.items() if value is not None}
    worst: list[str] = []
    while values and len(worst) < WORST:
        least = metric.worst(list(values.values()))
        video = next(video for video, value in values.items() if value == least)
        worst.append(f"{shortened(video)} {values.pop(video):.{metric.digits}f}")
    return f"worst of {folder['label']} by {metric.title}: {', '.join(worst) or 'none, all are identical'}"


def _unscored(folders: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Why videos have no value in a metric, each reason once."""
    notes = (
        video["fidelity_notes"].get(name)
        for name in metrics
        for folder in folders
        for video in folder["videos"]
        if video["fidelity"][name] is None
    )
    return list(dict.fromkeys(note for note in notes if note and note != IDENTICAL))
