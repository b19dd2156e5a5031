"""LTX-2: video and sound from one transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput, LTX2VideoTransformerBlock

from ..offload import onload
from .base import Anatomy, Paths, Size

TransformerBlockRegistry.register(  # diffusers has no entry for it; the sound is the second stream
    LTX2VideoTransformerBlock,
    TransformerBlockMetadata(
        return_hidden_states_index=0,
        return_encoder_hidden_states_index=1,
        encoder_hidden_states_argument_name="audio_hidden_states",
    ),
)


@dataclass(frozen=True)
class LTX2Anatomy(Anatomy):
    """LTX-2: the video's tokens and the sound's, each with a prediction of its own; up to three calls a step.

    Methods see one latent (B, C, T + E, H, W): the video and behind it the sound, whose tokens fill E more frames (the
    rest of the last is zero). So whatever answers for the transformer answers for the sound too, by the same weights;
    what is measured is the video alone. A trial makes the video smaller and leaves the sound as it is.

    sound: tokens of sound in the pipeline call in progress; guides: the weight of each further guidance branch in it.
    """

    sound: int = field(default=0, compare=False)
    guides: Mapping[str, float] = field(default_factory=dict, compare=False)

    TRANSFORMER: ClassVar = "LTX2VideoTransformer3DModel"
    FAMILY: ClassVar = "ltx2"
    BATCHED: ClassVar = "uncond_first"
    # Guided away from: blocks without self-attention (stg), video and sound without each other (modality).
    UNCONDITIONAL: ClassVar = ("uncond_stg", "uncond_modality")
    PER_STEP: ClassVar = ("hidden_states", "timestep", "sigma", "audio_timestep", "audio_sigma")
    TEXTS: ClassVar = ("audio_hidden_states",)
    TWO_HEADS: ClassVar = True
    SIZES: ClassVar = ("num_frames", "height", "width")
    BLOCKS: ClassVar = {
        "transformer_blocks": {
            "self": ("attn1", "audio_attn1"),
            "cross": ("attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"),
            "mlp": ("ff", "audio_ff"),
        }
    }

    def of_call(self, inputs: Mapping[str, Any], pipe: Any) -> Anatomy:
        scales = {"uncond_stg": ("stg_scale", 0.0), "uncond_modality": ("modality_scale", 1.0)}
        guides = {name: getattr(pipe, scale, off) - off for name, (scale, off) in scales.items()}
        return replace(self, sound=inputs["sound"], guides=guides)

    @property
    def further_guidance(self) -> list[str]:
        return [name for name, weight in self.guides.items() if weight]

    def received(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a call whose latents cannot be put together."""
        inputs, size = dict(arguments), [arguments.get(name) or 0 for name in self.SIZES]
        video, sound = inputs["hidden_states"], inputs.pop("audio_hidden_states")
        if self.patch != (1, 1, 1) or video.shape[-1] != sound.shape[-1]:
            raise ValueError(
                "caching methods know LTX-2 with patches of one cell, and as many channels of sound as of video"
            )
        if math.prod(size) != video.shape[1]:
            raise ValueError("LTX-2's transformer was called without num_frames, height and width of its latent")
        if inputs["timestep"].ndim > 1:
            raise ValueError("caching methods do not know LTX-2 with a timestep for each token (image to video)")
        for name in self.SIZES:
            del inputs[name]
        return inputs | {"hidden_states": _joined(_unpacked(video, size), sound), "sound": sound.shape[1]}

    def sent(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arguments, size = dict(inputs), self.latent_size(inputs)
        video, sound = _apart(inputs["hidden_states"], arguments.pop("sound"))
        named = dict(zip(self.SIZES, size, strict=True))
        return arguments | named | {"hidden_states": _packed(video), "audio_hidden_states": sound}

    def prediction(self, output: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        video, sound = output if isinstance(output, tuple) else (output.sample, output.audio_sample)
        return _joined(_unpacked(video, self.latent_size(inputs)), sound)

    def returned(self, prediction: torch.Tensor, inputs: Mapping[str, Any]) -> Any:
        video, sound = _apart(prediction, inputs["sound"])
        output = _packed(video), sound
        return AudioVisualModelOutput(*output) if inputs.get("return_dict", True) else output

    def latent_size(self, inputs: Mapping[str, Any]) -> Size:
        frames, height, width = inputs["hidden_states"].shape[-3:]
        return frames - _more_frames(inputs.get("sound", 0), height, width), height, width

    def used(self, prediction: torch.Tensor) -> torch.Tensor:
        return _apart(prediction, self.sound)[0]

    def as_video(self, latent: torch.Tensor) -> torch.Tensor:
        return self.used(latent)

    def resize(self, latent: torch.Tensor, size: Size, mode: str, conditioned: bool = False) -> torch.Tensor:
        return self._resize(latent, self.sound, size, mode)

    def _resize(self, latent: torch.Tensor, sound: int, size: Size, mode: str) -> torch.Tensor:
        video, tokens = _apart(latent, sound)
        return _joined(self.resize_video(video, size, mode), tokens)

    def trial_inputs(self, inputs: Mapping[str, Any], size: Size, mode: str) -> dict[str, Any]:
        small = self._resize(inputs["hidden_states"], inputs["sound"], size, mode)
        return {**inputs, "hidden_states": small, "video_coords": None}  # the transformer makes those of the size

    def at_step(self, remembered: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
        if self.batch(remembered) < self.batch(current):
            current = self.part_of_batch(current, first=False)
        return super().at_step(remembered, current)

    def guided(
        self, predictions: Mapping[str, torch.Tensor], scale: float, batched: bool | None = None
    ) -> torch.Tensor:
        """All guidance of the pipeline but its last step, which brings the spread of the guided prediction back towards
        that of the conditional one (`guidance_rescale`)."""
        further = {name: each for name, each in predictions.items() if self.is_unconditional(name)}
        first = {name: each for name, each in predictions.items() if name not in further}
        whole = super().guided(first, scale, batched)
        if not further:
            return whole
        halved = scale > 1 if batched is None else batched
        asked = next(iter(first.values())).chunk(2)[1] if halved else whole
        return whole + sum(self.guides.get(name, 0.0) * (asked - each) for name, each in further.items())

    @property
    def second_width(self) -> int:
        return self.config["audio_num_attention_heads"] * self.config["audio_attention_head_dim"]

    def timestep_embedding(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        return self._embeddings(transformer, inputs)[1][:, 0], ["time_embed"]

    def _embeddings(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What modulates the blocks (B, 1, parts · width), and the timestep's embedding (B, 1, width)."""
        onload(transformer, "time_embed")
        batch, dtype = self.batch(inputs), inputs["hidden_states"].dtype
        made = transformer.time_embed(inputs["timestep"].flatten(), batch_size=batch, hidden_dtype=dtype)
        return made[0].view(batch, 1, -1), made[1].view(batch, 1, -1)

    def first_modulated(self, transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, Paths]:
        modulation, _ = self._embeddings(transformer, inputs)
        norm, block = "transformer_blocks.0.norm1", transformer.transformer_blocks[0]
        onload(transformer, "proj_in", norm)
        tokens = transformer.proj_in(_packed(_apart(inputs["hidden_states"], inputs["sound"])[0]))
        shift, scale = block.get_mod_params(block.scale_shift_table, modulation, self.batch(inputs))[:2]
        return block.norm1(tokens) * (1 + scale) + shift, ["time_embed", "proj_in", norm]


def _packed(video: torch.Tensor) -> torch.Tensor:
    """A video (B, C, T, H, W) as tokens (B, T · H · W, C), in memory as the pipeline has them, to round alike."""
    return video.flatten(2).transpose(1, 2).contiguous()


def _unpacked(tokens: torch.Tensor, size: Any) -> torch.Tensor:
    """Tokens (B, T · H · W, C) as a video (B, C, T, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def _more_frames(sound: int, height: int, width: int) -> int:
    return -(-sound // (height * width))


def _joined(video: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
    """A video (B, C, T, H, W) and behind it tokens of sound (B, N, C), in whole frames."""
    height, width = video.shape[-2:]
    frames = _more_frames(sound.shape[1], height, width)
    filled = F.pad(sound.transpose(1, 2), (0, frames * height * width - sound.shape[1]))
    return torch.cat([video, filled.unflatten(2, (frames, height, width)).to(video.dtype)], 2)


def _apart(joined: torch.Tensor, sound: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The video (B, C, T, H, W) and the tokens of sound (B, N, C) in what `_joined` has made."""
    frames = joined.shape[2] - _more_frames(sound, *joined.shape[-2:])
    return joined[:, :, :frames], _packed(joined[:, :, frames:])[:, :sound].contiguous()
