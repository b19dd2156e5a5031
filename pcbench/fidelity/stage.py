"""The scoring stage for fidelity: how close each video is to the uncached reference of the same prompt and seed.

A sample's scores are next to it in <sample>.fidelity.json: for every metric the value, the values of its frames, how
many frames are identical to the reference's, and a note, which gives the reason if there is no value; and if the mp4 of
a convention has another size than the frames, that size. Only missing scores are computed: for a further convention, a
video is decoded again but never generated again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .. import devices
from ..config import ConfigError, Run
from ..failures import Failure, attempt_each
from ..job import Job
from ..sampling.generate import checksum, frames_of
from ..sampling.video import kept
from ..store import SampleFiles, read_json, write_sealed
from ..store.atomic import alone
from ..store.claims import busy, claim, leave_to_others
from .metrics import CONVENTIONS, LATENTS, METRICS, convention_of, identical_frames, note

Say = Callable[[str], None]
Entry = dict[str, Any]  # one metric's result: value, frames, identical, note
PIXELS = ("torch", "diffusers", "transformers", "torchao")  # packages of which a version may change a video
RESCALED = "compared_at"  # in an entry: height and width of the mp4, if not those of the frames


def chosen(names: str | Iterable[str]) -> tuple[str, ...]:
    """Conventions by name, one or several, without repetitions. Raises ConfigError for an unknown one, or for none."""
    names = tuple(dict.fromkeys([names] if isinstance(names, str) else names or []))
    if unknown := [name for name in names if name not in CONVENTIONS]:
        raise ConfigError(f"unknown fidelity {unknown[0]!r}; conventions are {', '.join(CONVENTIONS)}")
    if not names:
        raise ConfigError(f"fidelity is empty; conventions are {', '.join(CONVENTIONS)}")
    return names


def arrays(run: Run) -> int:
    """How many arrays of a video's frames scoring holds at a time: the frames, and possibly their copy from an mp4."""
    return 1 + any(metric.source.encoded for convention in run.fidelity for metric in CONVENTIONS[convention].values())


def measure(name: str, video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Entry:
    """One metric of two arrays from its source: uint8 frames (n, height, width, 3), or latents.

    Raises ValueError if their shapes differ: nothing is resized, cut or padded.
    """
    if video.shape != reference.shape:
        raise ValueError(f"a video of shape {video.shape} cannot be compared with a reference of {reference.shape}")
    metric = METRICS[name]
    too_small = metric.source != LATENTS and min(video.shape[1:3]) < metric.least
    if reason := metric.too_small if too_small else metric.lacks():
        return {"value": None, "frames": [], "identical": None, "note": reason}
    frames = metric.frames(video, reference, device)
    value, identical = metric.pool(frames), identical_frames(video, reference)
    return {"value": value, "frames": frames, "identical": identical, "note": note(value, identical, len(video))}


def score(
    job: Job, say: Say, failed_before: set[str] | None = None, begin: float = 0.0, leave: bool = False
) -> list[Failure]:
    """Score every sample of the job against the reference sample of the same prompt, seed and machine, first those
    whose frames are in memory; with `leave` those alone, and the others are noted as other processes' for now (see
    claims.py): whoever has made them need not decode them. Returns the failures; `failed_before` collects what failed,
    and is not tried again. begin: see `Job.in_turn`."""
    if job.uncached is None:
        return []
    reported: set[str] = set()

    def work(prompt: str, seed: int) -> None:
        _score_one(job, prompt, seed, reported, say, leave)

    samples = sorted(job.in_turn(begin), key=lambda sample: job.files(*sample).latent not in kept)
    return attempt_each(job.run.label, "score", samples, work, say, set() if failed_before is None else failed_before)


def _score_one(job: Job, prompt: str, seed: int, reported: set[str], say: Say, leave: bool) -> None:
    """Score one sample. `reported` holds the reasons for missing scores that have already been printed."""
    run, files, reference = job.run, job.files(prompt, seed), job.reference.files(prompt, seed)
    if not _missing(job, files):
        return
    if not (files.complete and reference.complete) and busy(files.stem, reference.stem):
        return  # another process is making one of them
    if not (files.complete and reference.complete):
        which = "reference" if files.complete else "sample"
        say(f"{run.label}  not scored, its {which} was not generated: {prompt!r} seed {seed}")
        return
    if leave and files.latent not in kept:
        return leave_to_others(files.fidelity)
    with claim(files.fidelity) as claimed:
        if claimed and (missing := _missing(job, files)):
            _score_missing(job, files, reference, missing, reported, say)


def _missing(job: Job, files: SampleFiles) -> list[str]:
    """The metrics of a sample that are asked for and not stored."""
    entries = stored(job, files)
    return [n for c in job.run.fidelity for n in CONVENTIONS[c] if not settled(n, entries.get(n))]


def _score_missing(
    job: Job, files: SampleFiles, reference: SampleFiles, missing: list[str], reported: set[str], say: Say
) -> None:
    run, new = job.run, _scored(job.run, files, reference, missing)
    lacking = {entry["note"] for entry in new.values() if not entry["frames"]} - reported
    lacking |= {_rescaling(name, entry) for name, entry in new.items() if RESCALED in entry} - reported
    lacking |= _other_versions(files, reference) - reported
    for reason in lacking:
        say(f"{run.label}  {reason}")
    reported |= lacking
    latents = [checksum(files), checksum(reference)]
    header = {**files.identity, "reference": job.reference.id, "latents": latents, "fps": run.fps}
    with alone(files.fidelity.parent):  # another process may have scored it with other conventions
        write_sealed(files.fidelity, header | {"metrics": stored(job, files) | new})


def _rescaling(name: str, entry: Entry) -> str:
    height, width = entry[RESCALED]
    return f"{convention_of(name)} compares at {height}x{width}: its official writer rescales to multiples of 16"


def _other_versions(files: SampleFiles, reference: SampleFiles) -> set[str]:
    traces = [read_json(each.trace) or {} for each in (files, reference)]
    mine, other = ((trace.get("revision") or {}).get("packages", {}) for trace in traces)
    return {
        f"made with {name} {mine.get(name)}, but the reference with {other.get(name)}: scores count that difference too"
        for name in PIXELS
        if mine and other and mine.get(name) != other.get(name)
    }


def stored(job: Job, files: SampleFiles) -> dict[str, Entry]:
    """The entries on disk that are still valid; those of encoded videos only for the job's frame rate."""
    return _at_rate(job.run.fps, *_on_disk(job, files))


def at_one_rate(job: Job, samples: Sequence[SampleFiles]) -> list[dict[str, Entry]]:
    """The valid entries of each of these samples; those of encoded videos of one frame rate only, since their scores
    depend on it: of the job's, or if there are none, of that which most samples were scored at."""
    found = [_on_disk(job, files) for files in samples]
    rates = Counter(fps for fps, entries in found if any(METRICS[name].source.encoded for name in entries))
    most = min(rates, key=lambda fps: (-rates[fps], fps or 0), default=job.run.fps)
    rate = job.run.fps if job.run.fps in rates else most
    return [_at_rate(rate, *each) for each in found]


def _at_rate(rate: int | None, fps: int | None, entries: dict[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if fps == rate or not METRICS[name].source.encoded}


def _on_disk(job: Job, files: SampleFiles) -> tuple[int | None, dict[str, Entry]]:
    """The frame rate and the entries on disk that are valid for this latent and its reference's, of known metrics."""
    data = read_json(files.fidelity) or {}
    if data.get("reference") != job.reference.id or "metrics" not in data:
        return None, {}
    current = [checksum(files), checksum(job.reference.place.sample(files.stem.name))]
    if any(None not in pair and pair[0] != pair[1] for pair in zip(data.get("latents", current), current, strict=True)):
        return None, {}  # one of the two has been generated again since, with another result
    return data["fps"], {name: data["metrics"][name] for name in METRICS if name in data["metrics"]}


def settled(name: str, entry: Entry | None) -> bool:
    """Whether there is nothing to do: the metric was computed, what it needs is still missing, or frames are small."""
    metric = METRICS[name]
    return entry is not None and (bool(entry["frames"]) or entry["note"] in (metric.too_small, metric.lacks()))


def _scored(run: Run, files: SampleFiles, reference: SampleFiles, names: list[str]) -> dict[str, Entry]:
    """The metrics of one sample, source by source, so that only one pair of videos is in memory at a time."""
    device = devices.resolve(run.device)
    entries: dict[str, Entry] = {}
    for source in dict.fromkeys(METRICS[name].source for name in names):
        video, against = source.load(run, files), source.load(run, reference)
        for name in (name for name in names if METRICS[name].source == source):
            entries[name] = measure(name, video, against, device)
            if source.encoded and video.shape != frames_of(run, files).shape:
                entries[name][RESCALED] = list(video.shape[1:3])
        source.drop(run, files)
    kept.drop(files.latent)  # the reference's frames stay: the next method of a sweep needs them again
    return {name: entries[name] for name in names}
