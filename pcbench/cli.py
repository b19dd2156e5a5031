"""The command line: Hydra composes, this file turns what it composed into typed runs and carries them out.

The only file that knows Hydra. All runs of a sweep are composed and checked before the first one starts; what the
user got wrong is one line and exit code 2, a run that failed is exit code 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import methods
from methods.anatomy import anatomy_for

from . import backbones, fidelity, implied, observe, parallel, plan, provenance, stages, table, tracking
from . import config as config_module
from .backbones import weights
from .config import ALL_STAGES, STAGES, ConfigError, Latency, Model, Prompts, Recipe, Run, Score
from .vbench import jobs as vbench
from .vbench.dimensions import expand

CONF = Path(__file__).resolve().parents[1] / "conf"


class RefusedError(ConfigError):
    """A method does not work on a backbone, or not yet; the message names both and says why."""


@dataclasses.dataclass(kw_only=True)
class RunSchema:
    """The top level of conf/config.yaml."""

    model: Any = MISSING
    method: Any = MISSING
    prompts: Any = MISSING
    results: str = "results"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    latency: Latency = field(default_factory=Latency)
    fidelity: Any = "raw"  # or a list of conventions
    score: Score = field(default_factory=Score)
    observe: Any = field(default_factory=list)  # of kinds; one alone may do without the brackets
    observe_stride: int = 1
    device: str = "auto"
    plan: Any = False  # or true, json, table1
    plan_gpu: str = "H200"
    plan_utilisation: float = 0.45
    wandb: Any = "off"  # or offline, online
    sweeps: list[str] = field(default_factory=list)  # of an experiment: lines of overrides, each a sweep of its own


def register_schemas() -> None:
    """Make every dataclass a config node: `_none`, `_precisecache`, … in group method, `_model`, `_prompts`, `_run`."""
    store = ConfigStore.instance()
    store.store(name="_run", node=RunSchema)
    store.store(group="model", name="_model", node=Model)
    store.store(group="prompts", name="_prompts", node=Prompts)
    for config in (getattr(methods, name) for name in methods.__all__ if name.endswith("Config")):
        store.store(group="method", name=f"_{config.NAME}", node=config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parallel.words(sys.argv[1:] if argv is None else argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise; the error is worded here
    register_schemas()
    try:
        launches = sweeps_of(arguments)
        jobs = [job for words in launches for job in compose_all(words)]
        runs, left_out = runs_of(jobs)
        if not runs:
            raise RefusedError(left_out[0])
        check_writable(runs[0].results)
        tracking.mode_of(jobs[0].wandb)
        style = plan.style_of(jobs[0].plan)
        device = plan.Device(jobs[0].plan_gpu, jobs[0].plan_utilisation)
        if style == "table1":
            known = [name for name in implied.MODELS if (CONF / "model" / f"{name}.yaml").exists()]
            implied.show(known, lambda model, method: run_from([f"model={model}", f"method={method}"]))
        elif style:
            plan.show(runs, style, device)
        for reason in left_out:
            print(f"pcbench: left out: {reason}", file=sys.stderr)
        if style:
            return 0
    except (HydraException, OmegaConfBaseException, ConfigError, ValueError, TypeError) as error:
        print(f"pcbench: {in_one_line(error)}", file=sys.stderr)
        return 2
    try:
        for run in {run.recipe.backbone.source: run for run in runs}.values():
            weights.require(run.recipe.backbone, run.download)
        for run in runs:
            vbench.require(run)
        parallel.start(runs)
    except ConfigError as error:
        print(f"pcbench: {in_one_line(error)}", file=sys.stderr)
        return 2
    try:
        with tracking.beside(runs[0].results, jobs[0].wandb):
            code = max([launch(words, sweep=len(runs) > 1) for words in launches])
            table.show(runs)
            for reason in left_out:
                print(f"left out: {reason}")
            print(f"records: {runs[0].results / 'records' / provenance.machine()['name']}")
            print(f"videos:  {runs[0].results / 'samples' / provenance.machine()['name']}", flush=True)
    except KeyboardInterrupt:
        print("pcbench: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    return code


def launch(arguments: list[str], sweep: bool) -> int:
    """Hand one command line to Hydra (and its launcher); 1 if a run failed."""
    sys.argv = [sys.argv[0], *(_for_each_job(word) if sweep else word for word in arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except Exception as error:
        went_on = "; the other runs of the sweep went on" if sweep else ""
        print(f"pcbench: failed: {in_one_line(error)}{went_on}", file=sys.stderr)
        return 1
    return 0


def sweeps_of(arguments: list[str]) -> list[list[str]]:
    """The command lines a command line stands for: itself, or one for each of its experiment's `sweeps`."""
    words = get_args_parser().parse_args(arguments).overrides
    chosen = [word for word in words if word.lstrip("+").startswith("experiment=") and "," not in word]
    if not chosen:
        return [arguments]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        lines = hydra.compose("config", chosen).sweeps
    multirun = [] if {"-m", "--multirun"} & set(arguments) else ["--multirun"]
    return [[*multirun, *words] for words in _narrowed([line.split() for line in lines], arguments)] or [arguments]


def _narrowed(lines: list[list[str]], arguments: list[str]) -> list[list[str]]:
    """Each line followed by the user's words, which win. Where the lines have all names of the user's `model=` or
    `method=`, though, a line keeps those of them that it has, and goes if it has none."""
    for group in ("model", "method"):
        asked = [_names(word) for word in arguments if word.startswith(f"{group}=")][-1:]  # the last counts
        known = {name for line in lines for word in line if word.startswith(f"{group}=") for name in _names(word)}
        if asked and known.issuperset(asked[0]):
            arguments = [word for word in arguments if not word.startswith(f"{group}=")]
            lines = [kept for line in lines if (kept := _kept(line, group, asked[0]))]
    return [[*line, *arguments] for line in lines]


def _names(word: str) -> list[str]:
    return word.partition("=")[2].split(",")


def _kept(line: list[str], group: str, asked: list[str]) -> list[str]:
    """The line with those of its group's names that were asked for (all of those asked, if it has no such word)."""
    own = next((_names(word) for word in line if word.startswith(f"{group}=")), asked)
    both = [name for name in own if name in asked]
    rest = [word for word in line if not word.startswith(f"{group}=")]
    return [f"{group}={','.join(both)}", *rest] if both else []


def _for_each_job(word: str) -> str:
    """`method.steps=4` as a sweep over one value. Otherwise Hydra tries it on the default method before it sweeps."""
    key, equals, value = word.partition("=")
    nested = key.startswith(("method.", "model.", "prompts.")) and equals
    return f"{key}=choice({value})" if nested and not _is_sweep(word) else word


def run_from(overrides: list[str]) -> Run:
    """The one run that these command-line words describe, for scripts and notebooks."""
    register_schemas()
    return to_run(compose_all(overrides)[0])


def job(config: DictConfig) -> None:
    """One job of Hydra's."""
    warnings.filterwarnings("always", message=".*the cache never hit.*|.*indicator was NaN.*")
    runs, _ = runs_of([config])
    for run in runs:
        stages.execute(run, say=lambda line: print(line, flush=True))


def runs_of(jobs: Sequence[DictConfig]) -> tuple[list[Run], list[str]]:
    """The jobs' runs; and of an experiment of several sweeps, which tries all methods on all backbones, the pairs that
    a method refuses, with its reason. Elsewhere a refusal is an error like any other."""
    runs, left_out = [], []
    for job in jobs:
        try:
            runs.append(to_run(job))
        except RefusedError as error:
            if not job.sweeps:
                raise
            left_out.append(str(error))
    return runs, left_out


def compose_all(arguments: list[str]) -> list[DictConfig]:
    """Every job's config, composed as Hydra will compose it. Raises on anything Hydra would refuse, or ignore."""
    parsed = get_args_parser().parse_args(arguments)
    if parsed.help or parsed.hydra_help or parsed.cfg or parsed.info:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
        raise SystemExit(0)
    if unknown := [word for word in parsed.overrides if "=" not in word and not word.startswith("~")]:
        raise ConfigError(f"{unknown[0]!r} is not of the form option=value")
    experiments = [word for word in parsed.overrides if word.lstrip("+").startswith("experiment=") and "," in word]
    if experiments:
        raise ConfigError(f"{experiments[0]!r}: an experiment is a sweep of its own; give one at a time")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        swept = [word for word in parsed.overrides if _is_sweep(word)]
        frame = [word for word in parsed.overrides if word.lstrip("+~").startswith(("experiment=", "hydra"))]
        first = hydra.compose("config", frame, return_hydra_config=True)
        multirun = parsed.multirun or str(first.hydra.mode).endswith("MULTIRUN")
        if swept and not multirun:
            raise ConfigError(f"{swept[0]!r} is a sweep: add -m")
        if not multirun:
            return [hydra.compose("config", parsed.overrides, return_hydra_config=True)]
        declared = [f"{key}={value}" for key, value in (first.hydra.sweeper.params or {}).items()]
        words = OverridesParser.create().parse_overrides([*declared, *parsed.overrides])  # of one key the last counts
        (jobs,) = BasicSweeper.split_arguments(words, None)
        return [hydra.compose("config", words, return_hydra_config=True) for words in jobs]


def _is_sweep(word: str) -> bool:
    return OverridesParser.create().parse_override(word).is_sweep_override()


def to_run(config: DictConfig) -> Run:
    """Typed from composed. Raises ConfigError or ValueError for values that cannot be."""
    described = HydraConfig.get() if "hydra" not in config else config.hydra
    model, method, prompts = (OmegaConf.to_object(config[name]) for name in ("model", "method", "prompts"))
    for name, value, kind in (
        ("model", model, Model),
        ("method", method, methods.Method),
        ("prompts", prompts, Prompts),
    ):
        if not isinstance(value, kind):
            raise ConfigError(f"{name} must be chosen by name: {name}=…")
    transformer = backbones.family(model.backbone).TRANSFORMER
    changed = [
        str(w).lstrip("+").removeprefix("method.") for w in described.overrides.task if "method." in w.split("=")[0]
    ]
    label = " ".join([described.runtime.choices["method"], *changed])
    with _refusals(f"{model.backbone.name} {label}"):
        method = method.for_backbone(anatomy_for(transformer, backbones.transformer_config(model.backbone)))
    run = Run(
        label=label,
        recipe=Recipe(backbone=model.chosen_backbone, sampling=model.sampling, method=method, numerics=model.numerics),
        prompts=prompts.read(CONF / "prompts"),
        seeds=list(prompts.seeds),
        results=Path(config.results),
        fps=model.fps,
        stages=tuple(config.stages),
        latency=OmegaConf.to_object(config.latency),
        fidelity=fidelity.chosen(config.fidelity),
        score=OmegaConf.to_object(config.score),
        observe=observe.chosen(config.observe),
        observe_stride=config.observe_stride,
        device=config.device,
        offload=model.offload,
        download=model.download,
    )
    check(run)
    return run


def check(run: Run) -> None:
    """Everything about a run that can be known wrong before a model is loaded."""
    if wrong := [name for name in run.stages if name not in ALL_STAGES]:
        raise ConfigError(f"unknown stage {wrong[0]!r}; stages are {', '.join(ALL_STAGES)}")
    expand(run.score.vbench)
    observe.check(run)
    backbones.check(run)
    parallel.check(run)
    family = backbones.family(run.recipe.backbone)
    family.check(run.recipe.sampling)
    sampling = run.recipe.sampling
    with _refusals(f"{run.recipe.backbone.name} {run.label}"):
        run.recipe.method.check(family.ANATOMY, family.latent_size(sampling), sampling.steps)
    backbones.source(run.recipe.backbone)


@contextmanager
def _refusals(pair: str) -> Iterator[None]:
    """What a method says against a backbone, as a RefusedError that names both."""
    try:
        yield
    except ValueError as error:
        raise RefusedError(f"{pair}: {error}") from error


def check_writable(results: Path) -> None:
    """Raise ConfigError if nothing can be written under `results`."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise ConfigError(f"results folder {str(results)!r} cannot be written: {error.strerror}") from error


def in_one_line(error: BaseException) -> str:
    """An error's words and its cause's on one line; for a misspelt option, the options there are."""
    chain = [error] if isinstance(error, ConfigError) else [error, error.__cause__]
    text = "; ".join(" ".join(str(each).split()) for each in chain if each is not None) or type(error).__name__
    if misspelt := re.search(r"Key '(\w+)' not in '(\w+)'", text):
        key, node = misspelt.groups()
        known = [f.name for f in dataclasses.fields(_schema(node))]
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"its options: {', '.join(known) or 'none'}"
        return f"unknown option {key!r} of {node}: {hint}"
    if unknown := re.search(
        r"Could not find '(\w+)/([^']*)' Available options in '\w+': (.*?)( Config search path|$)", text
    ):
        group, name, options = unknown.group(1), unknown.group(2), unknown.group(3).split()
        return f"unknown {group} {name!r}; available: {', '.join(o for o in options if not o.startswith('_'))}"
    return text


def _schema(name: str) -> type:
    return getattr(methods, name, None) or getattr(config_module, name, None) or RunSchema
