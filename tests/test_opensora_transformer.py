"""STDiT3: parity with Open-Sora's own code on the same weights, size of the published model, what diffusers expects."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from pcbench.backbones.opensora import STDiT3Transformer3DModel
from pcbench.backbones.opensora.convert_keys import convert_transformer, rename_transformer_key
from pcbench.cost.macs import PETA, forward_macs

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "caption_channels": 20,
    "max_sequence_length": 11,
}
# Latent (T, H, W), odd ones included; text tokens of each video that count, None for no mask; pixels of the video.
CASES: dict[str, dict[str, Any]] = {
    "odd": {"size": (5, 9, 11), "tokens": (11, 4), "pixels": (72, 88)},
    "even": {"size": (4, 8, 12), "tokens": (1, 7), "pixels": (480, 854)},
    "long": {"size": (7, 6, 5), "tokens": (3, 11), "pixels": (720, 405)},
    "one mask for both": {"size": (3, 7, 10), "tokens": (6,), "pixels": (56, 80)},
    "two masks for four": {"size": (2, 5, 4), "tokens": (2, 9), "pixels": (40, 32), "batch": 4},
    "no mask": {"size": (1, 4, 6), "tokens": None, "pixels": (240, 426)},
}


def fill(module: torch.nn.Module) -> None:
    """Weights from their names alone: no matter how and where the module is built, they are the same."""
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if value.ndim > 1:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.1 * noise + float(".norm_" in name))


def model() -> STDiT3Transformer3DModel:
    made = STDiT3Transformer3DModel(**CONFIG).eval()
    fill(made)
    return made


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    batch = case.get("batch", 2)
    generator = torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))
    length = CONFIG["max_sequence_length"]
    mask = None if case["tokens"] is None else torch.stack([torch.arange(length) < n for n in case["tokens"]]).long()
    return {
        "hidden_states": torch.randn(batch, 4, *case["size"], generator=generator),
        "timestep": torch.tensor([731.25, 40.5, 999.0, 3.0])[:batch],
        "encoder_hidden_states": torch.randn(batch, length, CONFIG["caption_channels"], generator=generator),
        "encoder_attention_mask": mask,
        "fps": torch.tensor([24.0, 8.0, 24.0, 120.0])[:batch],
        "height": torch.full((batch,), float(case["pixels"][0])),
        "width": torch.full((batch,), float(case["pixels"][1])),
    }


GOLDEN = json.loads((Path(__file__).parent / "golden" / "opensora_transformer.json").read_text())["outputs"]


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_code(name):
    """Float32, at odd and even sizes, with texts of different lengths in a batch."""
    official = GOLDEN[name]
    sample = model()(**inputs(CASES[name])).sample
    assert list(sample.shape) == official["shape"]
    places = torch.linspace(0, sample.numel() - 1, 64).long()
    assert torch.allclose(sample.flatten()[places], torch.tensor(official["entries"]), rtol=0, atol=2e-5)
    assert float(sample.double().mean()) == pytest.approx(official["mean"], abs=1e-6)
    assert float(sample.double().std()) == pytest.approx(official["std"], rel=1e-6)


@torch.no_grad()
def test_masked_text_is_as_if_not_there():
    case = CASES["one mask for both"]
    given = inputs(case)
    (count,) = case["tokens"]
    short = {
        **given,
        "encoder_hidden_states": given["encoder_hidden_states"][:, :count],
        "encoder_attention_mask": None,
    }
    transformer = model()
    assert torch.allclose(transformer(**given).sample, transformer(**short).sample, atol=1e-5)


@pytest.fixture(scope="module")
def published() -> STDiT3Transformer3DModel:
    """The full-size model without its weights."""
    with torch.device("meta"):
        return STDiT3Transformer3DModel()


def published_keys() -> list[str]:
    """Names in STDiT3-XL/2 v3's state dict, as the official code writes it."""
    both = ("weight", "bias")
    attention = [f"attn.{name}.{kind}" for name in ("qkv", "proj") for kind in both]
    attention += ["attn.q_norm.weight", "attn.k_norm.weight"]
    cross = [f"cross_attn.{name}.{kind}" for name in ("q_linear", "kv_linear", "proj") for kind in both]
    mlp = [f"mlp.{name}.{kind}" for name in ("fc1", "fc2") for kind in both]
    block = ["scale_shift_table", *attention, *cross, *mlp]
    names = ["x_embedder.proj", *(f"{each}_embedder.mlp.{i}" for each in ("t", "fps") for i in (0, 2)), "t_block.1"]
    names += ["y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2", "final_layer.linear"]
    rest = ["rope.freqs", "y_embedder.y_embedding", "final_layer.scale_shift_table"]
    blocks = [f"{side}_blocks.{i}.{name}" for side in ("spatial", "temporal") for i in range(28) for name in block]
    return [*rest, *(f"{name}.{kind}" for name in names for kind in both), *blocks]


def test_every_published_weight_has_its_place(published):
    keys = published_keys()
    ours = [name for key in keys for name in rename_transformer_key(key)]
    assert len(keys) == 973
    assert sorted(ours) == sorted(published.state_dict())
    stacked = {"temporal_blocks.3.cross_attn.kv_linear.bias": torch.arange(6.0), "rope.freqs": torch.ones(36)}
    renamed = {name.rpartition("attn2.")[2]: value.tolist() for name, value in convert_transformer(stacked).items()}
    assert renamed == {"to_k.bias": [0, 1, 2], "to_v.bias": [3, 4, 5]}
    with pytest.raises(KeyError, match="not a weight of STDiT3"):
        rename_transformer_key("spatial_blocks.0.attn.gate")


def test_published_size(published):
    """Official parameters, but for the rotary table, and the null caption, which there is a buffer."""
    assert sum(value.numel() for value in published.parameters()) == 1_207_643_972 - 36 + 300 * 4096


def test_macs_are_those_of_the_paper():
    """480p and 192 frames, so 57 latent frames; 30 steps of both guidance branches. The paper's Table 1 says 6.30."""
    arguments = {
        "hidden_states": [2, 4, 57, 60, 106],
        "encoder_hidden_states": [2, 300, 4096],
        "encoder_attention_mask": [2, 300],
        **{name: [2] for name in ("timestep", "fps", "height", "width")},
    }
    assert 30 * forward_macs(STDiT3Transformer3DModel, {}, arguments) / PETA == pytest.approx(6.30, rel=0.05)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    transformer = model()
    transformer.save_pretrained(tmp_path)
    again = STDiT3Transformer3DModel.from_pretrained(tmp_path)
    assert again.config["patch_size"] in ((1, 2, 2), [1, 2, 2])
    assert torch.equal(again(**inputs(CASES["odd"])).sample, transformer(**inputs(CASES["odd"])).sample)


@torch.no_grad()
def test_diffusers_own_hooks_find_the_blocks():
    transformer = model()
    given = inputs(CASES["even"])
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with transformer.cache_context("cond_uncond"):
        first = transformer(**given).sample
        again = transformer(**{**given, "hidden_states": given["hidden_states"] * 1.001}).sample
    transformer.disable_cache()
    assert torch.equal(first, transformer(**given).sample)
    assert torch.allclose(first, again, atol=0.1)


def test_training_with_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        transformer = model().train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer(**inputs(CASES["odd"])).sample.square().mean().backward()
        gradients.append(transformer.transformer_blocks[0].attn1.to_q.weight.grad)
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": None}, "needs fps, height and width"),
        ({"attention_kwargs": {"scale": 1.0}}, "no attention_kwargs, not scale"),
        ({"encoder_attention_mask": torch.ones(3, 11)}, "3 rows, which do not divide a batch of 2"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        model()(**{**inputs(CASES["odd"]), **change})


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        STDiT3Transformer3DModel(num_attention_heads=1, attention_head_dim=6)
