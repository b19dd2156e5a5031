"""Where records, latents, videos, traces and scores live. Every file appears whole, by atomic rename. Stdlib only.

results/records/<machine>/<model>/<method>-<id>.json     in git
results/samples/<machine>/<model>/<method>-<id>/<sample>.{safetensors,mp4,trace.json,fidelity.json,observations.json}
results/samples/<machine>/<model>/<method>-<id>/latency.json
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIST = re.compile(r"\[[^\[\]{}]*\]")  # a list of plain values goes on one line


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # keeps the suffix, which some writers choose a format by
    write(partial)
    os.replace(partial, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; a file that already says the same is not touched."""
    text = _LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]), json.dumps(data, indent=1, allow_nan=False)) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any | None:
    """The file's data, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class SampleFiles:
    """The files of one (recipe, prompt, seed)."""

    stem: Path

    def _with(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def latent(self) -> Path:
        return self._with(".safetensors")

    @property
    def video(self) -> Path:
        return self._with(".mp4")

    @property
    def trace(self) -> Path:
        """Written last: with it the sample is complete."""
        return self._with(".trace.json")

    @property
    def fidelity(self) -> Path:
        return self._with(".fidelity.json")

    @property
    def observations(self) -> Path:
        return self._with(".observations.json")

    @property
    def complete(self) -> bool:
        return self.trace.exists() and self.latent.exists() and self.video.exists()


@dataclass(frozen=True)
class Place:
    """Where one recipe's results on one machine live under the results folder."""

    results: Path
    machine: str
    model: str
    method: str
    id: str

    @property
    def _name(self) -> str:
        return f"{self.method}-{self.id}"

    @property
    def record(self) -> Path:
        return self.results / "records" / self.machine / self.model / f"{self._name}.json"

    @property
    def folder(self) -> Path:
        return self.results / "samples" / self.machine / self.model / self._name

    @property
    def latency(self) -> Path:
        return self.folder / "latency.json"

    def sample(self, key: str) -> SampleFiles:
        return SampleFiles(self.folder / key)

    def videos(self) -> dict[tuple[str, int], Path]:
        """The mp4 files by prompt and seed, with or without latents beside them."""
        told = ((path, read_json(path.with_suffix(".trace.json"))) for path in sorted(self.folder.glob("*.mp4")))
        return {(trace["prompt"], trace["seed"]): path for path, trace in told if trace}

    def traces(self) -> Iterator[tuple[SampleFiles, dict[str, Any]]]:
        """All complete samples with their traces, in order of name."""
        for path in sorted(self.folder.glob("*.trace.json")):
            files = self.sample(path.name.removesuffix(".trace.json"))
            if files.complete:
                yield files, json.loads(path.read_text(encoding="utf-8"))


def records(results: Path) -> Iterator[dict[str, Any]]:
    """Every record under a results folder, in order of path."""
    for path in sorted((results / "records").glob("*/*/*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))
