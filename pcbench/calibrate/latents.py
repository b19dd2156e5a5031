"""Where a pipeline call ends under a given schedule: its final latent, before the VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from methods import ReplayConfig
from methods.engine.denoiser import Denoiser, ModuleCall
from methods.engine.method import Rule, StepwiseRule

from ..observe.watch import Caller, Moment


def final_latent(
    caller: Caller,
    actions: str,
    reuse: str = "prediction",
    known: Sequence[Moment] = (),
    along: str = "",
    keep: list[Moment] | None = None,
    **options: Any,
) -> torch.Tensor:
    """The final latent of the caller's sample, in the pipeline's own layout, on the CPU.

    actions: a letter a step, "F" computed and "r" reused. reuse, options: what a reused step answers, as the fields of
    `StepwiseCache` (`damping`, `taylor_order`). known: the moments of another call of the same sample with the schedule
    `along`; of the uncached call (`caller.watch().moments`) if that is empty. Up to the first step at which they differ
    two schedules do the same; these steps take the recorded predictions, which gives the same latent bit for bit and
    costs next to nothing (reuse="stack" does so before its first reused step alone, and computes the last step before
    it, whose blocks it has to see). keep: a list to which the moments of this call are added, as `known` of the next.
    Raises ValueError for what is no schedule, or of another length.
    """
    method = ReplayConfig(actions=actions, reuse=reuse, **options)
    if not known and keep is None:
        return caller.call(method)
    shared = in_common(actions, along)
    if method.reuses_stack:
        shared = min(shared, (actions + "r").index("r")) - 1
    beginning = list(known[: max(shared, 0)])

    class Resumed(ReplayConfig):
        EXPECTS_REUSE: ClassVar[bool] = False

        def rule(self) -> Rule:  # type: ignore[override]
            return _Resumed(super().rule(), actions, beginning, keep)

    return caller.call(Resumed(**vars(method)))


def in_common(actions: str, along: str) -> int:
    """The number of steps at which two schedules do the same, from the first on; `along` empty: all computed."""
    pairs = zip(actions, along or "F" * len(actions), strict=False)
    return next((step for step, (a, b) in enumerate(pairs) if a != b), len(actions))


class _Resumed(Rule):
    """A step-wise rule that is handed what it would compute at the first steps."""

    def __init__(self, rule: StepwiseRule, actions: str, beginning: list[Moment], keep: list[Moment] | None) -> None:
        self.rule, self.actions, self.beginning, self.keep = rule, actions, beginning, keep

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        prediction = self._predict(denoiser)
        if self.keep is not None:
            if denoiser.step.index == len(self.keep):
                self.keep.append(Moment())
            self.keep[-1].predictions[denoiser.branch.name] = prediction.to("cpu", copy=True)
        return prediction

    def _predict(self, denoiser: Denoiser) -> torch.Tensor:
        index, branch = denoiser.step.index, denoiser.branch
        if index >= len(self.beginning) or self.actions[index] == "r":
            return self.rule.predict(denoiser)
        denoiser.reused = True
        prediction = self.beginning[index].predictions[branch.name].to(branch.inputs["hidden_states"].device)
        self.rule.reuse.store(denoiser, prediction)
        return prediction

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        return self.rule.visit(denoiser, call)

    def forget_branch(self, name: str) -> None:
        self.rule.forget_branch(name)

    def change_transformer(self) -> None:
        self.rule.change_transformer()
