"""Device memory, planned before there are weights."""

from __future__ import annotations

import pytest
import torch

from pcbench.cost import memory
from pcbench.cost.dry_run import rehearse

from .plan_parts import run_of


@pytest.mark.parametrize(
    ("model", "size", "gib"),
    [
        ("wan", (81, 720, 1280), 23.1),
        ("wan", (81, 1088, 1920), 52.3),  # with 26.6 of weights what the paper's A.4 could not fit into 80 GB
        ("wan", (81, 480, 832), 10.0),
        ("wan_1_3b", (81, 480, 832), 2.2),
        ("hunyuan", (65, 480, 640), 2.8),
        ("hunyuan", (129, 720, 1280), 16.3),
        ("wan2_2_ti2v_5b", (121, 704, 1280), 3.7),
        ("hunyuan1_5", (121, 480, 848), 8.6),
        ("cogvideox", (49, 480, 720), 1.5),
        ("cogvideox_5b", (49, 480, 720), 3.5),
        ("vchitect", (40, 432, 768), 3.7),
    ],
)
def test_blockcache_memory(model, size, gib):
    """Kept blocks x branches x tokens x width x bytes, and the same from what the rule held in the rehearsal."""
    words = [f"model.sampling.{name}={n}" for name, n in zip(("frames", "height", "width"), size, strict=True)]
    recipe = run_of(model, "precisecache_flash", *words).recipe
    assert memory.block_cache_bytes(recipe) / memory.GIB == pytest.approx(gib, abs=0.05)
    predictions = rehearse(run_of(model, "precisecache_turbo", *words).recipe).held
    kept = rehearse(recipe).held - predictions
    assert kept == pytest.approx(memory.block_cache_bytes(recipe), rel=0.002)
    assert memory.block_cache_bytes(run_of(model, "precisecache_turbo", *words).recipe) == 0


def test_weights_and_activations():
    recipe = run_of("wan").recipe
    assert memory.weights_bytes(recipe) / memory.GIB == pytest.approx(26.6, abs=0.05)  # 14.29 B in bfloat16
    tokens, width, hidden = 75600, 5120, 13824
    stream, fed = tokens * width * 2, tokens * hidden * 2
    # More than one block's feed-forward, in and out, beside the stream; far less than one head's scores.
    assert stream + 2 * fed < memory.activations_bytes(recipe) < 20 * stream < tokens * tokens * 40 * 2


def test_tensors_count_while_they_are_alive():
    with torch.device("meta"), memory._Alive() as alive:
        kept = torch.empty(1000)  # 4000 bytes
        view = kept.view(10, 100)
        for _ in range(5):
            temporary = view + 1
            del temporary
        assert (alive.now, alive.most) == (4000, 8000)
        query, key = torch.empty(1, 1, 100, 8), torch.empty(1, 1, 50, 8)
        with memory._FusedAttention():
            answer = torch.nn.functional.scaled_dot_product_attention(query, key, torch.empty(1, 1, 50, 16))
    assert answer.shape == (1, 1, 100, 16)
    assert alive.most < 4000 + 4 * (800 + 400 + 800 + 1600) + 100


def test_what_other_methods_keep():
    """TaylorSeer's first order on Wan-14B: two factors of three modules of 40 blocks for two branches."""
    held = rehearse(run_of("wan", "taylorseer").recipe).held
    assert held == 2 * 3 * 40 * 2 * 75600 * 5120 * 2
    held = rehearse(run_of("hunyuan", "teacache").recipe).held  # a residual and the feature, video tokens
    assert held == 2 * 20400 * 3072 * 2


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["method.reuse=prediction"], 1),
        (["method.reuse=hermite", "method.taylor_order=2"], 3),
        (["method.reuse=second_difference"], 2),
        (["method.reuse=mean_velocity"], 2),
        (["method.reuse=chebyshev"], 25),
    ],
)
def test_what_a_strategy_of_reuse_keeps(words, kept):
    """So many predictions of each of two branches, in bfloat16; Spectrum's fit all that were computed."""
    held = rehearse(run_of("wan", "uniform", "method.steps=25", *words).recipe).held
    assert held == kept * 2 * 16 * 21 * 90 * 160 * 2
