"""Open-Sora's converter of published checkpoints, and its family module in the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from methods import NoCacheConfig, apply
from pcbench.backbones.opensora import family
from pcbench.backbones.opensora.convert import convert, load_transformer, load_vae, main, rename_vae_key
from pcbench.backbones.opensora.convert_keys import rename_transformer_key
from pcbench.backbones.opensora.pipeline import OpenSoraPipeline
from pcbench.config import Backbone, ConfigError, Numerics, Recipe, Sampling

from .opensora_parts import TRANSFORMER_CONFIG, VAE_CONFIG, pipeline, text_parts, transformer, vae

GOLDEN = Path(__file__).parent / "golden" / "opensora_sampler.json"  # it also lists the names of published weights


def published(tmp_path: Path) -> dict[str, Path]:
    """Small checkpoints under the published names: transformer (.safetensors), VAE (.bin), T5."""
    folders = {name: tmp_path / name for name in ("transformer", "vae", "text_encoder")}
    for folder in folders.values():
        folder.mkdir()
    ours = transformer().state_dict()
    names = json.loads(GOLDEN.read_text())["published_names"]
    theirs = {
        name: torch.cat([ours[each] for each in rename_transformer_key(name)])
        if rename_transformer_key(name)
        else torch.zeros(3)
        for name in names["transformer"]
    }
    safetensors.torch.save_file(theirs, folders["transformer"] / "model.safetensors")
    config = {"depth": 2, "hidden_size": 24, "num_heads": 2, "caption_channels": 16, "model_max_length": 10}
    (folders["transformer"] / "config.json").write_text(json.dumps({**config, "model_type": "STDiT3"}))
    ours = vae().state_dict()
    weights = {name: ours[rename_vae_key(name)] for name in names["vae"] if name not in ("shift", "scale")}
    weights["shift"] = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1, 1)
    weights["scale"] = torch.tensor([3.85, 2.32, 2.33, 3.06]).view(1, 4, 1, 1, 1)
    torch.save(weights, folders["vae"] / "pytorch_model.bin")
    for part in text_parts().values():
        part.save_pretrained(folders["text_encoder"])
    return folders


def test_converting_published_checkpoints(tmp_path):
    folders = published(tmp_path)
    convert(**folders, out=tmp_path / "out", dtype=torch.float32, vae_config=VAE_CONFIG)
    pipe = OpenSoraPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    for part, expected in ((pipe.transformer, transformer()), (pipe.vae, vae())):
        state = expected.state_dict()
        assert set(state) == set(part.state_dict())
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    assert list(pipe.vae.config.shift) == [0.1, 0.2, 0.3, 0.4]
    assert pipe("a cat", num_frames=17, height=32, width=32, num_inference_steps=2, max_sequence_length=10,
                clean_caption=False, output_type="pt").frames.isfinite().all()  # fmt: skip


def test_a_weight_too_many_or_too_few_is_named(tmp_path):
    folders = published(tmp_path)
    for part, file, load in (
        ("transformer", "model.safetensors", load_transformer),
        ("vae", "pytorch_model.bin", lambda folder: load_vae(folder, VAE_CONFIG)),
    ):
        path = folders[part] / file
        state = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        gone = next(name for name in sorted(state, reverse=True) if state[name].ndim > 2)
        changed = {name: value for name, value in state.items() if name != gone} | {"extra.weight": torch.zeros(1)}
        path.unlink()
        safetensors.torch.save_file(changed, folders[part] / "model.safetensors")
        with pytest.raises(ValueError, match=r"not known: extra\.weight; missing: \S+") as caught:
            load(folders[part])
        assert "\n" not in str(caught.value)


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    here = str(tmp_path / "empty")
    for vae_folder, message in (("nowhere", "no such folder: nowhere"), (here, "no weights in")):
        with pytest.raises(SystemExit) as caught:
            main(["--transformer", here, "--vae", vae_folder, "--text-encoder", here, "--out", str(tmp_path / "out")])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def recipe(source: str = "no/where", frames: int = 29, **sampling: Any) -> Recipe:
    call = {"max_sequence_length": 10, "clean_caption": False, "aesthetic_score": None}
    return Recipe(
        backbone=Backbone(name="opensora", family="opensora", source=source, call=call),
        sampling=Sampling(height=43, width=64, frames=frames, steps=2, guidance_scale=7.0, **sampling),
        method=NoCacheConfig(),
        numerics=Numerics(),
    )


def test_the_family_loads_samples_and_decodes(tmp_path):
    pipeline(vae=vae(), **text_parts()).save_pretrained(tmp_path)
    wanted = recipe(str(tmp_path))
    pipe = family.load(str(tmp_path), wanted)
    pipe.set_progress_bar_config(disable=True)
    arguments, frames = family.call_arguments(wanted), {}
    with apply(pipe, wanted.method) as handle:
        for name, words in (("prompt", {"prompt": "a cat"}), ("embeds", family.embed(pipe, "a cat", wanted))):
            generator = torch.Generator().manual_seed(0)
            latents = pipe(**arguments, **words, generator=generator, output_type="latent").frames
            frames[name] = family.decode(pipe, latents, wanted)
    assert tuple(latents.shape[2:]) == family.latent_size(wanted.sampling) == (8, 5, 8)
    assert frames["prompt"].shape == (29, 40, 64, 3)
    assert np.array_equal(frames["prompt"], frames["embeds"])
    assert handle.trace.arguments == family.arguments(wanted, TRANSFORMER_CONFIG)


def test_frames_that_share_a_latent_size_are_decoded_as_many_as_asked():
    pipe, latents = pipeline(vae=vae()), torch.zeros(1, 4, 7, 5, 8)
    for frames in (22, 23, 24, 25):
        assert family.latent_size(recipe(frames=frames).sampling)[0] == 7
        assert len(family.decode(pipe, latents, recipe(frames=frames))) == frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 16}, "frames must be 1 or at least 17, not 16"),
        ({"flow_shift": 3.0}, "leave model.sampling.flow_shift out"),
        ({"negative_prompt": "blurry"}, "no negative prompt"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        family.check(recipe(**change).sampling)


def test_published_checkpoints_that_are_not_converted_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"python -m pcbench\.backbones\.opensora\.convert"):
        family.load(str(tmp_path), recipe(str(tmp_path)))
