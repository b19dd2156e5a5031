"""Whether the files of a recipe are as they were written, and whether there is anything left to do for a run.

Each file is read completely once: the folder's ledger (.ledger.json) notes its size, times and inode then, and a file
for which they have not changed is not read again. Damaged or foreign files are set aside, so that the stages find them
missing and make them again. The ledger also keeps a key of every finished run: a hash of its options, the code, and the
state of the files. For a run whose key is in the ledger, no file is opened. The ledger can be deleted at any time.
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
    claims,
    fits,
    load_json,
    read_json,
    read_record,
    write_whole,
)
from .store.atomic import alone, orphans, set_aside, sweep
from .vbench.dimensions import EDITIONS, expand
from .vbench.environment import folder as vbench_environment

Say = Callable[[str], None]
Stats = dict[str, list[int]]  # by file name: size, modification and change time, inode

LEDGER = ".ledger.json"
RUNS = 32  # the latest keys kept per recipe
NOT_ASKED = {"label", "recipe", "results", "download", "images"}  # a name, or what follows from its folder or prompts
STEPS = [{"action": str, "calls": [{"size": list, "trial": bool, "skipped": dict}]}]
SPREAD = {"median": NUMBER, "min": NUMBER, "max": NUMBER, "values": [NUMBER]}
TIMED = {"prompt": str, "seed": int, "speedup": SPREAD, "trace": {"steps": STEPS, "arguments": dict}}
# What a file without a checksum must contain, by the end of its name
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
    """Delete half-written files that killed processes left next to the records of these jobs."""
    for folder in {job.place.record.parent for job in jobs}:
        sweep(folder)


def check(place: Place, say: Say) -> None:
    """Read the recipe's files that have changed since the ledger was written, and set aside damaged or foreign ones."""
    if place.folder.exists() and not place.folder.is_dir():
        set_aside(place.folder, "a file where a folder belongs", say)
    ledger = _ledger(place)
    sound: dict[str, list[int]] = {}
    current = stats(place.folder)
    for unit, names in _units(current).items():
        unchanged = all(ledger["files"].get(name) == current[name] for name in names)
        if unchanged or not _set_aside_damaged(place, unit, say):
            sound |= {name: current[name] for name in names}
    if place.record.exists():
        try:
            read_record(place.record)
        except DamagedError as error:
            set_aside(place.record, str(error), say)
    claims.sweep(place.folder)
    for folder in (place.folder, *_folders(place.folder / "vbench")):
        sweep(folder)
    if sound != ledger["files"]:
        _write(place, {**ledger, "files": sound})


def _set_aside_damaged(place: Place, unit: str, say: Say) -> bool:
    """Set aside the damaged files of a unit; returns whether there were any."""
    if not any(faults(place.folder / unit)):
        return False
    with alone(place.folder):  # another process may just be putting files into place: look again under the lock
        damaged = list(faults(place.folder / unit))
        for path, why in damaged:
            set_aside(path, why, say)
    return bool(damaged)


def _units(names: Stats) -> dict[str, list[str]]:
    """File names grouped by what is checked together: a trace with its latent and video, under the trace's name."""
    units: dict[str, list[str]] = {}
    for name in names:
        stem = next((name.removesuffix(end) for end in (".safetensors", ".mp4") if name.endswith(end)), None)
        units.setdefault(name if stem is None else stem + TRACE, []).append(name)
    return units


def faults(path: Path) -> Iterator[tuple[Path, str]]:
    """The damaged files of a unit, and what is wrong with each. A missing file is not damaged."""
    of_vbench = path.parent.parent.name == "vbench" and path.suffix == ".json"
    shape = VBENCH if of_vbench else next((shape for end, shape in SHAPES.items() if path.name.endswith(end)), None)
    if shape is None:
        return
    try:
        data = load_json(path)
        if not fits(data, shape):
            raise DamagedError("another program's, or from elsewhere")
        own = SampleFiles(path.with_name(path.name.partition(".")[0])).identity
        for name in ("recipe", "sample"):
            if not of_vbench and data.get(name) not in (None, own[name]):  # older files do not say
                raise DamagedError(f"of another {name}")
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
        if name not in checksums:  # the file is older than checksums are
            if not whole(data):
                yield path, "not whole"
        elif hashlib.sha256(data).hexdigest() != checksums[name]:
            yield path, "its content is not that of its checksum" if data else "empty"


def _is_whole_latent(data: bytes) -> bool:
    """Whether these are the bytes of a complete safetensors file with latents."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        return len(data) - start == json.loads(data[8:start])["latents"]["data_offsets"][1]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False


def stats(folder: Path) -> Stats:
    """The state of the files in a recipe's folder, without opening any; hidden and set-aside files are left out."""
    states: Stats = {}
    for path, prefix in ((folder, ""), *((inner, f"vbench/{inner.name}/") for inner in _folders(folder / "vbench"))):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and ".damaged-" not in entry.name and entry.name != "vbench":
                    with suppress(FileNotFoundError):
                        states[prefix + entry.name] = _stat(entry.stat())
    return states


def _folders(path: Path) -> list[Path]:
    return [inner for inner in path.iterdir() if inner.is_dir()] if path.is_dir() else []


def _stat(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _ledger(place: Place) -> dict[str, Any]:
    data = read_json(place.folder / LEDGER)
    return data if data is not None and fits(data, {"files": dict, "runs": [str]}) else {"files": {}, "runs": []}


def _write(place: Place, ledger: dict[str, Any]) -> None:
    with suppress(OSError):  # without a ledger all files are just read again
        text = json.dumps(ledger)
        write_whole(place.folder / LEDGER, lambda partial: partial.write_text(text, encoding="utf-8"))


def settled(job: Job) -> bool:
    """Whether the job was finished, alone or, of a shard, as a part of the whole; neither its files, its options nor
    the code have changed since, and no other process was killed while it wrote to the same folder."""
    runs = _ledger(job.place)["runs"]
    folders = (job.place.folder, *_folders(job.place.folder / "vbench"))
    finished = bool(runs) and any(_key(each) in runs for each in {job, job.whole})
    return finished and not any(any(orphans(folder)) for folder in folders)


def settle(job: Job) -> None:
    """Note in the ledger that the job is finished; does nothing if samples are missing."""
    if set(job.run.stages) - {"latency"} and job.missing():
        return
    place = job.place
    ledger, key = _ledger(place), _key(job)
    runs = [other for other in ledger["runs"] if other != key]
    _write(place, {**ledger, "runs": [*runs, key][-RUNS:]})


def _key(job: Job) -> str:
    run, place = job.run, job.place
    options = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in NOT_ASKED}
    record = _stat(place.record.stat()) if place.record.exists() else None
    reference = {} if job.uncached is None else stats(job.uncached.place.folder)
    options |= {"conditions": latency.conditions(run), "only": run.only and sorted(run.only)}
    parts = [options, _code(), _tools(run), record, sorted(stats(place.folder).items()), sorted(reference.items())]
    return hashlib.sha256(json.dumps(parts, default=asdict).encode()).hexdigest()


@functools.cache
def _code() -> list[Any]:
    """The state of the program's own files: after a change of the code, everything is checked again."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for room in ("pcbench", "methods") for path in (root / room).rglob("*.py"))
    return [[str(path.relative_to(root)), *_stat(path.stat())[:2]] for path in files]


def _tools(run: Run) -> list[Any]:
    """The state of the optional scorers: what is installed of LPIPS and VBench."""
    editions = {dimension.edition for dimension in expand(run.score.vbench)}
    files = [
        lpips.trunk_file(),
        *(vbench_environment(each) / "environment.json" for each in EDITIONS if each in editions),
    ]
    return [lpips.is_installed(), *(_stat(path.stat()) if path.exists() else None for path in files)]
