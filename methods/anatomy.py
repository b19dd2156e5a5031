"""Everything that differs between transformer families: latent layout, patch grid, CFG branches, trial arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .frequency import downsample

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Anatomy:
    """How to read and shrink one family's transformer call. Subclasses override what differs."""

    family: str
    patch: Size

    # Cache-context names under which pipelines call the unconditional branch.
    UNCONDITIONAL = ("uncond", "pred_uncond")
    # Arguments that change from step to step; all others belong to the branch.
    PER_STEP = ("hidden_states", "timestep")

    def bind(self, module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A forward call's arguments by name, however they were passed."""
        signature = inspect.signature(type(module).forward)
        return dict(list(signature.bind(module, *args, **kwargs).arguments.items())[1:])

    def latent_size(self, inputs: Mapping[str, Any]) -> Size:
        """(T, H, W) of the latent in a call's arguments."""
        frames, height, width = inputs["hidden_states"].shape[-3:]
        return frames, height, width

    def trial_size(self, size: Size, factor: Size) -> Size:
        """The legal latent size nearest below `size / factor`: time rounded up, height and width to whole patches.

        Raises ValueError if a factor leaves less than one patch.
        """
        smaller = []
        for axis, n, by, patch in zip("THW", size, factor, self.patch, strict=True):
            if by < 1 or n // (by * patch) < 1:
                raise ValueError(
                    f"downsample factor {tuple(factor)} is too large for a latent of {tuple(size)} (T, H, W): "
                    f"axis {axis} allows 1 to {n // patch}"
                )
            smaller.append(-(-n // by) if patch == 1 else n // (by * patch) * patch)
        frames, height, width = smaller
        return frames, height, width

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        """The same call on a latent resized to `size`."""
        return {**inputs, "hidden_states": downsample(inputs["hidden_states"], size, mode)}

    def at_step(self, remembered: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
        """A branch's call as it will be at this step, from its last call and another branch's current one."""
        return {**remembered, **{name: current[name] for name in self.PER_STEP if name in current}}

    def guided(self, predictions: Mapping[str, torch.Tensor], scale: float) -> torch.Tensor:
        """Classifier-free guidance over the branches of one step; the only branch if there is one."""
        unconditional = next((predictions[name] for name in self.UNCONDITIONAL if name in predictions), None)
        conditional = next(value for name, value in predictions.items() if name not in self.UNCONDITIONAL)
        if unconditional is None:
            return conditional
        return unconditional + scale * (conditional - unconditional)


class WanAnatomy(Anatomy):
    """Wan2.1 and 2.2: two calls a step, conditional first; positions follow from the latent's shape."""

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        trial = super().trial_inputs(inputs, size, mode)
        timestep = inputs["timestep"]
        if timestep.ndim == 2:  # Wan2.2-TI2V: one timestep per token
            full, small = (
                tuple(n // p for n, p in zip(grid, self.patch, strict=True))
                for grid in (self.latent_size(inputs), size)
            )
            grid = timestep.view(-1, 1, *full).float()
            trial["timestep"] = F.interpolate(grid, small, mode="nearest-exact").flatten(1).to(timestep.dtype)
        return trial


FAMILIES: dict[str, type[Anatomy]] = {"WanTransformer3DModel": WanAnatomy}


def anatomy_of(transformer: Any) -> Anatomy:
    """The anatomy of a diffusers transformer. Raises TypeError for a family that is not supported."""
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise TypeError(f"no caching method knows {name}; supported transformers: {', '.join(FAMILIES)}")
    frames, height, width = transformer.config.patch_size
    return FAMILIES[name](family=name.removesuffix("Transformer3DModel").lower(), patch=(frames, height, width))
