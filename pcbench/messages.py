"""Messages for users: one short line that says what to do. Standard library only."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

LONGEST = 220  # the most characters of a message
FEW = 6  # up to this many options are listed in full


class ConfigError(ValueError):
    """The user asked for something impossible: reported in one line, with exit code 2."""


def shortened(text: object, limit: int = 60) -> str:
    """The text on one line of printable characters; its middle is left out if it is longer than `limit`."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))
    half = limit // 2 - 1
    return line if len(line) <= limit else f"{line[:half]} … {line[-half:]}"


def message(text: object) -> str:
    """A message on one line of at most LONGEST characters; the middles of very long words are left out first."""
    return shortened(re.sub(r"\S{70,}", lambda word: shortened(word[0]), str(text)), LONGEST)


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint which known names may have been meant: similar ones, or all if they are few, or the first few."""
    known = list(known)
    similar = difflib.get_close_matches(str(name), known, 3, 0.6)
    if similar:
        return f"did you mean {' or '.join(map(repr, similar))}?"
    if len(known) <= FEW:
        return f"there {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"
    return f"there are {', '.join(known[:FEW])} and {len(known) - FEW} more"


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the usage before it."""

    def error(self, message_: str) -> NoReturn:
        print(message(f"{self.prog}: {message_}; --help says more"), file=sys.stderr)
        sys.exit(2)
