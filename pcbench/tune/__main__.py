"""`python -m pcbench.tune model=tiny_wan method=teacache target=2x prompts=training`: tune a method to a target.

target is a speedup by MACs (2x), a mean number of computed steps (25steps), or a PSNR that the mean reaches with 95 %
confidence (45dB). What is tuned is the method's own field (TeaCache's threshold, PreciseCache's alpha, a number of
steps, …). Every other prompt is tuned on, the rest check. Every setting that was tried is kept under the results
folder, so the same command goes on where it was stopped. At the end a preset with its evidence is written to
results/presets/, to be used as method=FILE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from methods.calibration import NotCalibratedError
from methods.engine.anatomy import Anatomy
from methods.engine.method import Method

from .. import compose, feasible, integrity, options
from .. import target as targets
from ..command import Command
from ..config import ConfigError, Run
from ..job import job_of
from ..runs import anatomy_of
from ..store.atomic import write_whole
from .evidence import Bench, search_on
from .search import UnreachableError

SURE = 0.02  # relative difference between the prompts tuned on and as many others that more prompts would not exceed

COMMAND = Command(
    "pcbench.tune",
    __doc__ or "",
    {"target=2x|25steps|45dB": "what to tune to"},
    {name: line for name, line in options.RUN.items() if name.partition("=")[0] not in {"budget", "plan"}},
    compose.one_line,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a setting failed, 2 for what cannot be tuned or reached."""
    return COMMAND.run(argv, prepare, carry_out)


def prepare(arguments: list[str]) -> Bench:
    """What to tune, checked. Raises ConfigError for what cannot be tuned here."""
    bench = parse(arguments)
    feasible.check_ready(bench.run)
    return bench


def carry_out(bench: Bench) -> int:
    """Tune, and print the preset; returns the exit code."""
    try:
        path = tune(bench)
    except UnreachableError as error:
        return COMMAND.refuse(ConfigError(f"{bench.target} cannot be reached by {bench.run.label}: {error}"))
    print(f"{path.read_text()}written to {path}; use it as method={path}")
    return 0


def tune(bench: Bench) -> Path:
    """Find the setting, check it on the other half of the prompts, and write the preset; returns its path."""
    integrity.tidy([job_of(bench.run)])
    value = search_on(bench).find(bench.target.value, bench.default)
    tuned, checked = (bench.measure(value, half) for half in halves(bench.run.prompts))
    run = bench.with_setting(value)
    text, path = preset(bench, run, tuned, checked), _free_path(bench)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def _free_path(bench: Bench) -> Path:
    """The preset's file. That of another recipe with the same method, model and target, as of another size or with
    another payload, stays: then the recipe's id is in the name."""
    recipe = bench.run.recipe
    name = f"{recipe.method.NAME}-{recipe.backbone.name}-{_name(bench.target)}"
    path = bench.run.results / "presets" / f"{name}.yaml"
    if not path.exists() or _tuned_from(bench) in path.read_text(encoding="utf-8"):
        return path
    return path.with_name(f"{name}-{job_of(bench.run).id}.yaml")


def _tuned_from(bench: Bench) -> str:
    return f"Tuned from recipe {job_of(bench.run).id}."


def preset(bench: Bench, run: Run, tuned: tuple[float, float], checked: tuple[float, float]) -> str:
    """The preset as YAML: the method's fields that differ from its defaults, under the evidence.

    tuned, checked: what was measured on either half of the prompts, and its standard error.
    """
    tune_on, check_on = halves(bench.run.prompts)
    method = run.recipe.method
    lines = [
        f"{method.NAME} on {run.recipe.backbone.name}, tuned to {bench.target} over {bench.tradeoff.field}:",
        f"{bench.target.text(*tuned)} on the {len(tune_on)} prompts tuned on,"
        f" {bench.target.text(*checked)} on {len(check_on)} others (± standard error).",
        *too_few(bench.target, tuned, len(tune_on)),
        f"Tried: {'; '.join(bench.settled)}.",
        _tuned_from(bench),
    ]
    fields = yaml.safe_dump(differences(method, plain_of(method, anatomy_of(run.recipe.backbone))), sort_keys=False)
    return "".join(f"# {line}\n" for line in lines) + f"defaults: [_{method.NAME}, _self_]\n{fields}"


def too_few(target: targets.Target, tuned: tuple[float, float], prompts: int) -> list[str]:
    """A line with how many prompts it would take for as many others to differ by at most SURE; none if these do.

    The difference of two means over n prompts each has √2 times the standard error of one, which falls with √n.
    """
    measured, error = tuned
    needed = prompts * (1.96 * math.sqrt(2) * error / (SURE * abs(measured))) ** 2 if math.isfinite(error) else 0
    if needed <= prompts:
        return []
    return [f"For {SURE:.0%} with 95 % confidence on as many others, tune on {math.ceil(needed)} prompts."]


def plain_of(method: Method, anatomy: Anatomy) -> Method:
    """The method with its defaults on this backbone; without what it must know of it, where that was given by hand."""
    plain = type(method)()
    try:
        return plain.for_backbone(anatomy)
    except NotCalibratedError:
        return plain


def differences(method: Method, plain: Method) -> dict[str, Any]:
    """The fields whose values differ from those of another config of the method, as plain data."""
    others = asdict(plain)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(method).items()
        if value != others[name]
    }


def parse(arguments: list[str]) -> Bench:
    """The run to tune and the target. Raises ConfigError for what cannot be tuned."""
    if flags := [word for word in arguments if word.startswith("-")]:
        raise ConfigError(f"{flags[0]!r} is no option here: one method on one model at a time")
    given = [word.partition("=")[2] for word in arguments if word.startswith("target=")]
    if len(given) != 1:
        raise ConfigError("say what to tune to: target=2x, target=25steps or target=45dB")
    run = compose.run_from([word for word in arguments if not word.startswith("target=")])
    if len(run.prompts) < 2:
        raise ConfigError("tuning needs at least two prompts: one half to tune on, the other half to check on")
    return Bench(run, targets.parse(given[0]), halves(run.prompts)[0], say, say)


def halves(prompts: list[str]) -> tuple[list[str], list[str]]:
    """The prompts to tune on, and those to check on: every other one, since a file is often sorted by kind."""
    return prompts[::2], prompts[1::2]


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def _name(target: targets.Target) -> str:
    return f"{target.value:g}{target.unit}"


if __name__ == "__main__":
    sys.exit(main())
