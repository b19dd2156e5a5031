"""The calibration against measurements by plain hooks, and its command line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

import pcbench
from methods import apply
from methods import calibration as calibrations
from methods.engine.anatomy import anatomy_of
from methods.teacache import TeaCacheConfig
from pcbench import cli
from pcbench.backbones import custom, weights
from pcbench.calibrate import __main__ as calibrate
from pcbench.calibrate import changes
from pcbench.config import ConfigError

from . import forks
from .conftest import STEPS, call, pipeline_of, random_transformer
from .families import FAMILIES
from .toys import toy

ROOT = Path(__file__).parents[1]


def watched(pipe, run):
    """Timestep embeddings, stack inputs and outputs of every transformer call, by hooks of torch's own."""
    e, inputs, outputs = [], [], []
    transformer = pipe.transformer
    hooks = [
        transformer.condition_embedder.time_embedder.register_forward_hook(lambda m, a, out: e.append(out)),
        transformer.blocks[0].register_forward_pre_hook(lambda m, a: inputs.append(a[0])),
        transformer.blocks[-1].register_forward_hook(lambda m, a, out: outputs.append(out)),
    ]
    run()
    for hook in hooks:
        hook.remove()
    return e, inputs, outputs


def rel(a, b):
    return float((a - b).abs().mean() / b.abs().mean())


def test_the_polynomial_is_the_least_squares_fit_over_all_videos_and_branches(pipe):
    data = changes.measure(pipe, "teacache", [lambda: call(pipe), lambda: call(pipe, 1, 5)])
    xs, ys = [], []
    for prompt, seed in ((0, 0), (1, 5)):
        e, _, outputs = watched(pipe, lambda p=prompt, s=seed: call(pipe, p, s))
        for i in range(2, 2 * STEPS):  # calls alternate: two back is the same branch at the step before
            xs.append(rel(e[i], e[i - 2]))
            ys.append(rel(outputs[i], outputs[i - 2]))
    expected = np.polyfit(xs, ys, 4)
    assert data["coefficients"] == pytest.approx(expected, rel=1e-2)
    assert data["samples"] == len(xs) == 4 * (STEPS - 1)
    assert data["range"] == pytest.approx([min(xs), max(xs)], rel=1e-4)
    left = np.array(ys) - np.polyval(expected, xs)
    assert data["r2"] == pytest.approx(1 - left.var() / np.var(ys), rel=1e-3)
    assert data["feature"] == "e"


def test_retention_leaves_out_the_steps_that_are_always_computed(pipe):
    data = changes.measure(pipe, "teacache_retention", [lambda: call(pipe)])
    assert data["feature"] == "e0"
    assert data["samples"] == 2 * (STEPS - 5)


def test_the_ratios_are_of_each_branch_alone(pipe):
    data = changes.measure(pipe, "magcache", [lambda: call(pipe), lambda: call(pipe, 1, 5)])
    seen = []
    for prompt, seed in ((0, 0), (1, 5)):
        _, inputs, outputs = watched(pipe, lambda p=prompt, s=seed: call(pipe, p, s))
        norms = [(out - before).norm(dim=-1) for before, out in zip(inputs, outputs, strict=True)]
        seen.append([float((norms[i] / norms[i - 2]).mean()) for i in range(2, 2 * STEPS)])
    for first, name in enumerate(("cond", "uncond")):
        both = np.array([row[first::2] for row in seen])
        assert data["ratios"][name] == pytest.approx([1.0, *both.mean(axis=0)], abs=2e-5)
        assert data["video_std"][name] == pytest.approx([0.0, *both.std(axis=0)], abs=2e-5)
    assert data["ratios"]["cond"] != data["ratios"]["uncond"]
    assert len(data["ratios"]["cond"]) == STEPS


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox_2b", "cogvideox_5b"])
def test_families_of_one_call_have_one_list(name):
    family = FAMILIES[name]
    pipe = family.pipeline()
    before = family.call(pipe)
    ratios = changes.measure(pipe, "magcache", [lambda: family.call(pipe)])["ratios"]
    assert list(ratios) == ["all"]
    assert len(ratios["all"]) == STEPS
    assert changes.measure(pipe, "teacache", [lambda: family.call(pipe)])["samples"] == STEPS - 1
    assert torch.equal(family.call(pipe), before)


def test_with_true_cfg_hunyuanvideo_has_two_branches():
    family = FAMILIES["hunyuan_true_cfg"]
    pipe = family.pipeline()
    assert set(changes.measure(pipe, "magcache", [lambda: family.call(pipe)])["ratios"]) == {"cond", "uncond"}


def test_what_cannot_be_measured_is_refused(pipe):
    with pytest.raises(ValueError, match="ask for more steps"):
        changes.measure(pipe, "teacache", [lambda: call(pipe, steps=5)])
    two = pipeline_of(random_transformer(), random_transformer(1), boundary_ratio=0.8)
    with pytest.raises(ValueError, match="two transformers"):
        changes.measure(two, "magcache", [])
    hunyuan = FAMILIES["hunyuan"].pipeline()
    with pytest.raises(ValueError, match="none of hunyuanvideo's"):
        changes.measure(hunyuan, "teacache_retention", [])


def test_the_command_writes_what_the_method_reads(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path / "calibrations")
    monkeypatch.setattr(calibrate.backbones, "load", lambda recipe, device, offload: pipe)
    monkeypatch.setattr(calibrate.backbones, "prompt_arguments", lambda pipe, run, prompt: {"prompt": prompt})
    monkeypatch.setattr(calibrate, "denoise", lambda pipe, recipe, seed, prompt: call(pipe, len(prompt), seed))
    for method in changes.MEASURES:
        words = [f"method={method}", "prompts.limit=2", "prompts.seeds=[0,3]", f"results={tmp_path}"]
        assert calibrate.main(words) == 0
    out = capsys.readouterr().out
    assert "R²" in out
    assert "cond: 1.0000" in out
    data = json.loads((tmp_path / "calibrations" / "teacache-tiny_wan.json").read_text())
    assert data["seeds"] == [0, 3]
    assert len(data["prompts"]) == 2
    assert (
        data["packages"]["torch"] == torch.__version__.split("+")[0] or data["packages"]["torch"] == torch.__version__
    )
    assert not any("date" in key or "time" in key for key in data)
    config = TeaCacheConfig(threshold=0.5)
    assert config.for_backbone(anatomy_of(pipe.transformer)).coefficients == data["coefficients"]
    with apply(pipe, config) as handle:
        call(pipe)
    assert 0 < handle.trace.reused < STEPS


def test_a_calibration_that_is_there_stays_as_it_is(pipe, tmp_path, monkeypatch, capsys):
    """What comes with pcbench is in git; a new measurement of it lies with the user's own results."""
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path / "methods")
    monkeypatch.setattr(calibrate.backbones, "load", lambda recipe, device, offload: pipe)
    monkeypatch.setattr(calibrate.backbones, "prompt_arguments", lambda pipe, run, prompt: {"prompt": prompt})
    monkeypatch.setattr(calibrate, "denoise", lambda pipe, recipe, seed, prompt: call(pipe, len(prompt), seed))
    words = ["method=magcache", f"results={tmp_path / 'results'}"]
    name = "magcache-tiny_wan.json"
    assert calibrate.main([*words, "prompts.limit=1"]) == 0
    before = (tmp_path / "methods" / name).read_bytes()
    assert calibrate.main([*words, "prompts.limit=2"]) == 0
    assert (tmp_path / "methods" / name).read_bytes() == before
    assert json.loads((tmp_path / "results" / "calibrations" / name).read_text())["samples"] == 2
    assert f"{tmp_path / 'methods' / name} stays in use" in capsys.readouterr().out


LEMICA = ["search.start=lemica"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to calibrate: method= one of teacache"),
        (["method=pab"], "say what to calibrate"),
        (["method=teacache", "method.threshold=1"], "'method.threshold=1' is no option here"),
        (["method=teacache", "-m"], "'-m' is no option here"),
        (["method=teacache", "model=nothing"], "unknown model 'nothing'"),
        (["method=teacache", "prompts.limit=0"], "prompts.limit must be at least 1"),
        (["method=teacache", "prompts.limits=1"], "did you mean 'limit'?"),
        (["method=teacache", "model.sampling.steps=1"], "in 2 steps or more, not in 1"),
        (["method=planned", "model.sampling.steps=2"], "in 3 steps or more, not in 2"),
        (["method=searched", "model.sampling.steps=2"], "in 3 steps or more, not in 2"),
        (
            ["method=searched", "model.sampling.steps=12", *LEMICA, "search.longest=2", "search.budgets=[6]"],
            "from 7 to 11, of 12 steps",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, message, capsys):
    assert calibrate.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", calibrate.MEASURES)
def test_two_transformers_are_refused_before_they_are_loaded(method, tmp_path, monkeypatch, capsys):
    pipe = toy("wan")
    two = WanPipeline(**{**pipe.components, "transformer_2": copy.deepcopy(pipe.transformer)}, boundary_ratio=0.8)
    two.save_pretrained(tmp_path / "two")
    monkeypatch.setattr(calibrate.backbones, "load", lambda *_: pytest.fail("loaded"))
    words = [f"method={method}", "model=custom", f"model.backbone.source={tmp_path / 'two'}", "prompts=smoke"]
    assert calibrate.main([*words, f"results={tmp_path / 'results'}"]) == 2
    assert "two transformers cannot be calibrated" in capsys.readouterr().err.splitlines()[-1]


def test_the_module_runs_and_helps():
    done = forks.module(["pcbench.calibrate", "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    assert "teacache_retention" in done.stdout


@pytest.mark.parametrize("method", ["teacache", "teacache_retention", "magcache"])
def test_numbers_of_another_model_of_the_same_shape_are_not_taken(method, tmp_path, monkeypatch):
    """small_wan has tiny_wan's shape and other weights."""
    shutil.copytree(calibrations.FOLDER, tmp_path / "own", ignore=shutil.ignore_patterns("*small_wan*"))
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path / "own")
    said = rf"for small_wan .*some of tiny_wan, with other weights.*method={method} model=small_wan"
    with pytest.raises(ConfigError, match=said):
        cli.run_from(["model=small_wan", f"method={method}"])


@pytest.mark.parametrize("method", sorted({path.stem.partition("-")[0] for path in calibrations.FOLDER.iterdir()}))
def test_numbers_of_other_weights_of_the_same_name_are_not_taken(method, tmp_path, monkeypatch):
    """A folder whose weights were trained on, or another one with the same last name."""
    data = json.loads((calibrations.FOLDER / f"{method}-tiny_wan.json").read_text())
    assert cli.run_from(["model=tiny_wan", f"method={method}"])
    (tmp_path / f"{method}-tiny_wan.json").write_text(json.dumps(data | {"revision": "0" * 12}))
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=rf"measured on other weights.* at 000000000000.*method={method} model="):
        cli.run_from(["model=tiny_wan", f"method={method}"])


def test_numbers_of_a_folder_are_of_what_is_in_it(tmp_path, monkeypatch):
    copy = tmp_path / "weights"
    shutil.copytree(weights.BUNDLED / "tiny_wan", copy)
    words = ["model=tiny_wan", f"model.backbone.source={copy}", "method=planned"]
    data = json.loads((calibrations.FOLDER / "planned-tiny_wan.json").read_text())
    (tmp_path / "planned-tiny_wan.json").write_text(json.dumps(data | {"revision": custom.fingerprint(copy)}))
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    assert cli.run_from(words)
    (copy / "model_index.json").write_text((copy / "model_index.json").read_text() + " ")
    with pytest.raises(ConfigError, match="measured on other weights"):
        cli.run_from(words)


@pytest.mark.parametrize(
    ("place", "found"), [("/x/tiny_wan/transformer", True), ("/x/my-tiny_wan-v2/transformer", False)]
)
def test_a_pipeline_s_folder_is_known_by_whole_names(place, found, tmp_path, monkeypatch):
    tiny = json.loads((calibrations.FOLDER / "teacache-tiny_wan.json").read_text())
    for data in (tiny, {**tiny, "model": "small_wan", "source": "bundled:small_wan"}):
        (tmp_path / f"teacache-{data['model']}.json").write_text(json.dumps(data))
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    transformer = pcbench.load("tiny_wan", "cpu").transformer
    transformer.register_to_config(_name_or_path=place)
    if found:
        assert calibrations.measured("teacache", anatomy_of(transformer))["model"] == "tiny_wan"
    else:
        with pytest.raises(calibrations.NotCalibratedError, match="with other weights"):
            calibrations.measured("teacache", anatomy_of(transformer))


def test_of_two_models_of_one_shape_a_pipeline_gets_the_numbers_of_its_own_weights(tmp_path, monkeypatch):
    tiny = json.loads((calibrations.FOLDER / "teacache-tiny_wan.json").read_text())
    small = {**tiny, "model": "small_wan", "source": "bundled:small_wan"}
    for data in (tiny, small):
        (tmp_path / f"teacache-{data['model']}.json").write_text(json.dumps(data))
    monkeypatch.setattr(calibrations, "FOLDER", tmp_path)
    transformer = pcbench.load("tiny_wan", "cpu").transformer
    assert calibrations.measured("teacache", anatomy_of(transformer))["model"] == "tiny_wan"
    transformer.register_to_config(_name_or_path="elsewhere")
    with pytest.raises(calibrations.NotCalibratedError, match="some of small_wan, tiny_wan, with other weights"):
        calibrations.measured("teacache", anatomy_of(transformer))
    (tmp_path / "teacache-small_wan.json").unlink()
    assert calibrations.measured("teacache", anatomy_of(transformer))["model"] == "tiny_wan"
