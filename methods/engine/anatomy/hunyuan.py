"""HunyuanVideo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..offload import onload
from .base import Anatomy, Paths


class HunyuanVideoAnatomy(Anatomy):
    """HunyuanVideo: one call a step, guidance embedded; with true CFG a second one, for the unconditional branch."""

    TRANSFORMER: ClassVar = "HunyuanVideoTransformer3DModel"
    FAMILY: ClassVar = "hunyuanvideo"
    BLOCKS: ClassVar = {
        "transformer_blocks": {"self": ("attn",), "mlp": ("ff", "ff_context")},
        "single_transformer_blocks": {"self": ("attn",)},
    }

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        (embedding, *_), paths = self._embeddings(transformer, inputs)
        return embedding, paths

    def _embeddings(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[str]]:
        """The timestep's embedding, and the one at timestep 0 for a first frame that is an image (else None)."""
        onload(transformer, "time_text_embed")
        arguments = inputs["timestep"], inputs["pooled_projections"], inputs.get("guidance")
        return transformer.time_text_embed(*arguments), ["time_text_embed"]

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        (embedding, of_image), paths = self._embeddings(transformer, inputs)
        norm = "transformer_blocks.0.norm1"
        onload(transformer, "x_embedder", norm)
        tokens = transformer.x_embedder(inputs["hidden_states"])
        _, height, width = self.token_grid(self.latent_size(inputs))
        image = {} if of_image is None else {"token_replace_emb": of_image, "first_frame_num_tokens": height * width}
        first = transformer.transformer_blocks[0].norm1(tokens, emb=embedding, **image)
        return first[0], [*paths, "x_embedder", norm]
