"""The transformer of Vchitect-2.0 (2B): Stable Diffusion 3's blocks, with attention along time and to the text.

Computes what models/VchitectXL.py and models/blocks.py of https://github.com/Vchitect/Vchitect-2.0 (299618f) do;
`convert.py` maps its weights. Two differences: latents are (B, C, T, H, W), there (B, T, C, H, W); and a batch may hold
several videos, which there must have the same prompt.
"""

from __future__ import annotations

import torch
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed, get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import nn

from .attention import JointAttention, Rotary

ROTARY_THETA = 1e6


class VchitectBlock(nn.Module):
    """Attention and an MLP for each of two streams, video and text. The `final` block leaves the text as it is."""

    def __init__(self, dim: int, heads: int, final: bool) -> None:
        super().__init__()
        self.final = final
        self.norm1 = AdaLayerNormZero(dim)
        self.norm1_context = (
            AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6) if final else AdaLayerNormZero(dim)
        )
        self.attn = JointAttention(dim, heads, final)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")
        if not final:
            self.norm2_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.ff_context = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        num_frames: int,
        rotary_emb: Rotary,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video (B, frames * places, dim), text (B, frames * text tokens, dim), temb (B, dim) -> video and text."""
        normed, *of_video = self.norm1(hidden_states, emb=temb)
        of_text: list[torch.Tensor] = []
        if self.final:
            context = self.norm1_context(encoder_hidden_states, temb)
        else:
            context, *of_text = self.norm1_context(encoder_hidden_states, emb=temb)
        attended, attended_text = self.attn(
            hidden_states=normed, encoder_hidden_states=context, num_frames=num_frames, rotary_emb=rotary_emb
        )
        hidden_states = _updated(hidden_states, attended, of_video, self.norm2, self.ff)
        if not self.final:
            encoder_hidden_states = _updated(
                encoder_hidden_states, attended_text, of_text, self.norm2_context, self.ff_context
            )
        return hidden_states, encoder_hidden_states


def _updated(
    tokens: torch.Tensor,
    attended: torch.Tensor,
    modulation: list[torch.Tensor],
    norm: nn.Module,
    ff: nn.Module,
) -> torch.Tensor:
    """A stream after its attention's output and its MLP are added. modulation: gate, shift, scale, the MLP's gate."""
    gate, shift, scale, gate_ff = modulation
    tokens = tokens + gate[:, None] * attended
    return tokens + gate_ff[:, None] * ff(norm(tokens) * (1 + scale[:, None]) + shift[:, None])


class VchitectTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin):
    """The defaults are the released 2B model's: the sizes of Stable Diffusion 3 medium.

    sample_size: side of the square latent at whose positions the sines and cosines are 1 apart.
    pos_embed_max_size: tokens a side of the table of positions; a smaller video takes its centre.
    rope_scaling_factor: frames per unit of the rotary embedding along time.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["pos_embed", "norm"]  # noqa: RUF012  # diffusers' own kind of attribute
    _no_split_modules = ["VchitectBlock"]  # noqa: RUF012
    _repeated_blocks = ["VchitectBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int = 16,
        num_layers: int = 24,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 2048,
        pos_embed_max_size: int = 192,
        rope_scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if dim % 4 or attention_head_dim % 2:
            raise ValueError(f"width {dim} must be a multiple of 4 and attention_head_dim {attention_head_dim} even")
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        # The last block has a list of its own: blocks of one list are alike.
        self.transformer_blocks = nn.ModuleList(
            VchitectBlock(dim, num_attention_heads, final=False) for _ in range(num_layers - 1)
        )
        self.final_transformer_blocks = nn.ModuleList([VchitectBlock(dim, num_attention_heads, final=True)])
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * out_channels)
        self.gradient_checkpointing = False

    def embed_latent(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent (B, C, T, H, W) as tokens (B, frames * places, width)."""
        frames = latent.transpose(1, 2).flatten(0, 1)
        return self.pos_embed(frames).unflatten(0, (len(latent), -1)).flatten(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The velocity (B, out_channels, T, H, W).

        hidden_states: noisy latent (B, in_channels, T, H, W); H and W are multiples of patch_size.
        timestep: (B,), 0 to 1000. pooled_projections: CLIP's, (B, pooled_projection_dim).
        encoder_hidden_states: embeddings of CLIP's and T5's tokens, (B, L, joint_attention_dim).

        Raises ValueError for a latent that is not whole patches, or larger than the table of positions.
        """
        dtype, patch = self.pos_embed.proj.weight.dtype, self.config.patch_size
        _, _, num_frames, height, width = hidden_states.shape
        if height % patch or width % patch:
            raise ValueError(f"a latent of {height}x{width} cells is not whole patches of {patch}x{patch}")
        temb = self.time_text_embed(timestep, pooled_projections.to(dtype))
        tokens = self.embed_latent(hidden_states.to(dtype))
        text = self.context_embedder(encoder_hidden_states.to(dtype)).repeat(1, num_frames, 1)
        times = torch.arange(num_frames, device=tokens.device) / self.config.rope_scaling_factor
        rotary = get_1d_rotary_pos_embed(self.config.attention_head_dim, times, theta=ROTARY_THETA, use_real=True)
        for block in (*self.transformer_blocks, *self.final_transformer_blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens, text = self._gradient_checkpointing_func(block, tokens, text, temb, num_frames, rotary)
            else:
                tokens, text = block(tokens, text, temb, num_frames, rotary)
        tokens = self.proj_out(self.norm_out(tokens, temb))
        grid = (num_frames, height // patch, width // patch, patch, patch, self.config.out_channels)
        cells = tokens.unflatten(2, grid[3:]).unflatten(1, grid[:3]).permute(0, 6, 1, 2, 4, 3, 5)
        velocity = cells.flatten(5, 6).flatten(3, 4)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)


TransformerBlockRegistry.register(
    VchitectBlock, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
)
