"""What failed, in words, and nothing of it kept alive: the next sample has the memory that this one had."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from . import devices

Say = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """What failed ("'a cat' seed 0", "latency"), why ("OutOfMemoryError: …"), and the traceback as text."""

    what: str
    why: str
    details: str

    @property
    def line(self) -> str:
        """Both in one line."""
        return f"{self.what}: {' '.join(self.why.split())}"


class FailedError(Exception):
    """A run of which something failed, after all else of it was done. `failures` has a `Failure` for each."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("\n".join(failure.line for failure in failures))
        self.failures = failures


class _Contained:
    """Swallows an error raised inside, and remembers it as text: an exception holds the frames it went through, and
    they hold the tensors of the call."""

    why: str | None = None
    details: str = ""

    def __enter__(self) -> _Contained:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.why = f"{type(error).__name__}: {error}"
        self.details = "".join(traceback.format_exception(error))
        for each in _chain(error, set()):
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None  # a cleared frame still holds its function, and that the variables of its closure
        return True


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """An error with all that it was raised from or while handling."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        yield from _chain(other, seen)


def attempt_each(
    label: str, stage: str, samples: Iterable[tuple[str, int]], work: Callable[[str, int], object], say: Say
) -> list[Failure]:
    """Do `work` for each (prompt, seed), whatever happens to another; the failures, each said at once."""
    failures = []
    for prompt, seed in samples:
        failed = attempt(f"{stage} of {prompt!r} seed {seed}", partial(work, prompt, seed))
        if failed is not None:
            say(f"{label}  failed  {failed.line}")
            failures.append(failed)
    return failures


def attempt(what: str, work: Callable[[], object]) -> Failure | None:
    """Do `work`; its failure if it raises. Memory is then as before. Interruptions pass."""
    with _Contained() as contained:
        work()
    if contained.why is None:
        return None
    devices.release()
    return Failure(what, contained.why, contained.details)
