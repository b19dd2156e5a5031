"""What a plan says before a run, against published numbers, against the committed records, and against real runs."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

import methods
from methods import apply
from pcbench import backbones, cli, plan
from pcbench.config import Backbone, Numerics, Recipe, Run, Sampling
from pcbench.cost import memory
from pcbench.cost.dry_run import rehearse
from pcbench.cost.estimate import Known, price_of
from pcbench.cost.macs import PETA, Macs, call_price, forward_price, trace_price
from pcbench.cost.timesteps import scheduler_of
from pcbench.job import job_of
from pcbench.store import records, write_json

from .families import FAMILIES
from .plan_parts import ROOT, planned, run_of

CLASSES: dict[str, Any] = {
    cls.NAME: cls for name in methods.__all__ if name.endswith("Config") for cls in [getattr(methods, name)]
}
# Presets whose computed steps depend on the video. All others follow a schedule and are priced exactly.
LOOKING = {"precisecache", "teacache", "seacache", "easycache", "first_block_cache", "adacache", "dbcache",
           "controlled", "corrected", "dicache", "sencache"}  # fmt: skip


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
    published = ROOT / "results" / "published"
    of_method: dict[str, list[Any]] = {}
    for record in (record for name in ("demo", "methods", "table1") for record in records(published / name)):
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


TINY_FAMILIES = {
    "wan": "wan",
    "wan_ti2v": "wan_ti2v",
    "hunyuan": "hunyuan",
    "hunyuan_true_cfg": "hunyuan",
    "hunyuan15": "hunyuan15",
    "cogvideox_5b": "cogvideox",
}
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
    if family == "hunyuan15":  # whose texts' lengths are the pipeline's own
        call = {}
        for text, tokens in (("TEXT_TOKENS", 8), ("GLYPH_TOKENS", 1), ("IMAGE_TOKENS", 1)):
            monkeypatch.setattr(backbones.hunyuan15, text, tokens)
    backbone = Backbone(
        name="x", family=TINY_FAMILIES[family], source="no/where", call=call, transformer=dict(pipe.transformer.config)
    )
    module = backbones.family(backbone)
    height, width = (module.SPATIAL * cells for cells in handle.trace.arguments["hidden_states"][-2:])
    sampling = Sampling(height=height, width=width, frames=17, steps=12, guidance_scale=4.0)
    monkeypatch.setattr(module, "scheduler", lambda: copy.deepcopy(kind.pipeline().scheduler))
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
    """At Wan's 720P a trial is 11x22x40 of 21x90x160: 0.92 % of a full step; trial to trial takes one more."""
    price = price_of(run_of("wan", "precisecache_base"))
    sizes = {tuple(call["size"]) for step in price.rehearsal.trace["steps"] for call in step["calls"] if call["trial"]}
    assert sizes == {(11, 22, 40)}
    full = price.upper - price.trial
    assert full.total == price_of(run_of("wan")).expected.total
    between_trials = price_of(run_of("wan", "precisecache_trial_base"))
    assert between_trials.trial.total / full.total == pytest.approx(0.0101, abs=0.0001)
    assert price.trial.total * 50 == between_trials.trial.total * 49


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
        "id": job_of(run).place.id,
        "recipe": {
            "backbone": {"name": run.recipe.backbone.name},
            "method": {"name": method.NAME, "version": method.VERSION, **vars(method)},
        },
        "machine": {"name": "machine"},
        "samples": [
            {"prompt": "a cat", "seed": seed, "steps": 50, "computed": n, "macs": known.at(n).total, "fidelity": {}}
            for seed, n in enumerate(computed)
        ],
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


# --- memory -----------------------------------------------------------------------------------------------------------


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
    assert "26.0" in row  # GiB kept
    assert "60.6*" in row  # more than the GPU has
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
    scheduler = scheduler_of(run.recipe)
    assert scheduler.config.flow_shift == 5.0
    tiny = scheduler_of(run_of("tiny_wan").recipe)
    assert isinstance(tiny, FlowMatchEulerDiscreteScheduler)
    assert tiny.config.shift == 3.0
    assert plan.style_of(False) is None
