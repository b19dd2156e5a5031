"""Weights of the transformer's blocks in 8 bits: planned without torchao, made with it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pcbench import backbones, cli
from pcbench.backbones import quantized
from pcbench.config import QUANTIZATIONS
from pcbench.cost import memory
from pcbench.sampling import generate

SMALL = ["model.sampling.steps=6", "model.sampling.frames=17", "model.sampling.height=64", "model.sampling.width=64"]
OPTION = "model.numerics.quantization"
installed = pytest.mark.skipif(quantized.lacks() is not None, reason='torchao is not installed: extra "quantization"')


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_without_torchao_it_is_refused_before_anything_runs(kind, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quantized, "lacks", lambda: 'it needs the torchao package: pip install "pcbench[quantization]"')
    monkeypatch.setattr(backbones, "load", lambda *args: pytest.fail("loaded"))
    assert cli.main([f"{OPTION}={kind}", "method=none", *SMALL, f"results={tmp_path / 'r'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{OPTION}={kind}: it needs the torchao package" in line
    assert not list((tmp_path / "r").rglob("*.json"))


def test_what_is_lacking_is_the_package():
    assert (quantized.lacks() is None) == (importlib.util.find_spec("torchao") is not None)


@pytest.mark.parametrize(("words", "said"), [
    ([f"{OPTION}=int4"], "int8"),
    ([f"{OPTION}=int8", "model.offload=group"], "never tried together"),
    ([f"{OPTION}=int8", "model.numerics.compile=true"], "never tried together"),
])  # fmt: skip
def test_what_cannot_be_is_refused(words, said, capsys):
    assert cli.main(["method=none", *words, "plan=true"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(("kind", "gib"), [(None, 26.6), ("int8", 13.5), ("float8", 13.5)])
def test_planned_weights(kind, gib):
    """14.05 of Wan-14B's 14.29 billion weights are in linear layers of its blocks: a byte each, and some a channel."""
    recipe = cli.run_from(["model=wan", "method=none", *([f"{OPTION}={kind}"] if kind else [])]).recipe
    assert memory.weights_bytes(recipe) / memory.GIB == pytest.approx(gib, abs=0.1)


def latents_of(*words: str) -> torch.Tensor:
    run = cli.run_from([*SMALL, *words])
    pipe = backbones.load(run.recipe, "cpu")
    embeds = backbones.family(run.recipe.backbone).embed(pipe, run.prompts[0], run.recipe)
    with generate.cached(pipe, run, run.recipe):
        return generate.denoise(pipe, run.recipe, 0, **embeds)


@installed
@pytest.mark.parametrize(("model", "kind", "method"), [
    *((f"tiny_{family}", "int8", "none") for family in ("wan", "hunyuan", "cogvideox", "opensora")),
    ("tiny_wan", "float8", "none"), ("tiny_wan", "int8", "taylorseer"), ("tiny_wan", "float8", "taylorseer"),
])  # fmt: skip
def test_videos_are_nearly_the_same(model, kind, method):
    words = [f"model={model}", f"method={method}"]
    exact, rounded = latents_of(*words), latents_of(*words, f"{OPTION}={kind}")
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < {"int8": 0.05, "float8": 0.2}[kind]


@installed
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_weights_take_what_was_planned(kind):
    run = cli.run_from(["model=tiny_wan", "method=none", *SMALL, f"{OPTION}={kind}"])
    transformer = backbones.load(run.recipe, "cpu").transformer
    parts = ("qdata", "scale", "zero_point")
    tensors = [
        getattr(parameter, name)
        for parameter in transformer.parameters()
        for name in (parts if hasattr(parameter, "qdata") else ("data",))
        if isinstance(getattr(parameter, name, None), torch.Tensor)
    ]
    assert sum(each.numel() * each.itemsize for each in tensors) == memory.weights_bytes(run.recipe)
