"""Whether the files of a recipe are what was written, and whether there is anything left to do for a run.

Each file is read whole once: the folder's ledger (.ledger.json) keeps how it was then (size, times, inode), and a file
that is still so is not read again. What is damaged or foreign is set aside, so that the stages find it missing and make
it again. The ledger also keeps a key of every run that was carried out to its end: of what was asked, of the code, and
of the files as they were. A run whose key is there needs no file opened. The ledger can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .config import Run
from .fidelity import lpips
from .identity import sample_key
from .job import Job
from .sampling import latency
from .sampling.video import is_whole_mp4
from .store import (
    NUMBER,
    TRACE,
    DamagedError,
    Place,
    SampleFiles,
    fits,
    load_json,
    read_json,
    read_record,
    write_whole,
)
from .store.atomic import alone, orphans, set_aside, sweep
from .vbench.environment import folder as vbench_environment

Say = Callable[[str], None]
Stats = dict[str, list[int]]  # of files by name: size, times of change, inode

LEDGER = ".ledger.json"
RUNS = 32  # keys kept a recipe, the latest
NOT_ASKED = {"label", "recipe", "results", "download"}  # fields of a run: how it is called, and what its place says
STEPS = [{"action": str, "calls": [{"size": list, "trial": bool, "skipped": dict}]}]
SPREAD = {"median": NUMBER, "min": NUMBER, "max": NUMBER, "values": [NUMBER]}
TIMED = {"prompt": str, "seed": int, "speedup": SPREAD, "trace": {"steps": STEPS, "arguments": dict}}
# What there is in a file without a checksum, by the end of its name
SHAPES: dict[str, Any] = {
    TRACE: {"prompt": str, "seed": int, "seconds": NUMBER, "notes": list, "revision": dict, "arguments": dict}
    | {"steps": STEPS},
    ".fidelity.json": {"reference": str},
    ".observations.json": {},
    ".failed.json": {"prompt": str, "seed": int, "error": str},
    ".latency.json": {"repeats": int, "text_seconds": NUMBER, "prompts": [TIMED]}
    | dict.fromkeys(latency.SPREADS, SPREAD),
}
VBENCH = {"key": (str, type(None)), "suite": dict, "mode": str, "samples": dict, "unscored": dict}


def tidy(jobs: Iterable[Job]) -> None:
    """Delete what processes that were killed left half written beside the records of these jobs."""
    for folder in {job.place.record.parent for job in jobs}:
        sweep(folder)


def check(here: Place, say: Say) -> None:
    """Read the recipe's files that are not as the ledger has them, and set aside those that are damaged or foreign."""
    if here.folder.exists() and not here.folder.is_dir():
        set_aside(here.folder, "a file where a folder belongs", say)
    known = _ledger(here)
    sound: dict[str, list[int]] = {}
    now = stats(here.folder)
    for unit, names in _units(now).items():
        as_it_was = all(known["files"].get(name) == now[name] for name in names)
        if as_it_was or not _set_aside_damaged(here, unit, say):
            sound |= {name: now[name] for name in names}
    if here.record.exists():
        try:
            read_record(here.record)
        except DamagedError as error:
            set_aside(here.record, str(error), say)
    for folder in (here.folder, *_folders(here.folder / "vbench")):
        sweep(folder)
    if sound != known["files"]:
        _write(here, {**known, "files": sound})


def _set_aside_damaged(here: Place, unit: str, say: Say) -> bool:
    """Whether there was anything to set aside."""
    if not any(faults(here.folder / unit)):
        return False
    with alone(here.folder):  # what another process is just putting into place is not damaged: look again
        damaged = list(faults(here.folder / unit))
        for path, why in damaged:
            set_aside(path, why, say)
    return bool(damaged)


def _units(names: Stats) -> dict[str, list[str]]:
    """The names that are checked together: a trace with its latent and video, under the trace's name."""
    units: dict[str, list[str]] = {}
    for name in names:
        stem = next((name.removesuffix(end) for end in (".safetensors", ".mp4") if name.endswith(end)), None)
        units.setdefault(name if stem is None else stem + TRACE, []).append(name)
    return units


def faults(path: Path) -> Iterator[tuple[Path, str]]:
    """The damaged files of a unit, and what is wrong with each. What is not there is not damaged."""
    of_vbench = path.parent.parent.name == "vbench" and path.suffix == ".json"
    shape = VBENCH if of_vbench else next((each for end, each in SHAPES.items() if path.name.endswith(end)), None)
    if shape is None:
        return
    try:
        data = load_json(path)
        if not fits(data, shape):
            raise DamagedError("another program's, or from elsewhere")
        if path.name.endswith("latency.json") and data.get("recipe") not in (None, path.parent.name.rpartition("-")[2]):
            raise DamagedError("of another recipe")
        if path.name.endswith(TRACE):
            if sample_key(data["prompt"], data["seed"]) != path.name.removesuffix(TRACE):
                raise DamagedError("the trace of another sample")
            yield from _sample_faults(SampleFiles(path.with_name(path.name.removesuffix(TRACE))), data.get("files", {}))
    except FileNotFoundError:
        return
    except DamagedError as error:
        yield path, str(error)


def _sample_faults(files: SampleFiles, checksums: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for path, name, whole in ((files.latent, "latent", _is_whole_latent), (files.video, "video", is_whole_mp4)):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError) as error:
            yield path, str(error.strerror).lower()
            continue
        if name not in checksums:  # from before there were any
            if not whole(data):
                yield path, "not whole"
        elif hashlib.sha256(data).hexdigest() != checksums[name]:
            yield path, "its content is not that of its checksum" if data else "empty"


def _is_whole_latent(data: bytes) -> bool:
    """Whether these are the bytes of a safetensors file with latents, up to its end."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        return len(data) - start == json.loads(data[8:start])["latents"]["data_offsets"][1]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False


def stats(folder: Path) -> Stats:
    """How the files of a recipe's folder are, without opening one; hidden ones and those set aside do not count."""
    found: Stats = {}
    for path, below in ((folder, ""), *((each, f"vbench/{each.name}/") for each in _folders(folder / "vbench"))):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and ".damaged-" not in entry.name and entry.name != "vbench":
                    with suppress(FileNotFoundError):
                        found[below + entry.name] = _stat(entry.stat())
    return found


def _folders(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if each.is_dir()] if path.is_dir() else []


def _stat(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _ledger(here: Place) -> dict[str, Any]:
    data = read_json(here.folder / LEDGER)
    return data if data is not None and fits(data, {"files": dict, "runs": [str]}) else {"files": {}, "runs": []}


def _write(here: Place, ledger: dict[str, Any]) -> None:
    with suppress(OSError):  # without it all is only read again
        text = json.dumps(ledger)
        write_whole(here.folder / LEDGER, lambda partial: partial.write_text(text, encoding="utf-8"))


def settled(job: Job) -> bool:
    """Whether the job was carried out to its end, nothing it was made of, or is asked with, has changed since, and no
    other process was killed while it wrote the same."""
    runs = _ledger(job.place)["runs"]
    folders = (job.place.folder, *_folders(job.place.folder / "vbench"))
    return bool(runs) and _key(job) in runs and not any(any(orphans(folder)) for folder in folders)


def settle(job: Job) -> None:
    """Note that the job was carried out to its end; one that lacks samples was not."""
    if set(job.run.stages) - {"latency"} and job.missing():
        return
    here = job.place
    ledger, key = _ledger(here), _key(job)
    runs = [each for each in ledger["runs"] if each != key]
    _write(here, {**ledger, "runs": [*runs, key][-RUNS:]})


def _key(job: Job) -> str:
    run, here = job.run, job.place
    asked = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in NOT_ASKED}
    record = _stat(here.record.stat()) if here.record.exists() else None
    reference = {} if job.uncached is None else stats(job.uncached.place.folder)
    asked |= {"conditions": latency.conditions(run)}
    parts = [asked, _code(), _tools(run), record, sorted(stats(here.folder).items()), sorted(reference.items())]
    return hashlib.sha256(json.dumps(parts, default=asdict).encode()).hexdigest()


@functools.cache
def _code() -> list[Any]:
    """How the program's own files are: with another program, all is looked at again."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for room in ("pcbench", "methods") for path in (root / room).rglob("*.py"))
    return [[str(path.relative_to(root)), *_stat(path.stat())[:2]] for path in files]


def _tools(run: Run) -> list[Any]:
    """How the scorers that may come or go are."""
    files = [lpips.trunk_file(), *([vbench_environment() / "environment.json"] if run.score.vbench else [])]
    return [lpips.is_installed(), *(_stat(path.stat()) if path.exists() else None for path in files)]
