"""From the words of a command line to typed runs. No other package of pcbench uses Hydra.

Hydra composes the files of conf/ once for each choice of groups (`model=`, `method=`, `prompts=`, `+experiment=`),
which takes it a tenth of a second. Single values (`method.alpha=0.5`) are then set on copies, with Hydra's own parser
and function, so a value means the same in a sweep of a thousand runs as in a single run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from ..config import ConfigError, Run
from ..messages import shortened
from ..runs import OF_THE_LINE, RefusedError, Settings, narrowed
from .composer import Composer, Request
from .errors import one_line
from .overrides import chosen, parsed
from .schemas import EXPERIMENT, GROUPS, names, preset

__all__ = ["GROUPS", "Composed", "RefusedError", "compose", "composed_yaml", "names", "one_line", "preset", "run_from"]


@dataclass(frozen=True)
class Composed:
    """All runs of a command line; the first run's settings; why pairs of model and method were left out, if any."""

    runs: list[Run]
    settings: Settings
    left_out: list[str]


def compose(words: Sequence[str], multirun: bool = False) -> Composed:
    """Every run that the words ask for, typed and checked. `one_line` turns the errors it raises into text.

    A method that refuses its model is an error, except in an experiment of sweeps, which tries all pairs of the two.
    """
    composer = Composer()
    runs, left_out, settings = [], [], None
    for line, swept in _lines(composer, list(words), multirun):
        for request in composer.requests(line, swept):
            own = composer.settings(request)
            settings = settings or own
            check_alike(own, settings)
            try:
                runs.append(composer.run(request))
            except RefusedError as error:
                if not own.sweeps:
                    raise
                left_out.append(str(error))
    if settings is None or not runs:
        raise RefusedError(left_out[0] if left_out else "there is nothing to run")
    return Composed(runs, settings, list(dict.fromkeys(left_out)))


def check_alike(settings: Settings, first: Settings) -> None:
    """Raise ConfigError if a run of the command line differs from the first in an option of the whole line."""
    for name in OF_THE_LINE:
        if getattr(settings, name) != getattr(first, name):
            raise ConfigError(f"{name} is for the whole command line, and cannot have several values in one: split it")


def run_from(words: Sequence[str]) -> Run:
    """The one run that these command-line words describe, for scripts and notebooks. Raises ConfigError for a sweep."""
    composer = Composer()
    (request,) = composer.requests(words, multirun=False)
    return composer.run(request)


def composed_yaml(words: Sequence[str]) -> str:
    """The config that Hydra composes from the words, as YAML."""
    composer = Composer()
    (request,) = composer.requests(words, multirun=False)
    return OmegaConf.to_yaml(composer.config(request))


def _lines(composer: Composer, words: list[str], multirun: bool) -> list[tuple[list[str], bool]]:
    """The command lines that `words` stand for: themselves, or their experiment's `sweeps`; and whether each sweeps."""
    experiments = [o for o in parsed(words) if o.key_or_group == EXPERIMENT]
    if not experiments:
        return [(words, multirun)]
    if len(experiments) > 1 or experiments[0].is_sweep_override():
        raise ConfigError(
            f"{shortened(experiments[0].input_line)!r}: an experiment is a sweep of its own; give one at a time"
        )
    sweeps = composer.settings(Request(((EXPERIMENT, chosen(experiments[0])),), ())).sweeps
    return [(line, True) for line in narrowed([line.split() for line in sweeps], words)] or [(words, multirun)]
