"""`launcher=slurm`: workers as jobs of a SLURM cluster, by submitit (extra `slurm`).

At most `workers` jobs are submitted, each with a GPU, in an array for each model: as many for a model as is its part of
the planned cost. A preempted job, or one that comes to the end of its time, is queued again and goes on with what is
missing. A node's own checks are made there; all nodes with the same processor or GPU count as one machine, by the
PCBENCH_HOST that the driver gives them.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..command import interpreter
from ..config import ConfigError, Slurm
from ..job import Job
from .worker import Launch, Main, models, work

TIMEOUTS = 1000  # how often a job that ran out of time is queued again
UNKNOWN = "Invalid job id"  # what squeue says of jobs that ended some time ago


def count(asked: int | None) -> int:
    """The number of jobs. Raises ConfigError if it is not given."""
    if asked is None:
        raise ConfigError("launcher=slurm needs workers=n: so many jobs at most, each with a GPU")
    return asked


@dataclass(frozen=True)
class Task:
    """What a job does; queued again as it is, if it is preempted."""

    main: Main
    launch: Launch
    number: int

    def __call__(self) -> int:
        return work(self.main, self.launch, self.number)

    def checkpoint(self) -> Any:
        """What submitit is to queue when the job is preempted: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Pool:
    """The jobs of a launch. Jobs are alive while the scheduler has them, also between two lives."""

    def __init__(self, launch: Launch, jobs: Sequence[Job], options: Slurm, main: Main) -> None:
        import submitit

        python = shlex.join(interpreter())
        local = options.cluster == "local"
        kwargs = {"local_python": python} if local else {"slurm_python": python, "slurm_max_num_timeout": TIMEOUTS}
        try:
            executor = submitit.AutoExecutor(launch.folder / "submitit", cluster=options.cluster, **kwargs)
        except RuntimeError as error:  # there is no srun
            raise ConfigError(f"launcher=slurm: {error}") from error
        self._on_slurm = options.cluster == "slurm"
        self._jobs: dict[int, Any] = {}
        own = models(jobs, launch.count)
        try:
            for model in dict.fromkeys(own):
                executor.update_parameters(**parameters(options, model))
                with executor.batch():
                    for number in (number for number, other in enumerate(own, 1) if other == model):
                        self._jobs[number] = executor.submit(Task(main, launch, number))
        except BaseException:
            self.stop()
            raise

    def works(self) -> bool:
        """Whether any job is still to end. Those that wait for a node are not waited for once one has seen it all."""
        codes = self.codes()
        open_jobs = [job for number, job in self._jobs.items() if codes[number] is None]
        if not self._on_slurm:
            return any(not job.done() for job in open_jobs)
        states = _states([job.job_id for job in open_jobs])
        return any(state != "PENDING" or 0 not in codes.values() for state in states)

    def codes(self) -> dict[int, int | None]:
        """The exit code of each job by number; None for one that has not ended, or was killed."""
        return {number: _code(job) for number, job in self._jobs.items()}

    def stop(self) -> None:
        """Cancel all jobs that have not ended."""
        for job in self._jobs.values():
            if not job.paths.result_pickle.exists():
                with suppress(Exception):  # whatever the scheduler says: the next one is to be cancelled too
                    job.cancel(check=False)


def parameters(options: Slurm, model: str) -> dict[str, Any]:
    """submitit's parameters for jobs that begin with a model."""
    given = {"partition": options.partition, "account": options.account, "setup": options.setup or None}
    additional = {**options.additional, **({"mem": options.memory} if options.memory else {})}
    return {
        "name": f"pcbench-{model}",
        "timeout_min": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "slurm_additional_parameters": additional,
        **{f"slurm_{name}": value for name, value in given.items() if value is not None},
    }


def _code(job: Any) -> int | None:
    """What a job returned: its exit code, 70 if it raised an error, None if there is no result."""
    if not job.paths.result_pickle.exists():
        return None
    try:
        code = job.result()
    except Exception:  # the job's own error, as text
        return 70
    return code if isinstance(code, int) else 70


def _states(ids: Sequence[str]) -> list[str]:
    """The states of those jobs that the scheduler still has. It is asked itself: accounting may be switched off."""
    if not ids:
        return []
    command = ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={','.join(ids)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ["UNKNOWN"]  # the scheduler is busy: look again
    if done.returncode:
        return [] if UNKNOWN in done.stderr else ["UNKNOWN"]
    return done.stdout.split()
