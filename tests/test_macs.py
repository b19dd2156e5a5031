"""Prices against published figures. That a trace prices to what a counter counts: test_contract.py, every method."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from methods import PreciseCacheConfig, apply
from pcbench.cost.macs import PETA, forward_macs

from .conftest import call

# PyTorch counts no FLOPs for the CPU's attention kernel unless told how.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(q, k, v)
    )
}


def counted(pipe, method) -> tuple[int, object]:
    with apply(pipe, method) as handle, FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call(pipe)
    return counter.get_total_flops() // 2, handle.trace


def test_attention_is_counted(pipe):
    """Without it the counter's total would be smaller by more than the contract's tolerance."""
    with FlopCounterMode(display=False) as blind:
        call(pipe)
    expected, _ = counted(pipe, PreciseCacheConfig(alpha=0.0))
    assert blind.get_total_flops() // 2 < 0.95 * expected


@pytest.mark.parametrize(
    ("config", "size", "published"),
    [
        ({}, (21, 90, 160), 3.2617),  # 14B at 720P x 81 frames: 326.2 P over 100 calls; the paper's Table 1 says 329.2
        ({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, (21, 60, 104), 0.1415),
    ],
)
def test_full_size_wan_costs_what_it_should(config, size, published):
    shapes = {"hidden_states": [1, 16, *size], "timestep": [1], "encoder_hidden_states": [1, 512, 4096]}
    assert forward_macs(WanTransformer3DModel, config, shapes) / PETA == pytest.approx(published, rel=1e-3)
