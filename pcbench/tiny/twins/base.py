"""What the trainers need to know about a family: its parts, its text input, its noise, and how its VAE decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..world import vocabulary

TEXT_WIDTH = 64
MAX_PROMPT_TOKENS = 16  # the longest prompt of the world has 13 tokens, including its end mark
LATENT_CHANNELS = 8
PAD, END, UNKNOWN = 0, 1, 2

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of training latent: its clips, and its share of the steps at the start and at the end of training."""

    name: str
    clips: int
    side: int  # pixels
    batch: int
    first_share: float
    last_share: float
    frames: int | None = None  # None: as many as in a full clip
    stride: int = 1  # only every n-th frame of the world is shown


class Twin(nn.Module):
    """A family at toy width: text encoder and transformer as one trainable module; the VAE is frozen and separate.

    Latents are (B, C, T, H, W), normalised to the transformer's scale.
    """

    NAME: ClassVar[str]
    FRAMES: ClassVar[int] = 29  # frames of a full clip; a number that the family's VAE can code
    CODED_FRAMES: ClassVar[int] = 0  # the VAE is trained on clips of at least this many frames
    SIDE: ClassVar[int] = 128  # pixels along each side
    LIT: ClassVar[bool] = False  # the world's look: lit or plain
    SHIFT: ClassVar[float] = 3.0  # shifts training noise levels up to where layout and motion are decided
    DROP_PROMPTS: ClassVar[bool] = True  # whether to drop some prompts, for classifier-free guidance
    DISTILLED: ClassVar[float] = 0.0  # share of the later batches that teach guidance as an input; 0: it has none

    KINDS: ClassVar[tuple[Kind, ...]] = (
        Kind("full", 1500, 128, 8, 0.10, 0.70),
        Kind("half", 6000, 64, 32, 0.80, 0.20),
        Kind("quarter", 3000, 32, 64, 0.10, 0.10, frames=9),
    )

    transformer: Any

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tokenizer()

    @classmethod
    def model(cls) -> str:
        """The name under which the weights are bundled."""
        return f"tiny_{cls.NAME}"

    @classmethod
    def shift(cls, latent: torch.Size) -> float:
        """The training noise shift for latents of this shape (B, C, T, H, W)."""
        return cls.SHIFT

    @staticmethod
    def new_vae() -> Any:
        """An untrained VAE of the family's class."""
        raise NotImplementedError

    @staticmethod
    def encode(vae: Any, clips: torch.Tensor) -> Any:
        """The posterior of the raw latents of clips (B, 3, F, H, W) in [-1, 1]."""
        return vae.encode(clips).latent_dist

    @staticmethod
    def decode(vae: Any, latents: torch.Tensor, frames: int) -> torch.Tensor:
        """Raw latents to video (B, 3, frames, H, W), differentiable everywhere."""
        return vae.decode(latents, return_dict=False)[0]

    @classmethod
    def taught(
        cls, vae: Any, clips: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encoder and decoder trained separately: the mean square distance of the encoder's output to `latents`, the
        posterior's log variance, and the video decoded from `latents + noise`."""
        posterior = cls.encode(vae, clips)
        video = cls.decode(vae, latents + noise, clips.shape[2])
        return (posterior.mean.float() - latents).pow(2).mean(), posterior.logvar, video

    @staticmethod
    def note_statistics(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Write the raw latents' statistics, from their mean and standard deviation (C,), into the VAE's config."""
        vae.register_to_config(scaling_factor=float(1 / std.square().mean().sqrt()))

    @staticmethod
    def normalise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents, scaled to the transformer's range."""
        return latents * vae.config.scaling_factor

    def embed(self, prompts: list[str]) -> Batch:
        """The transformer's text arguments, prepared as in the family's pipeline."""
        raise NotImplementedError

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noised latents, timesteps (B,) on the family's scale, and the target that the transformer should predict.

        Rectified flow (the paper's equation 1): velocity is noise minus data.
        """
        sigma = torch.sigmoid(torch.randn(len(latents), generator=generator) * 1.2)
        shift = self.shift(latents.shape)
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        level = sigma.view(-1, 1, 1, 1, 1)
        return (1 - level) * latents + level * noise, sigma * 1000, noise - latents

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """The transformer's prediction (B, C, T, H, W) for noised latents."""
        raise NotImplementedError

    def guided(
        self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction with guidance as an input, and what it should be: classifier-free guidance of this same model
        without (guidance distillation, arXiv 2210.03142, its first stage)."""
        raise NotImplementedError

    def pipeline(self, vae: Any) -> Any:
        """The family's pipeline with these weights, in half precision."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tokens(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both (B, MAX_PROMPT_TOKENS)."""
        encoded = self.tokenizer(prompts, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt")
        return encoded.input_ids.to(self.device), encoded.attention_mask.to(self.device)


def tokenizer(max_tokens: int = MAX_PROMPT_TOKENS) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of the world, T5's special tokens, and an end mark after every prompt."""
    vocabulary_list = ["<pad>", "</s>", "<unk>", *vocabulary()]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary_list)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
    )


def t5_encoder(vocabulary_size: int) -> T5EncoderModel:
    """A two-layer T5 encoder of width 64."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=2,
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=END,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def flow_scheduler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler for rectified flow with Euler steps."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
