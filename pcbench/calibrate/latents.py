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
    caller: Caller, actions: str, reuse: str = "prediction", known: Sequence[Moment] = (), **options: Any
) -> torch.Tensor:
    """The final latent of the caller's sample, in the pipeline's own layout, on the CPU.

    actions: a letter a step, "F" computed and "r" reused. reuse, options: what a reused step answers, as the fields of
    `StepwiseCache` (`damping`, `taylor_order`). known: the moments of the same sample's uncached call
    (`caller.watch().moments`). Up to its first reused step every schedule does what the uncached call does; these steps
    take the recorded predictions, which gives the same latent bit for bit and costs next to nothing (reuse="stack"
    computes the last of them, whose blocks it has to see). Raises ValueError for what is no schedule, or of another
    length.
    """
    method = ReplayConfig(actions=actions, reuse=reuse, **options)
    if not known:
        return caller.call(method)
    beginning = list(known[: (actions + "r").index("r") - method.reuses_stack])

    class Resumed(ReplayConfig):
        EXPECTS_REUSE: ClassVar[bool] = False

        def rule(self) -> Rule:  # type: ignore[override]
            return _Resumed(super().rule(), beginning)

    return caller.call(Resumed(**vars(method)))


class _Resumed(Rule):
    """A step-wise rule that is handed what it would compute at the first steps."""

    def __init__(self, rule: StepwiseRule, beginning: list[Moment]) -> None:
        self.rule, self.beginning = rule, beginning

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if denoiser.step.index >= len(self.beginning):
            return self.rule.predict(denoiser)
        branch, denoiser.reused = denoiser.branch, True
        prediction = self.beginning[denoiser.step.index].predictions[branch.name]
        prediction = prediction.to(branch.inputs["hidden_states"].device)
        self.rule.reuse.store(denoiser, prediction)
        return prediction

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        return self.rule.visit(denoiser, call)

    def forget_branch(self, name: str) -> None:
        self.rule.forget_branch(name)

    def change_transformer(self) -> None:
        self.rule.change_transformer()
