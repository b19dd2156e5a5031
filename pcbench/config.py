"""What a run is made of, as plain dataclasses. They are the schema and the defaults of every file in conf/."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from methods import Method, NoCacheConfig
from methods.engine.numbers import LARGEST, check_plain

from .messages import ConfigError, nearest, shortened

STAGES = ("generate", "latency", "score")  # the default
ALL_STAGES = (*STAGES, "observe")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "float8")
WEIGHTS = ("pretrained", "random")
BUNDLED = "bundled:"  # begins the name of weights or prompts that come with pcbench
RANDOM = "random"  # a backbone's source when its weights are random
LARGEST_FILE = 100_000_000  # bytes of a prompt file
LONGEST_PROMPT = 10_000  # characters; VBench's longest augmented ones have under a thousand
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}")
OFFLOADS = ("none", "model", "group")


def number(low: float, high: float = LARGEST, default: Any = MISSING) -> Any:
    """A dataclass field for a number, or a list of numbers, from `low` to `high`; `check_fields` checks the range."""
    options = {} if default is MISSING else {"default": default}
    return field(**options, metadata={"range": (low, high)})


def check_fields(config: Any, name: str) -> None:
    """Raise ConfigError for a field of a dataclass that is out of its range, not finite, or not valid UTF-8 text.

    Composition has checked all types except those of lists, dictionaries and dataclasses given by an interpolation.
    """
    kinds = _containers(config.__class__)
    for item in fields(config):
        if item.name in kinds and not isinstance(value := getattr(config, item.name), kinds[item.name]):
            raise ConfigError(f"{name}.{item.name}".lstrip(".") + f" cannot be {shortened(value)!r}")
        try:
            check_plain(f"{name}.{item.name}".lstrip("."), getattr(config, item.name), *item.metadata.get("range", ()))
        except ValueError as error:
            raise ConfigError(str(error)) from None


@functools.cache
def _containers(config: type) -> dict[str, type]:
    """The fields of a dataclass that hold a list, a dictionary or another dataclass."""
    kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(config).items()}
    return {name: kind for name, kind in kinds.items() if kind in (list, dict) or is_dataclass(kind)}


def names_of(option: str, value: Any) -> list[str]:
    """The names given to an option: a list of them, a single one, or None. Raises ConfigError for anything else."""
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{option} takes a name or a list of names, not {shortened(value)!r}")
    return list(listed)


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of the known ones."""
    if value not in known:
        raise ConfigError(f"{name} cannot be {shortened(value)!r}: {nearest(value, known)}")


@dataclass(kw_only=True, slots=True)
class Backbone:
    """A diffusers pipeline and where its weights are.

    source: a folder of weights bundled with pcbench ("bundled:tiny_wan"), a local folder, a hub repository, or
        "random" (set by `model.weights=random`; "random:FOLDER" for a folder, whose configs are kept).
    revision: commit of a hub repository; of bundled weights or a folder, a fingerprint: new weights, new recipe.
    call: further arguments of the pipeline call.
    transformer: the transformer's config where it differs from the class defaults; lets a plan be priced without
        weights (bundled backbones read it from their own folder).
    """

    name: str
    family: str
    source: str
    revision: str | None = None
    call: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "model.backbone")
        if not NAME.fullmatch(self.name):  # folders are named after it
            form = "up to 64 letters, digits, dots and dashes, no dot first"
            raise ConfigError(f"model.backbone.name must be {form}, not {shortened(self.name)!r}")
        if not self.source.strip():
            raise ConfigError("model.backbone.source is empty: give a folder or a hub repository")


@dataclass(kw_only=True, slots=True)
class Sampling:
    """How a video is sampled. Sizes in pixels and frames; with `flow_shift` None the scheduler keeps its own."""

    height: int = number(1, 2**20)
    width: int = number(1, 2**20)
    frames: int = number(1, 2**20)
    steps: int = number(1, 1000, 50)  # schedulers have 1000 training steps
    guidance_scale: float = number(0, 100, 5.0)
    negative_prompt: str = ""
    flow_shift: float | None = number(1e-3, 1000, None)

    def __post_init__(self) -> None:
        check_fields(self, "model.sampling")


@dataclass(kw_only=True, slots=True)
class Numerics:
    """How numbers are stored and computed.

    attention: one of diffusers' attention backends ("native", "flash", "_native_cudnn", …); None keeps the default.
    vae_tiling: decode in overlapping tiles, for less memory at slightly different pixels.
    parallel: GPUs that make one video together (sampling/parallel.py), sharing the transformer's tokens.
    cfg_parallel: one half of them computes the conditional branch of guidance, the other the unconditional one.
    compile: the transformer's blocks by torch.compile, the reference's too; the caches stay outside the graphs.
    quantization: of the weights of the transformer's blocks, the reference's too, to "int8" or "float8" (torchao).
    """

    dtype: str = "float32"
    attention: str | None = None
    vae_tiling: bool = False
    parallel: int = number(1, 1024, 1)
    cfg_parallel: bool = False
    compile: bool = False
    quantization: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.numerics")
        check_choice("model.numerics.dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            check_choice("model.numerics.quantization", self.quantization, QUANTIZATIONS)


@dataclass(kw_only=True, slots=True)
class Download:
    """What a user without the weights should know: their size, how to make a local copy if a plain download is not
    enough, and the bundled twin."""

    gigabytes: float | None = number(0, default=None)
    obtain: str | None = None
    twin: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.download")


@dataclass(kw_only=True, slots=True)
class Model:
    """A backbone with the sampling and numerics it is usually run with; what `model=` selects.

    weights: "pretrained", or "random": the full architecture without a checkpoint, for latency and memory.
    offload: where weights wait: on the device ("none"), or on the CPU, moved a component at a time ("model") or a
        block at a time ("group").
    fps: frames per second of the mp4 files; no generated pixel depends on it.
    """

    backbone: Backbone
    sampling: Sampling
    numerics: Numerics = field(default_factory=Numerics)
    weights: str = "pretrained"
    offload: str = "none"
    fps: int = number(1, 240, 16)
    download: Download = field(default_factory=Download)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        check_choice("model.weights", self.weights, WEIGHTS)
        check_choice("model.offload", self.offload, OFFLOADS)
        if self.backbone.source.partition(":")[0] == RANDOM:
            raise ConfigError("model.backbone.source=random: for random weights say model.weights=random")

    @property
    def chosen_backbone(self) -> Backbone:
        """The backbone with its source set as `weights` asks."""
        if self.weights != RANDOM:
            return self.backbone
        source, bundled = self.backbone.source, self.backbone.source.startswith(BUNDLED)
        source = f"{RANDOM}:{source}" if bundled or Path(source).is_dir() else RANDOM
        return replace(self.backbone, source=source, revision=None)


@dataclass(kw_only=True, slots=True)
class Prompts:
    """A text file with one prompt per line ('#' starts a comment), and the seeds each prompt is sampled with. For a
    model that starts from an image a line is TEXT | IMAGE, the image's path beginning in the file's folder."""

    file: str
    limit: int | None = number(1, default=None)
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"range": (0, 2**63 - 1)})

    def __post_init__(self) -> None:
        check_fields(self, "prompts")
        if not self.seeds:
            raise ConfigError("prompts.seeds is empty: give at least one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("prompts.seeds holds a seed twice")

    def path(self, folder: Path) -> Path | None:
        """The file; None if there is none. `bundled:NAME` is in `folder`; any other name begins in the working
        directory, or where there is none, in `folder`."""
        places = [Path(self.file)] * (not self.file.startswith(BUNDLED)) + [folder / self.file.removeprefix(BUNDLED)]
        return next((path for path in places if path.is_file()), None)

    def read(self, folder: Path) -> list[str]:
        """The lines of the file, which begins as `path` says. Raises ConfigError."""
        name = shortened(self.file)
        try:
            path = self.path(folder)
            if path is None:
                raise ConfigError(f"prompt file {name!r} not found, here or in {shortened(folder)}")
            if path.stat().st_size > LARGEST_FILE:
                raise ConfigError(f"prompt file {name!r} has more than {LARGEST_FILE / 1e6:g} MB: no list of prompts")
            lines = map(str.strip, path.read_text(encoding="utf-8-sig").split("\n"))  # splitlines cuts at form feeds
            prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        except UnicodeDecodeError:
            raise ConfigError(f"prompt file {name!r} cannot be read: it is not text in UTF-8") from None
        except OSError as error:
            raise ConfigError(f"prompt file {name!r} cannot be read: {error.strerror}") from error
        if not prompts:
            raise ConfigError(f"prompt file {name!r} holds no prompt: one per line, '#' starts a comment")
        if bad := [prompt for prompt in prompts if CONTROL.search(prompt) or len(prompt) > LONGEST_PROMPT]:
            why = f"control characters or more than {LONGEST_PROMPT} letters"
            raise ConfigError(f"prompt file {name!r}: {shortened(bad[0])!r} has {why}")
        return prompts[: self.limit]


@dataclass(kw_only=True, slots=True)
class Latency:
    """How latency is measured.

    warmup: calls of each recipe in this process before any is timed; calls that generated samples count. At least one
        call is made, even with 0.
    repeats: timed calls per prompt of the method, and as many of the reference.
    prompts: how many of the run's prompts are timed, each with the first seed; all of them if there are fewer.
    """

    warmup: int = number(0, 1000, 1)
    repeats: int = number(1, 1000, 3)
    prompts: int = number(1, 1_000_000, 1)

    def __post_init__(self) -> None:
        check_fields(self, "latency")


@dataclass(kw_only=True, slots=True)
class Score:
    """What to score besides fidelity.

    vbench: dimensions of VBench and VBench-2.0, or "quality", "semantic", "all", "vbench2", … (docs/vbench.md).
    vbench_partial: score the videos that exist even if others were not generated.
    vbench_timeout: seconds after which a dimension is given up.
    """

    vbench: Any = field(default_factory=list)  # a list of names; a single name needs no brackets
    vbench_partial: bool = False
    vbench_timeout: float = number(1e-3, 1e8, 6 * 3600.0)

    def __post_init__(self) -> None:
        self.vbench = names_of("score.vbench", self.vbench)
        check_fields(self, "score")


@dataclass(kw_only=True, slots=True)
class Slurm:
    """The jobs of launcher=slurm.

    minutes: after which a job is stopped and queued again. cpus, gpus, memory ("64GB"): of a job. setup: lines of shell
    before it. additional: further options of sbatch. cluster: "local" runs the jobs as processes here, to try it out.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = number(1, 1_000_000, 720)
    cpus: int = number(1, 10_000, 4)
    gpus: int = number(0, 1024, 1)
    memory: str | None = None
    setup: list[str] = field(default_factory=list)
    additional: dict[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        check_fields(self, "slurm")
        check_choice("slurm.cluster", self.cluster, ("slurm", "local"))


@dataclass(kw_only=True, slots=True)
class Recipe:
    """Everything that determines the pixels, and nothing else. Its hash is its identity (identity.py)."""

    backbone: Backbone
    sampling: Sampling
    method: Method
    numerics: Numerics

    @property
    def reference(self) -> Recipe:
        """The same recipe without a cache."""
        return replace(self, method=NoCacheConfig())


@dataclass(kw_only=True, slots=True)
class Run:
    """One recipe over some prompts, and what to do with it.

    label: its name in tables. preset: the choice in conf/method/ all of whose settings the recipe's method has, `kept`
    apart, however they were given; None if there is none. budget: what the method is to be set to first (target.py).
    only: the samples to make, if not all of the prompts and seeds: a shard's (launch/shards.py).
    images: the file of each prompt's first frame, for a model that starts from one (first_frame.py).
    """

    label: str
    recipe: Recipe
    prompts: list[str]
    seeds: list[int]
    results: Path
    fps: int = 16
    stages: tuple[str, ...] = STAGES
    latency: Latency = field(default_factory=Latency)
    fidelity: tuple[str, ...] = ("raw",)
    score: Score = field(default_factory=Score)
    observe: tuple[str, ...] = ()  # kinds of observation, for the stage of that name
    observe_stride: int = 1  # `impact` tries every n-th step
    device: str = "auto"
    offload: str = "none"
    download: Download = field(default_factory=Download)
    preset: str | None = None
    budget: str | None = None
    only: frozenset[tuple[str, int]] | None = None
    images: dict[str, Path] = field(default_factory=dict)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """All (prompt, seed) pairs, in order; of a shard, its own."""
        pairs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        return pairs if self.only is None else [pair for pair in pairs if pair in self.only]

    @property
    def reference(self) -> Run:
        """The run of the uncached reference over the same samples."""
        return replace(self, label="none", preset="none", budget=None, recipe=self.recipe.reference)
