"""A claim of the paper, the number that tests it, and the answer from its interval: yes, no or undecided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from ..stats import Interval, mean_interval
from . import style

FEWEST = 3  # prompts that an interval must rest on before it says yes or no
FEW = 8  # with fewer prompts a bootstrap interval is known to be too narrow
INFINITY = math.inf
BRACKETS = "Brackets are 95 % bootstrap intervals over prompts."
ABOVE_ZERO = (math.nextafter(0, 1), INFINITY)


def at_least(bound: float) -> tuple[float, float]:
    """The range from `bound` upwards."""
    return bound, INFINITY


def at_most(bound: float) -> tuple[float, float]:
    """The range up to `bound`."""
    return -INFINITY, bound


@dataclass(frozen=True)
class Claim:
    """A question, the paper's answer, and ours.

    paper: what it says, and where. measured: what number decides, in words. found: that number and its interval over
    `prompts` prompts. means_yes: the range in which the answer is yes. exact: whether it is a count or a largest value,
    whose interval over prompts means nothing. more: further sentences. model: in a figure of several models, the one
    that is asked about; the question ends with its name.
    """

    question: str
    paper: str
    measured: str
    found: Interval
    means_yes: tuple[float, float]
    prompts: int
    exact: bool = False
    more: str = ""
    model: str = ""

    @property
    def answer(self) -> str:
        """Yes if the whole interval is in the range, no if all of it is outside on one side, else undecided."""
        value, low, high = self.found
        if self.exact:
            low = high = value
        elif self.prompts < FEWEST:
            return "undecided"
        if math.isnan(low) or math.isnan(high):
            return "undecided"
        least, most = self.means_yes
        if least <= low and high <= most:
            return "yes"
        return "no" if high < least or low > most else "undecided"

    @property
    def number(self) -> str:
        """The number as text, with its interval if it has one."""
        return words(Interval(self.found.value, math.nan, math.nan) if self.exact else self.found)

    @property
    def yes(self) -> str:
        """The range in which the answer is yes, in words."""
        least, most = self.means_yes
        if self.means_yes == ABOVE_ZERO:
            return "above 0"
        if math.isinf(most):
            return f"at least {least:.3g}"
        if math.isinf(least):
            return f"at most {most:.3g}"
        return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"

    @property
    def text(self) -> str:
        """The caption's paragraph."""
        statement = f"The paper: {self.paper}. " if self.paper else ""
        few = f", fewer than the {FEWEST} it takes to say more" if self.prompts < FEWEST and not self.exact else ""
        plural = "" if self.prompts == 1 else "s"
        return (
            f"{self.question} {statement}Here: {self.answer}. {self.measured} is {self.number} (yes would be"
            f" {self.yes}), n = {self.prompts} prompt{plural}{few}.{' ' if self.more else ''}{self.more}"
        )


def words(found: Interval, digits: int = 3) -> str:
    """A number and its interval as text: `0.31 [0.12, 0.45]`."""
    if math.isnan(found.value):
        return "unknown"
    value, low, high = (f"{number:.{digits}g}" for number in found)
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption. name: its files' names, without suffix. kind: `fig3`, `pareto`, …"""

    kind: str
    name: str
    model: str
    title: str
    figure: Figure = field(repr=False)
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """Plain paragraphs: what is drawn, every claim with its answer, notes, what brackets mean."""
        paragraphs = [self.title, *(claim.text for claim in self.claims), *self.notes]
        if self.claims:
            few = any(claim.prompts < FEW and not claim.exact for claim in self.claims)
            paragraphs.append(BRACKETS + (f" Of fewer than {FEW} prompts they are too narrow." if few else ""))
        return "\n\n".join(paragraphs) + "\n"

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        return style.rendered(self.figure, "png")


class NotDrawnError(ValueError):
    """The data for a figure is missing. The message says what; it is empty if the bench is not meant for the figure."""


def over_prompts(values: Sequence[float], prompts: Sequence[str], geometric: bool = False) -> tuple[Interval, int]:
    """The mean of one number per sample, its bootstrap interval over prompts, and how many prompts; without NaN.

    geometric: the geometric mean, for ratios; numbers that are not above 0 are left out too.
    """
    numbers = pd.Series(
        [math.log(v) if geometric and v > 0 else math.nan if geometric else v for v in values], dtype=float
    )
    names = pd.Series(list(prompts))
    found = mean_interval(numbers, names)
    return (Interval(*(math.exp(v) for v in found)) if geometric else found), names[numbers.notna()].nunique()
