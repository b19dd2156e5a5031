"""Everything that differs between transformer families: latent layout, patch grid, CFG branches, arguments, blocks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import nn

from .frequency import downsample

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """One transformer block, where it sits, and the paths of its parts by kind: "self", "temporal", "cross", "mlp".

    gates: of a part whose output passes through a module of its own before it is added, that module's path.
    """

    path: str
    module: nn.Module
    parts: dict[str, tuple[str, ...]]
    gates: dict[str, str] = field(default_factory=dict)

    @property
    def metadata(self) -> TransformerBlockMetadata:
        """diffusers' own description of the block's arguments and results."""
        return TransformerBlockRegistry.get(type(self.module))


@dataclass(frozen=True)
class Anatomy:
    """How to read and shrink one family's transformer call. Subclasses override what differs.

    config: the transformer's, where arguments of a trial depend on it.
    """

    family: str
    patch: Size
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    # Cache-context names under which pipelines call the unconditional branch.
    UNCONDITIONAL: ClassVar = ("uncond", "pred_uncond")
    # Arguments that change from step to step; all others belong to the branch.
    PER_STEP: ClassVar = ("hidden_states", "timestep")
    # Both guidance branches in one call: which part of the batch is the unconditional one.
    BATCHED: ClassVar[str | None] = None  # None, "uncond_first" or "cond_first"
    # ModuleLists of blocks, in order of execution, and the parts of a block of each, by kind.
    BLOCKS: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}  # read only
    # Where a block's gate is a module: by the name of the part that it gates.
    GATES: ClassVar[Mapping[str, str]] = {}

    def bind(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A forward call's arguments by name, however they were passed."""
        signature = inspect.signature(type(module).forward)
        return dict(list(signature.bind(module, *args, **kwargs).arguments.items())[1:])

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
        """A latent in the shape of a prediction."""
        return latent

    def timestep(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> int:
        """A call's timestep as schedules by timestep look at it; of one per token the largest."""
        return int(inputs["timestep"].max())

    def resize(self, latent: torch.Tensor, size: Size, mode: str) -> torch.Tensor:
        """A latent or a prediction, in this family's layout, at another (T, H, W)."""
        return downsample(latent, size, mode)

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
        return {**inputs, "hidden_states": self.resize(inputs["hidden_states"], size, mode)}

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

    def guided(self, predictions: Mapping[str, torch.Tensor], scale: float) -> torch.Tensor:
        """Classifier-free guidance over the branches of one step; the only branch if there is one."""
        unconditional = next((value for name, value in predictions.items() if self.is_unconditional(name)), None)
        conditional = next(value for name, value in predictions.items() if not self.is_unconditional(name))
        if self.BATCHED and scale > 1:
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
                inside = {kind: tuple(f"{path}.{each}" for each in names) for kind, names in parts.items()}
                gates = {f"{path}.{part}": f"{path}.{gate}" for part, gate in self.GATES.items()}
                found.append(Block(path, module, inside, gates))
        return found

    def timestep_embedding(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        """The embedding of a call's timestep (no prompt in it), and the paths of the modules that made it."""
        raise NotImplementedError(f"{self.family} has no timestep embedding of its own")

    def first_modulated(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        """Tokens (B, N, width) after the first block's modulated norm, and the paths of the modules that made them."""
        raise NotImplementedError(f"{self.family}: the first block's modulated input is not known")

    def token_grid(self, size: Size) -> Size:
        """(T, H, W) in tokens of a latent."""
        frames, height, width = (n // p for n, p in zip(size, self.patch, strict=True))
        return frames, height, width


class WanAnatomy(Anatomy):
    """Wan2.1 and 2.2: two calls a step, conditional first; positions follow from the latent's shape.

    What it lets see is in float32 whatever the weights are, as in Wan's own code, which methods were published on.
    """

    BLOCKS: ClassVar = {"blocks": {"self": ("attn1",), "cross": ("attn2",), "mlp": ("ffn",)}}

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        trial = super().trial_inputs(inputs, size, mode)
        timestep = inputs["timestep"]
        if timestep.ndim == 2:  # Wan2.2-TI2V: one timestep per token
            full, small = (self.token_grid(each) for each in (self.latent_size(inputs), size))
            grid = timestep.view(-1, 1, *full).float()
            trial["timestep"] = F.interpolate(grid, small, mode="nearest-exact").flatten(1).to(timestep.dtype)
        return trial

    def timestep_embedding(
        self, transformer: Any, inputs: Mapping[str, Any], projected: bool = False
    ) -> tuple[torch.Tensor, list[str]]:
        """Wan's `e` (B, width), or with `projected` its `e0` (B, 6·width)."""
        embedder, path = transformer.condition_embedder, "condition_embedder"
        timestep = embedder.timesteps_proj(inputs["timestep"].flatten())
        dtype = next(embedder.time_embedder.parameters()).dtype
        e = embedder.time_embedder(timestep.to(dtype)).float()
        if not projected:
            return e, [f"{path}.time_embedder"]
        weight, bias = (each.float() for each in (embedder.time_proj.weight, embedder.time_proj.bias))
        return F.linear(embedder.act_fn(e), weight, bias), [f"{path}.time_embedder", f"{path}.time_proj"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        tokens = transformer.patch_embedding(inputs["hidden_states"]).flatten(2).transpose(1, 2)
        projection, paths = self.timestep_embedding(transformer, inputs, projected=True)
        block = transformer.blocks[0]
        modulation = (block.scale_shift_table + projection.unflatten(1, (6, -1))).chunk(6, dim=1)[:2]
        shift, scale = (each.reshape(len(tokens), -1, tokens.shape[-1]) for each in modulation)
        return block.norm1(tokens.float()) * (1 + scale) + shift, ["patch_embedding", *paths]


class HunyuanVideoAnatomy(Anatomy):
    """HunyuanVideo: one call a step, guidance embedded; with true CFG a second one, for the unconditional branch."""

    BLOCKS: ClassVar = {
        "transformer_blocks": {"self": ("attn",), "mlp": ("ff", "ff_context")},
        "single_transformer_blocks": {"self": ("attn",)},
    }

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        embedding = transformer.time_text_embed(
            inputs["timestep"], inputs["pooled_projections"], inputs.get("guidance")
        )[0]
        return embedding, ["time_text_embed"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        embedding, paths = self.timestep_embedding(transformer, inputs)
        tokens = transformer.x_embedder(inputs["hidden_states"])
        norm = "transformer_blocks.0.norm1"
        return transformer.transformer_blocks[0].norm1(tokens, emb=embedding)[0], [*paths, "x_embedder", norm]


class CogVideoXAnatomy(Anatomy):
    """CogVideoX: one call, both branches in its batch; latents (B, T, C, H, W); the 5B is passed its rotary table."""

    BATCHED: ClassVar = "uncond_first"
    BLOCKS: ClassVar = {"transformer_blocks": {"self": ("attn1",), "mlp": ("ff",)}}

    def latent_size(self, inputs: Mapping[str, Any]) -> Size:
        _, frames, _, height, width = inputs["hidden_states"].shape
        return frames, height, width

    def as_video(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.transpose(1, 2)

    def resize(self, latent: torch.Tensor, size: Size, mode: str) -> torch.Tensor:
        return downsample(latent.transpose(1, 2), size, mode).transpose(1, 2)

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        trial = super().trial_inputs(inputs, size, mode)
        if inputs.get("image_rotary_emb") is not None:
            trial["image_rotary_emb"] = self._rotary(size, inputs["hidden_states"].device)
        return trial

    def _rotary(self, size: Size, device: torch.device) -> Any:
        """The table CogVideoXPipeline would pass for a video of this latent size."""
        config, (frames, height, width) = self.config, self.token_grid(size)
        side = self.patch[1]
        base = config["sample_height"] // side, config["sample_width"] // side
        if config["patch_size_t"] is None:
            crop = get_resize_crop_region_for_grid((height, width), base[1], base[0])
            return get_3d_rotary_pos_embed(config["attention_head_dim"], crop, (height, width), frames, device=device)
        return get_3d_rotary_pos_embed(
            config["attention_head_dim"],
            None,
            (height, width),
            frames,
            grid_type="slice",
            max_size=base,
            device=device,
        )

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        projected = transformer.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype)
        embedding, paths = transformer.time_embedding(projected, inputs.get("timestep_cond")), ["time_embedding"]
        if transformer.ofs_embedding is not None:  # CogVideoX1.5-I2V
            offset = transformer.ofs_proj(inputs["ofs"]).to(projected.dtype)
            return embedding + transformer.ofs_embedding(offset), [*paths, "ofs_embedding"]
        return embedding, paths


class OpenSoraAnatomy(Anatomy):
    """Open-Sora 1.2: one call, both branches in its batch; blocks over space and time take turns; sizes are arguments.

    Half of its prediction's channels are a variance that no sampler uses.
    """

    BATCHED: ClassVar = "cond_first"
    BLOCKS: ClassVar = {
        "transformer_blocks": {"self": ("attn1",), "cross": ("attn2",), "mlp": ("ff",)},
        "temporal_transformer_blocks": {"temporal": ("attn1",), "cross": ("attn2",), "mlp": ("ff",)},
    }
    GATES: ClassVar = {"attn1": "gate1", "ff": "gate2"}

    def used(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction[:, : self.config["in_channels"]]

    def as_video(self, latent: torch.Tensor) -> torch.Tensor:
        return self.used(latent)

    def as_prediction(self, latent: torch.Tensor) -> torch.Tensor:
        unused = self.config["out_channels"] - self.config["in_channels"]
        return F.pad(latent, (0, 0, 0, 0, 0, 0, 0, unused))

    def timestep(self, transformer: Any, inputs: Mapping[str, Any]) -> int:
        """In the weights' precision, as in the official code: bfloat16 rounds 675.3 to 676."""
        return int(inputs["timestep"].to(transformer.dtype).max())

    def token_grid(self, size: Size) -> Size:
        """The transformer fills up to whole patches."""
        frames, height, width = (-(-n // p) for n, p in zip(size, self.patch, strict=True))
        return frames, height, width

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        """Height and width in pixels set the scale of the positions, and shrink with the latent."""
        trial = super().trial_inputs(inputs, size, mode)
        for name, full, small in zip(("height", "width"), self.latent_size(inputs)[1:], size[1:], strict=True):
            trial[name] = inputs[name].float() * (small / full)
        return trial

    def blocks(self, transformer: nn.Module) -> list[Block]:
        blocks = super().blocks(transformer)
        half = len(blocks) // 2
        return [each for pair in zip(blocks[:half], blocks[half:], strict=True) for each in pair]

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        return transformer.embed_timestep(inputs["timestep"], inputs["fps"]), ["time_embedder", "fps_embedder"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        embedding, paths = self.timestep_embedding(transformer, inputs)
        latent = inputs["hidden_states"].to(transformer.dtype)
        tokens = transformer.embed_latent(latent, inputs["height"], inputs["width"]).flatten(1, 2)
        block = transformer.transformer_blocks[0]
        modulation = block.scale_shift_table + transformer.modulation(embedding).unflatten(1, (6, -1))
        shift, scale = modulation.chunk(6, dim=1)[:2]
        return block.norm1(tokens) * (1 + scale) + shift, [*paths, "modulation", "patch_embed"]


FAMILIES: dict[str, tuple[str, type[Anatomy]]] = {
    "WanTransformer3DModel": ("wan", WanAnatomy),
    "HunyuanVideoTransformer3DModel": ("hunyuanvideo", HunyuanVideoAnatomy),
    "CogVideoXTransformer3DModel": ("cogvideox", CogVideoXAnatomy),
    "STDiT3Transformer3DModel": ("opensora", OpenSoraAnatomy),
}


def anatomy_for(kind: type, config: Mapping[str, Any]) -> Anatomy:
    """The anatomy of a diffusers transformer class with this config. Raises TypeError for one that is not supported."""
    name = kind.__name__
    if name not in FAMILIES:
        raise TypeError(f"no caching method knows {name}; supported transformers: {', '.join(FAMILIES)}")
    declared = inspect.signature(kind).parameters.items()
    config = {**{key: each.default for key, each in declared if each.default is not each.empty}, **config}
    patch = config["patch_size"]
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    frames, height, width = patch
    family, anatomy = FAMILIES[name]
    return anatomy(family, (frames, height, width), config)


def anatomy_of(transformer: Any) -> Anatomy:
    """The anatomy of a diffusers transformer. Raises TypeError for a family that is not supported."""
    return anatomy_for(type(transformer), getattr(transformer, "config", {}))
