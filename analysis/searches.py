"""What `python -m pcbench.oracle` has found: a summary per machine, uncached reference, payload and number of steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .load import Bench

UNIFORM, FOR_ALL, PER_PROMPT = "uniform", "best for all", "best per prompt"  # kinds of schedules in a summary


@dataclass(frozen=True)
class Search:
    """A search, over `samples` (prompt and seed): `steps` of `of` steps are computed, the others answered by `reuse`.

    reference: id of the uncached recipe. psnr: by kind of schedule, of each sample; NaN if it is identical to its
    reference.
    """

    machine: str
    model: str
    reference: str
    reuse: str
    steps: int
    of: int
    samples: tuple[tuple[str, int], ...]
    psnr: Mapping[str, np.ndarray]

    @property
    def speedup(self) -> float:
        """By MACs: steps that are left out cost nothing."""
        return self.of / self.steps

    def concerns(self, bench: Bench) -> bool:
        """Whether it was made against the bench's reference, on its machine."""
        return (self.machine, self.model, self.reference) == (bench.machine, bench.model, bench.reference)


def searches(folder: Path) -> list[Search]:
    """Of all summaries in a folder, those with more computed steps first; other JSON files are passed by.

    Raises ValueError for a summary that says too little.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and "schedules" in data:
            found.append(search_of(data, path))
    return sorted(found, key=lambda search: -search.steps)


def search_of(data: Mapping[str, Any], path: Path) -> Search:
    """A summary as pcbench.oracle writes it. Raises ValueError for one that says too little."""
    try:
        return Search(
            data["machine"],
            data["model"],
            data["reference"],
            data["reuse"],
            data["steps"],
            data["of"],
            tuple((each["prompt"], each["seed"]) for each in data["samples"]),
            {kind: np.array(row["psnr"], dtype=float) for kind, row in data["schedules"].items()},
        )
    except KeyError as error:
        raise ValueError(
            f"{path} lacks {error}: the same command line of pcbench.oracle writes it again, without a new search"
        ) from None
