"""From typed parts to a checked run: finds every error that can be found before a model is loaded."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from methods import Method
from methods.engine.anatomy import Anatomy, anatomy_for

from . import backbones, feasible, target
from .backbones import custom
from .config import (
    ALL_STAGES,
    STAGES,
    Backbone,
    ConfigError,
    Latency,
    Model,
    Recipe,
    Run,
    Score,
    Slurm,
    check_fields,
    names_of,
    number,
)
from .cost.macs import empty_inputs
from .cost.timesteps import num_steps
from .fidelity import stage as fidelity
from .messages import shortened
from .observe import stage as observe
from .sampling import parallel
from .vbench.dimensions import expand


class RefusedError(ConfigError):
    """A method does not support a backbone, or not yet; the message names both and says why."""


# Options of a command line, not of one of its runs.
OF_THE_LINE = (
    "plan", "plan_gpu", "plan_utilisation", "wandb", "launcher", "workers", "slurm", "ray", "shard", "shards",
)  # fmt: skip


@dataclass(kw_only=True)
class Settings:
    """The options that belong to no config group: the top level of conf/config.yaml."""

    results: str = "results"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    latency: Latency = field(default_factory=Latency)
    fidelity: Any = "raw"  # a convention or a list of them
    score: Score = field(default_factory=Score)
    observe: Any = field(default_factory=list)  # a list of kinds; a single kind needs no brackets
    observe_stride: int = number(1, 1000, 1)
    device: str = "auto"
    plan: Any = False  # or true, json, table1
    plan_gpu: str = "H200"
    plan_utilisation: float = 0.45
    wandb: Any = "off"  # or offline, online
    budget: str | None = None  # what every method is set to before it runs: 2x, 25steps, 45dB
    launcher: str = "none"  # or local, slurm, ray: workers that share the work (launch/)
    workers: int | None = number(1, 10_000, None)  # at most; null: one for each GPU
    slurm: Slurm = field(default_factory=Slurm)
    ray: str | None = None  # the address of a running cluster, or "auto"; null starts one here
    shard: str | None = None  # i/n: a share of the samples, for any scheduler (launch/shards.py)
    shards: int | None = number(1, 100_000, None)  # print the command lines of so many shards, and stop
    sweeps: list[str] = field(default_factory=list)  # an experiment's lines of overrides, each a sweep of its own

    def __post_init__(self) -> None:
        check_fields(self, "")
        self.results = os.path.expanduser(self.results)  # a shell leaves ~ as it is after a "="
        if not self.results.strip():
            raise ConfigError("results is empty: give a folder")
        try:
            os.lstat(self.results)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass  # whether it can be written is found out when something is to be
        except (OSError, ValueError) as error:  # a name that no file system takes
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"results folder {shortened(self.results)!r} cannot be: {why}") from error
        if not self.stages:
            raise ConfigError(f"stages is empty; stages are {', '.join(ALL_STAGES)}")
        self.fidelity, self.observe = names_of("fidelity", self.fidelity), names_of("observe", self.observe)
        if self.budget is not None:
            target.parse(self.budget)
        for name in ("plan", "wandb"):
            if not isinstance(getattr(self, name), str | bool | None):
                raise ConfigError(f"{name} takes a name, not {shortened(getattr(self, name))!r}")


def run_of(
    label: str,
    model: Model,
    method: Method,
    prompts: list[str],
    images: dict[str, Path],
    seeds: list[int],
    settings: Settings,
) -> Run:
    """The run of these parts. Raises RefusedError if the method refuses the backbone, ConfigError for other errors."""
    if (folder := Path(model.backbone.source)).is_dir():  # other weights are another recipe, with its own calibrations
        backbone = dataclasses.replace(model.backbone, revision=custom.fingerprint(folder))
        model = dataclasses.replace(model, backbone=backbone)
    recipe = Recipe(
        backbone=model.chosen_backbone,
        sampling=model.sampling,
        method=_fitted(method, model.backbone, label),
        numerics=model.numerics,
    )
    if settings.budget is not None:
        recipe = dataclasses.replace(recipe, method=_within(recipe.method, num_steps(recipe)))
    run = Run(
        label=label,
        recipe=recipe,
        prompts=prompts,
        images=images,
        seeds=list(seeds),
        results=Path(settings.results),
        fps=model.fps,
        stages=tuple(settings.stages),
        latency=settings.latency,
        fidelity=fidelity.chosen(settings.fidelity),
        score=settings.score,
        observe=observe.chosen(settings.observe),
        observe_stride=settings.observe_stride,
        device=settings.device,
        offload=model.offload,
        download=model.download,
        budget=settings.budget,
    )
    check(run)
    return run


def _within(method: Method, steps: int) -> Method:
    """The method that is to be set to a budget, beginning at a setting that so many steps allow."""
    if method.TRADEOFF is None:
        return method
    low, high = method.TRADEOFF.limits(steps)
    field = method.TRADEOFF.field
    value = getattr(method, field)
    return method if value is None else dataclasses.replace(method, **{field: min(max(value, low), high)})


def _fitted(method: Method, backbone: Backbone, label: str) -> Method:
    """The method with the fields filled in that depend on the backbone."""
    feasible.check_backbone(backbone)
    anatomy = anatomy_of(backbone)
    with _refusals(f"{backbone.name} {label}"):
        return method.for_backbone(anatomy)


def anatomy_of(backbone: Backbone) -> Anatomy:
    """The anatomy of a backbone's transformer: what methods know about its structure."""
    return _anatomy_of(json.dumps(dataclasses.asdict(backbone)))


@functools.lru_cache(maxsize=64)
def _anatomy_of(fields: str) -> Anatomy:
    backbone = Backbone(**json.loads(fields))
    kind = backbones.family(backbone).TRANSFORMER
    return anatomy_for(kind, backbones.transformer_config(backbone), backbone.name, backbone.revision)


def _outline(backbone: Backbone) -> torch.nn.Module:
    """A transformer without data, at toy width, with all the blocks of the backbone's."""
    family = backbones.family(backbone)
    return _outline_of(family.TRANSFORMER, json.dumps({**backbones.transformer_config(backbone), **family.NARROW}))


@functools.lru_cache(maxsize=16)
def _outline_of(kind: Any, config: str) -> torch.nn.Module:
    with torch.device("meta"):
        return kind.from_config(json.loads(config))


def check(run: Run) -> None:
    """Raise ConfigError for every error in a run that can be found before a model is loaded."""
    if wrong := [name for name in run.stages if name not in ALL_STAGES]:
        raise ConfigError(f"unknown stage {shortened(wrong[0])!r}; stages are {', '.join(ALL_STAGES)}")
    expand(run.score.vbench)
    observe.check(run)
    backbones.check(run)
    parallel.check(run)
    family = backbones.family(run.recipe.backbone)
    family.check(run.recipe.sampling)
    sampling = run.recipe.sampling
    with _refusals(f"{run.recipe.backbone.name} {run.label}"):
        if run.budget is not None and run.recipe.method.TRADEOFF is None:
            raise ValueError("no single field trades quality for speed, so it has no budget")
        anatomy, config = anatomy_of(run.recipe.backbone), backbones.transformer_config(run.recipe.backbone)
        run.recipe.method.check(anatomy, family.latent_size(sampling), num_steps(run.recipe))
        run.recipe.method.modules(anatomy, _outline(run.recipe.backbone))
        with torch.device("meta"):
            inputs = anatomy.received(empty_inputs(family.arguments(run.recipe, config)))
        run.recipe.method.check_call(anatomy, inputs, None)
    if sampling.negative_prompt and family.branches(run.recipe) == 1 and anatomy.batch(inputs) == 1:
        raise ConfigError(
            f"{run.recipe.backbone.name} without classifier-free guidance has no use for"
            " model.sampling.negative_prompt: leave it empty"
        )
    stored = getattr(run.recipe.method, "kept", "exact")
    if stored == "bfloat16" and run.recipe.numerics.dtype != "float32":
        raise ConfigError(f"method.kept=bfloat16 saves nothing with {run.recipe.numerics.dtype}: float8 or cpu does")
    backbones.source(run.recipe.backbone)


@contextmanager
def _refusals(pair: str) -> Iterator[None]:
    """Turns a method's ValueError about a backbone into a RefusedError that names both."""
    try:
        yield
    except ValueError as error:
        raise RefusedError(f"{pair}: {error}") from error


def label(preset: str, method: Method, changed: dict[str, Any]) -> str:
    """A run's name in tables: its preset and the fields that differ, the method's own before those of all methods."""
    bases = (base for base in type(method).__mro__[1:] if dataclasses.is_dataclass(base))
    common = {item.name for base in bases for item in dataclasses.fields(base)}
    order = [item.name for item in sorted(dataclasses.fields(method), key=lambda item: item.name in common)]
    return " ".join([preset, *(f"{name}={_plain(changed[name])}" for name in order if name in changed)])


def _plain(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")), 40)


def preset_of(method: Method, presets: Mapping[str, Method]) -> str | None:
    """The preset that a method equals in every field, however it was asked for; None if there is none.

    If there are several, the longest name, which says most (precisecache_turbo, whose settings are the defaults).
    """
    equal = [name for name, preset in presets.items() if preset == method]
    return max(equal, key=lambda name: (len(name), name), default=None)


def narrowed(sweeps: list[list[str]], words: list[str]) -> list[list[str]]:
    """The lines of an experiment's sweeps, each followed by the user's words, which take precedence.

    If the sweeps contain all names in the user's `model=` or `method=`, however, each line is narrowed to those of them
    that it has, and dropped if it has none.
    """
    for group in ("model", "method"):
        chosen = [_names(word) for word in words if word.startswith(f"{group}=")][-1:]  # the last one counts
        known = {name for line in sweeps for word in line if word.startswith(f"{group}=") for name in _names(word)}
        if chosen and known.issuperset(chosen[0]):
            words = [word for word in words if not word.startswith(f"{group}=")]
            sweeps = [narrow for line in sweeps if (narrow := _narrowed_line(line, group, chosen[0]))]
    return [[*line, *words] for line in sweeps]


def _names(word: str) -> list[str]:
    return word.partition("=")[2].split(",")


def _narrowed_line(line: list[str], group: str, chosen: list[str]) -> list[str]:
    """The line with only the chosen names of a group (all of them if the line has no word for it); empty if none."""
    own = next((_names(word) for word in line if word.startswith(f"{group}=")), chosen)
    common = [name for name in own if name in chosen]
    rest = [word for word in line if not word.startswith(f"{group}=")]
    return [f"{group}={','.join(common)}", *rest] if common else []
