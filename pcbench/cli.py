"""The command line: all runs are composed and checked before the first one starts, and then carried out.

A mistake of the user's is reported in one line, with exit code 2. If a run fails, the others go on; exit code 1.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from methods.calibration import NotCalibratedError

from . import compose, feasible, integrity, launch, options, plan, stages, summary, tracking
from .backbones import weights
from .command import Command, read_or_not, unread
from .compose import run_from
from .config import ConfigError
from .cost import memory, paper_check
from .job import Job, jobs_of
from .launch import shards, worker
from .messages import shortened
from .runs import Settings
from .sampling import parallel
from .store import away
from .tune.budget import Budgets
from .vbench import tasks as vbench

USAGE = """python -m pcbench [model=NAME] [method=NAME] [prompts=NAME] [option=value …]

  -m, --multirun   a sweep over values with commas: -m method=pab,teacache method.protect_first=1,3
  --cfg job        print the composed configuration and stop
  plan=true        print what the runs would cost and stop
  +experiment=NAME a table or figure of the paper
  COMMAND …        another command, with options of its own: --help after it lists them"""


@dataclass(frozen=True)
class Work:
    """The checked work of a command line, whose words these are: the jobs, and why others are left out."""

    words: list[str]
    settings: Settings
    jobs: list[Job]
    left_out: list[str]


@dataclass(frozen=True)
class Flags:
    """What the command-line words that begin with a dash ask for."""

    multirun: bool = False
    help: bool = False
    config: bool = False


def flags_of(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags, and the other words. Raises ConfigError for an unknown flag."""
    given, words = set(), []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--cfg", "-c"):
            argument = f"--cfg={next(rest, '')}"
        if argument in ("-m", "--multirun", "-h", "--help", "--cfg=job"):
            given.add(argument.lstrip("-")[0])
        elif argument.startswith("-"):
            raise ConfigError(
                f"unknown flag {shortened(argument)!r}: flags are --multirun (-m), --cfg job, --help (-h)"
            )
        else:
            words.append(argument)
    return Flags("m" in given, "h" in given, "c" in given), words


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a run failed, 2 for a wrong command line, 130 if interrupted."""
    arguments = parallel.own_arguments(sys.argv[1:] if argv is None else argv)
    try:
        work = _before_work(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return unread()
    except Exception as error:  # anything that composing and checking may raise
        print(f"pcbench: {compose.one_line(error)}", file=sys.stderr)
        return 2
    if work is None:
        return 0
    with read_or_not():
        try:
            return _carry_out_all(work)
        except ConfigError as error:  # of a launcher, before any work
            print(f"pcbench: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("pcbench: interrupted; the same command continues where it stopped", file=sys.stderr)
            return 130


def _before_work(arguments: Sequence[str]) -> Work | None:
    """The jobs to carry out, all checked; None if the words only ask for an answer, which has been printed by then."""
    flags, words = flags_of(arguments)
    if flags.help:
        groups = (f"{group}: {', '.join(compose.names(group))}" for group in compose.GROUPS)
        commands = {name: line for name, (_, line) in options.COMMANDS.items()}
        print("\n".join([Command("pcbench", USAGE, commands, options.RUN, heading="commands:").help, "", *groups]))
        return None
    if flags.config:
        print(compose.composed_yaml(words), end="")
        return None
    try:
        composed = compose.compose(words, flags.multirun)
    except compose.RefusedError as error:
        if not isinstance(error.__cause__, NotCalibratedError) or "plan=true" not in words:
            raise
        print(f"{error}\n{plan.calibration(words)}")
        return None
    settings, jobs = composed.settings, jobs_of(composed.runs)
    tracking.mode_of(settings.wandb)
    shard = shards.parse(settings.shard)
    launch.check(settings, jobs)
    style = plan.style_of(settings.plan)
    device = plan.Device(settings.plan_gpu, settings.plan_utilisation)
    if style == "table1":
        known = [name for name in paper_check.MODELS if name in compose.names("model")]
        paper_check.show(known, lambda model, method: run_from([f"model={model}", f"method={method}"]))
    elif style:
        plan.show(jobs_of(shards.take(composed.runs, shard)), style, device)
    for reason in composed.left_out:
        print(f"pcbench: left out: {reason}", file=sys.stderr)
    if settings.shards is not None and not style:
        print("\n".join(shards.lines(arguments, jobs, settings.shards)))
    if style or settings.shards is not None:
        return None
    for results in {run.results for run in composed.runs}:
        feasible.check_writable(results)
    if settings.launcher in launch.REMOTE:  # workers check their own machines
        return Work(list(arguments), settings, jobs, composed.left_out)
    jobs, too_large = _fitting(jobs, bool(settings.sweeps))
    for run in {job.recipe.backbone.source: job.run for job in jobs}.values():
        weights.require(run.recipe.backbone, run.download)
    for job in jobs:
        feasible.check_here(job.run)
        vbench.require(job.run)
    parallel.start(job.run for job in jobs)
    return Work(list(arguments), settings, jobs, [*composed.left_out, *too_large])


def _fitting(jobs: list[Job], leave_out: bool) -> tuple[list[Job], list[str]]:
    """The jobs that fit their device, and why the others do not. Raises ConfigError if a job does not fit, unless it
    may be left out (`leave_out`, for an experiment of sweeps) and others remain."""
    reasons = [memory.why_too_large(job) for job in jobs]
    too_large = [reason for reason in reasons if reason is not None]
    fitting = [job for job, reason in zip(jobs, reasons, strict=True) if reason is None]
    if too_large and not (leave_out and fitting):
        raise ConfigError(too_large[0])
    for reason in too_large:
        print(f"pcbench: left out: {reason}", file=sys.stderr)
    return fitting, too_large


def _carry_out_all(work: Work) -> int:
    shard = shards.parse(work.settings.shard)
    worker.begin(work.jobs)
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(job.run.results for job in work.jobs):
            stack.enter_context(away.watching(folder))
            stack.enter_context(tracking.beside(folder, work.settings.wandb))
        budgets = Budgets(lambda line: print(line, flush=True))
        jobs = jobs_of(shards.take(budgets.settle(job.run for job in work.jobs), shard))
        failed, notes = list(budgets.failed), []
        for line in failed:
            print(f"pcbench: failed: {line}", file=sys.stderr)
        if work.settings.launcher == "none":
            code = max(carry_out(jobs), bool(failed))
        else:
            outcome = launch.run(work.settings, work.words, jobs, main)
            jobs, notes, code = launch.on(jobs, outcome.machines), outcome.notes, int(bool(outcome.failed))
            failed = outcome.failed
        if worker.current() is not None:
            return code
        if shard is not None:
            print(f"shard {shard}: {sum(len(job.run.samples) for job in jobs)} samples of its own")
        summary.show(jobs)
        for reason in work.left_out:
            print(f"left out: {reason}")
        for reason in budgets.missed:
            print(f"out of reach, the nearest setting instead: {reason}")
        for line in notes:
            print(line)
        if work.settings.launcher != "none":
            for line in failed:
                print(f"pcbench: failed: {line}", file=sys.stderr)
        machine = (jobs or work.jobs)[0].place.machine
        for folder in dict.fromkeys(job.run.results for job in jobs or work.jobs):
            print(f"records: {folder / 'records' / machine}")
            print(f"videos:  {folder / 'samples' / machine}", flush=True)
    return code


def carry_out(jobs: Sequence[Job], say: Callable[[str], None] = lambda line: print(line, flush=True)) -> int:
    """Carry out all jobs, even if one fails. Returns the exit code: 0, or 1 if any failed."""
    warnings.filterwarnings("always", message=".*the cache never hit.*|.*indicator was NaN.*")
    integrity.tidy(jobs)
    sweep, shares = stages.Sweep(), worker.in_order(list(stages.shares(jobs)))
    code, began = 0, time.monotonic()
    for done, share in enumerate(sweep.rounds(shares, say)):
        minutes = (time.monotonic() - began) / max(done, 1) * max(len(shares) - done, 0) / 60
        left = f", {minutes:.0f} min left at this pace" if minutes >= 1 and done else ""
        progress = f"[{share.number}/{len(jobs)}{left}] " if len(jobs) > 1 else ""
        outlook = "; the other runs of the sweep go on" if done + 1 < len(shares) and len(jobs) > 1 else ""
        for line in _failures(sweep, share, lambda line, progress=progress: say(progress + line)):  # type: ignore[misc]
            print(f"pcbench: failed: {share.job.run.label}: {line}{outlook}", file=sys.stderr)
            code = 1
    return code


def _failures(sweep: stages.Sweep, share: stages.Share, say: Callable[[str], None]) -> list[str]:
    """Carry out a share; returns a line for each failure."""
    try:
        return [failure.line for failure in sweep.carry_out(share, say)]
    except Exception as error:  # keep only its text: the exception would hold stack frames and the tensors in them
        return [compose.one_line(error)]
