"""Device memory, planned before there are weights."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from methods.block_cache import SURPLUS
from methods.engine.anatomy import anatomy_for
from pcbench import backbones
from pcbench.cost import memory
from pcbench.cost.dry_run import rehearse
from pcbench.cost.held import width_of

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
        ("ltx2", (121, 512, 768), 1.8),
        ("cogvideox", (49, 480, 720), 1.5),
        ("cogvideox_5b", (49, 480, 720), 3.5),
        ("vchitect", (40, 432, 768), 3.7),
    ],
)
def test_blockcache_memory(model, size, gib):
    """Kept blocks x branches x tokens (a text stream's too) x width x bytes, and while blocks are ranked a few more.

    Rounded to float8 half of that and a scale a token; on the CPU all that will be reused, with one in two places.
    """
    words = [f"model.sampling.{name}={n}" for name, n in zip(("frames", "height", "width"), size, strict=True)]
    words.append("model.sampling.steps=6")  # what is kept at once does not depend on how many follow
    recipe = run_of(model, "precisecache_flash", *words).recipe
    family, config = backbones.family(recipe.backbone), backbones.transformer_config(recipe.backbone)
    anatomy, shapes = anatomy_for(family.TRANSFORMER, config), family.arguments(recipe, config)
    blocks = sum(rehearse(recipe).blocks.values())
    tokens = math.prod(anatomy.token_grid(family.latent_size(recipe.sampling)))
    text = 0 if model.startswith("wan") else anatomy.text_tokens(shapes)
    video, second = width_of(anatomy), anatomy.second_width or width_of(anatomy)
    one = shapes["hidden_states"][0] * (tokens * video + text * second)
    many = round(0.4 * blocks) * family.branches(recipe)
    assert 2 * many * one / memory.GIB == pytest.approx(gib, abs=0.05)
    assert rehearse(run_of(model, "precisecache_turbo", *words).recipe).held_inside == 0

    def kept(storage: str) -> tuple[float, float]:
        found = rehearse(run_of(model, "precisecache_flash", *words, f"method.kept={storage}").recipe)
        return found.held_inside / one, found.waiting / one

    close = functools.partial(pytest.approx, rel=0.002)
    assert kept("exact") == (close(2 * (many + SURPLUS)), 0)
    assert kept("float8") == (close((1 + 4 / width_of(anatomy)) * (many + SURPLUS)), 0)
    assert kept("cpu") == (close(2), close(2 * (many + SURPLUS)))


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
