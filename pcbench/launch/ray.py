"""`launcher=ray`: workers as Ray actors, each with a GPU and the model it has loaded (extra `ray`).

An actor does one task, the worker's whole loop, which keeps a model as long as there is work for it. If it dies, Ray
starts it anew and the task again; what it was making is taken over by whoever comes first. pcbench must be installed on
all nodes; those with the same processor or GPU count as one machine, by the PCBENCH_HOST that the driver gives them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..config import ConfigError
from .worker import Launch, Main, work

RETRIES = -1  # as often as it takes
CPUS = 1  # of an actor; on a GPU the others are for encoding videos


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"launcher=ray: no cluster at {address}: {error}") from error


def count(asked: int | None) -> int:
    """The number of actors in the cluster that was joined: as asked, or one for each GPU. Raises ConfigError."""
    found = _gpus()
    if not found and asked is None:
        raise ConfigError("launcher=ray without GPUs in the cluster needs workers=n")
    room = found or _resource("CPU")
    if asked is not None and asked > room:
        raise ConfigError(f"workers={asked}, but the cluster has {room} {'GPUs' if found else 'CPUs'}")
    return asked or found


def _gpus() -> int:
    return _resource("GPU")


def _resource(name: str) -> int:
    import ray

    return int(ray.cluster_resources().get(name, 0))


class _Actor:
    def work(self, main: Main, launch: Launch, number: int) -> int:
        return work(main, launch, number)


class Pool:
    """The actors of a launch."""

    def __init__(self, launch: Launch, main: Main) -> None:
        import ray

        options = {"num_cpus": CPUS, "num_gpus": 1 if _gpus() else 0}
        remote = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **options)(_Actor)
        self._last: dict[int, int | None] = {}
        self._actors = [remote.remote() for _ in range(launch.count)]
        self._tasks: list[Any] = [
            actor.work.remote(main, launch, number) for number, actor in enumerate(self._actors, 1)
        ]

    def works(self) -> bool:
        """Whether any actor still works."""
        return None in self.codes().values()

    def codes(self) -> dict[int, int | None]:
        """The exit code of each actor by number; 70 if it raised an error."""
        return self._last or {number: _code(task) for number, task in enumerate(self._tasks, 1)}

    def stop(self) -> None:
        """End all actors, and leave the cluster."""
        import ray

        self._last = self.codes()  # of a cluster that is left, nothing can be asked
        for actor in self._actors:
            with suppress(Exception):  # whatever Ray says: the next one is to be ended too
                ray.kill(actor)
        ray.shutdown()


def _code(task: Any) -> int | None:
    import ray

    if not ray.wait([task], timeout=0)[0]:
        return None
    try:
        return int(ray.get(task))
    except Exception:  # the actor's own error
        return 70
