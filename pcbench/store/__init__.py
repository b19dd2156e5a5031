"""Where records, latents, videos, traces and scores are stored, and how their JSON is read and written. Stdlib only.

results/records/<machine>/<model>/<method>-<id>.json
results/samples/<machine>/<model>/<method>-<id>/<sample>.{safetensors,mp4,trace.json,fidelity.json,observations.json}
results/samples/<machine>/<model>/<method>-<id>/<conditions>.latency.json

Every file appears complete, by atomic rename, and any number of processes may write to one folder (atomic.py).
JSON next to the samples has a checksum of its content and file name; a trace also has those of its latent and video. A
record has one of everything except its measured times. Files older than checksums have none, and are still valid.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import away
from .atomic import fitting as fitting
from .atomic import write_whole  # both re-exported for analysis, which may import only the store

CHECKSUM = "checksum"
MEASURED = {"seconds", "latency"}  # keys of a record that differ in every measurement; latency has its own checksum
TRACE = ".trace.json"
_LIST = re.compile(r"\[[^\[\]{}]*\]")  # a list of plain values, which is written on one line


class DamagedError(ValueError):
    """A file's content is not what was written; the message says in what way."""


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; a file that already has the same content is not touched."""
    text = _LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]), json.dumps(data, indent=1, allow_nan=False)) + "\n"
    try:
        same = path.read_bytes() == text.encode()
    except OSError:
        same = False
    if not same:
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """Write JSON with a checksum, which `load_json` checks and removes."""
    data = json.loads(json.dumps(data, allow_nan=False))  # the content as it will be read
    write_json(path, {**data, CHECKSUM: _digest(path.name, data)})


def _digest(name: str, data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()


def _parsed(path: Path) -> Any:
    try:
        text = path.read_bytes()
    except (IsADirectoryError, PermissionError) as error:
        raise DamagedError(str(error.strerror).lower()) from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedError("not JSON" if text else "empty") from None


def _break_seal(name: str, data: Any) -> None:
    """Remove the checksum, if there is one. Raises DamagedError if it belongs to another content or file."""
    if not isinstance(data, dict):
        return
    if any(_is_broken_seal(key) for key in data):
        raise DamagedError("the name of its checksum has changed")
    checksum = data.pop(CHECKSUM, None)
    if checksum is not None and checksum != _digest(name, data):
        raise DamagedError("its content is not that of its checksum")


def _is_broken_seal(key: str) -> bool:
    """Whether a key is the checksum's but for one letter: files from before checksums have none at all."""
    return len(key) == len(CHECKSUM) and sum(a != b for a, b in zip(key, CHECKSUM, strict=True)) == 1


def load_json(path: Path) -> Any:
    """The file's data without its checksum. Raises FileNotFoundError; DamagedError if it is not JSON or has changed."""
    data = _parsed(path)
    _break_seal(path.name, data)
    return data


def read_json(path: Path) -> Any | None:
    """The file's data, or None if it is missing or damaged (integrity.py reports damage and sets the file aside)."""
    try:
        return load_json(path)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return read_json(path) if away.waited() else None


def fits(data: Any, shape: Any) -> bool:
    """Whether plain data has a shape: one or several types, a list [shape], or a dictionary of required keys."""
    if isinstance(shape, dict):
        return isinstance(data, dict) and all(name in data and fits(data[name], inner) for name, inner in shape.items())
    if isinstance(shape, list):
        return isinstance(data, list) and all(fits(item, shape[0]) for item in data)
    return isinstance(data, shape)


NUMBER = (int, float)
SAMPLE = {"prompt": str, "seed": int, "steps": int, "computed": int, "macs": NUMBER, "fidelity": dict}
RECORD = {
    "id": str,
    "recipe": {"backbone": {"name": str}, "method": {"name": str}},
    "machine": {"name": str},
    "samples": [SAMPLE],
}
OPTIONAL = {
    "macs": dict,
    "latency": dict,
    "fidelity": dict,
    "vbench": [dict],
    "vbench2": [dict],
    "observations": [dict],
}


def write_record(path: Path, data: dict[str, Any]) -> None:
    """Write a record with its checksums: one of its latency, and one of everything except measured times."""
    data = json.loads(json.dumps(data, allow_nan=False))  # the content as it will be read
    latency = data["latency"] and {**data["latency"], CHECKSUM: _digest("latency", data["latency"])}
    write_json(path, {**data, "latency": latency, CHECKSUM: _digest("record", _lasting(data))})


def _lasting(data: Any) -> Any:
    """A record without its measured times."""
    if isinstance(data, dict):
        return {name: _lasting(value) for name, value in data.items() if name not in MEASURED}
    return [_lasting(item) for item in data] if isinstance(data, list) else data


def read_record(path: Path, sums: bool = True) -> dict[str, Any]:
    """A record without its checksums. With `sums=False` (for one just written or checked) they are not compared.

    Raises FileNotFoundError; DamagedError for a file that is not a record or not as it was written.
    """
    data = _parsed(path)
    if not fits(data, RECORD) or not all(
        fits(data.get(key), (type(None),)) or fits(data[key], shape) for key, shape in OPTIONAL.items()
    ):
        raise DamagedError("not a record")
    checksum = data.pop(CHECKSUM, None)
    if sums and checksum is not None and checksum != _digest("record", _lasting(data)):
        raise DamagedError("its content is not that of its checksum")
    _break_seal("latency", data.get("latency"))
    return data


@functools.cache
def _complain(line: str) -> None:
    """Print the line to stderr, once per process."""
    print(line, file=sys.stderr, flush=True)


def records(results: Path, say: Callable[[str], None] = _complain) -> Iterator[dict[str, Any]]:
    """Every record under a results folder, in order of path. A damaged one, or a copy of another in the same folder,
    is left out, and reported in one line."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in sorted((results / "records").glob("*/*/*.json")):
        if path.name.startswith("."):
            continue
        try:
            record = read_record(path)
        except (FileNotFoundError, DamagedError) as error:
            say(
                f"left out, a damaged record: {path}: {error}; the command that made it makes it again from its samples"
            )
            continue
        first = seen.setdefault((path.parent, record["id"]), path)
        if first == path:
            yield record
        else:
            say(f"left out, a copy: {path} holds the record of the same recipe as {first.name}; delete one of them")


@dataclass(frozen=True)
class SampleFiles:
    """The files of one (recipe, prompt, seed)."""

    stem: Path

    def _with(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def identity(self) -> dict[str, str]:
        """Whose the files are, as files next to the trace say it: the recipe's id and the sample's name."""
        return {"recipe": self.stem.parent.name.rpartition("-")[2], "sample": self.stem.name}

    @property
    def latent(self) -> Path:
        return self._with(".safetensors")

    @property
    def video(self) -> Path:
        return self._with(".mp4")

    @property
    def trace(self) -> Path:
        """Written last, so that the sample is complete once it exists."""
        return self._with(TRACE)

    @property
    def fidelity(self) -> Path:
        return self._with(".fidelity.json")

    @property
    def failure(self) -> Path:
        """Why the sample could not be made at the last attempt; meaningless once the sample is complete."""
        return self._with(".failed.json")

    @property
    def observations(self) -> Path:
        return self._with(".observations.json")

    @property
    def complete(self) -> bool:
        def whole() -> bool:
            return self.trace.is_file() and self.latent.is_file() and self.video.is_file()

        return whole() or (away.waited() and whole())


@dataclass(frozen=True)
class Place:
    """Where one recipe's results on one machine are stored under the results folder."""

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

    def latency(self, conditions: str) -> Path:
        """The file of the timings under the conditions that have this name (sampling/latency.py)."""
        return self.folder / f"{conditions}.latency.json"

    def sample(self, key: str) -> SampleFiles:
        return SampleFiles(self.folder / key)

    def videos(self, sums: bool = True) -> dict[tuple[str, int], Path]:
        """The mp4 files by prompt and seed, with or without latents next to them.

        A video with a damaged trace or (unless `sums=False`) a wrong checksum is left out, and reported in one line.
        """
        videos = {}
        for path in sorted(self.folder.glob("*.mp4")):
            try:
                trace = load_json(path.with_suffix(TRACE))
                if not fits(trace, {"prompt": str, "seed": int}):
                    raise DamagedError("its trace is another program's")
                digest = trace.get("files", {}).get("video")
                if sums and digest not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
                    raise DamagedError("its content is not that of its checksum")
                videos[trace["prompt"], trace["seed"]] = path
            except FileNotFoundError:
                continue
            except (DamagedError, IsADirectoryError) as error:
                _complain(f"left out, a damaged video: {path}: {error}; the command that made it makes it again")
        return videos

    def traces(self) -> Iterator[tuple[SampleFiles, dict[str, Any]]]:
        """All complete samples with their traces, in order of name."""
        for path in sorted(self.folder.glob(f"*{TRACE}")):
            files = self.sample(path.name.removesuffix(TRACE))
            if files.complete and (trace := read_json(path)) is not None:
                yield files, trace
