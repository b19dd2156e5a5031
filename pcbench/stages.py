"""Carry out jobs: the reference first, then the methods; each stage does only what is missing; a record at the end.

A failure is recorded and the rest goes on: the other samples, the other stages, and the other jobs of a sweep.

A reference's frames are decoded once, not once per method: if the videos of all prompts do not fit in memory together,
all methods of a model make and score as many prompts as fit, and then the next ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from . import backbones, integrity, record
from .failures import FailedError, Failure, attempt
from .fidelity import stage as fidelity
from .job import Job
from .observe import stage as observe
from .sampling import latency, parallel, video
from .sampling.generate import at_another_rate, failed_still, generate
from .store import claims, write_whole
from .store.away import steadily
from .vbench import stage as vbench

Say = Callable[[str], None]
PAUSE = 1.0  # seconds before it is looked again whether other processes have ended


@dataclass(frozen=True)
class Share:
    """A part of a job that is carried out in one go: some of its prompts.

    job: the whole job. part: the job with these prompts alone. number: which of the sweep's jobs needs it, from 1.
    first, last: whether it is the job's first or last share. begin: of a worker, one of several processes with the
    same shares (launch/worker.py), where in the list of samples it begins, see `Job.in_turn`.
    """

    job: Job
    part: Job
    number: int
    first: bool
    last: bool
    begin: float | None = None


def shares(jobs: Sequence[Job]) -> Iterator[Share]:
    """The shares of the jobs, each job after its reference, in the order in which they are carried out."""
    numbered = list(enumerate(jobs, 1))
    done: set[Job] = set()
    for _, group in groupby(numbered, lambda pair: pair[1].reference):
        ordered: dict[Job, int] = {}  # the jobs still to do, and the number of the job that needs each
        for number, job in group:
            for needed in (job.reference, job):
                if needed not in done:
                    ordered.setdefault(needed, number)
        if not ordered:
            continue
        done |= set(ordered)
        chunks = _chunks([*ordered])
        for place, prompts in enumerate(chunks):
            for job, number in ordered.items():
                part = job if len(chunks) == 1 else _part(job, prompts)
                yield Share(job, part, number, place == 0, place == len(chunks) - 1)


def _part(job: Job, prompts: list[str]) -> Job:
    uncached = job.uncached and _part(job.uncached, prompts)
    return replace(job, run=replace(job.run, prompts=prompts), uncached=uncached)


def _chunks(jobs: Sequence[Job]) -> list[list[str]]:
    """The prompts of jobs with one reference, split so that the frames of a part stay in memory until they are scored:
    the reference's, and those of the current method."""
    run, sampling = jobs[0].run, jobs[0].recipe.sampling
    prompts = list(dict.fromkeys(prompt for prompt, _ in run.samples))
    size = max(1, len(prompts))
    if len(jobs) > 1 and {"generate", "score"} <= set(run.stages):
        frames = 3 * sampling.frames * sampling.height * sampling.width
        size = max(1, video.kept.limit // (2 * frames * fidelity.arrays(run) * len(run.seeds)))
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


class Sweep:
    """Carries out shares, and remembers what became of them.

    left: shares of which other processes are still doing a part, to be carried out again when these have ended.
    """

    def __init__(self) -> None:
        self.left: list[Share] = []
        self._settled: set[Job] = set()
        self._failures: dict[Job, list[Failure]] = {}
        self._tried: dict[Job, set[str]] = {}  # what of each job failed, and is not tried again
        self._waited: set[Job] = set()
        self._held: dict[int, str | None] = {}  # the pipeline held when the first share of each number began

    def rounds(self, shares: Iterable[Share], say: Say = print) -> Iterator[Share]:
        """The shares, and after them those that are left, until none is; with a pause where only others work."""
        todo = list(shares)
        yield from todo
        if self.left:
            say(f"waiting for other processes, which are at work on {len(self.left)} of {len(todo)} parts")
        while self.left:
            time.sleep(PAUSE)
            todo, self.left = self.left, []
            yield from todo

    def carry_out(self, share: Share, say: Say = print) -> list[Failure]:
        """Carry out one share; returns its failures. By then they are in the record, and their memory is released."""
        job, before = share.job, self._held.setdefault(share.number, backbones.held())
        if share.first:
            if integrity.settled(job):
                self._settled.add(job)
            else:
                integrity.check(job.place, say)
                if job not in self._failures and (line := at_another_rate(job)):  # not again in a further round
                    say(f"{job.run.label}  {line}")
        if job in self._settled:
            return []
        with claims.missed() as elsewhere:
            failures = self._try_stages(share, say, elsewhere)
        known = self._failures.setdefault(job, [])
        known[:] = failed_still(job, [*known, *failures])
        if failures:
            _keep_details(job, known, say)
        if waits := bool(elsewhere) or any(other.job in (job, job.reference) for other in self.left):
            self.left.append(share)
        if not (waits and job in self._waited):
            if waits:
                self._waited.add(job)
            complete = job if share.last else share.part  # the job of which no sample may be missing by now
            error = "; ".join(failure.line for failure in known) or None
            write = partial(record.write, complete, error, finished=not waits)
            failed = attempt("record", partial(steadily, write))
            if failed is not None:
                failures.append(failed)
                known.append(failed)
        if share.last and not known and not waits:
            integrity.settle(job)
        if failures and backbones.held() != before:
            backbones.forget()
        return failures

    def _try_stages(self, share: Share, say: Say, elsewhere: Sequence[object]) -> list[Failure]:
        """Try every stage; returns the failures. If the pipeline cannot be loaded, the others are not tried."""
        failures: list[Failure] = []
        tried = self._tried.setdefault(share.job, set())
        for name, stage in _stages(share, say, tried, elsewhere, again=share.job in self._waited):
            if name not in tried:
                failed = attempt(name, lambda stage=stage: failures.extend(stage() or []))  # type: ignore[misc]
                if failed is not None:
                    failures.append(failed)
                    tried.add(name)
            if name in tried and name in ("generate", "samples"):
                break
        return failures


def execute(job: Job, say: Say = print) -> None:
    """All stages of one job, its uncached reference's first. Raises FailedError at the end if something failed."""
    sweep = Sweep()
    failures = [failure for share in sweep.rounds(shares([job]), say) for failure in sweep.carry_out(share, say)]
    if failures:
        raise FailedError(failures)


def _stages(
    share: Share, say: Say, tried: set[str], elsewhere: Sequence[object], again: bool
) -> Iterator[tuple[str, Callable[[], list[Failure] | None]]]:
    job, part, names, begin = share.job, share.part, share.job.run.stages, share.begin or 0.0
    if "generate" in names:
        yield "generate", partial(generate, part, say, tried, begin, again)
    elif {"score", "observe"} & set(names):
        yield "samples", partial(_check_any, job)
    if "latency" in names and share.last and latency.is_own(job.run):
        yield "latency", partial(_claimed, job.place.folder / "latency", partial(latency.profile, job, say))
    if "score" in names:
        leave = share.begin is not None and not again
        yield "score", partial(fidelity.score, part, say, tried, begin, leave)
    complete = job.whole is job or not job.whole.missing()
    if "score" in names and share.last and job.run.score.vbench and complete and not elsewhere:
        yield "VBench", partial(_claimed, job.place.folder / "vbench", partial(vbench.score, job.whole, say))
    if "observe" in names and share.last:
        yield "observe", partial(observe.observe, job, say, tried)


def _check_any(job: Job) -> None:
    if not any(job.files(*sample).complete for sample in job.run.samples):
        raise FileNotFoundError(f"none of the {len(job.run.samples)} samples has been made: add generate to stages")


def _claimed(path: Path, work: Callable[[], None]) -> None:
    """Do work that one process at a time does; the GPUs of one model (sampling/parallel.py) do it together."""
    if parallel.processes() > 1:
        return work()
    with claims.claim(path) as claimed:
        if claimed:
            work()


def _keep_details(job: Job, failures: list[Failure], say: Say) -> None:
    """Write the tracebacks to a file next to the run's samples."""
    path = job.place.folder / "error.txt"
    text = "\n".join(f"{failure.what}\n{failure.details}" for failure in failures)
    failed = attempt("error.txt", lambda: write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8")))
    say(f"{job.run.label}  failed, details in {path}" if failed is None else f"{job.run.label}  failed; {failed.line}")
