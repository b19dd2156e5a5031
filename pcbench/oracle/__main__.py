"""`python -m pcbench.oracle model=tiny_wan steps=25 prompts=held_out prompts.limit=4`: what is left to gain?

For each prompt, the best schedule of `steps` computed steps that a local search finds, and the best one for all prompts
together, measured by the error of the final latent. It looks at the uncached video, so it is no method: it says how
much a perfect rule could gain. The best schedules, the uniform one and the planned ones are then run as
`method=replay`, scored like every other recipe, and summed up in results/oracle/<machine>/.

The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import compose, feasible, options
from ..command import Command
from ..config import ConfigError, Run
from ..cost.timesteps import num_steps
from ..job import job_of
from ..messages import shortened
from .best import Best
from .report import report

OWN = {"steps": "", "reuse": "extrapolate", "evaluations": "60"}


@dataclass(frozen=True)
class Question:
    """run: an uncached run. steps: computed ones. reuse: of every schedule. evaluations: per search."""

    run: Run
    steps: int
    reuse: str
    evaluations: int

    @property
    def path(self) -> Path:
        """The file of the summary, of one machine and recipe: errors of one are not those of another."""
        job = job_of(self.run)
        name = f"{self.run.recipe.backbone.name}-{job.id}-{self.reuse}-{self.steps}.json"
        return self.run.results / "oracle" / job.place.machine / name


COMMAND = Command(
    "pcbench.oracle",
    __doc__ or "",
    {
        "steps=N": "computed steps",
        "reuse=NAME": "what a reused step answers; default: extrapolate",
        "evaluations=N": "schedules tried for each prompt, and for all together; default: 60",
    },
    options.SAMPLES,
    compose.one_line,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, as the main command line does."""
    return COMMAND.run(argv, prepare, carry_out)


def prepare(arguments: list[str]) -> Question:
    """What is asked, checked. Raises ConfigError for what cannot be searched here."""
    question = parse(arguments)
    feasible.check_ready(question.run)
    return question


def carry_out(question: Question) -> None:
    """Search, and sum up."""
    tried = question.path.with_suffix(".tried.json")
    found = Best(question.run, question.steps, question.reuse, tried, say).search(question.evaluations)
    for line in report(question.run, question.path, question.reuse, found):
        say(line)


def parse(arguments: list[str]) -> Question:
    """What is asked. Raises ConfigError for what cannot be searched."""
    if wrong := [word for word in arguments if word.startswith(("-", "method"))]:
        raise ConfigError(f"{wrong[0]!r} is no option here: it is schedules that are searched, for one model at a time")
    given = OWN | dict(word.split("=", 1) for word in arguments if word.partition("=")[0] in OWN)
    numbers = {name: _whole(name, given[name]) for name in ("steps", "evaluations")}
    rest = [word for word in arguments if word.partition("=")[0] not in OWN]
    run = compose.run_from([*rest, "method=none"])
    of = num_steps(run.recipe)
    if not 2 <= numbers["steps"] < of:
        raise ConfigError(f"steps={numbers['steps']}: give from 2 to {of - 1} of the {of} steps")
    replayed = "F" * numbers["steps"] + "r" * (of - numbers["steps"])
    compose.run_from([*rest, "method=replay", f"method.actions={replayed}", f"method.reuse={given['reuse']}"])
    return Question(run, numbers["steps"], given["reuse"], numbers["evaluations"])


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise ConfigError(f"{name}={shortened(text)}: give a whole number from 1")
    return int(text)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
