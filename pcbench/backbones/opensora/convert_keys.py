"""Names of STDiT3's weights in the published checkpoint (hpcai-tech/OpenSora-STDiT-v3) and in our model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

WHOLE = {
    "x_embedder.proj": "patch_embed",
    "t_embedder.mlp.0": "time_embedder.linear_1",
    "t_embedder.mlp.2": "time_embedder.linear_2",
    "fps_embedder.mlp.0": "fps_embedder.linear_1",
    "fps_embedder.mlp.2": "fps_embedder.linear_2",
    "t_block.1": "modulation.1",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "y_embedder.y_embedding": "null_caption",
    "final_layer.scale_shift_table": "scale_shift_table",
    "final_layer.linear": "proj_out",
}
LISTS = {"spatial_blocks": "transformer_blocks", "temporal_blocks": "temporal_transformer_blocks"}
# Parts of a block; one stacked projection becomes several of our weights, in the order of its rows.
PARTS = {
    "scale_shift_table": ["scale_shift_table"],
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.q_norm": ["attn1.norm_q"],
    "attn.k_norm": ["attn1.norm_k"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}
# Tables that follow from the config. Ours stay in float32 where the official code rounds them with the weights.
DERIVED = ("rope.freqs", "pos_embed.inv_freq")


def rename_transformer_key(key: str) -> list[str]:
    """Our names for a published weight, in the order in which its rows are stacked; none for a table we compute.

    Raises KeyError for a name that no published checkpoint of STDiT3 v3 has.
    """
    if key in DERIVED:
        return []
    name, kind = re.fullmatch(r"(.*?)(\.weight|\.bias|)", key).groups()  # type: ignore[union-attr]  # always matches
    if name in WHOLE:
        return [WHOLE[name] + kind]
    block = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", name)
    if block is None or block[1] not in LISTS or block[3] not in PARTS:
        raise KeyError(f"{key} is not a weight of STDiT3 v3")
    return [f"{LISTS[block[1]]}.{block[2]}.{part}{kind}" for part in PARTS[block[3]]]


def convert_transformer(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict under our names. Raises KeyError for an unknown weight."""
    state: dict[str, torch.Tensor] = {}
    for key, value in published.items():
        if names := rename_transformer_key(key):
            state.update(zip(names, value.chunk(len(names)), strict=True))
    return state
