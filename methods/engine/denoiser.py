"""What a rule may read of a running pipeline call, and may do: run the transformer, a part of it, or a trial."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .anatomy import Anatomy, Block, Paths, Size
from .caller import transformers_of
from .clock import Clock
from .processes import ALONE, Processes
from .trace import Call, Step


@dataclass(slots=True)
class Branch:
    """One guidance branch of one call: its latest arguments, those of the step before, the prediction last used."""

    name: str
    inputs: dict[str, Any]
    last_inputs: dict[str, Any] | None = None
    prediction: torch.Tensor | None = None


@dataclass
class Denoiser:
    """A transformer in the middle of a pipeline call.

    index: the current step's, counted from 0 in this call; `step.index` is its place in the pipeline's schedule, the
        same unless the pipeline says otherwise.
    must_compute: the step is protected (`Cache.protects`).
    switched: at this step another transformer has taken over (Wan2.2).
    branch_returns: at this step the unconditional branch is called, and at the last one it was not.
    reused: set by the rule when it answers for the transformer from the cache.
    processes: those that share the video; what is measured on tokens, of which each holds a part, goes through them.
    """

    anatomy: Anatomy
    transformer: Any
    forward: Callable[..., Any]
    clock: Clock
    num_steps: int | None
    index: int = -1
    must_compute: bool = True
    switched: bool = False
    branch_returns: bool = False
    reused: bool = False
    branches: dict[str, Branch] = field(default_factory=dict)
    branch: Branch = field(default_factory=lambda: Branch("", {}))
    step: Step = field(default_factory=lambda: Step(-1))
    call: Call | None = None  # the running one, if the rule visits its modules
    blocks: list[Block] = field(default_factory=list)
    processes: Processes = ALONE
    both_known: bool = False  # both guidance branches at the step's start
    ahead: dict[str, tuple[torch.Tensor, Call]] = field(default_factory=dict)  # branch -> what its `run` will return

    def __post_init__(self) -> None:
        self.blocks = self.anatomy.blocks(self.transformer)
        self.processes = Processes.of(self.transformer, self.anatomy.BATCHED is not None)

    def begin_step(self, inputs: dict[str, Any]) -> None:
        """Move every branch on to the next step, whose first call has these arguments."""
        self.switched, self.ahead = False, {}
        self.both_known = len(self.branches) == 2
        for branch in self.branches.values():
            branch.last_inputs = branch.inputs
            branch.inputs = self.anatomy.at_step(branch.inputs, inputs)

    def change_transformer(self, anatomy: Anatomy, transformer: Any, forward: Callable[..., Any]) -> None:
        """Another transformer of the pipeline takes over."""
        self.anatomy, self.transformer, self.forward, self.switched = anatomy, transformer, forward, True
        self.blocks = anatomy.blocks(transformer)
        self.processes = Processes.of(transformer, anatomy.BATCHED is not None)

    def guidance_scale(self) -> float:
        """The scale that the pipeline combines this step's branches with. Raises ValueError where it is not known."""
        if self.anatomy.BATCHED is not None or self.anatomy.RESCALES:
            return self.clock.guidance_now()
        second = transformers_of(self.clock.pipe).get("transformer_2")  # itself, if the pipeline's is compiled
        return self.clock.guidance_scale(second=self.transformer is second)

    @property
    def latent_size(self) -> Size:
        """(T, H, W) of the full-size latent."""
        return self.anatomy.latent_size(next(iter(self.branches.values())).inputs)

    def block_of(self, call: ModuleCall) -> Block | None:
        """The block that the called module is; None for a part of a block."""
        return next((block for block in self.blocks if block.path == call.path), None)

    def timestep(self) -> int:
        """This step's timestep, see `Anatomy.timestep`; read from the device only where the host does not know it."""
        known = self._known_timestep(self.step.index)
        return self.anatomy.timestep(self.transformer, self.branch.inputs) if known is None else known

    def next_timestep(self) -> int | None:
        """The timestep of the next step; None if it is not known."""
        return self._known_timestep(self.step.index + 1)

    def _known_timestep(self, index: int) -> int | None:
        inputs, known = self.branch.inputs, self.clock.timestep(index)
        if known is None:
            return None
        known_inputs = {**inputs, "timestep": torch.tensor([known], dtype=inputs["timestep"].dtype)}
        return self.anatomy.timestep(self.transformer, known_inputs)

    @property
    def time(self) -> float:
        """This step's timestep from 0 to 1, as a share of the training steps; its noise level if it is not known."""
        known = self.clock.time(self.step.index)
        if known is None:
            known = self.step.sigma
        assert known is not None
        return known

    @property
    def place(self) -> tuple[int, int | None]:
        """Where in its whole schedule the step is, and how long that is; None if not known.

        For what belongs to a noise level but is counted in steps. A call with a strength below 1 begins part way down:
        its `step.index` and `num_steps` count from there.
        """
        before = self.clock.passed_over
        return before + self.step.index, None if self.num_steps is None else before + self.num_steps

    @property
    def levels(self) -> list[float] | None:
        """The noise level of each step of this call; None if it is not known."""
        return self.clock.levels()

    def next_sigma(self) -> float:
        """The noise level that this step leads to; 0 after the last, or where it is not known."""
        levels, following = self.levels, self.step.index + 1
        return levels[following] if levels is not None and following < len(levels) else 0.0

    @property
    def is_last_step(self) -> bool:
        """Whether no step follows, as far as is known."""
        return self.num_steps is not None and self.step.index + 1 >= self.num_steps

    def run(self, inputs: dict[str, Any] | None = None) -> torch.Tensor:
        """The prediction for the current branch (or for changed `inputs`), its modules visited and counted."""
        inputs = self.branch.inputs if inputs is None else inputs
        if self.processes.pair is not None and self.anatomy.BATCHED is not None and self.batched:
            half = self.anatomy.part_of_batch(inputs, first=self.processes.side == 0)
            prediction, call = self._run(half, self.anatomy.batch(inputs))
            prediction = torch.cat(self.processes.exchange(prediction, None)[0])
        elif self.processes.pair is not None and self.both_known:
            prediction, call = self._run_as_pair()
        else:
            prediction, call = self._run(inputs, self.anatomy.batch(inputs))
        self.step.calls.append(call)
        return prediction

    def _run(self, inputs: dict[str, Any], batch: int) -> tuple[torch.Tensor, Call]:
        self.call = call = Call(self.anatomy.latent_size(inputs), batch)
        try:
            return self.compute(inputs), call
        finally:
            self.call = None

    def compute(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The prediction for a call's inputs. Outside of `run` no module is visited, and nothing is counted."""
        return self.anatomy.prediction(self.forward(**self.anatomy.sent(inputs)), inputs)

    def _run_as_pair(self) -> tuple[torch.Tensor, Call]:
        """The current branch's, computed by one of the pair while the other computes the other branch."""
        if self.branch.name not in self.ahead:
            asked, names = self.branch, list(self.branches)
            self.branch = self.branches[names[self.processes.side]]
            try:
                own = self._run(self.branch.inputs, self.anatomy.batch(self.branch.inputs))
            finally:
                self.branch = asked
            self.ahead = dict(zip(names, zip(*self.processes.exchange(*own), strict=True), strict=True))
        return self.ahead.pop(self.branch.name)

    def look(self, view: Callable[..., tuple[torch.Tensor, Paths]], **options: Any) -> torch.Tensor:
        """What a method of the anatomy computes for the current branch (an embedding, say), its modules counted."""
        feature, paths = view(self.transformer, self.branch.inputs, **options)
        inputs, anatomy = self.branch.inputs, self.anatomy
        only: dict[str, float] = paths if isinstance(paths, dict) else dict.fromkeys(paths, 1)
        self.step.calls.append(Call(anatomy.latent_size(inputs), anatomy.batch(inputs), only=only))
        return feature

    def trial(self, size: Size, mode: str, guidance: str = "guided", previous: bool = False) -> torch.Tensor:
        """The prediction (B, C, *size) for this step's latent resized to `size`; for the step before if `previous`.

        `guidance` is "guided" (all branches, combined as the pipeline will) or "cond" (the conditional branch alone).
        No module is visited, nothing is cached, and only the trial itself is counted.
        """
        trials = {}
        for name, branch in self.branches.items():
            inputs = branch.last_inputs if previous else branch.inputs
            if inputs is None or (guidance == "cond" and self.anatomy.is_unconditional(name)):
                continue
            if guidance == "cond" and self.batched:
                inputs = self.anatomy.part_of_batch(inputs, first=self.anatomy.BATCHED == "cond_first")
            trials[name] = self.anatomy.trial_inputs(inputs, size, mode)
        predictions = dict(zip(trials, self._run_together(list(trials.values())), strict=True))
        return self._guide(predictions, guidance)

    def _run_together(self, trials: list[dict[str, Any]]) -> list[torch.Tensor]:
        """The predictions of several trials, by one call where their arguments can be joined: a small call's time is
        mostly its fixed cost. Each is counted as a call of its own, for its MACs are those."""
        for inputs in trials:
            self.step.calls.append(Call(self.anatomy.latent_size(inputs), self.anatomy.batch(inputs), trial=True))
        joined = self.anatomy.joined(trials) if len(trials) > 1 else None
        if joined is None:
            return [self.compute(inputs) for inputs in trials]
        return list(self.compute(joined).split([self.anatomy.batch(inputs) for inputs in trials]))

    def cached(self, size: Size, mode: str, guidance: str = "guided") -> torch.Tensor:
        """The prediction last used (B, C, *size), resized to `size`."""
        predictions = {
            name: self.anatomy.resize(branch.prediction, size, mode, self.anatomy.conditioned(branch.inputs))
            for name, branch in self.branches.items()
            if branch.prediction is not None and (guidance == "guided" or not self.anatomy.is_unconditional(name))
        }
        if guidance == "cond" and self.batched:
            half = 0 if self.anatomy.BATCHED == "cond_first" else 1
            predictions = {name: prediction.chunk(2)[half] for name, prediction in predictions.items()}
        return self._guide(predictions, guidance)

    @functools.cached_property
    def batched(self) -> bool:
        """Whether a call holds both guidance branches: fixed at the start, even if the scale changes."""
        return self.anatomy.BATCHED is not None and (self.clock.guided or self.clock.guidance_scale() > 1)

    def _guide(self, predictions: dict[str, torch.Tensor], guidance: str) -> torch.Tensor:
        if guidance == "cond" or (len(predictions) == 1 and not self.batched):
            (prediction,) = predictions.values()
        else:
            prediction = self.anatomy.guided(predictions, self.guidance_scale(), self.batched)
        return self.anatomy.as_video(prediction)


@dataclass
class ModuleCall:
    """One call of a module that the method asked to visit."""

    path: str
    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ran: bool = False

    def run(self) -> Any:
        """Run the module and return its output."""
        self.ran = True
        return self.original(*self.args, **self.kwargs)

    @property
    def pattern(self) -> str:
        """The path with indices as "*": modules of one pattern are alike and cost the same."""
        return re.sub(r"\.\d+(?=\.|$)", ".*", self.path)
