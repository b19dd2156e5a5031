"""The best schedules for the samples of a run: each sample's own, and one for all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from methods import PlannedConfig
from methods.calibration import NotCalibratedError
from methods.planned import plan
from methods.schedule import evenly

from ..calibrate import gram
from ..calibrate.latents import final_latent, in_common
from ..config import Run
from ..observe.watch import Caller, Moment, Seen, rms
from ..store import read_json, write_json
from .climb import Climb

LEAST = 1e-12  # an error below which latents are equal
EVERY = 20.0  # seconds between two lines of progress


@dataclass
class Sample:
    """One sample: how to call the pipeline for it, what its uncached call did, and the error of every schedule tried.

    error: root mean square of the final latent's difference from the uncached one, over that one's own. Of the best
    schedule so far the predictions are kept, beside those of the uncached call: its neighbours begin as it does, and a
    search looks at them next.
    """

    caller: Caller
    seen: Seen
    reuse: str
    tried: dict[str, float]
    _best: tuple[float, str, Sequence[Moment]] = field(init=False)

    def __post_init__(self) -> None:
        self._best = (math.inf, "", self.seen.moments)

    def error(self, actions: str) -> float:
        """The error of a schedule, measured if that was not done before."""
        if actions not in self.tried:
            least, best, predicted = self._best
            known = {"": self.seen.moments, best: predicted}
            along = max(known, key=partial(in_common, actions))
            moments: list[Moment] = []
            found = final_latent(self.caller, actions, self.reuse, known[along], along, moments).float()
            reference = self.seen.latents[-1].float()
            self.tried[actions] = rms(found - reference) / rms(reference)
            if self.tried[actions] < least:
                self._best = (self.tried[actions], actions, moments)
        return self.tried[actions]


@dataclass
class Best:
    """Searches the best schedules of a run's samples, and keeps what was tried in a file.

    run: an uncached run. steps: computed steps of every schedule. reuse: what they answer at the others.
    """

    run: Run
    steps: int
    reuse: str
    path: Path
    say: Callable[[str], None]
    _samples: list[Sample] = field(default_factory=list)

    def search(self, evaluations: int) -> dict[str, list[tuple[str, float]]]:
        """For each kind of schedule, the letters and the error of each sample, in the order of `run.samples`."""
        known = read_json(self.path) or {}
        found: dict[str, list[str]] = {"uniform": [], "planned": [], "planned per prompt": [], "best per prompt": []}
        self._began, self._measured, self._total = time.monotonic(), 0, evaluations * (2 * len(self.run.samples))
        self._said = self._began
        for prompt, seed in self.run.samples:
            caller = Caller.of(self.run, prompt, seed)
            sample = Sample(caller, caller.watch(), self.reuse, known.get(_key(prompt, seed), {}))
            self._samples.append(sample)
            starts = self._starts(sample.seen)
            for kind, actions in starts.items():
                found[kind].append(actions)
            what = f"sample {len(self._samples)}/{len(self.run.samples)}"
            found["best per prompt"].append(
                Climb(partial(self._error, sample, what)).find(starts.values(), evaluations)
            )
        found["best for all"] = [self._shared(found, evaluations)] * len(self._samples)
        self._keep()
        # Only now: the search for all has tried more schedules, and one of them may be a sample's best.
        found["best per prompt"] = [min(sample.tried, key=lambda a: sample.tried[a]) for sample in self._samples]
        return {
            kind: [
                (actions, self._error(sample, kind, actions))
                for actions, sample in zip(each, self._samples, strict=True)
            ]
            for kind, each in found.items()
            if each
        }

    def _shared(self, found: dict[str, list[str]], evaluations: int) -> str:
        """One schedule for all samples: of the least mean logarithm of the error, which is the most mean PSNR."""

        def cost(actions: str) -> float:
            return -statistics.fmean(decibels(self._error(sample, "for all", actions)) for sample in self._samples)

        starts = list(dict.fromkeys(actions for each in found.values() for actions in each))
        return Climb(cost).find(starts, len(starts) + evaluations)

    def _starts(self, seen: Seen) -> dict[str, str]:
        """Schedules to begin at: evenly spaced, as planned for the backbone, and from this very call."""
        num_steps = len(seen.moments)
        starts = {"uniform": evenly(self.steps, num_steps)}
        levels: list[Any] = [moment.sigma for moment in seen.moments]
        config = PlannedConfig(steps=self.steps, reuse=self.reuse)
        try:
            fitted = config.for_backbone(seen.anatomy)
            starts["planned"] = plan(fitted, levels)
        except NotCalibratedError:
            pass
        try:
            own = gram.as_data(levels, gram.of_one(seen)[0])
        except ValueError:  # no noise levels that fall
            return starts
        return starts | {"planned per prompt": plan(config, levels, own)}

    def _error(self, sample: Sample, what: str, actions: str) -> float:
        if actions in sample.tried:
            return sample.tried[actions]
        error = sample.error(actions)
        self._measured += 1
        if (now := time.monotonic()) - self._said > EVERY:
            self._said = now
            left = max((now - self._began) / self._measured * (self._total - self._measured) / 60, 0)
            best = decibels(min(sample.tried.values()))
            self.say(
                f"{what}: {len(sample.tried)} schedules, best {best:.1f} dB in latents, at most {left:.0f} min left"
            )
            self._keep()
        return error

    def _keep(self) -> None:
        tried = {_key(*pair): sample.tried for pair, sample in zip(self.run.samples, self._samples, strict=False)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, (read_json(self.path) or {}) | tried)


def decibels(error: float) -> float:
    """How far an error is below the latent itself; 240 dB at most, where they are equal."""
    return -20 * math.log10(max(error, LEAST))


def _key(prompt: str, seed: int) -> str:
    return f"{seed} {prompt}"
