"""Failures as text, without keeping any object of the failed work alive: the next sample has as much memory."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from . import devices
from .store.away import steadily

Say = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """What failed ("'a cat' seed 0", "latency"), why ("OutOfMemoryError: …"), and the traceback as text."""

    what: str
    why: str
    details: str

    @property
    def line(self) -> str:
        """What failed and why, in one line."""
        return f"{self.what}: {' '.join(self.why.split())}"


class FailedError(Exception):
    """Something in a run failed; raised after everything else in it was done. `failures` lists each `Failure`."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("\n".join(failure.line for failure in failures))
        self.failures = failures


class _Contained:
    """Swallows an error raised inside the block and keeps it as text: an exception refers to the stack frames it passed
    through, and they refer to the tensors of the call."""

    why: str | None = None
    details: str = ""

    def __enter__(self) -> _Contained:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.why = f"{type(error).__name__}: {error}"
        self.details = "".join(traceback.format_exception(error))
        for linked in _chain(error, set()):
            traceback.clear_frames(linked.__traceback__)
            linked.__traceback__ = None  # a cleared frame still holds its function, and so the closure's variables
        return True


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """An error, and all errors that it was raised from, raised while handling, or groups."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        yield from _chain(other, seen)


def attempt_each(
    label: str,
    stage: str,
    samples: Iterable[tuple[str, int]],
    work: Callable[[str, int], object],
    say: Say,
    failed_before: set[str],
) -> list[Failure]:
    """Do `work` for each (prompt, seed), even if another one fails. Returns the failures; each is reported at once, and
    noted in `failed_before`, whose own are not tried again."""
    failures = []
    for prompt, seed in samples:
        what = f"{stage} of {prompt!r} seed {seed}"
        failed = None if what in failed_before else attempt(what, partial(steadily, partial(work, prompt, seed)))
        if failed is not None:
            say(f"{label}  failed  {failed.line}")
            failures.append(failed)
            failed_before.add(what)
    return failures


def attempt(what: str, work: Callable[[], object]) -> Failure | None:
    """Do `work`; returns its failure if it raises, with memory as before. Interruptions are not caught."""
    with _Contained() as contained:
        work()
    if contained.why is None:
        return None
    devices.release()
    return Failure(what, contained.why, contained.details)
