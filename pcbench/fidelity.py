"""The scoring stage for fidelity: how close each video is to the uncached reference of the same prompt and seed.

A sample's scores lie beside it in <sample>.fidelity.json: for every metric the value, the values of its frames, how
many frames are identical to the reference's, and a note, which gives the reason where there is no value. Only what is
missing is computed: with another convention asked for, a video is decoded again but never generated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import backbones, perceptual
from .config import ConfigError, Run
from .conventions import CONVENTIONS, FRAMES, LATENTS, METRICS, identical_frames, note
from .frames import kept, through_mp4
from .generate import frames_of, latents_of, place
from .identity import recipe_id, sample_key
from .store import SampleFiles, read_json, write_json

Entry = dict[str, Any]  # of one metric: value, frames, identical, note


def chosen(names: str | Iterable[str]) -> tuple[str, ...]:
    """Conventions by name, one or several, each once. Raises ConfigError for one that is not known, or for none."""
    names = tuple(dict.fromkeys([names] if isinstance(names, str) else names or []))
    if unknown := [name for name in names if name not in CONVENTIONS]:
        raise ConfigError(f"unknown fidelity {unknown[0]!r}; conventions are {', '.join(CONVENTIONS)}")
    if not names:
        raise ConfigError(f"fidelity is empty; conventions are {', '.join(CONVENTIONS)}")
    return names


def measure(name: str, video: np.ndarray, reference: np.ndarray, device: str = "cpu") -> Entry:
    """One metric of two arrays of its source: uint8 frames (n, height, width, 3), or latents.

    Raises ValueError if their shapes differ: nothing is resized, cut or padded.
    """
    if video.shape != reference.shape:
        raise ValueError(f"a video of shape {video.shape} cannot be compared with a reference of {reference.shape}")
    metric = METRICS[name]
    try:
        frames = metric.frames(video, reference, device)
    except perceptual.UnavailableError as error:
        return {"value": None, "frames": [], "identical": None, "note": str(error)}
    value, identical = metric.pool(frames), identical_frames(video, reference)
    return {"value": value, "frames": frames, "identical": identical, "note": note(value, identical, len(video))}


def score(run: Run, say: Callable[[str], None]) -> None:
    """Score every sample of the run against the reference sample of the same prompt, seed and machine."""
    if run.recipe.method.NAME == "none":
        return
    here, there = place(run), place(run.reference)
    told: set[str] = set()
    for prompt, seed in run.samples:
        files, reference = here.sample(sample_key(prompt, seed)), there.sample(sample_key(prompt, seed))
        entries = stored(run, files)
        missing = [n for c in run.fidelity for n in CONVENTIONS[c] if not _settled(entries.get(n))]
        if not missing:
            continue
        if not (files.complete and reference.complete):
            which = "reference" if files.complete else "sample"
            say(f"{run.label}  not scored, its {which} was not generated: {prompt!r} seed {seed}")
            continue
        new = _scored(run, files, reference, missing)
        lacking = {entry["note"] for entry in new.values() if not entry["frames"]} - told
        for reason in lacking:
            say(f"{run.label}  {reason}")
        told |= lacking
        data = {"reference": recipe_id(run.recipe.reference), "fps": run.fps, "metrics": entries | new}
        write_json(files.fidelity, data)


def stored(run: Run, files: SampleFiles) -> dict[str, Entry]:
    """The entries on disk that still hold: against this reference, and at this frame rate where it moves pixels."""
    data = read_json(files.fidelity) or {}
    if data.get("reference") != recipe_id(run.recipe.reference) or "metrics" not in data:
        return {}
    same_rate = data["fps"] == run.fps
    known = {name: entry for name, entry in data["metrics"].items() if name in METRICS}
    return {name: entry for name, entry in known.items() if same_rate or METRICS[name].source in (FRAMES, LATENTS)}


def _settled(entry: Entry | None) -> bool:
    """Whether there is nothing to do: it was computed, or what it lacked is still lacking."""
    return entry is not None and (bool(entry["frames"]) or entry["note"] == perceptual.why_unavailable())


def _scored(run: Run, files: SampleFiles, reference: SampleFiles, names: list[str]) -> dict[str, Entry]:
    """The metrics of one sample, source by source, so that no more than one pair of videos is unpacked at a time."""
    device = str(backbones.resolve_device(run.device))
    entries: dict[str, Entry] = {}
    for source in dict.fromkeys(METRICS[name].source for name in names):
        video, against = _array(run, files, source), _array(run, reference, source)
        for name in (name for name in names if METRICS[name].source == source):
            entries[name] = measure(name, video, against, device)
        kept.drop((files.latent, source, run.fps))
    kept.drop(files.latent)  # the reference's frames are wanted again, by the next method of a sweep
    return {name: entries[name] for name in names}


def _array(run: Run, files: SampleFiles, source: str | int) -> np.ndarray:
    """What a source names, of one sample."""
    if source == LATENTS:
        return latents_of(files).float().numpy()
    if source == FRAMES:
        return frames_of(run, files)
    return kept.get((files.latent, source, run.fps), lambda: through_mp4(frames_of(run, files), run.fps, int(source)))
