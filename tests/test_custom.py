"""A model without YAML: any diffusers pipeline folder or hub repository of a known class, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, WanPipeline
from huggingface_hub import constants

from pcbench import cli, compose
from pcbench.backbones import FAMILIES, custom
from pcbench.config import ConfigError
from pcbench.cost.estimate import price_of
from pcbench.cost.macs import PETA
from pcbench.cost.timesteps import boundary_of
from pcbench.identity import recipe_id
from pcbench.runs import anatomy_of
from pcbench.store import records

from .families import SMALL
from .test_backbones import TEXT
from .toys import TOYS, toy

SIZE = ["model.sampling.height=32", "model.sampling.width=64", "model.sampling.frames=17", "model.sampling.steps=3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A random pipeline of each family, saved as diffusers saves it, in float32."""
    root = tmp_path_factory.mktemp("my models")
    for name in TOYS:
        toy(name).to(dtype=torch.float32).save_pretrained(root / f"my {name}!")
    return {name: root / f"my {name}!" for name in TOYS}


def run_of(source, *words: str):
    return compose.run_from(["model=custom", f"model.backbone.source='{source}'", "method=none", *words])


def changed(folder: Path, copy: Path, file: str, **values) -> Path:
    """A copy of a folder with some values of a JSON file changed; a value None is taken out."""
    shutil.copytree(folder, copy)
    data = json.loads((copy / file).read_text()) | values
    (copy / file).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return copy


@pytest.mark.parametrize("name", TOYS)
def test_a_folder_is_read_and_runs(name, folders, tmp_path, capsys):
    source = f"model.backbone.source='{folders[name]}'"
    height = 64 if name == "ltx2" else 32
    words = ["model=custom", source, f"model.sampling.height={height}", *SIZE[1:], "prompts=smoke", *TEXT[name]]
    words += ["prompts.limit=1", f"results={tmp_path}"]
    words += ["method=uniform", "method.steps=2"]
    assert cli.main([*words, "plan=true"]) == 0
    assert cli.main([*words, "stages=[generate,score]"]) == 0
    assert f"my-{name}, 17x{height}x64" in capsys.readouterr().out
    cached = next(record for record in records(tmp_path) if record["recipe"]["method"]["name"] == "uniform")
    backbone = cached["recipe"]["backbone"]
    assert backbone["family"] == name
    assert backbone["source"] == str(folders[name])
    assert backbone["revision"] == custom.fingerprint(folders[name])
    assert cached["recipe"]["numerics"]["dtype"] == "float32"
    assert cached["fidelity"]["psnr@2"]["n"] == 1


def test_a_folder_s_own_solver_and_boundary_are_priced(tmp_path):
    """A solver of second order calls the transformer 11 times in 6 steps; the boundary decides who answers which."""
    pipe = toy("wan")
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    parts = pipe.components | {"transformer_2": type(pipe.transformer).from_config(pipe.transformer.config)}
    WanPipeline(**parts, boundary_ratio=0.6).to(dtype=torch.float32).save_pretrained(tmp_path / "heun")
    words = ["model=custom", f"model.backbone.source='{tmp_path / 'heun'}'", *SIZE, *TEXT["wan"], "prompts=smoke"]
    words += ["prompts.limit=1", "model.sampling.steps=6", f"results={tmp_path / 'results'}", "method=replay"]
    words += ["observe=[difference]", "stages=[generate,score,observe]"]
    run = compose.run_from([*words, "method.actions=FrFrFrFrFrF"])
    assert cli.main([*words, "method.actions=FrFrFrFrFrF"]) == 0
    made = {record["recipe"]["method"]["name"]: record for record in records(tmp_path / "results")}
    assert made["none"]["macs"]["speedup"] == 1
    cached = made["replay"]
    (sample,) = cached["samples"]
    assert (cached["status"], sample["steps"], cached["fidelity"]["psnr@2"]["n"]) == ("ok", 11, 1)
    assert cached["macs"]["speedup"] == pytest.approx(11 / 6)
    assert price_of(run).expected.total / PETA == pytest.approx(cached["macs"]["peta_per_video"])
    assert boundary_of(run.recipe.backbone) == 0.6
    with pytest.raises(ConfigError, match="11"):
        compose.run_from([*words, "method.actions=FrFrFr"])


def test_sizes_are_the_files_own_or_the_pipeline_s(folders):
    wan, cogvideox = run_of(folders["wan"]).recipe, run_of(folders["cogvideox"]).recipe
    assert (wan.sampling.frames, wan.sampling.height, wan.sampling.width) == (81, 480, 832)
    config = json.loads((folders["cogvideox"] / "transformer" / "config.json").read_text())
    sampling = cogvideox.sampling
    own = (config["sample_frames"], 8 * config["sample_height"], 8 * config["sample_width"])
    assert (sampling.frames, sampling.height, sampling.width) == own
    assert cogvideox.backbone.call == {"max_sequence_length": config["max_text_seq_length"]}
    assert run_of(folders["cogvideox"], "model.sampling.steps=7").recipe.sampling.steps == 7
    hunyuan15 = run_of(folders["hunyuan15"]).recipe.sampling
    assert (hunyuan15.frames, hunyuan15.height, hunyuan15.width, hunyuan15.guidance_scale) == (121, 480, 848, 6.0)
    again = run_of(folders["cogvideox"], "+model.backbone.call.max_sequence_length=8")
    assert again.recipe.backbone.call == {"max_sequence_length": 8}


def test_other_weights_and_other_places_are_other_recipes(folders, tmp_path):
    copy = tmp_path / "wan"  # the name of a model in conf/, whose calibrations it must not take
    shutil.copytree(folders["wan"], copy)
    one, other = run_of(folders["wan"]).recipe, run_of(copy).recipe
    assert other.backbone.name == "wan-custom"
    assert one.backbone.revision == other.backbone.revision
    assert recipe_id(one) != recipe_id(other)
    assert recipe_id(run_of(f"{tmp_path}/./wan").recipe) == recipe_id(other)
    (weights,) = (copy / "transformer").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert recipe_id(run_of(copy).recipe) != recipe_id(other)


def test_a_known_models_weights_from_a_folder_count_too(folders, tmp_path, monkeypatch):
    """A path alone would compare new videos with references of the weights before."""
    copy = tmp_path / "weights"
    shutil.copytree(folders["wan"], copy)
    words = ["model=wan", f"model.backbone.source={copy}", "method=none"]
    before = compose.run_from(words).recipe
    monkeypatch.chdir(tmp_path)
    beside = compose.run_from([words[0], "model.backbone.source=weights", words[2]]).recipe
    assert beside.backbone.revision == before.backbone.revision == custom.fingerprint(copy)
    (weights,) = (copy / "transformer").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert recipe_id(compose.run_from(words).recipe) != recipe_id(before)


def test_a_second_transformer_is_guided_as_the_first_unless_something_else_is_said():
    two = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    assert custom._call(two, FAMILIES["wan"], {}) == {"guidance_scale_2": None}
    assert custom._call({"transformer_2": [None, None]}, FAMILIES["wan"], {}) == {}


def test_large_files_count_by_their_ends_and_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(custom, "PIECE", 4)
    file, found = tmp_path / "weights", set()
    for place in (None, 0, 50, 99, 20):
        data = bytearray(100)
        if place is not None:
            data[place] = 1
        file.write_bytes(data)
        found.add(custom.fingerprint(tmp_path))
    assert len(found) == 4  # a change elsewhere is not seen


def test_what_is_not_known_is_refused_in_a_line(folders, tmp_path):
    cases = {
        changed(
            folders["wan"], tmp_path / "a", "model_index.json", _class_name="LTXPipeline"
        ): "is a LTXPipeline; known",
        changed(folders["wan"], tmp_path / "b", "model_index.json", expand_timesteps=True): "cells of 8 .* have 16",
        changed(
            folders["wan"], tmp_path / "c", "model_index.json", transformer=["diffusers", "WanVACETransformer3DModel"]
        ): "has a WanVACETransformer3DModel; the known one is WanTransformer3DModel",
        changed(folders["wan"], tmp_path / "d", "vae/config.json", scale_factor_spatial=16): "cells of 16 pixels",
        changed(folders["wan"], tmp_path / "e", "transformer/config.json", patch_size=[1, 1, 1]): "has patches of",
        changed(folders["wan"], tmp_path / "h", "transformer/config.json", patch_size="two"): "has patches of",
        changed(  # CogVideoX-1.5
            folders["cogvideox"], tmp_path / "i", "transformer/config.json", patch_size_t=2
        ): r"has patches of \[2, 2, 2\] latent frames, rows and columns; those of cogvideox are of \[1, 2, 2\]",
    }
    (tmp_path / "f" / "unet").mkdir(parents=True)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "model_index.json").write_text("{")
    cases |= {tmp_path / "f": "no diffusers pipeline folder", tmp_path / "g": "model_index.json is damaged"}
    (tmp_path / "my-model").mkdir()
    cases[tmp_path / "my-modle"] = "no such folder, and no owner/name on the hub; did you mean 'my-model'?"
    for source, words in cases.items():
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
            run_of(source)
    with pytest.raises(ConfigError, match="known pipelines are WanPipeline, WanImageToVideoPipeline, Hun"):
        run_of(tmp_path / "a")
    with pytest.raises(ConfigError, match="needs a pipeline"):
        compose.run_from(["model=custom", "method=none"])
    with pytest.raises(ConfigError, match="cannot be part of a sweep over models"):
        compose.compose(["model=custom,tiny_wan", "method=none"], multirun=True)


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"hunyuan15", "ltx2"}))  # which cannot be without one
def test_a_pipeline_without_a_vae_is_refused(name, tmp_path):
    pipe = SMALL[name].pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    known = type(pipe).__name__ in {family.PIPELINE.__name__ for family in FAMILIES.values()}
    with pytest.raises(ConfigError, match="has no VAE" if known else "known pipelines are"):
        run_of(tmp_path / "pipe")


def test_a_sweep_of_methods_is_over_the_custom_model(folders, tmp_path):
    words = ["model=custom", f"model.backbone.source='{folders['wan']}'", *SIZE, f"results={tmp_path}"]
    runs = compose.compose([*words, "method=uniform", "method.steps=1,2,3"], multirun=True).runs
    assert [run.recipe.backbone.name for run in runs] == ["my-wan"] * 3


def test_a_hub_repository_is_read_at_its_commit(folders, tmp_path, monkeypatch):
    """From the hub's cache, as a download leaves it; no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--Some-Wan"
    shutil.copytree(folders["wan"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert constants.HF_HUB_OFFLINE
    run = compose.run_from(["model=custom", "model.backbone.source=someone/Some-Wan", "method=none"])
    backbone = run.recipe.backbone
    assert anatomy_of(backbone).family == "wan"
    assert (backbone.name, backbone.family, backbone.source) == ("Some-Wan", "wan", "someone/Some-Wan")
    assert backbone.revision == commit
    layers = json.loads((folders["wan"] / "transformer" / "config.json").read_text())["num_layers"]
    assert backbone.transformer["num_layers"] == layers
    assert run.recipe.numerics.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"someone/Else: model_index\.json is neither here nor to be had from the hub"):
        compose.run_from(["model=custom", "model.backbone.source=someone/Else", "method=none"])
