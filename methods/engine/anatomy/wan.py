"""Wan2.1 and Wan2.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..offload import onload
from .base import Anatomy, Paths, Size, pick_frames


class WanAnatomy(Anatomy):
    """Wan2.1 and 2.2: two calls a step, conditional first; positions follow from the latent's shape.

    Features are float32 whatever the weights' type, as in Wan's own code, on which the methods were published.
    """

    TRANSFORMER: ClassVar = "WanTransformer3DModel"
    FAMILY: ClassVar = "wan"
    BLOCKS: ClassVar = {"blocks": {"self": ("attn1",), "cross": ("attn2",), "mlp": ("ffn",)}}

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        trial = super().trial_inputs(inputs, size, mode)
        timestep = inputs["timestep"]
        if timestep.ndim == 2:  # Wan2.2-TI2V: one timestep per token
            full, small = (self.token_grid(latent) for latent in (self.latent_size(inputs), size))
            grid = pick_frames(timestep.reshape(-1, 1, *full).float(), small[0])
            trial["timestep"] = F.interpolate(grid, small, mode="nearest-exact").flatten(1).to(timestep.dtype)
        return trial

    def timestep_embedding(
        self, transformer: Any, inputs: Mapping[str, Any], projected: bool = False
    ) -> tuple[torch.Tensor, Paths]:
        """Wan's `e` (B, width), or with `projected` its `e0` (B, 6·width).

        Of one timestep per token it is the largest that is embedded: a token of the user's image stays at 0.
        """
        timestep = inputs["timestep"]
        if timestep.ndim == 1:
            return self._embedding(transformer, timestep, projected)
        embedding, paths = self._embedding(transformer, timestep.amax(1), projected)
        return embedding, dict.fromkeys(paths, 1 / timestep.shape[1])

    def _embedding(
        self, transformer: Any, timestep: torch.Tensor, projected: bool = False
    ) -> tuple[torch.Tensor, list[str]]:
        """`e` or `e0` of each of these timesteps (N), and the paths of the modules that made it."""
        embedder, path = transformer.condition_embedder, "condition_embedder"
        onload(transformer, f"{path}.time_embedder", f"{path}.time_proj")
        dtype = next(embedder.time_embedder.parameters()).dtype
        e = embedder.time_embedder(embedder.timesteps_proj(timestep).to(dtype)).float()
        if not projected:
            return e, [f"{path}.time_embedder"]
        weight, bias = (tensor.float() for tensor in (embedder.time_proj.weight, embedder.time_proj.bias))
        return F.linear(embedder.act_fn(e), weight, bias), [f"{path}.time_embedder", f"{path}.time_proj"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        onload(transformer, "patch_embedding", "blocks.0.norm1")
        tokens = transformer.patch_embedding(inputs["hidden_states"]).flatten(2).transpose(1, 2)
        projection, paths = self._embedding(transformer, inputs["timestep"].flatten(), projected=True)
        block = transformer.blocks[0]
        modulation = (block.scale_shift_table + projection.unflatten(1, (6, -1))).chunk(6, dim=1)[:2]
        shift, scale = (part.reshape(len(tokens), -1, tokens.shape[-1]) for part in modulation)
        return block.norm1(tokens.float()) * (1 + scale) + shift, ["patch_embedding", *paths]
