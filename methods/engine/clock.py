"""Where a pipeline call is: which call, which step of it, which guidance branch, at which noise level.

Some pipelines say so themselves, in diffusers' `cache_context`. What they leave out is read off their scheduler:

- `set_timesteps` makes a new `timesteps` tensor for every pipeline call, a call after one that failed included;
- most pipelines hand the transformer a view of one entry of that tensor, and the view's offset says which one, whether
  or not a noise level is visited twice, and without waiting for the device;
- `step_index` grows with every step the scheduler takes.

Timesteps are compared by value only where none of these decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from diffusers.hooks.hooks import CacheContext

# The branches of calls without a cache context, in order, as in all diffusers pipelines of the supported families.
BRANCHES = ("cond", "uncond")


@dataclass(frozen=True)
class Reading:
    """What is known of one transformer call before it runs.

    name: its guidance branch; step: its index, if the pipeline announces one; schedule: the scheduler's timesteps;
    place: where in them the call's timestep lies, if it is a view of them; taken: steps the scheduler has taken.
    """

    context: CacheContext | None
    timestep: torch.Tensor
    schedule: torch.Tensor | None
    place: int | None
    taken: int | None

    @property
    def step(self) -> int | None:
        return None if self.context is None else self.context.step_index

    @property
    def name(self) -> str | None:
        return None if self.context is None else self.context.name


@dataclass
class Clock:
    """Sorts the calls of a pipeline's transformers into steps and branches. One for all transformers of a pipeline.

    pipe: the pipeline that is calling, at first the one that the method was applied to. guidance: overrides its own
        scale, for pipelines that do not publish theirs.
    index: the current step's, counted over the whole pipeline call. seen: the step's branches called so far.
    guided: the pipeline said in this call that it computes the unconditional branch.
    """

    pipe: Any
    guidance: float | None = None
    index: int = -1
    seen: list[str] = field(default_factory=list)
    guided: bool = False
    _last: Reading | None = None
    _schedule: torch.Tensor | None = None  # the latest call's
    _start: int = 0  # the latest call's first entry in its schedule: above 0 for a strength below 1
    _timesteps: list[float] = field(default_factory=list)  # the schedule's; empty if the call does not follow it
    _times: list[float] | None = None  # the schedule's, from 1 to 0
    _levels: list[float] | None = None  # the schedule's noise levels
    _scales: tuple[Any, Any] = (None, None)  # guidance at the start of the call, of each transformer

    def __post_init__(self) -> None:
        self._owner = self.pipe
        if self.guidance is not None and publishes_guidance(self.pipe):
            raise ValueError(
                f"apply(…, guidance_scale={self.guidance:g}): a {type(self.pipe).__name__} tells its own scale of"
                " guidance; give it to the pipeline's call alone"
            )

    def look_at(self, pipe: Any) -> None:
        """Another pipeline that shares the transformer is calling; None is the one that the method was applied to.

        Raises ValueError if `guidance` was given for that one and `pipe` is another.
        """
        pipe = self._owner if pipe is None else pipe
        if self.guidance is not None and pipe is not self._owner:
            raise ValueError(
                f"apply(…, guidance_scale={self.guidance:g}) was said of another {type(self._owner).__name__} than the"
                f" {type(pipe).__name__} that is calling: apply the method to the one that is called"
            )
        self.pipe = pipe

    def forget(self) -> None:
        """The pipeline call is over; the next transformer call begins another."""
        self.index, self.seen, self._last = -1, [], None
        self._timesteps, self._times, self._levels = [], None, None

    def read(self, context: CacheContext | None, inputs: Mapping[str, Any]) -> Reading:
        """Where a transformer call is, from its cache context (None: there is none) and its arguments."""
        scheduler, timestep = getattr(self.pipe, "scheduler", None), inputs["timestep"]
        schedule = getattr(scheduler, "timesteps", None)
        taken = getattr(scheduler, "step_index", getattr(scheduler, "counter", None))
        place = None if schedule is None else _offset(timestep, schedule)
        return Reading(context, timestep, schedule, place, taken)

    def begins_call(self, now: Reading) -> bool:
        """Whether this is the first transformer call of a pipeline call, whether or not the one before finished."""
        last = self._last
        if last is None or now.schedule is not last.schedule:
            return True
        for current, previous in ((now.step, last.step), (now.place, last.place)):
            if current is not None and previous is not None:
                return current < previous or (current == previous and now.name in self.seen)
        if now.taken != last.taken:
            return now.taken is None or (last.taken is not None and now.taken < last.taken)
        return now.timestep is not last.timestep and bool(now.timestep.max() > last.timestep.max())

    def begins_step(self, now: Reading) -> bool:
        """Whether this is the first transformer call of a step, in a call that has begun."""
        last = self._last
        if last is None or now.name in self.seen:
            return True
        for current, previous in ((now.step, last.step), (now.place, last.place)):
            if current is not None and previous is not None:
                return current != previous
        if now.taken != last.taken:
            return True
        return now.timestep is not last.timestep and not torch.equal(now.timestep, last.timestep)

    def start_call(self, now: Reading) -> None:
        """Record the call's schedule and guidance."""
        self.forget()
        is_resumed = now.schedule is self._schedule  # the pipeline goes on after a failure in mid-call
        self._schedule, self.guided = now.schedule, self.says_guided() is True
        self._scales = getattr(self.pipe, "_guidance_scale", None), getattr(self.pipe, "_guidance_scale_2", None)
        if now.schedule is None:
            return
        if now.place is None:
            entries, announced = len(now.schedule), self._announced_steps(now)
            self._start = max(entries - (entries if announced is None else announced), 0)
            if not _equals(now.timestep, now.schedule[self._start + (now.step or 0) :][:1]):
                return  # the call does not follow this schedule
        elif now.step is not None:
            self._start = max(now.place - now.step, 0)
        elif not is_resumed:
            self._start = now.place
        self._timesteps = now.schedule.tolist()
        self._times, self._levels = times(self.pipe.scheduler), noise_levels(self.pipe.scheduler)

    def start_step(self, now: Reading) -> int:
        """Begin a step and return its index."""
        self.seen = []
        self.guided |= self.says_guided() is True
        if now.step is not None:
            self.index = now.step
        elif now.place is not None and self._levels is not None:
            self.index = now.place - self._start
        else:
            self.index += 1
        return self.index

    def branch(self, now: Reading) -> str:
        """Note the guidance branch of a call; its name. Raises ValueError for a third one without a name."""
        if now.name is None and len(self.seen) == len(BRANCHES):
            raise ValueError(
                f"the transformer is called {len(BRANCHES) + 1} times at one timestep, and the pipeline does not say"
                ' what for: name each guidance branch, with transformer.cache_context("cond") and ("uncond")'
            )
        name = BRANCHES[len(self.seen)] if now.name is None else now.name
        self.seen.append(name)
        self._last = now
        return name

    def _announced_steps(self, now: Reading) -> int | None:
        if now.context is not None and now.context.num_inference_steps is not None:
            return now.context.num_inference_steps
        return getattr(self.pipe, "_num_timesteps", None)

    def num_steps(self, now: Reading) -> int | None:
        """How many steps this pipeline call will take: fewer than asked for with a strength below 1, more with a solver
        that visits noise levels twice. None if not known."""
        announced = self._announced_steps(now)
        if self._levels is None:
            return announced
        left = len(self._levels) - self._start
        return left if announced is None else min(announced, left)

    def sigma(self, context: CacheContext | None, index: int) -> float | None:
        """The noise level at a step of this call, from 0 (clean) to 1 (noise), see `noise_levels`. None if not known.

        The announced value counts only where the pipeline's scheduler does not contradict it: what some schedulers call
        sigma goes up to thousands.
        """
        place, announced = self._start + index, None if context is None else context.sigma
        level = None if self._levels is None or not 0 <= place < len(self._levels) else self._levels[place]
        if announced is None or level is None:
            return level if announced is None else announced
        return announced if abs(announced - level) < 2e-3 else level

    @property
    def passed_over(self) -> int:
        """How many of the schedule's entries come before this call's first: some for a strength below 1."""
        return 0 if self._levels is None else self._start

    def levels(self) -> list[float] | None:
        """The noise levels of the steps of this call, as in `sigma`. None if the pipeline has no schedule."""
        return None if self._levels is None else self._levels[self._start :]

    def time(self, index: int) -> float | None:
        """The time at a step of this call, see `times`. None if not known."""
        place = self._start + index
        return None if self._times is None or not 0 <= place < len(self._times) else self._times[place]

    def timestep(self, index: int) -> float | None:
        """The timestep at a step of this call, without asking the device. None if not known."""
        place = self._start + index
        return self._timesteps[place] if 0 <= place < len(self._timesteps) else None

    def guidance_scale(self, second: bool = False) -> float:
        """The classifier-free guidance scale that the pipeline combines its branches with.

        Pipelines with a call for each branch fix it at the start of a call; Wan2.2's second transformer may have its
        own. Raises ValueError where it is not known.
        """
        first, other = self._scales
        return self._scale_or(other if second and other is not None else first)

    def guidance_now(self) -> float:
        """The scale at this moment, for pipelines that read it again at every step (dynamic guidance)."""
        return self._scale_or(None)

    def _scale_or(self, value: float | None) -> float:
        if self.guidance is not None:
            return self.guidance
        if _has_plain_guider(self.pipe):
            guider = self.pipe.guider
            return float(guider.guidance_scale) + guider.use_original_formulation  # which adds s (F_c - F_u) to F_c
        value = getattr(self.pipe, "guidance_scale", None) if value is None else value
        if value is None or not publishes_guidance(self.pipe):
            raise ValueError(
                f"{type(self.pipe).__name__} does not tell its scale of classifier-free guidance (true_cfg_scale): give"
                " it to apply(…, guidance_scale=…), or look at the conditional branch alone (guidance=cond)"
            )
        return float(value)

    def unguided(self) -> bool:
        """Whether the pipeline says that it will no longer call the unconditional branch, as it said it would."""
        return self.guided and self.says_guided() is False

    def says_guided(self) -> Any:
        """Whether the pipeline computes the unconditional branch at this step; None if it does not say."""
        if isinstance(guider := getattr(self.pipe, "guider", None), BaseGuidance):
            return guider.num_conditions > 1
        return getattr(self.pipe, "do_classifier_free_guidance", None)


def publishes_guidance(pipe: Any) -> bool:
    """Whether the pipeline has its scale of classifier-free guidance as an attribute; HunyuanVideo's of that name is
    another, embedded, scale."""
    known = hasattr(type(pipe), "guidance_scale") or "guidance_scale" in vars(pipe)
    of_hunyuan = any(base.__name__.startswith("Hunyuan") for base in type(pipe).__mro__)
    return _has_plain_guider(pipe) or (known and not of_hunyuan)


def _has_plain_guider(pipe: Any) -> bool:
    guider: Any = getattr(pipe, "guider", None)
    return type(guider) is ClassifierFreeGuidance and not guider.guidance_rescale


def times(scheduler: Any) -> list[float] | None:
    """Every entry of `scheduler.timesteps` as a share of the training steps, from 0 (clean) to 1 (noise); None if there
    are no such entries.

    For flow matching that is sigma, which is used directly, as some schedulers round their timesteps. The sigmas of
    other schedulers have another unit (noise over signal, up to thousands) and are not used.
    """
    timesteps, train = scheduler.timesteps, getattr(scheduler.config, "num_train_timesteps", None)
    if not train or timesteps.ndim != 1:
        return None
    shares = [timestep / train for timestep in timesteps.tolist()]
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) >= len(shares):
        exact = sigmas[: len(shares)].tolist()
        if all(abs(sigma - share) <= 1.001 / train for sigma, share in zip(exact, shares, strict=True)):
            return exact
    return shares


def noise_levels(scheduler: Any) -> list[float] | None:
    """The noise level of every entry of `scheduler.timesteps`, from 0 (clean) to 1 (noise); None if there is none.

    It is the share of noise in a latent (1 - level) · clean + level · noise. For flow matching that is sigma, and the
    time. Other schedulers' latents are a · clean + b · noise with a² + b² = 1 (DDIM, DPM, ...; CogVideoX's): over their
    size a + b, they are such a latent too, of level b / (a + b). Steps of the sampler are as long in this unit as what
    a prediction of the velocity moves the latent by, but for a factor between 1 and √2; in time they are not.
    """
    known, kept = times(scheduler), getattr(scheduler, "alphas_cumprod", None)
    config = scheduler.config
    is_flow = getattr(config, "use_flow_sigmas", False) or getattr(config, "prediction_type", None) == "flow_prediction"
    if known is None or kept is None or is_flow:
        return known
    clean, noise = kept.double().cpu().clamp(0, 1).sqrt(), (1 - kept.double().cpu()).clamp(0, 1).sqrt()
    levels = (noise / (clean + noise)).numpy()
    return np.interp(scheduler.timesteps.double().cpu().numpy(), np.arange(len(levels)), levels).tolist()


def _offset(timestep: torch.Tensor, schedule: torch.Tensor) -> int | None:
    """The index of the schedule's entry that a timestep is a view of; None if it is not a view of any."""
    if timestep.device.type == "meta" or timestep.dtype != schedule.dtype or schedule.ndim != 1:
        return None
    if timestep.untyped_storage().data_ptr() != schedule.untyped_storage().data_ptr():
        return None
    if any(size > 1 and stride for size, stride in zip(timestep.shape, timestep.stride(), strict=True)):
        return None
    place = timestep.storage_offset() - schedule.storage_offset()
    return place // schedule.stride(0) if 0 <= place < len(schedule) * schedule.stride(0) else None


def _equals(timestep: torch.Tensor, entry: torch.Tensor) -> bool:
    """Whether a call's timestep, one per token or rounded to another precision, is this entry of the schedule."""
    if timestep.device.type == "meta" or not len(entry):
        return False
    return bool(timestep.max() == entry.to(timestep.device, timestep.dtype).max())
