"""What a caching method is: a config (plain data) that makes one `Rule` for each pipeline call.

Three kinds. A *control* changes nothing but the schedule (`Method`). A *step-wise* method decides once a step whether
the transformer computes at all, and a reuse strategy (reuse.py) says what is returned when it does not
(`StepwiseCache`). A *module-wise* method computes every step and answers some modules' calls from its memory (`Cache`,
`Rule.visit`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from .anatomy import Anatomy, Size
from .denoiser import Denoiser, ModuleCall
from .kept import Reuse
from .kept_tensors import STORAGES, KeptTensors, kept_in, tensors_in
from .numbers import check_plain
from .reuse import STRATEGIES, strategy
from .trace import Step


class Rule:
    """One method's decisions and memory in one pipeline call. Dropped at the end of the call."""

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        """The prediction for the current guidance branch at the current step, computed or not."""
        return denoiser.run()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        """Answer the call of a module that the method asked for: run it with `call.run()`, or do not."""
        return call.run()

    def forget_branch(self, name: str) -> None:
        """Drop what is kept of a guidance branch that is no longer called: it would be out of date if it came back."""

    def change_transformer(self) -> None:
        """Drop what is kept of a transformer's modules: another one takes over in mid-call (Wan2.2).

        Counts, sums, thresholds and whole predictions carry over: they belong to the same denoising.
        """

    def held(self) -> Iterator[torch.Tensor]:
        """The tensors kept on the device from one step for later ones, each once: all that attributes refer to."""
        return tensors_in(self, besides=(Method, Denoiser))

    def held_inside(self) -> list[KeptTensors]:
        """Those of them that come from inside the transformer, on the device or the CPU (`Cache.kept`): where processes
        share a video, each has those of its own tokens."""
        return kept_in(self, besides=(Method, Denoiser))


@dataclass(frozen=True)
class Tradeoff:
    """The field by which a method trades quality for speed, and the range in which it may be tuned.

    Whole numbers alone, if the limits are whole; `high` None is the number of steps. more_is_faster: whether larger
    values leave more to be reused.
    """

    field: str
    low: float
    high: float | None
    more_is_faster: bool = True

    @property
    def whole(self) -> bool:
        """Whether the field takes whole numbers alone."""
        return isinstance(self.low, int)

    def limits(self, num_steps: int) -> tuple[float, float]:
        """The smallest and the largest value worth trying in a call of so many steps."""
        return self.low, num_steps if self.high is None else self.high


APPROACHES = ("threshold", "schedule", "blocks", "attention")


@dataclass(kw_only=True)
class Method(ABC):
    """Base of every method's config: plain data, checked when made, shared by any number of calls."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1  # raised when the same fields give other pixels than before
    EXPECTS_REUSE: ClassVar[bool] = True  # a call without any reuse deserves a warning
    TRADEOFF: ClassVar[Tradeoff | None] = None  # None: no single field tunes it
    # One of APPROACHES, by which figures group methods: whole steps are left out by a threshold on what a video does,
    # or on a schedule fixed before it; or parts of a step are, blocks, or attention and guidance branches.
    APPROACH: ClassVar[str] = "schedule"
    # For the contract tests, which every method gets for free: settings under which it never reuses anything (None:
    # there are none), and under which it does within a dozen steps on random weights.
    INERT: ClassVar[dict[str, Any] | None] = None
    EAGER: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        """Check that every number is finite. A method's own checks come after `super().__post_init__()`."""
        for field in fields(self):
            check_plain(field.name, getattr(self, field.name))

    def rule(self) -> Rule:
        """A fresh rule for one pipeline call."""
        return Rule()

    def for_backbone(self, anatomy: Anatomy) -> Method:
        """This config with everything filled in that depends on the backbone (coefficients, say).

        Done before a recipe gets its id, since the filled-in values change pixels. Raises ValueError if the method does
        not work on this family, NotCalibratedError if it could after a calibration.
        """
        return self

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        """Paths of the modules whose calls the rule wants to visit."""
        return []

    def patch(self, pipe: Any) -> Callable[[], None]:
        """Change the pipeline beyond the transformer's hooks; returns the undo."""
        return lambda: None

    @property
    def needs_noise_level(self) -> bool:
        """Whether the method uses `step.sigma`; a pipeline that does not give it is refused."""
        return False

    @property
    def shares_videos(self) -> bool:
        """Whether the method works where several processes share a video, each with a part of the tokens: it decides
        by a schedule, once a step (`StepwiseCache`), or by numbers from `denoiser.processes`."""
        return False

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        """Whether it works where each guidance branch is computed by processes of its own. Those see no module of the
        other branch, unless one call holds both."""
        return self.shares_videos and anatomy.BATCHED is not None

    @property
    def trial_factor(self) -> tuple[int, int, int] | None:
        """How far a trial's latent is shrunk in time, height and width; None: no trials, or sizes of their own."""
        return None

    @property
    def always_computed(self) -> int:
        """Steps at the start that are computed whatever the data, besides the protected ones."""
        return 0

    def blocks_run(self, blocks: Mapping[str, int]) -> dict[str, int] | None:
        """How many of the `blocks` (path pattern -> number) a reused step still runs between embeddings and head; None:
        it runs nothing at all."""
        return None

    def steps_saved_inside(self, computed: float, blocks: int) -> float:
        """How many steps' worth of blocks the `computed` steps take from memory, where a fixed schedule says so."""
        return 0.0

    def arithmetic(self, anatomy: Anatomy, tokens: torch.Tensor, latent_size: Size) -> None:  # noqa: B027
        """Do once what the method computes on features (B, tokens, width), if anything, besides the transformer: the
        plan of memory runs it on tensors without data and counts the bytes."""

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:  # noqa: B027
        """Raise ValueError if the method cannot work on latents of (T, H, W) or in `num_steps` (None: not known)."""

    def check_call(self, anatomy: Anatomy, inputs: Mapping[str, Any], pipe: Any) -> None:  # noqa: B027
        """Raise ValueError, at the first step of a call, if the method cannot work in it or was undone in `pipe`; None
        where the call is only planned."""


@dataclass(kw_only=True)
class Cache(Method):
    """A method that reuses something, with what is common to all: steps that are always computed, and storage.

    protect_first: steps computed in full at the start; below 1, a share of all steps. Each method's default is what
        it was published with; set it equal on all methods to compare them under equal protection.
    protect_last: steps computed in full at the end.
    kept: how it stores what blocks or their parts computed: "exact", rounded to "bfloat16" or "float8" (e4m3, a scale
        for each token), or unchanged on the "cpu" (kept_tensors.py). Whole predictions are small, and always exact.

    Protection counts over the whole pipeline call, also where two transformers take turns.
    """

    protect_first: float = 1
    protect_last: int = 0
    kept: str = "exact"

    APPROACH: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        # None in methods whose default depends on the backbone, until it is known
        first, last = self.protect_first or 0, self.protect_last or 0
        if first < 0 or last < 0:
            raise ValueError("protect_first and protect_last must be at least 0")
        if first >= 1 and first % 1:
            raise ValueError(f"protect_first must be a whole number or a share below 1, not {self.protect_first}")
        if self.kept not in STORAGES:
            raise ValueError(f"kept must be one of {', '.join(STORAGES)}, not {self.kept!r}")

    @property
    def keeps_blocks(self) -> bool:
        """Whether it keeps what blocks or their parts computed, by `KeptTensors`."""
        return True

    @property
    def answers_with_predictions(self) -> bool:
        """Whether a reused step is answered with whole predictions alone, which mean the same whichever transformer
        made them. If not, the first step of a transformer that takes over in mid-call is computed."""
        return False

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        if num_steps is None and (self.protect_last or 0 < (self.protect_first or 0) < 1):
            raise ValueError(
                f"{self.NAME}: this pipeline does not say how many steps there will be, so the last ones cannot be"
                " protected; set protect_last=0 and protect_first to a number of steps"
            )
        if self.kept != "exact" and not self.keeps_blocks:
            raise ValueError(f"{self.NAME}: kept={self.kept} is for what blocks computed, and these settings keep none")

    def first_steps(self, num_steps: int | None) -> int:
        """How many of `num_steps` steps are protected at the start."""
        first = self.protect_first or 0
        return int(first if first >= 1 else first * (num_steps or 0))

    def protects(self, denoiser: Denoiser) -> bool:
        """Whether the current step must be computed."""
        last = self.protect_last and denoiser.step.index >= (denoiser.num_steps or 0) - self.protect_last
        return (
            denoiser.index < self.first_steps(denoiser.num_steps)
            or bool(last)
            or denoiser.branch_returns
            or (denoiser.switched and not self.answers_with_predictions)
        )


@dataclass(kw_only=True)
class StepwiseCache(Cache):
    """A method that decides step by step; what a reused step returns is a separate choice (reuse.py).

    reuse: "prediction" (the last computed one), "residual" (prediction minus input), "taylorseer" (Taylor expansion in
        steps, of `taylor_order`), "extrapolate" (a line in sigma through the last two, damped), "stack" (the block
        stack's residual: embeddings and head run again), or what another method forecasts with (forecast.py):
        "chebyshev" (Spectrum), "hermite" (HiCache), "second_difference" (D2Cache), "mean_velocity" (MeanCache).
    damping: d of "extrapolate": 0 equals "prediction", 1 is the undamped line.
    taylor_order: order of "taylorseer" and "hermite".
    blend: share of the fit in "chebyshev", official w; the rest is the line in steps.
    """

    reuse: str = "prediction"
    damping: float = 1.0
    taylor_order: int = 1
    blend: float = 1.0

    APPROACH: ClassVar[str] = "threshold"
    DECIDES_PER_BRANCH: ClassVar[bool] = False  # each guidance branch for itself, as some methods were published

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reuse not in STRATEGIES:
            raise ValueError(f"reuse must be one of {', '.join(STRATEGIES)}, not {self.reuse!r}")
        if self.taylor_order < 0:
            raise ValueError(f"taylor_order must be at least 0, not {self.taylor_order}")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must be from 0 to 1, not {self.blend}")

    @property
    def needs_noise_level(self) -> bool:
        return STRATEGIES[self.reuse].NEEDS_NOISE_LEVEL

    @property
    def reuses_stack(self) -> bool:
        """Whether a reused step replaces only the blocks, while embeddings and head run."""
        return STRATEGIES[self.reuse].NEEDS_BLOCKS

    @property
    def keeps_blocks(self) -> bool:
        return self.reuses_stack

    @property
    def answers_with_predictions(self) -> bool:
        return not self.reuses_stack

    def blocks_run(self, blocks: Mapping[str, int]) -> dict[str, int] | None:
        return {} if self.reuses_stack else None

    @property
    def shares_videos(self) -> bool:
        return True  # the first process decides for all (`StepwiseRule.decide_together`)

    def shares_guidance(self, anatomy: Anatomy) -> bool:
        return self.shares_videos and (anatomy.BATCHED is not None or not self.DECIDES_PER_BRANCH)

    @abstractmethod
    def rule(self) -> StepwiseRule:
        """A fresh rule for one pipeline call."""

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        return [block.path for block in anatomy.blocks(transformer)] if self.reuses_stack else []


class StepwiseRule(Rule):
    """Decides whether to compute, once a step or once a branch, and answers with the config's reuse strategy."""

    def __init__(self, config: StepwiseCache) -> None:
        self.config = config
        self.reuse: Reuse = strategy(
            config.reuse, damping=config.damping, order=config.taylor_order, blend=config.blend, kept=config.kept
        )
        self._decided: Step | None = None
        self._compute = True

    def decide(self, denoiser: Denoiser, step: Step) -> bool:
        """Whether to compute; fills in the step's row. Must be True where `denoiser.must_compute`."""
        raise NotImplementedError

    def observe(self, denoiser: Denoiser, prediction: torch.Tensor) -> None:
        """Measure what the current branch has computed."""

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if self._decided is not denoiser.step or self.config.DECIDES_PER_BRANCH:
            self._decided, self._compute = denoiser.step, True  # stays so if the rule raises
            self._compute = self.decide_together(denoiser, denoiser.step)
        if not self._compute and self.reuse.ready(denoiser):
            denoiser.reused = True
            return self.reuse.predict(denoiser)
        prediction = denoiser.run()
        self.reuse.store(denoiser, prediction)
        self.observe(denoiser, prediction)
        return prediction

    def decide_together(self, denoiser: Denoiser, step: Step) -> bool:
        """The first process's decision and numbers: all have the same, but nothing promises the last bit."""
        own = self.decide(denoiser, step), step.indicator, step.accumulated, step.threshold
        compute, step.indicator, step.accumulated, step.threshold = denoiser.processes.agree(own)
        return compute

    def forget_branch(self, name: str) -> None:
        self.reuse.forget_branch(name)

    def change_transformer(self) -> None:
        self.reuse.change_transformer()

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        return self.reuse.visit(denoiser, call)
