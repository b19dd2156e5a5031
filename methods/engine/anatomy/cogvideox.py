"""CogVideoX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from ..offload import onload
from .base import Anatomy, Paths, Size


class CogVideoXAnatomy(Anatomy):
    """CogVideoX: one call, both branches in its batch; latents (B, T, C, H, W); the 5B is passed its rotary table."""

    TRANSFORMER: ClassVar = "CogVideoXTransformer3DModel"
    FAMILY: ClassVar = "cogvideox"
    BATCHED: ClassVar = "uncond_first"
    BLOCKS: ClassVar = {"transformer_blocks": {"self": ("attn1",), "mlp": ("ff",)}}

    def latent_size(self, inputs: Mapping[str, Any]) -> Size:
        _, frames, _, height, width = inputs["hidden_states"].shape
        return frames, height, width

    def as_video(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.transpose(1, 2)

    def as_prediction(self, latent: torch.Tensor) -> torch.Tensor:
        return latent[:, :, : self.channels]

    def resize(self, latent: torch.Tensor, size: Size, mode: str, conditioned: bool = False) -> torch.Tensor:
        return self.resize_video(latent.transpose(1, 2), size, mode, conditioned).transpose(1, 2)

    def trial_size(self, size: Size, factor: Size) -> Size:
        smaller = super().trial_size(size, factor)
        if smaller != size and self.config.get("use_learned_positional_embeddings"):
            raise ValueError(
                "this CogVideoX has learned its positions for one size (use_learned_positional_embeddings), so there is"
                " no trial at a smaller one: precisecache does not work on it"
            )
        return smaller

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

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        embedders = ["time_embedding"] if transformer.ofs_embedding is None else ["time_embedding", "ofs_embedding"]
        onload(transformer, *embedders)
        projected = transformer.time_proj(inputs["timestep"]).to(inputs["hidden_states"].dtype)
        embedding, paths = transformer.time_embedding(projected, inputs.get("timestep_cond")), ["time_embedding"]
        if transformer.ofs_embedding is not None:  # CogVideoX1.5-I2V
            offset = transformer.ofs_proj(inputs["ofs"]).to(projected.dtype)
            return embedding + transformer.ofs_embedding(offset), [*paths, "ofs_embedding"]
        return embedding, paths
