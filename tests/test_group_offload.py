"""Group offloading without a GPU: weights that are away are NaN, as on one they would be on another device."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks import group_offloading

from methods import AdaCacheConfig, Method, PreciseCacheConfig, SeaCacheConfig, TeaCacheConfig, apply

from .families import SMALL as FAMILIES

LOOKING: dict[str, Method] = {
    "teacache": TeaCacheConfig(**TeaCacheConfig.EAGER),
    "seacache": SeaCacheConfig(**SeaCacheConfig.EAGER),
    "adacache": AdaCacheConfig(**AdaCacheConfig.EAGER),
    "precisecache": PreciseCacheConfig(**PreciseCacheConfig.EAGER, block_cache_rate=0.5),
}


@pytest.fixture
def away_is_nan(monkeypatch):
    held: dict[int, torch.Tensor] = {}
    spared: set[int] = set()
    group = group_offloading.ModuleGroup
    onload, offload = group.onload_, group.offload_

    def tensors(self):
        for module in self.modules:
            yield from module.parameters()
            yield from module.buffers()
        yield from [*self.parameters, *self.buffers]

    def away(self):
        offload(self)
        for each in tensors(self):
            if id(each) not in spared | set(held) and each.is_floating_point():
                held[id(each)], each.data = each.data, torch.full_like(each.data, float("nan"))

    def back(self):
        onload(self)
        for each in tensors(self):
            if id(each) in held:
                each.data = held.pop(id(each))

    monkeypatch.setattr(group, "offload_", away)
    monkeypatch.setattr(group, "onload_", back)
    return spared


@pytest.mark.parametrize("order", ["offload first", "cache first"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("name", sorted(LOOKING))
@pytest.mark.parametrize("family", ["wan", "hunyuan", "cogvideox_5b", "opensora", "vchitect"])
def test_what_is_looked_at_is_there(away_is_nan, family, name, kind, order):
    cpu, blocks = torch.device("cpu"), {"num_blocks_per_group": 1} if kind == "block_level" else {}
    method, case = LOOKING[name], FAMILIES[family]
    pipe = case.pipeline()
    try:
        handle = apply(pipe, method, **case.options)
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    with handle:
        expected = case.call(pipe)
    actions = [row.action for row in handle.trace.steps]

    def offload() -> None:
        if family == "opensora":  # its pipeline reads this where it is, and moves what it read
            away_is_nan.add(id(pipe.transformer.null_caption))
        group_offloading.apply_group_offloading(
            pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks
        )

    pipe = case.pipeline()
    if order == "offload first":
        offload()
    with apply(pipe, method, **case.options) as handle:
        if order == "cache first":
            offload()
        latents = case.call(pipe)
    assert [row.action for row in handle.trace.steps] == actions
    assert torch.allclose(latents, expected, atol=1e-5)
