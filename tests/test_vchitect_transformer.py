"""Vchitect-2.0's transformer: parity with the official code on the same weights, its size, what diffusers expects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from methods.engine.anatomy import anatomy_of
from pcbench.backbones.vchitect import VchitectTransformer3DModel
from pcbench.backbones.vchitect.convert_keys import rename_transformer_key

from .opensora_parts import close
from .vchitect_parts import CASES, TRANSFORMER_CONFIG, inputs, transformer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vchitect_transformer.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_code(name):
    """In float32: wide, high, as large as the table of positions, and a single frame."""
    close(transformer()(**inputs(name)).sample, GOLDEN["outputs"][name])


@torch.no_grad()
def test_videos_of_a_batch_do_not_see_each_other():
    """The official code takes one video at a time."""
    one, another = inputs("wide"), inputs("wide")
    another = {name: value.flip(-1) for name, value in another.items()} | {"timestep": torch.tensor([12.5])}
    both = transformer()(**{name: torch.cat([one[name], another[name]]) for name in one}).sample
    for row, given in zip(both, (one, another), strict=True):
        assert torch.allclose(row, transformer()(**given).sample[0], atol=1e-5)


@pytest.fixture(scope="module")
def released() -> VchitectTransformer3DModel:
    """The full-size model without its weights."""
    with torch.device("meta"):
        return VchitectTransformer3DModel()


def test_every_published_weight_has_its_place(released):
    names = GOLDEN["published_names"]
    ours = [rename_transformer_key(name, TRANSFORMER_CONFIG["num_layers"]) for name in names]
    assert sorted(ours) == sorted(transformer().state_dict())
    last = "transformer_blocks.23.attn.to_out_context.bias"
    assert rename_transformer_key(last, 24) == "final_transformer_blocks.0.attn.cross.to_out.bias"
    assert rename_transformer_key("transformer_blocks.2.ff.net.2.bias", 24) == "transformer_blocks.2.ff.net.2.bias"
    assert "transformer_blocks.22.attn.temporal.to_add_out.weight" in released.state_dict()


def test_released_size(released):
    """Stable Diffusion 3 medium's, and seven more projections a block for attention along time and to the text."""
    medium, width, layers = 2_028_328_000, 1536, 24
    assert sum(value.numel() for value in released.parameters()) == medium + layers * 7 * (width**2 + width)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = transformer()
    model.save_pretrained(tmp_path)
    again = VchitectTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs("high")).sample, model(**inputs("high")).sample)


@torch.no_grad()
def test_diffusers_own_hooks_find_the_blocks():
    model, given = transformer(), inputs("wide")
    plain = model(**given).sample
    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with model.cache_context("cond"):
        first = model(**given).sample
        again = model(**{**given, "hidden_states": given["hidden_states"] * 1.001}).sample
    model.disable_cache()
    assert torch.equal(first, plain)
    assert not torch.equal(again, first)
    assert torch.allclose(first, again, atol=0.1)


@torch.no_grad()
def test_an_attention_backend_reaches_every_attention():
    model = transformer()
    model.set_attention_backend("_native_math")
    try:
        chosen = {module.processor._attention_backend for module in model.modules() if hasattr(module, "processor")}
        assert chosen == {"_native_math"}
        close(model(**inputs("high")).sample, GOLDEN["outputs"]["high"])
    finally:
        model.set_attention_backend("native")


def test_training_with_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = transformer().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**inputs("wide")).sample.square().mean().backward()
        gradients.append(model.transformer_blocks[0].attn.temporal.to_q.weight.grad)
    assert torch.allclose(*gradients, atol=1e-7)


@torch.no_grad()
def test_the_anatomy_s_views_are_what_the_blocks_get():
    model, given, seen = transformer(), inputs("wide"), {}
    anatomy = anatomy_of(model)
    model.transformer_blocks[0].attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model.time_text_embed.timestep_embedder.register_forward_hook(lambda *call: seen.update(embedding=call[-1]))
    model(**given)
    assert torch.equal(anatomy.first_modulated(model, given)[0], seen["hidden_states"])
    assert torch.equal(anatomy.timestep_embedding(model, given)[0], seen["embedding"])
    shapes = {name: value.shape for name, value in given.items()}
    assert anatomy.text_tokens(shapes) == seen["encoder_hidden_states"].shape[1]
    assert [block.path for block in anatomy.blocks(model)] == [
        *("transformer_blocks.0", "transformer_blocks.1", "final_transformer_blocks.0")
    ]


def test_latents_that_cannot_be_are_refused():
    given = inputs("wide")
    for size, words in (((2, 5, 8), "5x8 cells is not whole patches"), ((2, 22, 8), "pos_embed_max_size")):
        with pytest.raises(ValueError, match=words):
            transformer()(**{**given, "hidden_states": torch.zeros(1, 4, *size)})
    with pytest.raises(ValueError, match="multiple of 4"):
        VchitectTransformer3DModel(num_attention_heads=1, attention_head_dim=6)
