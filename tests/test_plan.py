"""What a plan says before a run, against published numbers, against the committed records, and against real runs."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler

import methods
from methods import apply
from pcbench import backbones, cli, implied, memory, paper, plan, rehearsal
from pcbench.config import Backbone, ConfigError, Numerics, Recipe, Run, Sampling
from pcbench.generate import place
from pcbench.macs import PETA, Macs, call_price, forward_price, trace_price
from pcbench.price import Known, price_of
from pcbench.rehearsal import rehearse
from pcbench.store import records, write_json

from .families import FAMILIES

ROOT = Path(__file__).parents[1]
CLASSES: dict[str, Any] = {
    cls.NAME: cls for name in methods.__all__ if name.endswith("Config") for cls in [getattr(methods, name)]
}
# Presets whose computed steps depend on the video. All others follow a schedule and are priced exactly.
LOOKING = {"precisecache", "teacache", "seacache", "easycache", "first_block_cache", "adacache", "dbcache"}


def run_of(model: str, method: Any = "none", *words: str) -> Run:
    run = cli.run_from([f"model={model}", *words, f"method={method if isinstance(method, str) else 'none'}"])
    return run if isinstance(method, str) else replace(run, recipe=replace(run.recipe, method=method))


def planned(capsys, *words: str) -> dict[str, Any]:
    """The one JSON document that the command prints."""
    assert cli.main([*words, "plan=json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- what an uncached video costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "published", "within", "linear"),
    [
        # The paper's Table 1; linear shares by formula, from the layers' shapes.
        ("wan", 329.2, 0.015, 0.277),
        ("hunyuan", 14.92, 0.015, 0.472),
        ("cogvideox", 6.03, 0.015, 0.393),
        ("opensora", 6.30, 0.05, 0.878),
    ],
)
def test_uncached_macs_are_the_papers(model, published, within, linear, tmp_path, capsys):
    data = planned(capsys, f"model={model}", "method=none", f"results={tmp_path}")
    (row,) = data["runs"]
    assert (row["model"], row["method"]) == (model, "none")
    assert row["pmacs"] == pytest.approx(published, rel=within)
    assert row["pmacs_linear"] + row["pmacs_attention"] == pytest.approx(row["pmacs"], rel=1e-12)
    assert row["pmacs_linear"] / row["pmacs"] == pytest.approx(linear, abs=0.002)
    assert row["pflops"] == 2 * row["pmacs"]
    assert row["pmacs_lower"] == row["pmacs_upper"] == row["pmacs"]
    assert row["computed_steps"] == row["steps"] == data["runs"][0]["computed_steps"]
    assert not list(tmp_path.rglob("*"))


def test_attention_is_two_products_of_tokens_by_tokens_by_width():
    """Wan: 40 self-attentions over N tokens, 40 cross-attentions to 512; everything else is linear."""
    run = run_of("wan_1_3b")
    tokens, width, layers = 21 * 30 * 52, 12 * 128, 30
    expected = layers * 2 * width * (tokens * tokens + tokens * 512)
    config = backbones.transformer_config(run.recipe.backbone)
    family = backbones.family(run.recipe.backbone)
    price = forward_price(family.TRANSFORMER, config, family.arguments(run.recipe, config))
    assert price.attention == expected


def test_prices_add_up():
    a, b = Macs(5, 7), Macs(2, 3)
    assert (a + b, a - b, 3 * b, a.total) == (Macs(7, 10), Macs(3, 4), Macs(6, 9), 12)


# --- exactly, where a schedule is followed ----------------------------------------------------------------------------


def committed() -> list[Any]:
    """Of each method, the first two committed records."""
    folders = ("results", "results/methods", "results/references")
    of_method: dict[str, list[Any]] = {}
    for record in (record for folder in folders for record in records(ROOT / folder)):
        of_method.setdefault(record["recipe"]["method"]["name"], []).append(record)
    assert len(of_method) > 10
    some = [record for found in of_method.values() for record in found[:2]]
    return [pytest.param(each, id=f"{each['recipe']['method']['name']}-{each['id']}") for each in some]


@pytest.mark.parametrize("record", committed())
def test_recorded_videos_cost_what_the_plan_says(record):
    """To the last MAC: for a schedule from nothing, for the others from the number of steps they computed."""
    fields = dict(record["recipe"]["method"])
    method = CLASSES[fields.pop("name")](**{k: v for k, v in fields.items() if k != "version"})
    known = Known(run := run_of("tiny_wan", method), rehearse(run.recipe))
    assert known.rehearsal.follows_schedule == (method.NAME not in LOOKING)
    for sample in record["samples"]:
        if known.rehearsal.follows_schedule:
            assert known.upper.total == sample["macs"]
            assert (
                "".join(step["action"][0] for step in known.rehearsal.trace["steps"]).replace("f", "F")
                == (sample["trace"]["actions"])
            )
        else:
            if not sample["partial"]:  # the guidance branches of first-block cache and DBCache decide apart
                assert known.at(sample["computed"]).total == sample["macs"]
            assert known.at(known.rehearsal.least).total <= sample["macs"] <= known.upper.total


TINY_FAMILIES = {"wan": "wan", "hunyuan": "hunyuan", "hunyuan_true_cfg": "hunyuan", "cogvideox_5b": "cogvideox"}
SCHEDULES = {
    "pab": methods.PABConfig(window=(300, 900)),
    "fastercache": methods.FasterCacheConfig(),
    "taylorseer": methods.TaylorSeerConfig(interval=3),
    "uniform": methods.UniformConfig(steps=5),
    "stack": methods.UniformConfig(steps=5, reuse="stack"),
    "fewer": methods.FewerStepsConfig(steps=7),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_rehearsal_is_the_run(family, name, monkeypatch):
    """Call by call the trace of a real pipeline of that family, whose scheduler the rehearsal is given."""
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    with warnings.catch_warnings(), apply(pipe, SCHEDULES[name], **kind.options) as handle:
        warnings.simplefilter("ignore")
        kind.call(pipe)
    call = {"max_sequence_length": 8, **({"true_cfg_scale": 6.0} if "true" in family else {})}
    backbone = Backbone(
        name="x", family=TINY_FAMILIES[family], source="no/where", call=call, transformer=dict(pipe.transformer.config)
    )
    sampling = Sampling(height=128, width=128, frames=17, steps=12, guidance_scale=4.0)
    monkeypatch.setattr(backbones.family(backbone), "scheduler", lambda: copy.deepcopy(kind.pipeline().scheduler))
    recipe = Recipe(backbone=backbone, sampling=sampling, method=handle.method, numerics=Numerics())
    found, real = rehearse(recipe), handle.trace.to_dict()
    assert found.follows_schedule
    assert found.trace["latent_size"] == real["latent_size"]
    for ours, theirs in zip(found.trace["steps"], real["steps"], strict=True):
        assert (ours["index"], ours["action"], ours["calls"]) == (theirs["index"], theirs["action"], theirs["calls"])
    transformer, config = type(pipe.transformer), pipe.transformer.config
    assert trace_price(transformer, config, found.trace) == trace_price(transformer, config, real)


@pytest.mark.parametrize("model", ["wan", "hunyuan", "cogvideox"])
def test_which_methods_are_known_in_advance(model):
    """Every method that works on a real backbone, with all its blocks."""
    seen = 0
    for name in sorted(set(CLASSES) - {"replay"}):
        try:
            run = run_of(model, name, "model.sampling.steps=25")
        except ValueError:
            continue  # refused on this family
        found = rehearse(run.recipe)
        assert found.follows_schedule == (name not in LOOKING), name
        if name in LOOKING:
            assert found.computed == found.steps, f"{name} reused what it could not see"
            assert 1 <= found.least < found.steps
        seen += 1
    assert seen > 10


def test_wan2_2_has_two_transformers_with_a_cache_each():
    run = run_of("wan2_2_a14b", "taylorseer")
    found = rehearse(run.recipe)
    actions = "".join(step["action"][0] for step in found.trace["steps"])
    # Both begin with a computed step; at shift 12 the second takes over at step 26 of 40.
    sigmas = [step["sigma"] for step in found.trace["steps"]]
    second = next(index for index, sigma in enumerate(sigmas) if sigma < 0.875)
    assert actions[0] == actions[second] == "f"
    assert actions[second - 1] == "f" or actions[second - 1] == "p"
    assert memory.weights_bytes(run.recipe) == 2 * memory.weights_bytes(run_of("wan").recipe)


# --- where the data decide --------------------------------------------------------------------------------------------


def test_trials_are_known_exactly():
    """At Wan's 720P a trial is 11x22x40 of 21x90x160: 0.92 % of a full step (two extra calls for the first's)."""
    price = price_of(run_of("wan", "precisecache_base"))
    sizes = {tuple(call["size"]) for step in price.rehearsal.trace["steps"] for call in step["calls"] if call["trial"]}
    assert sizes == {(11, 22, 40)}
    full = price.upper - price.trial
    assert full.total == price_of(run_of("wan")).expected.total
    assert price.trial.total / full.total == pytest.approx(0.0101, abs=0.0001)
    literal = price_of(run_of("wan", "precisecache_literal"))
    assert literal.trial.total * 50 == price.trial.total * 49


def test_blockcache_skips_its_share_in_three_of_four_computed_steps():
    run = run_of("wan", "precisecache_flash")
    known = Known(run, rehearse(run.recipe))
    turbo = Known(turbo_run := run_of("wan", "precisecache_turbo"), rehearse(turbo_run.recipe))
    saved = turbo.at(23).total - known.at(23).total  # two full, then r ccc r ccc r ccc r ccc r ccc r
    assert saved == pytest.approx(15 * 16 / 40 * known.blocks.total, rel=1e-9)
    assert known.blocks.total < known.step.total
    assert known.at(3).total == turbo.at(3).total == price_of(run).lower.total


def record_of(run: Run, computed: list[int]) -> dict[str, Any]:
    """What a record of the run needs to be learnt from."""
    known = Known(run, rehearse(run.recipe))
    method = run.recipe.method
    return {
        "id": place(run).id,
        "recipe": {
            "backbone": {"name": run.recipe.backbone.name},
            "method": {"name": method.NAME, "version": method.VERSION, **vars(method)},
        },
        "samples": [{"computed": n, "steps": 50, "macs": known.at(n).total} for n in computed],
    }


def test_the_number_of_steps_comes_from_the_best_source_there_is(tmp_path, capsys):
    def row(model: str) -> dict[str, Any]:
        return planned(capsys, f"model={model}", "method=precisecache_base", f"results={tmp_path}")["runs"][1]

    bound = row("wan_1_3b")
    assert bound["basis"] == "bound"
    assert "upper bound" in bound["assumed"]
    assert bound["pmacs"] == bound["pmacs_upper"] > 14.15
    assert bound["pmacs_lower"] == pytest.approx(bound["pmacs_upper"] - 47 / 50 * 14.15, rel=1e-3)

    own = run_of("tiny_wan", "precisecache_base")
    written = json.loads(json.dumps(record_of(own, [10, 20])))
    write_json(tmp_path / "records" / "machine" / "tiny_wan" / "precisecache-x.json", written)
    measured = row("tiny_wan")
    assert (measured["basis"], measured["computed_steps"]) == ("records", 15)
    assert measured["pmacs"] == pytest.approx(statistics.fmean(s["macs"] for s in written["samples"]) / PETA, rel=1e-9)

    other = row("wan_1_3b")
    assert (other["basis"], round(other["computed_steps"], 9)) == ("other records", 15)
    assert "tiny_wan" in other["assumed"]
    assert other["pmacs"] == pytest.approx(bound["pmacs_upper"] - 35 / 50 * 14.15, rel=1e-3)

    published = row("wan")
    assert published["basis"] == "paper"
    assert published["computed_steps"] == pytest.approx(30.6, abs=0.1)
    assert published["pmacs"] == pytest.approx(204.5 * 326.2 / 329.2, rel=1e-3)


def test_a_setting_that_the_paper_does_not_have_is_open(tmp_path, capsys):
    words = ("model=wan", "method=precisecache", "method.alpha=0.6", f"results={tmp_path}")
    assert planned(capsys, *words)["runs"][1]["basis"] == "bound"


# --- the plan turned round --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained() -> dict[tuple[str, str], implied.Explained]:
    compose = lambda model, method: run_of(model, method)  # noqa: E731
    return {(row.model, row.method): row for row in implied.table1(implied.MODELS, compose)}


def test_table_1_is_complete():
    rows = paper.table("table1")
    assert len(rows) == 4 * 7
    for row in rows:  # the printed MACs' ratios are the printed speedups, roughly; a typing error would not be
        none = next(float(r["pmacs"]) for r in rows if r["model"] == row["model"] and r["method"] == "none")
        assert none / float(row["pmacs"]) == pytest.approx(float(row["speedup"]), rel=0.10)


def test_steps_that_explain_the_papers_macs(explained):
    expected = {"wan": (30.6, 22.5, 18.1), "hunyuan": (29.6, 24.0, 19.1), "cogvideox": (28.8, 23.6, 18.2)}
    for model, steps in expected.items():
        found = [explained[model, method].steps for method in ("base", "turbo", "flash")]
        assert found == pytest.approx(steps, abs=0.25)
    assert explained["opensora", "turbo"].steps == pytest.approx(13.9, abs=0.3)


def test_what_fits_and_what_does_not(explained):
    fits = {key: row.fits for key, row in explained.items()}
    assert all(fits[model, "none"] for model in implied.MODELS)
    assert all(fits[model, method] is None for model in implied.MODELS for method in ("base", "turbo", "teacache"))
    assert fits["cogvideox", "pab"]  # CogVideoX alone has official schedules of both, and both fit
    assert fits["cogvideox", "fastercache"]
    assert not any(fits[model, "pab"] for model in ("wan", "hunyuan"))  # there are none for these
    for model in implied.MODELS:  # flash computes 0.77 to 0.81 of turbo; 40 % of blocks and L = 3 make 0.74 to 0.76
        flash, turbo = explained[model, "flash"], explained[model, "turbo"]
        assert not flash.fits
        assert 0.77 < flash.pmacs / turbo.pmacs < 0.82
        assert 0.70 < flash.ours / turbo.pmacs < 0.77


def test_table_3_does_not_follow_from_its_trials():
    rows = {row.factor: row for row in implied.table3(run_of("wan"))}
    found = {factor: round(row.implied, 2) for factor, row in rows.items()}
    assert found == {"1x2x2": 1.79, "1x4x4": 2.13, "1x8x8": 2.21, "2x4x4": 2.18, "4x4x4": 2.20}
    assert [factor for factor, row in rows.items() if not row.fits] == ["1x2x2", "1x4x4"]
    assert rows["1x2x2"].trials == pytest.approx(5.5, abs=0.05)
    assert rows["1x2x2"].steps == pytest.approx(45.1, abs=0.1)


def test_the_inverse_is_printed_with_what_does_not_fit(capsys):
    lines: list[str] = []
    implied.show(["wan"], lambda model, method: run_of(model, method), lines.append)
    text = "\n".join(lines)
    assert "wan turbo" in text
    assert "22.4/50" in text
    misfits = [line for line in lines if line.startswith("does not fit")]
    assert any("wan flash" in line for line in misfits)
    assert any("1x2x2 (0.99, MACs say 1.79)" in line for line in misfits)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "gib"),
    [
        ("wan", (81, 720, 1280), 23.1),
        ("wan", (81, 1088, 1920), 52.3),  # with 26.6 of weights what the paper's A.4 could not fit into 80 GB
        ("wan", (81, 480, 832), 10.0),
        ("wan_1_3b", (81, 480, 832), 2.2),
        ("hunyuan", (65, 480, 640), 2.8),
        ("hunyuan", (129, 720, 1280), 16.3),
        ("cogvideox", (49, 480, 720), 1.5),
        ("cogvideox_5b", (49, 480, 720), 3.5),
    ],
)
def test_blockcache_memory(model, size, gib):
    """Kept blocks x branches x tokens x width x bytes, and the same from what the rule held in the rehearsal."""
    words = [f"model.sampling.{name}={n}" for name, n in zip(("frames", "height", "width"), size, strict=True)]
    recipe = run_of(model, "precisecache_flash", *words).recipe
    assert memory.block_cache_bytes(recipe) / memory.GIB == pytest.approx(gib, abs=0.05)
    predictions = rehearse(run_of(model, "precisecache_turbo", *words).recipe).held
    kept = (rehearse(recipe).held - predictions) * 2
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
    assert held == 2 * 3 * 40 * 2 * 75600 * 5120
    held = rehearse(run_of("hunyuan", "teacache").recipe).held  # a residual and the feature, video tokens
    assert held == 2 * 20400 * 3072


# --- hours, totals, words ---------------------------------------------------------------------------------------------


def test_hours_on_a_named_gpu(tmp_path, capsys):
    words = ("model=wan", "method=none", f"results={tmp_path}", "prompts.limit=2")
    (a800,) = planned(capsys, *words, "plan_gpu=A800", "plan_utilisation=0.58")["runs"]
    # The paper took 907.3 s on four of them; 58 % of the peak is what that means.
    assert a800["gpu_seconds"] == pytest.approx(4 * 907.3, rel=0.02)
    assert a800["gpu_hours_missing"] == pytest.approx(2 * a800["gpu_seconds"] / 3600)
    (h200,) = planned(capsys, *words, "plan_gpu=H200", "plan_utilisation=0.58")["runs"]
    assert a800["gpu_seconds"] / h200["gpu_seconds"] == pytest.approx(989 / 312)


def test_totals_are_of_the_videos_missing(tmp_path, capsys):
    words = ("model=wan", "method=uniform", f"results={tmp_path}", "prompts.limit=3", "prompts.seeds=[0,1]")
    data = planned(capsys, *words)
    none, uniform = data["runs"]
    assert uniform["pmacs"] == pytest.approx(none["pmacs"] / 2)
    assert (uniform["videos"], data["totals"]["videos_missing"]) == (6, 12)
    assert data["totals"]["pmacs"] == pytest.approx(6 * none["pmacs"] + 6 * uniform["pmacs"])
    assert data["totals"]["gpu_hours"] == pytest.approx(none["gpu_hours_missing"] + uniform["gpu_hours_missing"])
    assert "H200 at 45%" in data["assumptions"]


def test_the_table_says_what_it_assumes(tmp_path, capsys):
    words = ["model=wan", "method=precisecache_flash", "plan=true", "plan_gpu=RTX4090", f"results={tmp_path}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "RTX4090 at 45% of its 165 TFLOPS" in out
    assert "the paper's Table 1 (flash) implies 18.1 of 50 full steps" in out
    row = next(line for line in out.splitlines() if "wan precisecache_flash " in line)
    assert "18.1/50 [2]" in row
    assert "23.1" in row  # GiB of BlockCache
    assert "57.7*" in row  # more than the GPU has
    assert "1.0%" in row  # trials


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("plan_gpu=V100", "unknown plan_gpu 'V100'; known: A100, A800, H100"),
        ("plan_utilisation=1.5", "plan_utilisation is a share above 0 and at most 1, not 1.5"),
        ("plan=maybe", "plan must be false, true, json, table1, not 'maybe'"),
    ],
)
def test_what_cannot_be_is_one_line(word, message, tmp_path, capsys):
    words = {"plan": "plan=true", word.partition("=")[0]: word}
    assert cli.main(["model=wan", "method=none", *words.values(), f"results={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_family_without_a_stand_in_is_named(monkeypatch):
    monkeypatch.delitem(rehearsal.NARROW, "wan")
    with pytest.raises(ConfigError, match="no stand-in to rehearse wan with"):
        price_of(run_of("tiny_wan"))


def test_presets_of_the_paper_are_those_of_conf():
    for name, method in paper.PRESETS.items():
        fields = yaml.safe_load((ROOT / "conf" / "method" / f"precisecache_{name}.yaml").read_text())
        fields.pop("defaults")
        assert methods.PreciseCacheConfig(**fields) == method
        assert paper.preset_of(method) == name
    assert paper.preset_of(methods.PreciseCacheConfig(alpha=0.7, reference="cached_output", norm="l2")) == "turbo"
    assert paper.preset_of(methods.PreciseCacheConfig(alpha=0.6)) is None


def test_a_skipped_module_is_apart_too():
    """An attention module's own products leave with it."""
    run = run_of("wan_1_3b")
    config, family = backbones.transformer_config(run.recipe.backbone), backbones.family(run.recipe.backbone)
    arguments = family.arguments(run.recipe, config)
    call = {"size": (21, 60, 104), "batch": 1, "only": None, "skipped": {}}
    whole = call_price(family.TRANSFORMER, config, arguments, call)
    without = call_price(family.TRANSFORMER, config, arguments, {**call, "skipped": {"blocks.*.attn1": 30}})
    tokens, width = 21 * 30 * 52, 12 * 128
    assert (whole - without) == Macs(30 * 4 * tokens * width * width, 30 * 2 * tokens * tokens * width)


def test_the_published_schedulers_are_used_where_there_are_no_weights():
    """Wan's shift of 5 moves PAB's window: 25 of 50 steps lie in it."""
    run = run_of("wan")
    scheduler = rehearsal.scheduler_of(run.recipe)
    assert scheduler.config.flow_shift == 5.0
    tiny = rehearsal.scheduler_of(run_of("tiny_wan").recipe)
    assert isinstance(tiny, FlowMatchEulerDiscreteScheduler)
    assert tiny.config.shift == 3.0
    assert plan.style_of(False) is None
