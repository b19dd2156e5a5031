"""What a method is tuned to: a speedup, a number of computed steps, or a PSNR; and how a record is measured by it."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import ConfigError
from .messages import shortened

Sample = Mapping[str, Any]  # a sample of a record
PSNR = "psnr@2"


@dataclass(frozen=True)
class Target:
    """value: the number aimed at. unit: "x", "steps" or "dB". faster_is_more: whether a faster setting has more of it.
    at_least: whether less of it than that will not do, however close it is.

    measure: its value over samples, given the MACs of a video without a cache. error: the standard error of that value
    as the mean over these prompts; infinite if only all prompts together say anything.
    stages: what must be carried out to measure it.
    """

    value: float
    unit: str
    measure: Callable[[Sequence[Sample], float], float]
    error: Callable[[Sequence[Sample], float], float]
    stages: tuple[str, ...] = ("generate",)
    faster_is_more: bool = False
    at_least: bool = False

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}" if self.unit == "x" else f"{self.value:g} {self.unit}"

    def text(self, measured: float, error: float | None = None) -> str:
        """A measured value with its unit, and with its standard error if that is given and finite."""
        digits = 3 if self.unit == "x" else 2
        margin = "" if error is None or not math.isfinite(error) else f" ± {error:.{digits}f}"
        return f"{measured:.{digits}f}{margin}{'' if self.unit == 'x' else ' '}{self.unit}"


def speedup(samples: Sequence[Sample], reference_macs: float) -> float:
    """How many times fewer MACs than without a cache, over all samples."""
    return reference_macs / statistics.fmean(sample["macs"] for sample in samples)


def computed(samples: Sequence[Sample], reference_macs: float) -> float:
    """Mean number of steps not answered from the cache."""
    return statistics.fmean(sample["computed"] for sample in samples)


def error_of_speedup(samples: Sequence[Sample], reference_macs: float) -> float:
    """Standard error of `speedup`: relatively, that of the mean MACs."""
    mean = statistics.fmean(sample["macs"] for sample in samples)
    return speedup(samples, reference_macs) * _standard_error(samples, lambda sample: sample["macs"]) / mean


def error_of_computed(samples: Sequence[Sample], reference_macs: float) -> float:
    """Standard error of `computed`."""
    return _standard_error(samples, lambda sample: sample["computed"])


def needs_all(samples: Sequence[Sample], reference_macs: float) -> float:
    """The error of what depends on how many samples there are."""
    return float("inf")


def _standard_error(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Of the mean over these prompts; infinite for one prompt. Videos of one prompt are alike, whatever their seeds:
    each prompt counts once, with its mean."""
    of_prompt: dict[str, list[float]] = {}
    for sample in samples:
        of_prompt.setdefault(sample["prompt"], []).append(value(sample))
    means = [statistics.fmean(values) for values in of_prompt.values()]
    return statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("inf")


def safe_psnr(samples: Sequence[Sample], reference_macs: float) -> float:
    """Lower end of the 95 % interval of the mean PSNR over videos; infinite if all are identical to their reference.
    For one prompt, which has no interval, the mean."""
    scored = [sample for sample in samples if sample["fidelity"][PSNR] is not None]
    if not scored:
        return float("inf")
    error = _standard_error(scored, lambda sample: sample["fidelity"][PSNR])
    mean = statistics.fmean(sample["fidelity"][PSNR] for sample in scored)
    return mean - 1.96 * error if math.isfinite(error) else mean


def parse(text: str) -> Target:
    """`2x`, `25steps` or `45dB` as a target. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(x|steps|dB)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"target={shortened(text)}: give a speedup by MACs (2x), a mean number of computed steps (25steps), or a"
            " PSNR that the mean reaches with 95 % confidence (45dB)"
        )
    value, unit = float(match[1]), match[2]
    if unit == "x":
        return Target(value, unit, speedup, error_of_speedup, faster_is_more=True)
    if unit == "steps":
        return Target(value, unit, computed, error_of_computed)
    return Target(value, unit, safe_psnr, needs_all, ("generate", "score"), at_least=True)
