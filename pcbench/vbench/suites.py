"""Which prompts VBench and VBench-2.0 know, and how a set of prompts and seeds is identified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# SHA-256 of the prompts (one per line) of suites in conf/prompts: scores can only be compared on the same prompts.
SUITES = {
    "vbench": "384ae368a30403063186c68a968562d53be51150c4de80e2d51cd4e8f38c0c70",
    "vbench_quality": "807e183d74cb858be7a98da2a9ae63665b6981cfe11e115dee35726fd3cd38ac",
    "mlperf248": "88e27855fb8ebeebcaa3835d1a462751f8b6b9d5c499a7216d0dee5bc3ed3aff",
    "vbench2": "7d5e2e955339c9ee9f26e7116765155bb93b67eb222f716c23827d777b301261",
    "vbench2_diversity": "8b7c772213f965b553d220705a6974ad2a4fa47447e01b27bff66f991cb4f1ee",
    "smoke": "0448c6645f0ace641735acb3db58415eeb7b3f108801d88e12d4c45ab7f045db",
}


def prompts_hash(prompts: Sequence[str]) -> str:
    """A hash that identifies a list of prompts, in order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def suite_name(prompts: Sequence[str]) -> str | None:
    """The suite that consists of exactly these prompts, or None."""
    return {digest: name for name, digest in SUITES.items()}.get(prompts_hash(prompts))


def suite_hash(prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """A hash that identifies a suite: its prompts and the seeds with which each is sampled, in order."""
    return hashlib.sha256(json.dumps([list(prompts), list(seeds)]).encode()).hexdigest()


def read_entries(path: Path) -> list[dict[str, Any]]:
    """VBench's own list: prompt_en, its dimensions, and what a detector should find. A prompt may occur twice."""
    return json.loads(path.read_text(encoding="utf-8"))


def dimensions_of(entries: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The dimensions of every prompt."""
    known: dict[str, set[str]] = {}
    for entry in entries:
        known.setdefault(entry["prompt_en"], set()).update(entry["dimension"])
    return known
