"""What a run asks VBench or VBench-2.0 to score: per dimension the mode, the videos, and their names. Refuses early."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..backbones import image_of, text_of
from ..config import ConfigError, Run
from ..devices import resolve
from ..identity import sample_key
from ..job import Job
from ..sampling.video import is_whole_mp4
from .dimensions import DIMENSIONS, expand, of
from .edition import Dimension, Edition
from .environment import Environment, load, unavailable
from .suites import dimensions_of, read_entries, suite_hash

DEFINITION = "vbench@1"  # version of everything in this file that a score depends on
STANDARD, CUSTOM = "vbench_standard", "custom_input"  # VBench's own names for its modes
NOT_GENERATED = "not generated"
_X264 = re.compile(rb"x264 - core (\d+)[^\0]*? crf=([\d.]+)")  # what the encoder writes into the stream


@dataclass(frozen=True)
class Video:
    """A sample's mp4, the file name under which VBench sees it, and the image it started from, if that is asked for."""

    sample: str
    prompt: str
    name: str
    path: Path
    image: Image.Image | None = None


@dataclass(frozen=True)
class Task:
    """One dimension to score on the run's videos; `missing` are the samples without a video."""

    dimension: Dimension
    mode: str
    videos: tuple[Video, ...]
    missing: tuple[str, ...]
    suite: str  # hash of the run's prompts and seeds

    def key(self, environment: Environment, contents: dict[Path, str]) -> str:
        """A hash that identifies the work: the same key means the same score."""
        videos = sorted((video.name, contents[video.path]) for video in self.videos)
        version = environment.versions[environment.edition.package]
        parts = [DEFINITION, self.dimension.name, self.mode, self.suite, version, videos]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require(run: Run) -> None:
    """Raise ConfigError, in one line, if a requested dimension cannot be scored here, whatever is generated."""
    dimensions = expand(run.score.vbench)
    if "score" not in run.stages or not dimensions:
        return
    problems: dict[str, str] = {}
    for edition, asked in by_edition(dimensions).items():
        environment = load(edition)
        mode, known = mode_of(run, environment)
        reasons = {d.name: _refusal(run, d, mode, known) or unavailable(d, environment) for d in asked}
        problems |= {name: reason for name, reason in reasons.items() if reason is not None}
    if problems:
        first, *others = problems
        more = f"; nor can {', '.join(others)} be scored: python -m pcbench.vbench status" if others else ""
        raise ConfigError(f"{DIMENSIONS[first].edition.title}'s {first} {problems[first]}{more}")


def by_edition(dimensions: Iterable[Dimension]) -> dict[Edition, list[Dimension]]:
    """The dimensions grouped by edition."""
    groups: dict[Edition, list[Dimension]] = {}
    for dimension in dimensions:
        groups.setdefault(dimension.edition, []).append(dimension)
    return groups


def tasks(job: Job) -> list[tuple[Task, Environment]]:
    """The job's tasks with the environments they need, and the videos that have been generated so far."""
    groups = by_edition(expand(job.run.score.vbench)).items()
    return [pair for edition, dimensions in groups for pair in _tasks(job, dimensions, load(edition))]


def _tasks(job: Job, dimensions: list[Dimension], environment: Environment) -> Iterable[tuple[Task, Environment]]:
    run = job.run
    mode, known = mode_of(run, environment)
    suite = suite_hash(run.prompts, run.seeds)
    for dimension in dimensions:
        videos, missing = [], []
        for prompt, seed in scored(run, dimension, mode, known):
            sample, index = sample_key(prompt, seed), run.seeds.index(seed)
            files = job.files(prompt, seed)
            if files.complete:
                image = image_of(run, prompt)["image"] if dimension.image else None
                name = _name(dimension, mode, prompt, seed, index)
                videos.append(Video(sample, text_of(run, prompt), name, files.video.absolute(), image))
            else:
                missing.append(sample)
        yield Task(dimension, mode, tuple(videos), tuple(missing), suite), environment


def _name(dimension: Dimension, mode: str, prompt: str, seed: int, index: int) -> str:
    """A sample's file name: that of the official protocol, or one that is a file name whatever the prompt is."""
    if mode == STANDARD:
        return f"{prompt[: dimension.edition.characters]}-{index}.mp4"
    if dimension.together:  # it takes those that differ in the last number alone for samples of one prompt
        return f"{sample_key(prompt, 0)}-{index}.mp4"
    return f"{sample_key(prompt, seed)}.mp4"


def scored(run: Run, dimension: Dimension, mode: str, known: dict[str, set[str]]) -> list[tuple[str, int]]:
    """The run's samples (prompt, seed) that a dimension scores: in standard mode those of its own prompts, and as many
    of each as its protocol has; in custom mode all, unless it scores so many together."""
    seeds = run.seeds[: dimension.samples] if mode == STANDARD or dimension.together else run.seeds
    return [
        (prompt, seed)
        for prompt, seed in run.samples
        if seed in seeds and (mode == CUSTOM or dimension.name in known[prompt])
    ]


def mode_of(run: Run, environment: Environment) -> tuple[str, dict[str, set[str]]]:
    """The mode (standard if the edition knows every prompt of the run, else custom), and every prompt's dimensions."""
    known = dimensions_of(read_entries(environment.suite))
    return (STANDARD if all(prompt in known for prompt in run.prompts) else CUSTOM), known


def _refusal(run: Run, dimension: Dimension, mode: str, known: dict[str, set[str]]) -> str | None:
    """Why the dimension cannot be scored on the run's prompts and seeds; None if it can."""
    if mode == CUSTOM and not dimension.custom:
        other = [prompt for prompt in run.prompts if prompt not in known]
        title = dimension.edition.title
        return (
            f"is defined on {title}'s own prompts alone; {len(other)} of the run's are not, the first is {other[0]!r}"
        )
    if not scored(run, dimension, mode, known):
        return f"has none of its {dimension.prompts} prompts among the run's"
    most = max(each.samples for each in of(dimension.edition))
    if mode == STANDARD and len(run.seeds) > most:
        return f"takes at most {most} samples of a prompt, and the run has {len(run.seeds)} seeds"
    if dimension.together and len(run.seeds) < dimension.samples:
        return f"compares {dimension.samples} samples of a prompt, and the run has {len(run.seeds)} seeds"
    if dimension.image and not run.images:
        return f"compares a video with the image that it started from, and {run.recipe.backbone.name} takes none"
    if dimension.gpu and resolve(run.device) == "cpu":
        return "needs a GPU: its official code runs on nothing else"
    return None


def lay_out(task: Task, folder: Path, environment: Environment) -> dict[str, Any]:
    """Fill a folder with VBench's input: links to the videos, and its list of their prompts. Returns the request."""
    videos, info = folder / "videos", folder / "info.json"
    videos.mkdir()
    for video in task.videos:
        os.symlink(video.path, videos / video.name)
    wanted = {video.prompt for video in task.videos}
    entries = [entry for entry in read_entries(environment.suite) if entry["prompt_en"] in wanted]
    info.write_text(json.dumps(entries), encoding="utf-8")
    prompts = {video.name: video.prompt for video in task.videos} if task.mode == CUSTOM else {}
    images = {video.name: str(_image(video, folder)) for video in task.videos if task.dimension.image}
    return {
        "dimension": task.dimension.name,
        "mode": task.mode,
        "videos": str(videos),
        "info": str(info),
        "prompts": prompts,
        "images": images,
    }


def _image(video: Video, folder: Path) -> Path:
    """A video's image as the model got it, in a file of this folder."""
    assert video.image is not None
    path = folder / f"{Path(video.name).stem}.png"
    video.image.save(path)
    return path


@dataclass(frozen=True)
class Contents:
    """What is in the videos: each file's SHA-256, the encoder named in them ("x264 core 165, crf 18.0"; None if none is
    named), and the files that are incomplete."""

    hashes: dict[Path, str]
    encoder: str | None
    broken: frozenset[Path]


def inspect(paths: Iterable[Path]) -> Contents:
    """Read every video once."""
    hashes, encoders, broken = {}, set(), set()
    for path in paths:
        data = path.read_bytes()
        hashes[path] = hashlib.sha256(data).hexdigest()
        if match := _X264.search(data):
            encoders.add(f"x264 core {match[1].decode()}, crf {match[2].decode()}")
        if not is_whole_mp4(data):
            broken.add(path)
    return Contents(hashes, "; ".join(sorted(encoders)) or None, frozenset(broken))
