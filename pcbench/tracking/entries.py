"""What W&B is told: a record, and the table of all records, as plain data."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..store import Place

VIDEOS = 4  # of each recipe
ID = 55  # characters of an id before its hash
NOT_NUMBERS = ("schema", "id", "reference", "recipe", "machine", "revision", "revisions", "samples", "observations")
Rows = list[dict[str, Any]]


@dataclass
class Entry:
    """What one run on W&B says; all of it plain data but the videos, (file, caption)."""

    name: str
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    table: Rows
    videos: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The same for the same recipe on the same machine in a results folder of the same name, whatever the name:
        its letters and digits are shown, and the hash is of all of it. At most 64 characters, the ones W&B takes."""
        place = [self.group, self.config.get("machine", {}).get("name")]
        shown = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name)[:ID].strip("-.")
        return f"{shown}-{hashlib.sha256(json.dumps(place).encode()).hexdigest()[:8]}"

    @property
    def digest(self) -> str:
        """Of all that would be sent."""
        text = json.dumps(asdict(self), default=lambda path: f"{path.name} {path.stat().st_size}", sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def of_record(results: Path, record: dict[str, Any]) -> Entry:
    """A recipe's run: the recipe is its config, the record's numbers its summary, its samples a table and videos."""
    backbone, method = record["recipe"]["backbone"]["name"], record["recipe"]["method"]["name"]
    place = Place(results, record["machine"]["name"], backbone, method, record["id"])
    identity = {name: record.get(name) for name in ("id", "reference", "machine", "revisions", "schema")}
    videos = islice(place.videos(sums=False).items(), VIDEOS)
    return Entry(
        f"{method}-{record['id']}", results.resolve().name, "recipe", [backbone, method],
        {**record["recipe"], **identity}, numbers(record), [_sample(each) for each in record["samples"]],
        [(path, f"{prompt} (seed {seed})") for (prompt, seed), path in videos],
    )  # fmt: skip


def displayed(text: str, length: int = 128) -> str:
    """A name, group or tag as W&B takes it: not empty, on one line, no longer than that."""
    printable = "".join(c if c.isprintable() else " " for c in text)  # without halves of characters, too
    shortened = " ".join(printable.split())
    return (shortened if len(shortened) <= length else shortened[: length - 1] + "…") or "-"


def of_sweep(results: Path, found: Sequence[dict[str, Any]]) -> Entry:
    """The run with the table: a row a record, the machine in it, since latencies of two are not to be compared."""
    name = results.resolve().name
    rows = [
        {
            "model": record["recipe"]["backbone"]["name"],
            "method": record["recipe"]["method"]["name"],
            "settings": _settings(record, found),
            "machine": record["machine"]["name"],
            "id": record["id"],
            **numbers(record),
        }
        for record in found
    ]
    return Entry(f"table-{name}", name, "table", [], {"records": len(rows)}, {}, rows)


def _settings(record: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """The fields of its method in which the records of that method differ."""
    own = record["recipe"]["method"]
    peers = [each["recipe"]["method"] for each in found if each["recipe"]["method"]["name"] == own["name"]]
    return " ".join(f"{key}={value}" for key, value in own.items() if any(p.get(key) != value for p in peers))


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record's plain values by their path ("fidelity/psnr@2/mean"), missing scores as None; and means of its samples'
    steps. Lists of values are left to the record."""
    samples = record["samples"]
    steps = {name: statistics.fmean(s[name] for s in samples) for name in ("steps", "computed") if samples}
    return {"samples": len(samples), **steps, **dict(_leaves(record))}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Of nested dictionaries and lists of dictionaries, the plain values with their paths."""
    if isinstance(node, list):
        node = {str(number): each for number, each in enumerate(node) if isinstance(each, dict)}
    for name, value in node.items():
        if isinstance(value, dict | list):
            yield from _leaves({} if name in NOT_NUMBERS else value, f"{path}{name}/")
        elif name not in NOT_NUMBERS:
            yield f"{path}{name}", value


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    plain = ("prompt", "seed", "steps", "computed", "partial", "macs", "seconds")
    return {name: sample.get(name) for name in plain} | sample["fidelity"] | sample.get("vbench", {})
