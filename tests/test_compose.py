"""Composition: what Hydra's own would be, once for all runs of a sweep, and quick."""

from __future__ import annotations

import time

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pcbench import cli, compose
from pcbench.compose import schemas
from pcbench.compose.composer import Composer
from pcbench.config import ConfigError

SMALLEST = ["prompts=smoke", "prompts.limit=1", "stages=[generate]"]

# Each a command line; what it means is what hydra.compose says.
LINES = [
    [],
    ["method=teacache", "model=wan"],
    ["method.alpha=0.5", "method.alpha=0.25"],
    ["method.alpha=1"],
    ["method.alpha=.nan"],
    ["method.downsample_factor=[1,2,2]"],
    ["method={alpha: 0.3, norm: l2}"],
    ["model.sampling={height: 64, width: 64}"],
    ["model.sampling={height: 64}", "model.sampling.width=32"],
    ["model.sampling.negative_prompt="],
    ["model.sampling.negative_prompt=null"],
    ["model.sampling.negative_prompt='a, b'"],
    ["model.sampling.negative_prompt=${device}", "device=cpu"],
    ["model.sampling.negative_prompt=5"],
    ["model.sampling.flow_shift=null"],
    ["model.backbone.call={}"],
    ["+model.backbone.call.x=1"],
    ["++model.sampling.steps=9", "model.sampling.steps=8"],
    ["++model.backbone.transformer={num_layers: 7}"],
    ["prompts.seeds=[3,4]", "prompts.limit=2", "latency.repeats=7"],
    ["fidelity=[raw]", "score={vbench: all}", "stages=[]"],
    ["+experiment=table1_tiny", "model=tiny_wan", "method=pab"],
    ["+experiment=fig7", "prompts=demo", "method=pab"],  # which sets how many prompts there are
    ["method=fora", "+experiment=budget_tiny", "model=wan2_2_a14b", "prompts=held_out", "method.alpha=1"],
    ["model.sampling.steps=3.0"],
    ["model.sampling.steps=3.5"],
    ["model.sampling.steps=yes"],
    ["method.alpah=1"],
    ["method.alpha.x=1"],
    ["method.alpha={a: 1}"],
    ["model.sampling=3"],
    ["nothing=1"],
    ["+latency.repeats=5"],
    ["prompts.seeds=3"],
    ["prompts.seeds=[a]"],
    ["method.accumulate=maybe"],
    ["stages=[${nothing}]"],
]


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_composing_is_what_hydra_does(words):
    schemas.register_schemas()
    composer, theirs, refused = Composer(), None, HydraException()
    try:
        with hydra.initialize_config_dir(str(schemas.CONF), version_base="1.3"):
            theirs = hydra.compose("config", words)
    except HydraException as error:
        refused = error
    if theirs is None:
        with pytest.raises(type(refused)) as caught:
            [composer.config(job) for job in composer.requests(words, multirun=False)]
        assert str(caught.value) == str(refused)
        assert repr(caught.value.__cause__) == repr(refused.__cause__)
        return
    (job,) = composer.requests(words, multirun=False)
    if any(word.startswith("+model.backbone.call") for word in words):
        pass  # a key of a dictionary, refused later
    ours = composer.config(job)
    for resolve in (False,) if "${nothing}" in str(words) else (False, True):
        assert str(OmegaConf.to_container(ours, resolve=resolve)) == str(
            OmegaConf.to_container(theirs, resolve=resolve)
        )
    for group in compose.GROUPS:
        assert OmegaConf.get_type(ours[group]) is OmegaConf.get_type(theirs[group])


VALUES = {
    "empty": "",
    "null": "null",
    "quoted comma": '"blurry, low"',
    "single quotes": "'blurry, low'",
    "words": "blurry low",
    "spaces": " blurry ",
    "escaped comma": "blurry\\, low",
    "newline": '"a\nb"',
    "newline, bare": "'a\nb'",
    "quotes in quotes": '"say \\"hi\\", ok"',
    "apostrophe": '"it\'s"',
    "backslash": '"a\\\\b"',
    "trailing backslash": "'a\\\\'",
    "interpolation": "${device}",
    "quoted interpolation": '"${device}"',
    "no interpolation": "'\\${device}'",
    "dollar": '"costs $5"',
    "CJK": "模糊的视频",
    "emoji": '"👩‍🎨 é ñ"',
    "brackets": '"[a] {b: c} (d)"',
    "equals": "a=b",
    "colon": "a:b",
    "hash": "'# not a comment'",
    "percent": "100%",
    "glob, quoted": "'glob(*)'",
    "true": "true",
    "number": "1e3",
    "tilde and at": "'~a@b'",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_sweep_passes_a_value_as_it_is_without_one(name):
    words = ["model=tiny_wan", "prompts.limit=1", f"model.sampling.negative_prompt={VALUES[name]}"]
    recipes, errors = [], []
    for method in ("none", "teacache"):
        try:
            recipes.append(compose.run_from([*words, f"method={method}"]).recipe)
        except Exception as error:
            errors.append(compose.one_line(error))
    if errors:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            compose.compose([*words, "method=none,teacache"], multirun=True)
        assert compose.one_line(caught.value) == errors[0]
    else:
        assert [run.recipe for run in compose.compose([*words, "method=none,teacache"], multirun=True).runs] == recipes
        swept = [*words[:2], "method=none", f"model.sampling.negative_prompt=choice({VALUES[name] or chr(39) * 2},zzz)"]
        if name not in ("words", "spaces", "equals", "percent"):  # what choice(…) takes bare is Hydra's affair
            assert compose.compose(swept, multirun=True).runs[0].recipe == recipes[0]


SWEEPS = {
    f"method=magcache method.ratios={{all:{[1.0] * 50}}},{{all:{[0.9] * 50}}}".replace(", ", ","): [
        {"all": [1.0] * 50},
        {"all": [0.9] * 50},
    ],
    "method=precisecache method.accumulate=true,false": [True, False],
    "method=uniform method.steps=range(2,6,2)": [2, 4],
    "method=uniform method.steps=choice(3,5) method.steps=2": [2],
    "method=uniform method.steps=2 method.steps=3,4": [3, 4],
    "method=glob(teacache_f*) method.threshold=0.5": [0.5],
    "method=precisecache method.downsample_factor=[1,2,2],[2,2,2]": [(1, 2, 2), (2, 2, 2)],
    "method=precisecache method.norm=rms,l2": ["rms", "l2"],
}


@pytest.mark.parametrize("words", SWEEPS)
def test_a_sweeps_values_keep_their_types(words):
    runs = compose.compose(words.split(), multirun=True).runs
    field = words.rpartition("method.")[2].partition("=")[0]
    assert [getattr(run.recipe.method, field) for run in runs] == SWEEPS[words]


def test_a_prompt_files_name_is_the_same_in_a_sweep(tmp_path):
    path = tmp_path / "a, b's (c) [d] $e.txt"
    path.write_text("a red circle\n")
    word = f'prompts.file="{path}"'
    assert [run.prompts for run in compose.compose(["method=none,pab", word], multirun=True).runs] == [
        ["a red circle"]
    ] * 2


def test_only_an_end_of_line_ends_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes("a cat\u2028on a roof\r\na dog\u0085runs\ra bird\n".encode())
    (run,) = compose.compose(["method=none", f"prompts.file={tmp_path}/p.txt"], multirun=False).runs
    assert run.prompts == ["a cat\u2028on a roof", "a dog\u0085runs", "a bird"]
    (tmp_path / "p.txt").write_text("a dog\fruns\n")
    with pytest.raises(ConfigError, match="control characters"):
        compose.compose(["method=none", f"prompts.file={tmp_path}/p.txt"], multirun=False)


def test_a_home_folder_is_meant_where_the_shell_leaves_it_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [run.results for run in compose.compose(["results='~/x'"], multirun=False).runs] == [tmp_path / "x"]


def test_parts_that_runs_share_do_not_leak_from_one_to_the_next():
    composer = Composer()
    requests = composer.requests(
        ["method=precisecache", "method.alpha=0.1,0.2", "model.sampling.steps=4,5"], multirun=True
    )
    seen = [(run.recipe.method.alpha, run.recipe.sampling.steps, run.label) for run in map(composer.run, requests)]
    assert [(a, s) for a, s, _ in seen] == [(0.1, 4), (0.1, 5), (0.2, 4), (0.2, 5)]
    assert seen[0][2] == "precisecache alpha=0.1"
    assert composer.run(next(composer.requests([], multirun=False))).recipe.method.alpha not in (0.1, 0.2)


def test_a_thousand_recipes_take_seconds_not_minutes():
    alphas = ",".join(f"{0.1 + i * 0.0005:.4f}" for i in range(1000))
    began = time.process_time()
    runs = compose.compose(["method=precisecache", f"method.alpha={alphas}", "prompts=held_out"], multirun=True).runs
    assert len({run.recipe.method.alpha for run in runs}) == 1000
    assert time.process_time() - began < 5  # 0.8 s when this was written; Hydra alone would take 80


def test_what_could_run_code_is_never_composed(tmp_path):
    for words in (
        ["hydra.launcher._target_=os.system"],
        ["+hydra.callbacks.x._target_=os.system"],
        ["hydra/launcher=joblib"],
    ):
        with pytest.raises(ConfigError, match="Hydra's own settings"):
            compose.compose(words)
    for words in (["+model._target_=os.system"], ["+_target_=os.system"], ["+method._target_=os.system"]):
        with pytest.raises(ConfigError, match="unknown option '_target_'"):
            compose.compose(words)
    assert cli.main(["--config-dir", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    "swept",
    [
        "shard=1/2,2/2",
        "launcher=none,local",
        "wandb=off,offline",
        "plan=false,true",
        "plan_gpu=H200,A100",
        "shards=2,3",
    ],
)
def test_options_of_the_whole_line_have_one_value(swept, tmp_path, capsys):
    """Of several, the first was taken, and half of the samples were in no shard."""
    assert cli.main(["-m", *SMALLEST, swept, f"results={tmp_path}"]) == 2
    option = swept.partition("=")[0]
    assert f"{option} is for the whole command line, and cannot have several values" in capsys.readouterr().err


def test_a_preset_of_ones_own_is_overridden_from_either_side(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [_precisecache, _self_]\nalpha: 0.9\nnorm: l2\n")
    for words in (["method.alpha=0.3", f"method={path}"], [f"method={path}", "method.alpha=0.3"]):
        method = cli.run_from(words).recipe.method
        assert (method.alpha, method.norm) == (0.3, "l2")


@pytest.mark.parametrize("text", ["2024_10", "007", "1e3", "true", "1_000.5"])
def test_text_that_looks_like_a_number_stays_text(text):
    run = cli.run_from([f"results={text}", f"model.sampling.negative_prompt={text}"])
    assert (str(run.results), run.recipe.sampling.negative_prompt) == (text, text)
    swept = compose.compose([f"results=a,{text},choice", "prompts=smoke"], multirun=True).runs
    assert [str(run.results) for run in swept] == ["a", text, "choice"]


def test_a_bundled_suite_is_not_hidden_by_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.txt").write_text("one of my own\n")
    (tmp_path / "demo.txt").write_text("another of my own\n")
    assert "one of my own" not in cli.run_from(["prompts=smoke"]).prompts
    assert "another of my own" not in cli.run_from([]).prompts
    assert cli.run_from(["prompts.file=smoke.txt"]).prompts == ["one of my own"]
    assert cli.run_from(["prompts.file=held_out.txt"]).prompts == cli.run_from(["prompts=held_out"]).prompts
