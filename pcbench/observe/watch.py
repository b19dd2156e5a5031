"""Watch one pipeline call, and repeat it with given predictions in place of the transformer's.

Restarting in the middle of a call would need the solver's state, which is different for every solver. Instead the call
is repeated from its noise on, with the recorded predictions in the transformer's place: the solver does the same
arithmetic on the same numbers, so it gets to the same latent bit for bit, and such a step costs next to nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch

from methods import Method
from methods.engine.anatomy import Anatomy, Size, anatomy_of
from methods.engine.denoiser import Denoiser, ModuleCall
from methods.engine.method import Rule
from methods.engine.reuse import hidden_of, video_of

from .. import backbones
from ..config import Run
from ..sampling.generate import cached, denoise

MODE = "nearest-exact"  # how a trial's latent is downsampled: PreciseCache's default
Answer = Callable[[int, str], torch.Tensor | None]  # (step, branch) -> the prediction, or None to compute it
AfterStep = Callable[[int, torch.Tensor], torch.Tensor]  # (step, latent after it) -> the latent to continue with


@dataclass
class Moment:
    """One denoising step. Tensors are on the CPU, in the model's own layout, by guidance branch.

    trials: by size, then by branch. blocks: by branch and block path, the RMS of what the block adds to the video's
    tokens, and that RMS divided by the tokens' own. guidance: the scale, if a step has several branches. sigma: the
    noise level.
    """

    predictions: dict[str, torch.Tensor] = field(default_factory=dict)
    trials: dict[Size, dict[str, torch.Tensor]] = field(default_factory=dict)
    blocks: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    guidance: float = 1.0
    sigma: float | None = None

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors kept of the step."""
        for by_branch in (self.predictions, *self.trials.values()):
            yield from by_branch.values()


@dataclass
class Seen:
    """One pipeline call, watched. latents: after each step, as its callback has them; the last is what it returns."""

    anatomy: Anatomy
    moments: list[Moment] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tensors take."""
        tensors = [*self.latents, *(tensor for moment in self.moments for tensor in moment.tensors())]
        return sum(tensor.nbytes for tensor in tensors)

    def predictions(self) -> list[torch.Tensor]:
        """The guided prediction of each step, (B, C, T, H, W) in float32."""
        return [self._guided(moment.predictions, moment) for moment in self.moments]

    def cached(self) -> list[torch.Tensor]:
        """The prediction of the step before each step but the first, its branches combined by the step's own scale, as
        a cache combines them."""
        return [self._guided(before.predictions, now) for before, now in itertools.pairwise(self.moments)]

    def trials(self, size: Size) -> list[torch.Tensor]:
        """The guided trial of each step at this size, (B, C, T, H, W) in float32."""
        return [self._guided(moment.trials[size], moment) for moment in self.moments]

    def _guided(self, branches: Mapping[str, torch.Tensor], moment: Moment) -> torch.Tensor:
        return self.anatomy.as_video(self.anatomy.guided(branches, moment.guidance)).float()


@contextlib.contextmanager
def stepping(pipe: Any, after_step: AfterStep | None) -> Iterator[dict[str, Any]]:
    """Inside it, a call of the pipeline with the arguments it gives continues each step with what `after_step` returns.

    A pipeline without a callback (HunyuanVideo 1.5's) has its scheduler's step wrapped; the others do not, as some copy
    their scheduler (LTX-2's).
    """
    if after_step is None:
        yield {}
        return
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        yield {"callback_on_step_end": lambda _, index, __, of: {"latents": after_step(index, of["latents"])}}
        return
    scheduler, indices = pipe.scheduler, itertools.count()
    original = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        latent, *others = original(*args, **kwargs)
        return after_step(next(indices), latent), *others

    scheduler.step = step
    try:
        yield {}
    finally:
        del scheduler.step


@dataclass(frozen=True)
class Caller:
    """Repeats the pipeline call of one sample: same prompt, same noise, another method."""

    pipe: Any
    run: Run
    seed: int
    embeds: dict[str, Any]

    @classmethod
    def of(cls, run: Run, prompt: str, seed: int) -> Caller:
        """A caller with the pipeline loaded and the prompt embedded, once for all calls."""
        pipe = backbones.load(run.recipe, run.device, run.offload)
        with backbones.placed(pipe, run.offload, run.device):
            embeds = backbones.prompt_arguments(pipe, run, prompt, encoded=True)
        return cls(pipe, run, seed, embeds)

    def call(self, method: Method, after_step: AfterStep | None = None) -> torch.Tensor:
        """Call the pipeline with a method; returns the final latent, on the CPU."""

        recipe = replace(self.run.recipe, method=method)
        with cached(self.pipe, self.run, recipe), stepping(self.pipe, after_step) as callback:
            return denoise(self.pipe, recipe, self.seed, **self.embeds, **callback).cpu()

    def watch(self, sizes: tuple[Size, ...] = (), blocks: bool = False) -> Seen:
        """Call with the run's own method and record everything, with extra trials at these sizes, outside the trace."""
        seen = Seen(anatomy_of(self.pipe.transformer))

        def keep(index: int, latents: torch.Tensor) -> torch.Tensor:
            seen.latents.append(latents.to("cpu", copy=True))
            return latents

        seen.latents[-1] = self.call(watched(self.run.recipe.method, seen, sizes, blocks), keep)
        return seen

    def trials(self, seen: Seen, sizes: tuple[Size, ...], mode: str) -> Seen:
        """Repeat a watched call by its predictions, with trials at these sizes of latents resized by `mode`."""
        tried = Seen(seen.anatomy)
        answered = Answered(answer=lambda step, branch: seen.moments[step].predictions[branch])
        self.call(watched(answered, tried, sizes, blocks=False, mode=mode))
        return tried

    def again(self, answer: Answer, after_step: AfterStep | None = None) -> torch.Tensor:
        """Call with `answer`'s predictions in place of the transformer's, wherever it gives one."""
        return self.call(Answered(answer=answer), after_step)


def watched(method: Method, seen: Seen, sizes: tuple[Size, ...], blocks: bool, mode: str = MODE) -> Method:
    """A copy of `method` that behaves the same and records each call in `seen`."""

    class Watched(type(method)):  # type: ignore[misc]  # a subclass, so that it is allowed whatever the method is
        EXPECTS_REUSE: ClassVar[bool] = False  # a missing reuse was reported when the sample was generated

        def rule(self) -> Rule:
            return _Watch(super().rule(), seen, sizes, blocks, mode)

        def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
            paths = [block.path for block in anatomy.blocks(transformer)] if blocks else []
            return list(dict.fromkeys([*super().modules(anatomy, transformer), *paths]))

    return Watched(**{item.name: getattr(method, item.name) for item in fields(method)})


class _Watch(Rule):
    def __init__(self, rule: Rule, seen: Seen, sizes: tuple[Size, ...], blocks: bool, mode: str) -> None:
        self.rule, self.seen, self.sizes, self.blocks, self.mode = rule, seen, sizes, blocks, mode

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if denoiser.step.index == len(self.seen.moments):
            self.seen.moments.append(Moment(sigma=denoiser.step.sigma))
        moment, name, anatomy = self.seen.moments[denoiser.step.index], denoiser.branch.name, denoiser.anatomy
        self.seen.anatomy = anatomy  # this call's: LTX-2's knows how much of a prediction is sound
        prediction = self.rule.predict(denoiser)
        moment.predictions[name] = prediction.to("cpu", copy=True)
        if anatomy.BATCHED or len(moment.predictions) > 1:
            moment.guidance = denoiser.guidance_scale()
        for size in self.sizes:
            inputs = anatomy.trial_inputs(denoiser.branch.inputs, size, self.mode)
            moment.trials.setdefault(size, {})[name] = denoiser.compute(inputs).cpu()
        return prediction

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        output = self.rule.visit(denoiser, call)
        if self.blocks and (block := denoiser.block_of(call)) is not None:
            hidden = hidden_of(block, call).float()
            added, own = rms(video_of(block, output).float() - hidden), rms(hidden)  # equation (5)
            by_path = self.seen.moments[denoiser.step.index].blocks.setdefault(denoiser.branch.name, {})
            by_path[block.path] = added, added / own
        return output

    def forget_branch(self, name: str) -> None:
        self.rule.forget_branch(name)

    def change_transformer(self) -> None:
        self.rule.change_transformer()


@dataclass(kw_only=True)
class Answered(Method):
    """Uses the predictions that `answer` gives, and computes the others."""

    answer: Answer

    NAME: ClassVar[str] = "answered"
    EXPECTS_REUSE: ClassVar[bool] = False

    def rule(self) -> Rule:
        return _Answer(self.answer)


class _Answer(Rule):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        prediction = self.answer(denoiser.step.index, denoiser.branch.name)
        if prediction is None:
            return denoiser.run()
        denoiser.reused = True
        like = denoiser.branch.inputs["hidden_states"]
        return prediction.to(like.device)


def rms(values: torch.Tensor) -> float:
    """Root mean square: the L2 norm over the square root of the number of elements."""
    return float(torch.linalg.vector_norm(values.float())) / values.numel() ** 0.5


def compact(values: Any) -> Any:
    """A number, or nested lists of numbers, to five significant digits; None stays, and replaces non-finite numbers."""
    if isinstance(values, (list, tuple)):
        return [compact(value) for value in values]
    if values is None or not math.isfinite(values):
        return None
    return float(f"{values:.5g}")
