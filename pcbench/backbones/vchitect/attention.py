"""The attention of Vchitect-2.0's blocks: within a frame, along time, and to the first frame's text.

Computes what `VchitectAttnProcessor` in models/attention.py of https://github.com/Vchitect/Vchitect-2.0 (299618f) does.
The three kinds are modules of their own, so that a cache can store the output of each.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (frames, channels of a head) each
Text = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values, (B * frames, text tokens, dim) each
SPATIAL_WEIGHT = 1.1  # the official code's; its reason is not given


class Backend:
    """Where diffusers' `set_attention_backend` writes its choice."""

    _attention_backend = None


class Kind(nn.Module, AttentionModuleMixin):
    """What the three kinds share: projections of width `dim`, and scaled dot-product attention in `heads` heads.

    Each frame's tokens come as rows: video (B * frames, places, dim), and the text projected already, as the three
    kinds share its projections. All tokens of a video are returned as (B, frames * tokens, dim).
    """

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.Linear
    to_add_out: nn.Linear
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, *projections: str) -> None:
        super().__init__()
        self.heads = heads
        self.processor = Backend()
        for name in projections:
            setattr(self, name, nn.Linear(dim, dim))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: Rotary | None = None
    ) -> torch.Tensor:
        """Attention over (rows, tokens, dim)."""
        query, key, value = (states.unflatten(2, (self.heads, -1)) for states in (query, key, value))
        if rotary is not None:
            query, key = (apply_rotary_emb(states, rotary, sequence_dim=1) for states in (query, key))
        backend = self.processor._attention_backend
        return dispatch_attention_fn(query, key, value, backend=backend, parallel_config=None).flatten(2, 3)

    def joint(self, video: torch.Tensor, text: Text) -> Text:
        """Queries, keys and values of a frame's video tokens, followed by the text's."""
        pairs = zip((self.to_q, self.to_k, self.to_v), text, strict=True)
        query, key, value = (torch.cat([project(video), of_text], dim=1) for project, of_text in pairs)
        return query, key, value


class SpatialAttention(Kind):
    """The video and text tokens of one frame attend to each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, "to_q", "to_k", "to_v")

    def forward(self, video: torch.Tensor, text: Text, num_frames: int) -> torch.Tensor:
        """Frame after frame its video tokens and its text's, not yet projected."""
        query, key, value = self.joint(video, text)
        return _videos(self.attend(query, key, value), num_frames)


class TemporalAttention(Kind):
    """The tokens of one place attend to each other over all frames; each text token is a place too."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, "to_q", "to_k", "to_v", "to_out", "to_add_out")

    def forward(
        self, video: torch.Tensor, text: Text, num_frames: int, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video and text tokens, projected."""
        places, tokens = video.shape[1], video.shape[1] + text[0].shape[1]
        query, key, value = (
            each.unflatten(0, (-1, num_frames)).transpose(1, 2).flatten(0, 1) for each in self.joint(video, text)
        )
        moved = self.attend(query, key, value, rotary).unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)
        of_video, of_text = self.to_out(moved[:, :places]), self.to_add_out(moved[:, places:])
        return _videos(of_video, num_frames), _videos(of_text, num_frames)


class CrossAttention(Kind):
    """All tokens of all frames attend to the text tokens of the first frame."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, "to_q", "to_out")

    def forward(self, video: torch.Tensor, text: Text, num_frames: int) -> torch.Tensor:
        """Frame after frame its video tokens and its text's, projected."""
        query = torch.cat([self.to_q(video), text[0]], dim=1)
        key, value = (each.unflatten(0, (-1, num_frames))[:, 0] for each in text[1:])
        return self.to_out(self.attend(_videos(query, num_frames), key, value))


def _videos(tokens: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Tokens of frames (B * frames, tokens, dim) as those of videos (B, frames * tokens, dim)."""
    return tokens.unflatten(0, (-1, num_frames)).flatten(1, 2)


class JointAttention(nn.Module):
    """The sum of the three kinds of attention, over two streams of tokens: video, and a copy of the text per frame.

    final: the last block's text is read by nobody, so the checkpoint has no projection for it.
    """

    def __init__(self, dim: int, heads: int, final: bool) -> None:
        super().__init__()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.spatial = SpatialAttention(dim, heads)
        self.temporal = TemporalAttention(dim, heads)
        self.cross = CrossAttention(dim, heads)
        self.to_out = nn.Linear(dim, dim)
        self.to_add_out = nn.Identity() if final else nn.Linear(dim, dim)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, num_frames: int, rotary_emb: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video (B, frames * places, dim) and text (B, frames * text tokens, dim) -> the same, to be added."""
        video, context = (
            tokens.unflatten(1, (num_frames, -1)).flatten(0, 1) for tokens in (hidden_states, encoder_hidden_states)
        )
        text = self.add_q_proj(context), self.add_k_proj(context), self.add_v_proj(context)
        both = self.spatial(video, text, num_frames) * SPATIAL_WEIGHT + self.cross(video, text, num_frames)
        of_video, of_text = both.unflatten(1, (num_frames, -1)).split([video.shape[1], context.shape[1]], dim=2)
        of_video, of_text = self.to_out(of_video.flatten(1, 2)), self.to_add_out(of_text.flatten(1, 2))
        if num_frames > 1:
            moved_video, moved_text = self.temporal(video, text, num_frames, rotary_emb)
            of_video, of_text = of_video + moved_video, of_text + moved_text
        return of_video, of_text
