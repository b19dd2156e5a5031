"""STDiT3, the transformer of Open-Sora 1.2: alternating blocks over space and over time, text by cross-attention.

Computes what opensora/models/stdit/stdit3.py of https://github.com/hpcaitech/Open-Sora does at tag v1.2.0 (17cce90);
`convert_keys.py` maps its weights. Left out: conditioning on given frames (`x_mask`), dropout. After diffusers'
`enable_parallelism` several processes share a video (sequence.py).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import (
    PixArtAlphaTextProjection,
    TimestepEmbedding,
    Timesteps,
    apply_rotary_emb,
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed_from_grid,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from .sequence import Shares

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (frames, channels of a head) each


class STDiT3AttnProcessor:
    """Scaled dot-product attention of diffusers' `Attention`; self-attention along one axis of the video.

    axis: "space" (tokens of one frame attend to each other), "time" (tokens of one place do), None for cross-attention.
        Tokens enter and leave as (B, frames * places, width), whatever the axis.
    """

    _attention_backend = None  # written by `set_attention_backend`

    def __init__(self, axis: str | None) -> None:
        self.axis = axis

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_frames: int | None = None,
        rotary_emb: Rotary | None = None,
        shares: Shares | None = None,
    ) -> torch.Tensor:
        batch = hidden_states.shape[0]
        if self.axis is not None:
            hidden_states = hidden_states.unflatten(1, (num_frames, -1))
            if self.axis == "time" and shares is not None:
                hidden_states = shares.by_places(hidden_states)
            hidden_states = hidden_states.transpose(1, 2) if self.axis == "time" else hidden_states
            hidden_states = hidden_states.flatten(0, 1)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1))
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if rotary_emb is not None:
            query, key = (apply_rotary_emb(states, rotary_emb, sequence_dim=1) for states in (query, key))
        tokens = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend, parallel_config=None
        )
        tokens = attn.to_out[1](attn.to_out[0](tokens.flatten(2, 3).type_as(query)))
        if self.axis is not None:
            tokens = tokens.unflatten(0, (batch, -1))
            tokens = tokens.transpose(1, 2) if self.axis == "time" else tokens
            if self.axis == "time" and shares is not None:
                tokens = shares.by_frames(tokens)
            tokens = tokens.flatten(1, 2)
        return tokens


class Gate(nn.Module):
    """Scales a residual by its gate. It is a module so that a cache can store its output."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gate * hidden_states


class STDiT3Block(nn.Module):
    """Self-attention over space or over time, cross-attention to the text, MLP.

    Shift, scale and gate of attention and MLP are the block's own table plus a term per timestep that all blocks share.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, axis: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn1 = Attention(
            dim,
            heads=heads,
            dim_head=dim // heads,
            bias=True,
            eps=1e-6,
            qk_norm="rms_norm" if qk_norm else None,
            processor=STDiT3AttnProcessor(axis),
        )
        self.gate1 = Gate()
        self.attn2 = Attention(
            dim,
            cross_attention_dim=dim,
            heads=heads,
            dim_head=dim // heads,
            bias=True,
            processor=STDiT3AttnProcessor(None),
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(dim, inner_dim=int(dim * mlp_ratio), activation_fn="gelu-approximate")
        self.gate2 = Gate()
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        num_frames: int = 1,
        rotary_emb: Rotary | None = None,
        shares: Shares | None = None,
    ) -> torch.Tensor:
        """Video tokens (B, frames * places, width), text (B, L, width), temb (B, 6, width) -> video tokens.

        shares: if processes share the video, of which this one has `num_frames`.
        """
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self.scale_shift_table + temb).chunk(6, dim=1)
        normed = self.norm1(hidden_states) * (1 + scale) + shift
        attended = self.attn1(normed, num_frames=num_frames, rotary_emb=rotary_emb, shares=shares)
        hidden_states = hidden_states + self.gate1(attended, gate)
        hidden_states = hidden_states + self.attn2(hidden_states, encoder_hidden_states, encoder_attention_mask)
        fed = self.ff(self.norm2(hidden_states) * (1 + scale_ff) + shift_ff)
        return hidden_states + self.gate2(fed, gate_ff)


class STDiT3Transformer3DModel(ModelMixin, ConfigMixin, CacheMixin):
    """STDiT3; the defaults are the published STDiT3-XL/2 v3 (hpcai-tech/OpenSora-STDiT-v3, 1.2 B parameters).

    out_channels: twice in_channels, the second half a learned variance that rectified flow does not use.
    num_layers: blocks over space, and as many over time.
    max_sequence_length: text tokens of the null caption.
    input_sq_size: side in pixels of the square video whose positions are not rescaled.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["patch_embed", "norm"]  # noqa: RUF012  # diffusers' own kind of attribute
    _no_split_modules = ["STDiT3Block"]  # noqa: RUF012
    _repeated_blocks = ["STDiT3Block"]  # noqa: RUF012
    _cp_plan: ClassVar[dict[str, Any]] = {}  # diffusers' hooks split nothing: `forward` does

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int = 8,
        num_layers: int = 28,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        caption_channels: int = 4096,
        max_sequence_length: int = 300,
        freq_dim: int = 256,
        input_sq_size: int = 512,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if dim % 4 or attention_head_dim % 2:
            raise ValueError(f"width {dim} must be a multiple of 4 and attention_head_dim {attention_head_dim} even")
        frames, rows, columns = patch_size  # a list when it comes from a file
        patch = (frames, rows, columns)
        self.patch_embed = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)
        self.time_proj = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.fps_embedder = TimestepEmbedding(freq_dim, dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.caption_projection = PixArtAlphaTextProjection(caption_channels, dim)
        self.null_caption = nn.Parameter(torch.randn(max_sequence_length, caption_channels) / caption_channels**0.5)
        of_block = (dim, num_attention_heads, mlp_ratio, qk_norm)
        self.transformer_blocks = nn.ModuleList(STDiT3Block(*of_block, "space") for _ in range(num_layers))
        self.temporal_transformer_blocks = nn.ModuleList(STDiT3Block(*of_block, "time") for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, math.prod(patch) * out_channels)
        self.gradient_checkpointing = False

    def embed_timestep(self, timestep: torch.Tensor, fps: torch.Tensor) -> torch.Tensor:
        """Timestep and frame rate, both (B,), embedded as (B, width). Both are rounded to the weights' precision."""
        dtype = self.patch_embed.weight.dtype  # `self.dtype` looks through all modules, each time it is asked
        time, rate = (self.time_proj(value.to(dtype)).to(dtype) for value in (timestep, fps))
        return self.time_embedder(time) + self.fps_embedder(rate)

    def embed_latent(self, latent: torch.Tensor, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Latent (B, C, T, H, W), zero-padded to whole patches, as tokens (B, frames, places, width)."""
        missing = [-n % p for n, p in zip(latent.shape[2:], self.config.patch_size, strict=True)]
        padded = F.pad(latent, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else latent
        grid = self.patch_embed(padded)
        positions = self._positions(grid.shape[3], grid.shape[4], height[0], width[0])
        return grid.flatten(3).permute(0, 2, 3, 1) + positions.to(grid.dtype)

    def _positions(self, rows: int, columns: int, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Sines and cosines (places, width) of row and column, scaled as in a square with the same number of tokens.

        Positions shrink as the video grows beyond `input_sq_size` pixels a side. Needs no device synchronisation.
        """
        side = round((rows * columns) ** 0.5)
        shrink = self.config.input_sq_size / (height.float() * width.float()).sqrt()
        y, x = (torch.arange(n, device=shrink.device) * shrink * (side / n) for n in (rows, columns))
        across = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)])
        width_of_tokens = self.config.num_attention_heads * self.config.attention_head_dim
        return get_2d_sincos_pos_embed_from_grid(width_of_tokens, across)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        height: torch.Tensor | None = None,
        width: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The prediction (B, out_channels, T, H, W) in float32; the first half of its channels is the velocity.

        hidden_states: noisy latent (B, in_channels, T, H, W) of any size; it is padded to whole patches.
        timestep: (B,), 0 to 1000. fps: (B,) frames a second.
        encoder_hidden_states: T5's embeddings (B, L, caption_channels).
        encoder_attention_mask: (B, L), nonzero where a text token counts; other tokens are ignored. With fewer rows
            than B it is repeated: the official sampler masks the null caption as it does the prompt.
        height, width: (B,) pixels of the video; all videos of a call have the first one's size.

        Raises ValueError without fps, height and width, or with any attention_kwargs: it supports none.
        """
        if fps is None or height is None or width is None:
            raise ValueError("Open-Sora's transformer needs fps, height and width")
        if attention_kwargs:
            raise ValueError(f"Open-Sora's transformer has no attention_kwargs, not {', '.join(attention_kwargs)}")
        temb = self.embed_timestep(timestep, fps)
        modulation = self.modulation(temb).unflatten(1, (6, -1))
        dtype = self.patch_embed.weight.dtype
        text = self.caption_projection(encoder_hidden_states.to(dtype))
        mask = _text_mask(encoder_attention_mask, len(text))
        grid = self.embed_latent(hidden_states.to(dtype), height, width)
        shares = Shares.of(self._parallel_config, *grid.shape[1:3])
        rotary = get_1d_rotary_pos_embed(
            self.config.attention_head_dim, torch.arange(grid.shape[1], device=grid.device), use_real=True
        )
        grid = grid if shares is None else shares.own(grid)
        tokens, num_frames = grid.flatten(1, 2), grid.shape[1]
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            tokens = self._run(spatial, tokens, text, modulation, mask, num_frames, None, shares)
            tokens = self._run(temporal, tokens, text, modulation, mask, num_frames, rotary, shares)
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(tokens) * (1 + scale) + shift)
        if shares is not None:
            tokens = shares.gather(tokens.unflatten(1, (num_frames, -1))).flatten(1, 2)
        prediction = self._unpatchify(tokens, hidden_states.shape[2:]).float()
        return Transformer2DModelOutput(sample=prediction) if return_dict else (prediction,)

    def _run(self, block: nn.Module, *inputs: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _unpatchify(self, tokens: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Tokens (B, N, patch volume * channels) as a latent of `size` (T, H, W), without the padding."""
        patch = tuple(self.config.patch_size)
        frames, rows, columns = (-(-n // p) for n, p in zip(size, patch, strict=True))
        cells = tokens.unflatten(2, (*patch, -1)).unflatten(1, (frames, rows, columns))
        latent = cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return latent[:, :, : size[0], : size[1], : size[2]]


def _text_mask(mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """The mask (B, L), or with fewer rows, in attention's form: (B, 1, 1, L), true where a token counts."""
    if mask is None:
        return None
    if batch % len(mask):
        raise ValueError(f"encoder_attention_mask has {len(mask)} rows, which do not divide a batch of {batch}")
    return mask.bool().repeat(batch // len(mask), 1)[:, None, None]


TransformerBlockRegistry.register(
    STDiT3Block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
)
