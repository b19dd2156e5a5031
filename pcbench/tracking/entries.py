"""What is sent to W&B, as plain data: each record, and a table of all records."""

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

VIDEOS = 4  # videos per recipe
ID = 55  # the most characters of an id before its hash
NOT_NUMBERS = ("schema", "id", "reference", "recipe", "machine", "revision", "revisions", "samples", "observations")
Rows = list[dict[str, Any]]


@dataclass
class Entry:
    """The content of one W&B run: plain data, except the videos, which are (file, caption)."""

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
        """The run's id, the same whenever recipe, machine and the results folder's name are the same: the letters and
        digits of `name`, and a hash of the others. At most 64 characters, of the kinds that W&B accepts."""
        place = [self.group, self.config.get("machine", {}).get("name")]
        shown = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name)[:ID].strip("-.")
        return f"{shown}-{hashlib.sha256(json.dumps(place).encode()).hexdigest()[:8]}"

    @property
    def digest(self) -> str:
        """A hash of everything that would be sent; of videos it contains file name and size."""
        text = json.dumps(asdict(self), default=lambda path: f"{path.name} {path.stat().st_size}", sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def of_record(results: Path, record: dict[str, Any]) -> Entry:
    """A recipe's run: the recipe as config, the record's numbers as summary, its samples as a table and videos."""
    backbone, method = record["recipe"]["backbone"]["name"], record["recipe"]["method"]["name"]
    place = Place(results, record["machine"]["name"], backbone, method, record["id"])
    identity = {name: record.get(name) for name in ("id", "reference", "machine", "revisions", "schema")}
    videos = islice(place.videos(sums=False).items(), VIDEOS)
    return Entry(
        f"{method}-{record['id']}", results.resolve().name, "recipe", [backbone, method],
        {**record["recipe"], **identity}, numbers(record), [_sample(sample) for sample in record["samples"]],
        [(path, f"{prompt} (seed {seed})") for (prompt, seed), path in videos],
    )  # fmt: skip


def displayed(text: str, length: int = 128) -> str:
    """A name, group or tag in a form that W&B accepts: not empty, on one line, at most `length` characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)  # also removes unpaired surrogates
    shortened = " ".join(printable.split())
    return (shortened if len(shortened) <= length else shortened[: length - 1] + "…") or "-"


def of_sweep(results: Path, all_records: Sequence[dict[str, Any]]) -> Entry:
    """The run with the table: one row per record, including its machine, as latencies compare only on one machine."""
    name = results.resolve().name
    rows = [
        {
            "model": record["recipe"]["backbone"]["name"],
            "method": record["recipe"]["method"]["name"],
            "settings": _settings(record, all_records),
            "machine": record["machine"]["name"],
            "id": record["id"],
            **numbers(record),
        }
        for record in all_records
    ]
    return Entry(f"table-{name}", name, "table", [], {"records": len(rows)}, {}, rows)


def _settings(record: dict[str, Any], all_records: Sequence[dict[str, Any]]) -> str:
    """The fields of its method in which the records of that method differ."""
    own = record["recipe"]["method"]
    methods = [other["recipe"]["method"] for other in all_records]
    peers = [method for method in methods if method["name"] == own["name"]]
    return " ".join(f"{key}={value}" for key, value in own.items() if any(p.get(key) != value for p in peers))


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record's plain values by path ("fidelity/psnr@2/mean"), missing scores as None; and the means of its samples'
    steps. Lists of values are left out."""
    samples = record["samples"]
    steps = {name: statistics.fmean(s[name] for s in samples) for name in ("steps", "computed") if samples}
    return {"samples": len(samples), **steps, **dict(_leaves(record))}


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in nested dictionaries and lists of dictionaries, with their paths."""
    if isinstance(node, list):
        node = {str(number): item for number, item in enumerate(node) if isinstance(item, dict)}
    for name, value in node.items():
        if isinstance(value, dict | list):
            yield from _leaves({} if name in NOT_NUMBERS else value, f"{path}{name}/")
        elif name not in NOT_NUMBERS:
            yield f"{path}{name}", value


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    plain = ("prompt", "seed", "steps", "computed", "partial", "macs", "seconds")
    return {name: sample.get(name) for name in plain} | sample["fidelity"] | sample.get("vbench", {})
