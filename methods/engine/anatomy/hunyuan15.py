"""HunyuanVideo-1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15TransformerBlock

from ..offload import onload
from .base import Anatomy, Paths

TransformerBlockRegistry.register(  # diffusers has no entry for it
    HunyuanVideo15TransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)


class HunyuanVideo15Anatomy(Anatomy):
    """HunyuanVideo-1.5: two calls a step, conditional first, made and combined by a guider; patches of one cell.

    Behind the latent come an image's channels and its mask: from text they are zeros, and all frames alike.
    """

    TRANSFORMER: ClassVar = "HunyuanVideo15Transformer3DModel"
    FAMILY: ClassVar = "hunyuanvideo15"
    ROUNDS_TIMESTEPS: ClassVar = True
    TEXTS: ClassVar = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    BLOCKS: ClassVar = {"transformer_blocks": {"self": ("attn",), "mlp": ("ff", "ff_context")}}

    def conditioned(self, inputs: Mapping[str, Any]) -> bool:
        return self.config.get("task_type") != "t2v"

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        onload(transformer, "time_embed")
        return transformer.time_embed(inputs["timestep"], timestep_r=inputs.get("timestep_r")), ["time_embed"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        embedding, paths = self.timestep_embedding(transformer, inputs)
        norm = "transformer_blocks.0.norm1"
        onload(transformer, "x_embedder", norm)
        tokens = transformer.x_embedder(inputs["hidden_states"])
        first = transformer.transformer_blocks[0].norm1(tokens, emb=embedding)
        return first[0], [*paths, "x_embedder", norm]
