"""What every `python -m pcbench…` has in common: --help, one line and exit code 2 for a mistake, 130 if interrupted.

Standard library only: `tracking` and `vbench` start without torch.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from .messages import message, nearest, shortened

Work = TypeVar("Work")
HELP = {"-h", "--help"}
PERIOD = 5.0  # seconds between two lines of progress


class FaultsError(ValueError):
    """Several things are wrong at once, each of which deserves a line."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = [ValueError(line) for line in lines]


@dataclass(frozen=True)
class Command:
    """A command's face.

    name: after `python -m`. about: what it does, a sentence or a few paragraphs. options: its own, a line for each,
    under `heading`. shared: those it has in common with others. explain: an error on one line. resumes: whether the
    same command goes on where it was stopped.
    """

    name: str
    about: str
    options: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[BaseException], str] = message
    resumes: bool = True
    heading: str = "options:"

    @property
    def help(self) -> str:
        """The text of --help: what the command does, and its options with one line each."""
        text, width = [self.about.strip()], max(map(len, [*self.options, *self.shared]), default=0)
        for heading, options in ((self.heading, self.options), ("options of what is run:", self.shared)):
            listed = [f"  {name:<{width}}  {line}" for name, line in options.items()]
            text += ["", heading, *listed] if listed else []
        return "\n".join(text)

    def run(
        self, argv: Sequence[str] | None, prepare: Callable[[list[str]], Work], work: Callable[[Work], int | None]
    ) -> int:
        """Prepare the work from the command line's words, and do it; returns the exit code.

        0: done, or --help; 1: `work` raised; 2: `prepare` raised, which is what a wrong command line does; 130:
        interrupted; otherwise what `work` returns. An error is one line.
        """
        arguments = list(sys.argv[1:] if argv is None else argv)
        try:
            if HELP.intersection(arguments):
                print(self.help, flush=True)
                return 0
            prepared = prepare(arguments)
        except BrokenPipeError:
            return unread()
        except Exception as error:  # anything that composing and checking may raise
            return self.refuse(error)
        with read_or_not():
            try:
                return work(prepared) or 0
            except KeyboardInterrupt:
                goes_on = "; the same command continues where it stopped" if self.resumes else ""
                print(f"{self.name}: interrupted{goes_on}", file=sys.stderr)
                return 130
            except Exception as error:
                print(f"{self.name}: failed: {self.explain(error)}", file=sys.stderr)
                return 1

    def refuse(self, error: BaseException) -> int:
        """Print what is wrong, on one line for each fault; returns exit code 2."""
        for fault in error.lines if isinstance(error, FaultsError) else [error]:
            print(f"{self.name}: {self.explain(fault)}", file=sys.stderr)
        return 2


def process_of(module: str, *words: str) -> list[str]:
    """The command line of another process, which runs a module of these packages with some words."""
    return [*interpreter(), "-m", module, *words]


def interpreter() -> list[str]:
    """The command line of Python itself. No folder of the working directory that is called as one of these packages
    hides it (from Python 3.11 on): `python -m` would look there first, and this process need not have been started so.
    """
    beside = Path(__file__).resolve().parents[1] == Path.cwd()  # the packages are found there alone, if not installed
    return [sys.executable, *(["-P"] if sys.version_info >= (3, 11) and not beside else [])]


def unread() -> int:
    """Nobody reads what is printed any more, as after `| head`: print nothing more; returns the exit code for that."""
    _discard(sys.stdout)
    return 141  # as after SIGPIPE


@contextmanager
def read_or_not() -> Iterator[None]:
    """The body goes on when nobody reads any more what is printed: work of hours is not for its lines."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _ReadOrNot(out), _ReadOrNot(err)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = out, err


class _ReadOrNot:
    """A stream whose further text is discarded once its reader has gone: the end of a pipe, or a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._check(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or discard it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._check(error)

    def _check(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """From now on, discard what is written to a stream, by this process and those it starts."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def options_of(words: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Words of the form option=value, over the defaults in `known`. Raises ValueError for an unknown option."""
    chosen = dict(known)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise ValueError(f"unknown option {shortened(word)!r}: {nearest(name, known)}")
        chosen[name] = os.path.expanduser(value)  # ~/out, which a shell leaves as it is after a "="
    return chosen


def left(done: int, total: int, seconds: float) -> str:
    """How much time is left at this pace, in words: "about 40 s left"; empty at the beginning and at the end."""
    if not 0 < done < total:
        return ""
    rest = seconds / done * (total - done)
    return f"about {rest:.0f} s left" if rest < 100 else f"about {rest / 60:.0f} min left"


class Progress:
    """Prints how far a long work is, every few seconds: "[12/64, about 40 s left] text"."""

    def __init__(self, say: Callable[[str], None], period: float = PERIOD) -> None:
        self._say, self._period = say, period
        self._began = self._latest = time.monotonic()

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Tell that `done` of `total` are done, the latest of them `text`; prints only now and then."""
        now = time.monotonic()
        if now - self._latest < self._period or done == total:
            return
        self._latest = now
        self._say(f"[{done}/{total}, {left(done, total, now - self._began)}] {text}".rstrip())
