"""Tiny Vchitect-2.0 parts with weights that follow from their names."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from pcbench.backbones.vchitect import VchitectTransformer3DModel

from .opensora_parts import fill

TRANSFORMER_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 10,
    "rope_scaling_factor": 1.5,
}
# Latent (T, H, W), timestep, text tokens; a single frame has no attention along time.
CASES: dict[str, tuple[tuple[int, int, int], float, int]] = {
    "wide": ((5, 8, 12), 731.25, 7),
    "high": ((7, 12, 4), 999.0, 3),
    "the whole table": ((2, 20, 20), 40.5, 5),
    "one frame": ((1, 6, 10), 3.0, 9),
}


def transformer(**changes: Any) -> VchitectTransformer3DModel:
    """The table of positions is the class's own; all other weights are filled."""
    model = VchitectTransformer3DModel(**{**TRANSFORMER_CONFIG, **changes}).eval()
    positions = model.pos_embed.pos_embed.clone()
    fill(model)
    model.pos_embed.pos_embed.copy_(positions)
    return model


def inputs(name: str) -> dict[str, Any]:
    """A call of the transformer of one case."""
    size, timestep, tokens = CASES[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    config = TRANSFORMER_CONFIG
    return {
        "hidden_states": torch.randn(1, config["in_channels"], *size, generator=generator),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": torch.randn(1, tokens, config["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], generator=generator),
    }
