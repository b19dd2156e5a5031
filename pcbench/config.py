"""What a run is made of, as plain dataclasses. They are the schema and the defaults of every file in conf/."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from methods import Method, NoCacheConfig

STAGES = ("generate", "latency", "score")  # unless asked otherwise
ALL_STAGES = (*STAGES, "observe")
DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = ("pretrained", "random")
RANDOM = "random"  # a backbone's source when its weights are random
OFFLOADS = ("none", "model", "group")


class ConfigError(ValueError):
    """The user asked for something that cannot be: reported in one line, exit code 2."""


@dataclass(kw_only=True, slots=True)
class Backbone:
    """A diffusers pipeline and where its weights are.

    source: a folder of weights bundled with pcbench ("bundled:tiny_wan"), a local folder, a hub repository, or
        "random" (set by `model.weights=random`).
    revision: commit of a hub repository; for bundled weights their fingerprint, so that new weights are a new recipe.
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


@dataclass(kw_only=True, slots=True)
class Sampling:
    """What is asked of the pipeline. Sizes in pixels and frames; `flow_shift` None keeps the scheduler's own."""

    height: int
    width: int
    frames: int
    steps: int = 50
    guidance_scale: float = 5.0
    negative_prompt: str = ""
    flow_shift: float | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(kw_only=True, slots=True)
class Numerics:
    """How the numbers are held and computed.

    attention: one of diffusers' attention backends ("native", "flash", "_native_cudnn", …); None leaves the default.
    vae_tiling: decode in overlapping tiles, for less memory at slightly different pixels.
    parallel: GPUs that share the transformer's tokens (parallel.py).
    """

    dtype: str = "float32"
    attention: str | None = None
    vae_tiling: bool = False
    parallel: int = 1

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise ConfigError(f"numerics.parallel must be at least 1, not {self.parallel}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"numerics.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


@dataclass(kw_only=True, slots=True)
class Download:
    """What a user without the weights should know: their size, how to make a local copy if a plain download is not
    enough, and the bundled twin."""

    gigabytes: float | None = None
    obtain: str | None = None
    twin: str | None = None


@dataclass(kw_only=True, slots=True)
class Model:
    """A backbone with the sampling and numerics it is usually run with; what `model=` selects.

    weights: "pretrained", or "random": the full architecture without a checkpoint, for latency and memory.
    offload: where weights wait: "none" on the device, "model" on the CPU a component at a time, "group" on the CPU a
        block at a time.
    fps: frames per second of the mp4 files; no pixel depends on it.
    """

    backbone: Backbone
    sampling: Sampling
    numerics: Numerics = field(default_factory=Numerics)
    weights: str = "pretrained"
    offload: str = "none"
    fps: int = 16
    download: Download = field(default_factory=Download)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ConfigError(f"model.weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")
        if self.offload not in OFFLOADS:
            raise ConfigError(f"model.offload must be one of {', '.join(OFFLOADS)}, not {self.offload!r}")

    @property
    def chosen_backbone(self) -> Backbone:
        """The backbone with the weights asked for."""
        return replace(self.backbone, source=RANDOM, revision=None) if self.weights == RANDOM else self.backbone


@dataclass(kw_only=True, slots=True)
class Prompts:
    """A text file with one prompt a line ('#' starts a comment), and the seeds each is sampled with."""

    file: str
    limit: int | None = None
    seeds: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts.limit must be at least 1, not {self.limit}")
        if not self.seeds:
            raise ConfigError("prompts.seeds is empty: give at least one seed")

    def read(self, folder: Path) -> list[str]:
        """The prompts, from `file` relative to the working directory or else to `folder`."""
        path = next((p for p in (Path(self.file), folder / self.file) if p.is_file()), None)
        if path is None:
            raise ConfigError(f"prompt file {self.file!r} not found (looked in . and {folder})")
        try:
            lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompt file {path} cannot be read: {error}") from error
        prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not prompts:
            raise ConfigError(f"prompt file {path} holds no prompt: one per line, '#' starts a comment")
        return prompts[: self.limit]


@dataclass(kw_only=True, slots=True)
class Latency:
    """How latency is measured: calls before timing, and timed calls of the method and of the reference each."""

    warmup: int = 1
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.repeats < 1:
            raise ConfigError("latency.warmup must be at least 0 and latency.repeats at least 1")


@dataclass(kw_only=True, slots=True)
class Score:
    """What to score beside fidelity.

    vbench: dimensions of VBench, or "quality", "semantic", "all" (docs/vbench.md).
    vbench_partial: score the videos that are there when others were not generated.
    vbench_timeout: seconds after which a dimension is given up.
    """

    vbench: Any = field(default_factory=list)  # of strings; one alone may do without the brackets
    vbench_partial: bool = False
    vbench_timeout: float = 6 * 3600.0

    def __post_init__(self) -> None:
        self.vbench = [self.vbench] if isinstance(self.vbench, str) else list(self.vbench or [])
        if not self.vbench_timeout > 0:
            raise ConfigError(f"score.vbench_timeout must be above 0 seconds, not {self.vbench_timeout}")


@dataclass(kw_only=True, slots=True)
class Recipe:
    """Everything that decides pixels, and nothing else. Its hash is its identity (identity.py)."""

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
    """One recipe over some prompts, and what to do with it. `label` is what tables call it."""

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
    observe: tuple[str, ...] = ()  # kinds, for the stage of that name
    observe_stride: int = 1  # of the steps that `impact` tries
    device: str = "auto"
    offload: str = "none"
    download: Download = field(default_factory=Download)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """All (prompt, seed) pairs, in order."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def reference(self) -> Run:
        """The run of the uncached reference over the same samples."""
        return replace(self, label="none", recipe=self.recipe.reference)
