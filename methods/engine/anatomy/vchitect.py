"""Vchitect-2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..offload import onload
from .base import Anatomy


class VchitectAnatomy(Anatomy):
    """Vchitect-2.0: a call for each guidance branch; one attention module of three kinds; a copy of the text per frame.

    Its pipeline changes the guidance scale from step to step.
    """

    TRANSFORMER: ClassVar = "VchitectTransformer3DModel"
    FAMILY: ClassVar = "vchitect"
    RESCALES: ClassVar = True
    BLOCKS: ClassVar = {
        "transformer_blocks": {"self": ("attn",), "mlp": ("ff", "ff_context")},
        "final_transformer_blocks": {"self": ("attn",), "mlp": ("ff",)},
    }
    KINDS: ClassVar = {"self": ("attn.spatial",), "temporal": ("attn.temporal",), "cross": ("attn.cross",)}

    def text_tokens(self, shapes: Mapping[str, Any]) -> int:
        return shapes["hidden_states"][-3] * super().text_tokens(shapes)

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        onload(transformer, "time_text_embed")
        embedder = transformer.time_text_embed
        projected = embedder.time_proj(inputs["timestep"]).to(transformer.dtype)
        return embedder.timestep_embedder(projected), ["time_text_embed.timestep_embedder"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        norm = "transformer_blocks.0.norm1"
        onload(transformer, "time_text_embed", "pos_embed", norm)
        latent, pooled = (inputs[name].to(transformer.dtype) for name in ("hidden_states", "pooled_projections"))
        embedding = transformer.time_text_embed(inputs["timestep"], pooled)
        modulated = transformer.transformer_blocks[0].norm1(transformer.embed_latent(latent), emb=embedding)[0]
        return modulated, ["time_text_embed", "pos_embed", norm]
