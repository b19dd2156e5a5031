"""One schedule for all videos, searched in advance for a number of computed steps, by the error of the final latent.

Two objectives. LeMiCa (Gao et al., NeurIPS 2025, arXiv 2511.00090) weighs each stretch of reused steps by the error of
the final latent if that stretch alone is reused, and takes the path from the first step to the last with the smallest
largest weight. BudCache (Lei et al., ICML 2026, arXiv 2606.13496) searches masks by annealing and hill climbing, each
judged by the final latent of a real run. `python -m pcbench.calibrate method=searched` measures both.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .calibration import all_measured, measured, signature
from .engine.anatomy import Anatomy, Size
from .engine.denoiser import Denoiser
from .engine.method import StepwiseCache, StepwiseRule, Tradeoff
from .engine.trace import Step
from .schedule import check_actions, check_steps

OBJECTIVES = ("lemica", "budcache")
OFFICIAL = "stack"  # what both reuse: LeMiCa4Wan2.1/inference_wan.py, src/wan/dit_forward.py of BudCache
# LeMiCa's for text to video in 50 steps: LeMiCa4Wan2.1/inference_wan.py, get_Lemica_path (scruffynerf/LeMiCa, 498c89b).
PUBLISHED: dict[str, dict[int, str]] = {
    "wan-30x1536": {
        25: "FFFFFFFFFFFFFrFrFrFrrFrrFrrrrFrrrrrFrrrrFrrrFrrFFF",
        20: "FFFFFFFFFFrFrFrrFrrrFrrrrrFrrrrrrFrrrrrrFrrrrFrrFF",
        17: "FFFFFFFFFrFrrFrrrrFrrrrrrFrrrrrrFrrrrrrFrrrrrrFrrF",
        14: "FFFFFFrFrrFrrrrrFrrrrrrFrrrrrrFrrrrrrFrrrrrrFrrrrF",
    },
    "wan-40x5120": {
        25: "FFFFFFFFFFFFrFrFrrFrrFrrrFrrrFrrrrFrrrFrrrFrrFrFFF",
        20: "FFFFFFFFFFrFrrFrrrFrrrrFrrrrrFrrrrrrFrrrrrFrrrFrFF",
        17: "FFFFFFFFrFrrFrrrFrrrrrFrrrrrrFrrrrrrFrrrrrrFrrrFrF",
        14: "FFFFFFrFrrFrrrrrrFrrrrrrFrrrrrrFrrrrrrFrrrrrrFrrrF",
    },
}


@dataclass(kw_only=True)
class SearchedConfig(StepwiseCache):
    """Compute `steps` steps, those that were found best for this backbone.

    steps: how many are computed; steps protected besides are computed too.
    objective: "lemica", which has a schedule for every number of steps, or "budcache", for those searched.
    calibration: fingerprint of the measurement, or a name in `PUBLISHED`; None is the backbone's own.
    actions: a schedule of your own instead, a letter a step as in `ReplayConfig`.

    Published are LeMiCa's schedules of Wan2.1 for 25, 20, 17 and 14 of 50 steps. Its code draws no graph: ours follows
    the paper as described, lexicographic, so that of equally bad worst stretches the second worst decides, and so on.
    A schedule searched with the `reuse` asked for is taken if the calibration has it, else its first one, usually that
    of the official "stack". It is for one number of steps; another needs a calibration of its own.
    """

    steps: int = 25
    objective: str = "lemica"
    calibration: str | None = None
    actions: str | None = None
    reuse: str = OFFICIAL

    NAME: ClassVar[str] = "searched"
    APPROACH: ClassVar[str] = "schedule"
    TRADEOFF: ClassVar = Tradeoff("steps", 1, None, more_is_faster=False)
    INERT: ClassVar = {"actions": "F" * 12}
    EAGER: ClassVar = {"actions": "FFFrFrrFrrrF"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        if self.actions is not None:
            check_actions(self.actions)

    def for_backbone(self, anatomy: Anatomy) -> SearchedConfig:
        if self.actions is not None:
            return self
        filled = replace(self, calibration=self.calibration or self._known(anatomy))
        filled.schedule()
        return filled

    def _known(self, anatomy: Anatomy) -> str:
        """The name of the calibration for this backbone. Raises NotCalibratedError."""
        name, text_to_video = signature(anatomy), anatomy.config.get("in_channels") == anatomy.channels
        if text_to_video and self.objective == "lemica" and self.steps in PUBLISHED.get(name, {}):
            return name
        return fingerprint(measured(self.NAME, anatomy))

    def schedule(self) -> str:
        """The letters of the schedule. Raises ValueError if the calibration has none of so many steps."""
        if self.actions is not None:
            return self.actions
        assert self.calibration is not None
        published = PUBLISHED.get(self.calibration)
        if published is not None:
            found, model = {str(steps): actions for steps, actions in published.items()}, self.calibration
        else:
            data = calibrated(self.calibration)
            searches, model = data["searches"], data["model"]
            search = searches.get(self.reuse) or next(iter(searches.values()))
            if self.objective == "lemica" and search["lemica"] is not None:
                return minimax(json.dumps(search["lemica"]), data["steps"], self.steps)
            found = {} if self.objective == "lemica" else {b: one["actions"] for b, one in search["budcache"].items()}
        if str(self.steps) not in found:
            raise ValueError(
                f"searched: {self.objective} has schedules of {', '.join(found) or 'no'} steps for {model}, not of"
                f" {self.steps}: python -m pcbench.calibrate method=searched model=… search.budgets=[{self.steps}]"
            )
        return found[str(self.steps)]

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        length = len(self.schedule())
        if num_steps is not None and num_steps != length:
            raise ValueError(
                f"searched: this schedule is of {length} steps, not of {num_steps}: calibrate with"
                f" model.sampling.steps={num_steps}, or give the schedule itself as actions"
            )

    def rule(self) -> StepwiseRule:
        return _Searched(self)


class _Searched(StepwiseRule):
    config: SearchedConfig

    def __init__(self, config: SearchedConfig) -> None:
        super().__init__(config)
        self.actions = config.schedule()

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        place, total = denoiser.place
        if place > step.index and self.config.actions is None:
            raise ValueError(
                f"searched: this schedule is of a whole denoising, and the pipeline takes the last {denoiser.num_steps}"
                f" of {total} steps (a strength below 1): give the schedule itself as actions"
            )
        if step.index >= len(self.actions):
            raise ValueError(f"searched: {len(self.actions)} actions, but the pipeline goes on")
        return denoiser.must_compute or self.actions[step.index] == "F"


def calibrated(name: str) -> dict[str, Any]:
    """The calibration with this fingerprint. Raises ValueError if there is none."""
    found = {fingerprint(each): each for each in all_measured(SearchedConfig.NAME)}
    if name not in found:
        raise ValueError(
            f"searched: there is no calibration {name!r}, but {', '.join((*found, *PUBLISHED))}: leave calibration at"
            " null, or give the schedule itself as actions"
        )
    return found[name]


def fingerprint(calibration: Mapping[str, Any]) -> str:
    """Twelve hex digits of all that decides a schedule."""
    decides = json.dumps([calibration["steps"], calibration["searches"]], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=256)
def minimax(measured_edges: str, num_steps: int, steps: int) -> str:
    """LeMiCa's schedule of `steps` computed of `num_steps` steps, from measured edges as JSON (see `edges`)."""
    return path(edges(json.loads(measured_edges), num_steps), steps)


def edges(measured_edges: Mapping[str, Any], num_steps: int) -> np.ndarray:
    """Errors (N, N) of going from computed step a to c with all between reused: [a, c]; infinite where that may not be.

    measured_edges: "starts" (a), "lengths" (c - a), and "errors", a row a start, None where the stretch passes the end.
    Between measured starts and lengths the error's logarithm is interpolated, over lengths by their logarithm.
    """
    starts, lengths = measured_edges["starts"], measured_edges["lengths"]
    errors = np.full((num_steps, num_steps), np.inf)
    rows = np.array([[np.nan if each is None else each for each in row] for row in measured_edges["errors"]], float)
    logs = np.log(np.maximum(rows, 1e-30))
    known = np.arange(num_steps)
    columns = []  # by measured length, at every start
    for column in logs.T:
        there = ~np.isnan(column)
        columns.append(np.interp(known, np.array(starts)[there], column[there]))
    for a in range(num_steps - 1):
        errors[a, a + 1] = 0.0
        for c in range(a + 2, min(a + lengths[-1], num_steps - 1) + 1):
            errors[a, c] = np.exp(np.interp(np.log(c - a), np.log(lengths), [column[a] for column in columns]))
    return errors


def path(errors: np.ndarray, steps: int) -> str:
    """The schedule of `steps` computed steps, the first and the last among them, of lexicographically least errors.

    errors: (N, N), [a, c] as in `edges`. Of two schedules the one is better whose largest error is smaller, or, where
    these are equal, whose second largest is, and so on. Raises ValueError if no path has so many steps.
    """
    number = len(errors)
    best: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {0: ((), (0,))}
    for _ in range(steps - 1):
        reached: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for a, (cost, nodes) in best.items():
            for c in np.flatnonzero(np.isfinite(errors[a, a + 1 :])) + a + 1:
                # the worst first; what comes on top does not change which of two is less, so each step keeps one path
                candidate = tuple(sorted((*cost, float(errors[a, c])), reverse=True)), (*nodes, int(c))
                if c not in reached or candidate < reached[int(c)]:
                    reached[int(c)] = candidate
        best = reached
    if number - 1 not in best:
        longest = max(c - a for a, c in zip(*np.nonzero(np.isfinite(errors)), strict=True))
        raise ValueError(
            f"searched: lemica has schedules of {-(-(number - 1) // longest) + 1} to {number} computed steps here, none"
            f" of {steps}"
        )
    computed = best[number - 1][1]
    return "".join("F" if step in computed else "r" for step in range(number))
