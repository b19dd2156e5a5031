"""Vchitect-2.0's converter of the published checkpoint, and its family module in the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from methods import apply
from pcbench import backbones, cli
from pcbench.backbones.vchitect import family
from pcbench.backbones.vchitect.convert import convert, load_transformer, main
from pcbench.backbones.vchitect.convert_keys import rename_transformer_key
from pcbench.config import ConfigError
from pcbench.cost.macs import PETA, reference_macs
from pcbench.job import job_of

from .vchitect_parts import CLIP_TOKENS, T5_TOKENS, TRANSFORMER_CONFIG, text_parts, transformer, vae

GOLDEN = Path(__file__).parent / "golden" / "vchitect_transformer.json"  # it also lists the names of published weights
SMALL = ["model.sampling.height=32", "model.sampling.width=48", "model.sampling.frames=3", "model.sampling.steps=4"]
SMALL += ["model.numerics.dtype=float32", f"+model.backbone.call.max_sequence_length={T5_TOKENS}"]


def published(root: Path) -> Path:
    """A small copy of the published repository."""
    names, ours = json.loads(GOLDEN.read_text())["published_names"], transformer().state_dict()
    folder = root / "transformer"
    folder.mkdir(parents=True)
    theirs = {name: ours[rename_transformer_key(name, TRANSFORMER_CONFIG["num_layers"])] for name in names}
    safetensors.torch.save_file(theirs, folder / "diffusion_pytorch_model.safetensors")
    config = {**TRANSFORMER_CONFIG, "_class_name": "VchitectXLTransformerModel", "tp_size": 1, "patch_size": 2}
    (folder / "config.json").write_text(json.dumps({**config, "caption_projection_dim": 48}))
    for name, part in {**text_parts(), "vae": vae()}.items():
        part.save_pretrained(root / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    return root


def run_of(source: Path | str, *words: str):
    return cli.run_from(["model=vchitect", f"model.backbone.source={source}", "method=none", *SMALL, *words])


def test_the_published_checkpoint_loads_samples_and_decodes(tmp_path):
    convert(published(tmp_path / "published"), tmp_path / "out", torch.float32)
    recipe = run_of(tmp_path / "out").recipe
    found = cli.run_from(["model=custom", f"model.backbone.source={tmp_path / 'out'}", "method=none"]).recipe
    assert (found.backbone.family, found.sampling.steps, found.sampling.frames) == ("vchitect", 100, 40)
    pipe = backbones.load(recipe, "cpu")
    backbones.forget()
    for part, expected in ((pipe.transformer, transformer()), (pipe.vae, vae())):
        state = expected.state_dict()
        assert set(state) == set(part.state_dict())
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    arguments, frames = family.call_arguments(recipe), {}
    with apply(pipe, recipe.method) as handle:
        for name, given in (("prompt", {"prompt": "a cat"}), ("embeds", family.embed(pipe, "a cat", recipe))):
            rest = {key: value for key, value in arguments.items() if name == "prompt" or key != "negative_prompt"}
            generator = torch.Generator().manual_seed(0)
            latents = pipe(**rest, **given, generator=generator, output_type="latent").frames
            frames[name] = family.decode(pipe, latents, recipe)
    generator = torch.Generator().manual_seed(0)
    whole = pipe(**arguments, prompt="a cat", generator=generator, output_type="np").frames[0]
    assert tuple(latents.shape[2:]) == family.latent_size(recipe.sampling) == (3, 4, 6)
    assert np.array_equal(frames["prompt"], (whole * 255).round().astype(np.uint8))
    assert np.array_equal(frames["prompt"], frames["embeds"])
    # CLIP's 77 tokens of the released tokenizers are six here
    shapes = family.arguments(recipe, TRANSFORMER_CONFIG)
    shapes["encoder_hidden_states"][1] += CLIP_TOKENS - family.CLIP_TOKENS
    assert handle.trace.arguments == shapes
    assert len(handle.trace.steps[0].calls) == family.branches(recipe) == 2


def test_a_weight_too_many_or_too_few_is_named(tmp_path):
    folder = published(tmp_path) / "transformer"
    file = folder / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["transformer_blocks.2.attn.to_q_temp.bias"]
    safetensors.torch.save_file({**state, "extra.weight": torch.zeros(1)}, file)
    expected = r"not known: extra\.weight; missing: final_transformer_blocks\.0\.attn\.temporal\.to_q\.bias"
    with pytest.raises(ValueError, match=expected):
        load_transformer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_transformer(folder)


def test_the_command_line_makes_a_folder_or_says_in_one_line_why_not(tmp_path, capsys):
    root = published(tmp_path / "published")
    main(["--checkpoint", str(root), "--out", str(tmp_path / "out"), "--dtype", "float32"])
    assert f"model=vchitect model.backbone.source={tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "model_index.json").exists()
    with pytest.raises(SystemExit) as caught:
        main(["--checkpoint", str(root / "vae"), "--out", str(tmp_path / "again")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "it has no transformer, scheduler, tokenizer" in error
    assert error.count("\n") == 1


def test_what_is_not_converted_says_how(tmp_path):
    with pytest.raises(ConfigError, match=r"python -m pcbench\.backbones\.vchitect\.convert"):
        family.load(str(tmp_path), run_of(tmp_path).recipe)


def test_random_weights_need_no_files_and_are_the_same_twice(monkeypatch):
    monkeypatch.setattr(family, "VAE", {**family.VAE, "block_out_channels": (32, 32, 32, 32)})
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "joint_attention_dim": 16}
    words = [f"+model.backbone.transformer.{name}={held}" for name, held in small.items()]
    recipe = cli.run_from(["model=vchitect", "model.weights=random", "method=none", *SMALL, *words]).recipe
    made = []
    for _ in range(2):
        pipe = family.build(recipe, "cpu")
        pipe.set_progress_bar_config(disable=True)
        arguments = {key: held for key, held in family.call_arguments(recipe).items() if key != "negative_prompt"}
        generator = torch.Generator().manual_seed(0)
        embeds = family.embed(pipe, "a prompt", recipe)
        made.append(pipe(**arguments, **embeds, generator=generator, output_type="latent").frames)
    assert made[0].isfinite().all()
    assert torch.equal(*made)
    assert family.decode(pipe, made[0], recipe).shape == (3, 32, 48, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("height=440", "multiples of 16, not 440x48"),
        ("width=4096", "at most 3072, not 32x4096"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_of("x", f"model.sampling.{change}")
    assert "\n" not in str(caught.value)


def test_the_official_workload():
    """inference.py: 100 steps of two branches, 40 frames of 54x96 cells and 333 text tokens, priced by hand."""
    run = cli.run_from(["model=vchitect", "method=none"])
    sampling = run.recipe.sampling
    assert (sampling.frames, sampling.height, sampling.width, sampling.steps) == (40, 432, 768, 100)
    assert (sampling.guidance_scale, run.fps) == (7.5, 8)
    frames, places, text, width, layers = 40, 27 * 48, 77 + 256, 1536, 24
    tokens = places + text
    projections = 7 * places + 3 * text + 3 * tokens + 8 * tokens  # queries, keys and values; outputs; MLP
    attention = 2 * tokens * (tokens + text + frames)
    block = projections * width**2 + attention * width
    unused = (8 + 1) * text * width**2  # the last block's text has no MLP and no projection
    ends = places * (16 * 4 * width * 2) + text / frames * 4096 * width
    expected = 200 * frames * (layers * block - unused + ends) / PETA
    assert reference_macs(job_of(run)) / PETA == pytest.approx(expected, rel=1e-4)


def test_parallel_is_refused_in_one_line(tmp_path):
    words: list[Any] = ["model=vchitect", "model.weights=random", "model.numerics.parallel=2", "method=none"]
    with pytest.raises(ConfigError, match="how to split a VchitectTransformer3DModel over GPUs is not known"):
        backbones.check(cli.run_from(words))
