"""The base of all families: where they may differ, with what most of them do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from ...frequency import downsample

Size = tuple[int, int, int]
# Modules that made something, by path; with each the share of its work in a full call that it did, where not all of it.
Paths = list[str] | dict[str, float]


@dataclass(frozen=True)
class Block:
    """One transformer block, its path, and the paths of its parts by kind: "self", "temporal", "cross", "mlp".

    gates: path of a part -> path of the module that gates its output before it is added, where there is one.
    kinds: the same as parts, but with each kind of attention apart where one module holds several.
    """

    path: str
    module: nn.Module
    parts: dict[str, tuple[str, ...]]
    gates: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def metadata(self) -> TransformerBlockMetadata:
        """diffusers' own description of the block's arguments and results."""
        return TransformerBlockRegistry.get(type(self.module))


@dataclass(frozen=True)
class Anatomy:
    """How to read and shrink one family's transformer call. Subclasses override what differs.

    A subclass that names its `TRANSFORMER` is found by `anatomy_of`, wherever it is defined.

    config: the transformer's; arguments of a trial may depend on it.
    model, revision: the checkpoint's name and version, where they are known.
    """

    family: str
    patch: Size
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    model: str = field(default="", compare=False)
    revision: str | None = field(default=None, compare=False)

    KNOWN: ClassVar[dict[str, type[Anatomy]]] = {}  # by the name of the transformer's class
    TRANSFORMER: ClassVar[str] = ""
    FAMILY: ClassVar[str] = ""  # the name by which methods have settings and refusals
    # Cache-context names under which pipelines call the unconditional branch.
    UNCONDITIONAL: ClassVar = ("uncond", "pred_uncond")
    # Arguments that change from step to step; all others belong to the branch.
    PER_STEP: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")
    # Whether its pipelines pass timesteps in the weights' precision, and not in float32.
    ROUNDS_TIMESTEPS: ClassVar[bool] = False
    # Arguments (B, tokens, width) that become the text stream of blocks that have one.
    TEXTS: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    # Where one call holds both guidance branches: which part of the batch is the unconditional one.
    BATCHED: ClassVar[str | None] = None  # None, "uncond_first" or "cond_first"
    # ModuleLists of blocks, in order of execution -> the parts of their blocks, by kind.
    BLOCKS: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}  # read only
    # Part of a block -> the module that gates it, where the gate is a module.
    GATES: ClassVar[Mapping[str, str]] = {}
    # Where a part is attention of several kinds: the modules inside it, by kind.
    KINDS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Whether the pipeline, with a call for each branch, changes its guidance scale from step to step.
    RESCALES: ClassVar[bool] = False
    # Whether the second stream of blocks becomes a prediction too, and may not be left as it is.
    TWO_HEADS: ClassVar[bool] = False
    # Numbers among a call's arguments that are part of its shape.
    SIZES: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        if "TRANSFORMER" in vars(cls):
            Anatomy.KNOWN[cls.TRANSFORMER] = cls

    def bind(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A forward call's arguments by name, however they were passed."""
        return dict(list(_signature(type(module).forward).bind(module, *args, **kwargs).arguments.items())[1:])

    def of_call(self, inputs: Mapping[str, Any], pipe: Any) -> Anatomy:
        """The anatomy for one pipeline call, which begins with these inputs; the same unless they matter."""
        return self

    @property
    def further_guidance(self) -> list[str]:
        """Guidance branches of the pipeline call in progress, beside the conditional and the unconditional one."""
        return []

    def received(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A forward call's arguments as methods see them, in which `hidden_states` is the whole noisy latent."""
        return dict(arguments)

    def sent(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the forward call that these inputs stand for: the inverse of `received`."""
        return dict(inputs)

    def prediction(self, output: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The prediction in what the forward call with these inputs returned."""
        return output[0] if isinstance(output, tuple) else output.sample

    def returned(self, prediction: torch.Tensor, inputs: Mapping[str, Any]) -> Any:
        """What the forward call returns with this prediction: the inverse of `prediction`."""
        return Transformer2DModelOutput(sample=prediction) if inputs.get("return_dict", True) else (prediction,)

    def latent_size(self, inputs: Mapping[str, Any]) -> Size:
        """(T, H, W) of the latent in a call's arguments."""
        frames, height, width = inputs["hidden_states"].shape[-3:]
        return frames, height, width

    def as_video(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent or a prediction in this family's layout as (B, C, T, H, W)."""
        return latent

    def used(self, prediction: torch.Tensor) -> torch.Tensor:
        """The part of a prediction that the pipeline samples with."""
        return prediction

    def as_prediction(self, latent: torch.Tensor) -> torch.Tensor:
        """The noisy latent in a call's hidden states, in the shape of a prediction.

        Image to video appends a mask's and the image's channels to it, which are left out here (EasyCache's own code
        reads the raw input before they are appended, easycache_generate.py:476).
        """
        return latent[:, : self.channels]

    @property
    def channels(self) -> int | None:
        """Number of channels of a prediction."""
        return self.config.get("out_channels") or self.config.get("in_channels")

    def conditioned(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the frames of a call's latent are not all alike: image to video, or one timestep per token."""
        extra = (self.config.get("in_channels") or 0) > (self.channels or 0)
        return extra or bool(self.config.get("image_condition_type")) or inputs["timestep"].ndim > 1

    def timestep(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> int:
        """A call's timestep, as methods that schedule by timestep use it; the largest if there is one per token."""
        return int(inputs["timestep"].max())

    def joined(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The arguments of several calls as those of one, batch after batch; None if they cannot be.

        Arguments without a batch (rotary tables, switches) must be the same in all calls.
        """
        whole, batches = dict(calls[0]), [self.batch(inputs) for inputs in calls]
        if any(inputs.keys() != whole.keys() for inputs in calls):
            return None
        for name, value in calls[0].items():
            values = [inputs[name] for inputs in calls]
            if all(_has_batch(each, batch) for each, batch in zip(values, batches, strict=True)):
                if any(each.shape[1:] != value.shape[1:] or each.dtype != value.dtype for each in values):
                    return None
                whole[name] = torch.cat(values)
            elif not all(_same(each, value) for each in values):
                return None
        return whole

    def resize(self, latent: torch.Tensor, size: Size, mode: str, conditioned: bool = False) -> torch.Tensor:
        """A latent or a prediction, in this family's layout, at another (T, H, W).

        In a `conditioned` call frames are picked, evenly from the first to the last, and not mixed: those that hold the
        user's image stay as they are, and so do their masks and timesteps.
        """
        return self.resize_video(latent, size, mode, conditioned)

    def resize_video(self, video: torch.Tensor, size: Size, mode: str, conditioned: bool = False) -> torch.Tensor:
        """The same for a tensor (B, C, T, H, W)."""
        return downsample(pick_frames(video, size[0], self.patch[0]) if conditioned else video, size, mode)

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
        small = self.resize(inputs["hidden_states"], size, mode, self.conditioned(inputs))
        return {**inputs, "hidden_states": small}

    def at_step(self, remembered: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
        """A branch's call as it will be at this step, from its last call and another branch's current one."""
        return {**remembered, **{name: current[name] for name in self.PER_STEP if name in current}}

    def batch(self, inputs: Mapping[str, Any]) -> int:
        """Batch size of a call."""
        return inputs["hidden_states"].shape[0]

    def part_of_batch(self, inputs: Mapping[str, Any], first: bool) -> dict[str, Any]:
        """One half of a call whose batch holds both guidance branches."""
        whole = self.batch(inputs)

        def half(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == whole:
                return value.chunk(2)[0 if first else 1]
            return value

        return {name: half(value) for name, value in inputs.items()}

    def is_unconditional(self, branch: str) -> bool:
        """Whether a pipeline means the unconditional branch by this cache-context name."""
        return branch in self.UNCONDITIONAL

    def guided(
        self, predictions: Mapping[str, torch.Tensor], scale: float, batched: bool | None = None
    ) -> torch.Tensor:
        """Classifier-free guidance over the branches of one step; the branch itself if there is only one.

        batched: whether a prediction holds both branches; None decides by the family and the scale.
        Raises ValueError for branches that are not one conditional and one unconditional.
        """
        if len(predictions) > 2:
            raise ValueError(f"how to combine the guidance branches {', '.join(predictions)} is not known")
        unconditional = next((value for name, value in predictions.items() if self.is_unconditional(name)), None)
        conditional = next(value for name, value in predictions.items() if not self.is_unconditional(name))
        if self.BATCHED and (scale > 1 if batched is None else batched):
            halves = conditional.chunk(2)
            unconditional, conditional = halves if self.BATCHED == "uncond_first" else halves[::-1]
        if unconditional is None:
            return conditional
        return unconditional + scale * (conditional - unconditional)

    def blocks(self, transformer: nn.Module) -> list[Block]:
        """The transformer's blocks in order of execution."""
        found = []
        for name, parts in self.BLOCKS.items():
            for index, module in enumerate(getattr(transformer, name)):
                path = f"{name}.{index}"
                inside = {kind: tuple(f"{path}.{part}" for part in names) for kind, names in parts.items()}
                gates = {f"{path}.{part}": f"{path}.{gate}" for part, gate in self.GATES.items()}
                apart = {kind: tuple(f"{path}.{part}" for part in names) for kind, names in self.KINDS.items()}
                found.append(Block(path, module, inside, gates, {**inside, **apart}))
        return found

    @property
    def second_width(self) -> int:
        """Channels of a token of blocks' second stream, where they are not as many as the video's; else 0."""
        return 0

    def timestep_embedding(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        """The embedding of a call's timestep (no prompt in it), and the paths of the modules that made it."""
        raise NotImplementedError(f"{self.family} has no timestep embedding of its own")

    def first_modulated(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        """Tokens (B, N, width) after the first block's modulated norm, and the paths of the modules that made them."""
        raise NotImplementedError(f"{self.family}: the first block's modulated input is not known")

    def token_grid(self, size: Size) -> Size:
        """(T, H, W) in tokens, of a latent of this size."""
        frames, height, width = (n // p for n, p in zip(size, self.patch, strict=True))
        return frames, height, width

    def text_tokens(self, shapes: Mapping[str, Any]) -> int:
        """Tokens of the text stream in a call whose arguments have these shapes."""
        return sum(shapes[name][1] for name in self.TEXTS if name in shapes)


def pick_frames(video: torch.Tensor, frames: int, patch: int = 1) -> torch.Tensor:
    """So many `frames` of a video (B, C, T, H, W), in whole temporal patches, evenly from the first to the last."""
    available, wanted = video.shape[2] // patch, frames // patch
    if available == wanted:
        return video
    picks = [(2 * i * (available - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted)] if wanted > 1 else [0]
    index = [pick * patch + inside for pick in picks for inside in range(patch)]
    return video[:, :, index]


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _has_batch(value: Any, batch: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == batch


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, torch.Tensor | tuple | list | dict) and bool(a == b))
