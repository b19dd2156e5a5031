"""Open-Sora, on which most caches were published: each method's official code beside ours, and the anatomy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import methods
from methods import apply
from methods.adacache import AdaCacheConfig
from methods.engine.anatomy import anatomy_for, anatomy_of
from methods.magcache import MagCacheConfig
from methods.pab import PABConfig
from methods.teacache import TeaCacheConfig
from methods.teacache_official import SETS
from pcbench.backbones.opensora.transformer import STDiT3Transformer3DModel

from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "opensora_methods.json").read_text())["runs"]
OPENSORA = FAMILIES["opensora"]


def decisions(method: methods.Method, trace: methods.Trace) -> list[str]:
    """As the golden file writes them."""
    told = {"pab": "broadcast", "fastercache": "reused"}.get(method.NAME)
    if told:
        return [",".join(step.details[told]) for step in trace.steps]
    return ["F" if step.action == "full" else "r" for step in trace.steps]


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_official_implementation(name):
    """Every decision the same, the final latents to float tolerance."""
    run = GOLDEN[name]
    pipe, method = OPENSORA.pipeline(), getattr(methods, run["config"])(**run["settings"])
    with apply(pipe, method) as handle:
        latents = OPENSORA.call(pipe, steps=run["steps"])
    assert decisions(method, handle.trace) == run["decisions"]
    official = torch.tensor(run["latents"])
    assert torch.allclose(latents[0, 1, 1, ::4, ::4].flatten(), official, rtol=0, atol=1e-5)
    assert float(latents.double().norm()) == pytest.approx(run["norm"], rel=1e-6)
    assert run["change"] > 500e-5  # the cache changes far more than the tolerance


def test_blocks_are_in_order_of_execution():
    transformer = OPENSORA.pipeline().transformer
    blocks = anatomy_of(transformer).blocks(transformer)
    lists = "transformer_blocks", "temporal_transformer_blocks"
    assert [block.path for block in blocks] == [f"{name}.{index}" for index in range(2) for name in lists]
    assert [set(block.parts) for block in blocks] == [{"self", "cross", "mlp"}, {"temporal", "cross", "mlp"}] * 2
    assert all(block.module is transformer.get_submodule(block.path) for block in blocks)


def test_a_trial_is_told_the_size_it_has():
    """480p: 60x106 cells shrink by four to 14x26 whole patches, and the pixels with them; both branches, or one."""
    anatomy = anatomy_for(STDiT3Transformer3DModel, {})
    inputs = {
        "hidden_states": torch.randn(2, 4, 57, 60, 106),
        "timestep": torch.tensor([900.0, 900.0]),
        "encoder_attention_mask": torch.ones(2, 300),
        "fps": torch.tensor([24.0, 24.0]),
        "height": torch.tensor([480, 480]),
        "width": torch.tensor([854, 854]),
    }
    size = anatomy.trial_size(anatomy.latent_size(inputs), (2, 4, 4))
    trial = anatomy.trial_inputs(inputs, size, "nearest-exact")
    assert size == (29, 14, 26)
    assert trial["hidden_states"].shape == (2, 4, 29, 14, 26)
    assert trial["height"].tolist() == pytest.approx([480 * 14 / 60] * 2)
    assert trial["width"].tolist() == pytest.approx([854 * 26 / 106] * 2)
    assert trial["timestep"] is inputs["timestep"]
    assert {len(value) for value in anatomy.part_of_batch(trial, first=True).values()} == {1}
    assert anatomy.token_grid((57, 61, 107)) == (57, 31, 54)  # filled up


def test_only_the_velocity_is_looked_at():
    anatomy = anatomy_for(STDiT3Transformer3DModel, {})
    prediction = torch.randn(2, 8, 3, 4, 4)
    guided = anatomy.as_video(anatomy.guided({"cond_uncond": prediction}, 7.0))
    cond, uncond = prediction[:1, :4], prediction[1:, :4]
    assert torch.equal(guided, uncond + 7.0 * (cond - uncond))
    assert anatomy.as_prediction(prediction[:, :4]).shape == prediction.shape


def test_the_published_numbers_are_found():
    anatomy = anatomy_for(STDiT3Transformer3DModel, {})
    teacache = TeaCacheConfig(speed="fast").for_backbone(anatomy)
    assert (tuple(teacache.coefficients), teacache.threshold) == (SETS["opensora-1.2"].coefficients, 0.2)
    magcache = MagCacheConfig().for_backbone(anatomy)
    assert (magcache.threshold, magcache.max_skip, magcache.ratio_power, magcache.signed) == (0.12, 3, 0.5, True)
    assert magcache.ratios == MagCacheConfig(ratio_set="open-sora-1.2").for_backbone(anatomy).ratios
    with torch.device("meta"):
        transformer = STDiT3Transformer3DModel()
    measured = AdaCacheConfig().measured(anatomy.blocks(transformer))
    assert measured.path == "temporal_transformer_blocks.13"


def test_timesteps_are_compared_in_the_weights_precision():
    """PAB's MLP timesteps are bfloat16's: there is no 675 or 677."""
    pipe = OPENSORA.pipeline()
    anatomy, inputs = anatomy_of(pipe.transformer), {"timestep": torch.tensor([675.3])}
    assert anatomy.timestep(pipe.transformer, inputs) == 675
    assert anatomy.timestep(pipe.transformer.to(torch.bfloat16), inputs) == 676


def test_what_pab_keeps_is_gated_and_costs_nothing_to_answer():
    pipe = OPENSORA.pipeline()
    block, ran = pipe.transformer.temporal_transformer_blocks[1], []
    with apply(pipe, PABConfig(spatial_range=1, cross_range=1, mlp_timesteps=(), window=(-1, 1001))) as handle:
        block.attn1.to_q.register_forward_hook(lambda *_: ran.append("attention"))
        OPENSORA.call(pipe, steps=8)
    assert len(ran) == 2
    once = {f"temporal_transformer_blocks.*.{name}": 2 for name in ("attn1", "gate1")}
    assert [step.calls[0].skipped for step in handle.trace.steps] == [{}, *[once] * 3, {}, *[once] * 3]
