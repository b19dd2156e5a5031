"""The tiny Wan's untrained parts, in diffusers' and transformers' own classes."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .world import vocabulary

TEXT_WIDTH = 64
MAX_PROMPT_TOKENS = 16  # the longest prompt of the world is 13 tokens with its end mark


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, T5's special tokens, an end mark after every prompt."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_PROMPT_TOKENS,
    )


def text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder of width 64."""
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def wan_transformer(latent_channels: int) -> WanTransformer3DModel:
    """Wan2.1's transformer at width 192 with six blocks (3.9 M parameters)."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=768,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow with Euler steps and Wan's shift of 3."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)
