"""Open-Sora 1.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..offload import onload
from .base import Anatomy, Block, Paths, Size


class OpenSoraAnatomy(Anatomy):
    """Open-Sora 1.2: one call, both branches in its batch; spatial and temporal blocks alternate; sizes are arguments.

    Half of its prediction's channels are a variance that no sampler uses.
    """

    TRANSFORMER: ClassVar = "STDiT3Transformer3DModel"
    FAMILY: ClassVar = "opensora"
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
        """Rounded to the weights' precision, as in the official code: bfloat16 makes 676 of 675.3."""
        return int(inputs["timestep"].to(transformer.dtype).max())

    def token_grid(self, size: Size) -> Size:
        """(T, H, W) in tokens; the transformer pads a latent to whole patches."""
        frames, height, width = (-(-n // p) for n, p in zip(size, self.patch, strict=True))
        return frames, height, width

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        """The arguments height and width (pixels) scale the positions, so they shrink with the latent."""
        trial = super().trial_inputs(inputs, size, mode)
        for name, full, small in zip(("height", "width"), self.latent_size(inputs)[1:], size[1:], strict=True):
            trial[name] = inputs[name].float() * (small / full)
        return trial

    def blocks(self, transformer: nn.Module) -> list[Block]:
        blocks = super().blocks(transformer)
        half = len(blocks) // 2
        return [block for pair in zip(blocks[:half], blocks[half:], strict=True) for block in pair]

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        onload(transformer, "time_embedder", "fps_embedder")
        return transformer.embed_timestep(inputs["timestep"], inputs["fps"]), ["time_embedder", "fps_embedder"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        embedding, paths = self.timestep_embedding(transformer, inputs)
        onload(transformer, "modulation", "patch_embed", "transformer_blocks.0.norm1")
        latent = inputs["hidden_states"].to(transformer.dtype)
        tokens = transformer.embed_latent(latent, inputs["height"], inputs["width"]).flatten(1, 2)
        block = transformer.transformer_blocks[0]
        modulation = block.scale_shift_table + transformer.modulation(embedding).unflatten(1, (6, -1))
        shift, scale = modulation.chunk(6, dim=1)[:2]
        return block.norm1(tokens) * (1 + scale) + shift, [*paths, "modulation", "patch_embed"]
