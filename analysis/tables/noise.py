"""The noise floor: how far two uncached calls differ, in time and in pixels. A smaller effect is not one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..load import IDENTICAL_PSNR_1, NO_CACHE, Bench

IDENTICAL = "identical"


@dataclass(frozen=True)
class NoiseFloor:
    """The noise floor of one bench.

    calls: timed uncached calls in all records. within: the greatest ratio of two such calls in one process. between:
    the greatest ratio of two records' median uncached calls, timed in separate processes; both NaN if too few.
    recomputed: videos of a cache that computed every step in full, scored against the uncached one; identical: how many
    of them equal it bit for bit.
    """

    calls: int
    within: float
    between: float
    recomputed: int
    identical: int

    def words(self) -> list[str]:
        """One sentence for each noise floor that is known."""
        sentences = []
        if self.calls > 1:
            parts = [(self.within, "in one process"), (self.between, "between records' medians")]
            spread = ", ".join(f"{ratio:.3f}× {where}" for ratio, where in parts if not np.isnan(ratio))
            sentences.append(f"noise floor of latency: {self.calls} uncached calls differ by up to {spread}.")
        if self.recomputed:
            sentences.append(
                f"noise floor of fidelity: {self.identical} of {self.recomputed} cached videos of which every step was "
                "computed are identical to the uncached video."
            )
        return sentences


def noise_floor(bench: Bench) -> NoiseFloor:
    """The noise floor of a bench, from its records."""
    timed = [record["latency"]["reference_denoise_seconds"] for record in bench.raw if record["latency"]]
    timed = [timing for timing in timed if "values" in timing]
    within = [max(timing["values"]) / min(timing["values"]) for timing in timed if len(timing["values"]) > 1]
    medians = [timing["median"] for timing in timed]
    recomputed = [
        sample for record in bench.raw if record["recipe"]["method"]["name"] != NO_CACHE
        for sample in record["samples"] if _in_full(sample, record) and _verdict(sample)
    ]  # fmt: skip
    return NoiseFloor(
        calls=sum(len(timing["values"]) for timing in timed),
        within=max(within, default=float("nan")),
        between=max(medians) / min(medians) if len(medians) > 1 else float("nan"),
        recomputed=len(recomputed),
        identical=sum(_verdict(sample) == IDENTICAL for sample in recomputed),
    )


def _in_full(sample: dict, record: dict) -> bool:
    """Whether every step of the uncached schedule was computed, and no part of it reused."""
    steps = record["recipe"].get("sampling", {}).get("steps")
    return sample.get("trace", {}).get("actions") == "F" * (steps or 0) != ""


def _verdict(sample: dict) -> str | None:
    """The comparison with the uncached video: "identical", "different", or None if it was not scored."""
    scores, notes = sample["fidelity"], sample.get("fidelity_notes", {})
    name = max((name for name in scores if name.startswith("psnr@")), default="")
    capped = name == "psnr@1" and scores[name] >= IDENTICAL_PSNR_1  # psnr@1 had no notes
    if capped or (IDENTICAL in notes.get(name, "") and scores[name] is None):
        return IDENTICAL
    return None if scores.get(name) is None else "different"
