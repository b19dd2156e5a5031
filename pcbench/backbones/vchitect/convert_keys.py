"""Names of the published transformer's weights -> ours."""

from __future__ import annotations

import re

PATTERNS = (  # applied in order; all other names are the same
    (r"\.attn\.to_(q|k|v)\.", r".attn.spatial.to_\1."),
    (r"\.attn\.to_(q|k|v)_temp\.", r".attn.temporal.to_\1."),
    (r"\.attn\.to_q_cross\.", ".attn.cross.to_q."),
    (r"\.attn\.to_out\.0\.", ".attn.to_out."),
    (r"\.attn\.to_(out|add_out)_temporal\.", r".attn.temporal.to_\1."),
    (r"\.attn\.to_out_context\.", ".attn.cross.to_out."),
)


def rename_transformer_key(key: str, num_layers: int) -> str:
    """Our name for a weight of the published transformer of so many layers, the last of which has a list of its own."""
    name = key.replace(f"transformer_blocks.{num_layers - 1}.", "final_transformer_blocks.0.", 1)
    for pattern, replacement in PATTERNS:
        name = re.sub(pattern, replacement, name)
    return name
