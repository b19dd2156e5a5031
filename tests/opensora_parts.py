"""Tiny Open-Sora parts with weights that follow from their names, and how a tensor is held against golden numbers."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pcbench.backbones.opensora.pipeline import OpenSoraPipeline
from pcbench.backbones.opensora.scheduler import rectified_flow_scheduler
from pcbench.backbones.opensora.transformer import STDiT3Transformer3DModel
from pcbench.backbones.opensora.vae import AutoencoderOpenSora

VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "temporal_width": 8,
    "temporal_layers": 2,
    "temporal_norm_groups": 4,
}
TRANSFORMER_CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "caption_channels": 16,
    "max_sequence_length": 10,
}


def fill(module: torch.nn.Module) -> None:
    """Weights from their names alone: no matter how and where the module is built, they are the same."""
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if value.ndim > 1:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))


def transformer() -> STDiT3Transformer3DModel:
    model = STDiT3Transformer3DModel(**TRANSFORMER_CONFIG).eval()
    fill(model)
    return model


def vae() -> AutoencoderOpenSora:
    model = AutoencoderOpenSora(**VAE_CONFIG).eval()
    fill(model)
    return model


def text_parts() -> dict[str, Any]:
    """A word-level tokenizer of eight words and a T5 encoder of one layer."""
    words = ["<pad>", "</s>", "<unk>", "a", "cat", "sunset", "over", "sea"]
    words_model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    words_model.pre_tokenizer = pre_tokenizers.Whitespace()
    words_model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    encoder = T5EncoderModel(T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return {"tokenizer": tokenizer, "text_encoder": encoder.eval()}


def pipeline(**parts: Any) -> OpenSoraPipeline:
    pipe = OpenSoraPipeline(**{"transformer": transformer(), "scheduler": rectified_flow_scheduler(), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def summary(value: torch.Tensor) -> dict[str, Any]:
    """What a golden file keeps of a tensor."""
    places = torch.linspace(0, value.numel() - 1, 24).long()
    some = value.flatten()[places]
    return {
        "shape": list(value.shape),
        "mean": float(value.mean()),
        "std": float(value.std()),
        "values": [round(float(each), 6) for each in some],
    }


def close(value: torch.Tensor, expected: dict[str, Any], atol: float = 2e-5) -> None:
    """Assert that a tensor is, to float32's rounding, the one of a golden file."""
    found = summary(value)
    assert found["shape"] == expected["shape"]
    for name in ("mean", "std", "values"):
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected[name]), rtol=1e-4, atol=atol)
