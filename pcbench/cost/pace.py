"""How long work takes on a machine, from the videos that its records say it has made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pace:
    """seconds: of denoising for each MAC of a model. videos: on which that rests. machine: whose they are."""

    seconds: float
    videos: int
    machine: str


def pace_of(records: Iterable[Mapping[str, Any]], model: str, machine: str) -> Pace | None:
    """The pace of a model on this machine, else on the one with most videos of it; None if there is no video."""
    totals: dict[str, tuple[float, float, int]] = {}
    for record in records:
        if record["recipe"]["backbone"]["name"] == model:
            name = record["machine"]["name"]
            seconds, macs, videos = totals.get(name, (0.0, 0.0, 0))
            samples = record["samples"]
            totals[name] = (
                seconds + sum(sample["seconds"] for sample in samples),
                macs + sum(sample["macs"] for sample in samples),
                videos + len(samples),
            )
    known = {name: total for name, total in totals.items() if total[1] > 0}
    if not known:
        return None
    name = machine if machine in known else max(known, key=lambda each: known[each][2])
    seconds, macs, videos = known[name]
    return Pace(seconds / macs, videos, name)


def in_words(minutes: Mapping[str, float], paces: Mapping[str, Pace | None]) -> str:
    """A sentence about the minutes that each model's work takes; paces: of each of them."""
    known = {model: pace for model, pace in paces.items() if pace is not None}
    lacking = [model for model, pace in paces.items() if pace is None]
    parts = []
    if known:
        total = sum(minutes[model] for model in known)
        videos = sum(pace.videos for pace in known.values())
        machines = ", ".join(dict.fromkeys(pace.machine for pace in known.values()))
        parts.append(
            f"about {total:.0f} min of denoising at the pace of {videos} videos on record from {machines}; decoding and"
            " scoring come on top"
        )
    if lacking:
        parts.append(f"no pace known for {', '.join(lacking)}: no video on record")
    return "; ".join(parts)
