"""Latency: what it is keyed by, what is warm when it is timed, and over which prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from pcbench import backbones, cli, devices, record, stages
from pcbench.config import ConfigError, Latency
from pcbench.identity import recipe_id
from pcbench.job import job_of
from pcbench.sampling import latency

SMALL = ["model.sampling.steps=4", "model.sampling.frames=5", "model.sampling.height=32", "model.sampling.width=32"]


def quiet(line):
    return None


@pytest.fixture
def run(tmp_path):
    return cli.run_from(
        ["method=uniform", "method.steps=2", *SMALL, "prompts.limit=2", "latency.repeats=1", f"results={tmp_path}"]
    )


@pytest.fixture
def called(monkeypatch):
    """How often each recipe's denoising loop was called, by the name of its method."""
    counted: Counter[str] = Counter()
    inner = latency.denoise

    def denoise(pipe, recipe, seed, **prompt):
        counted[recipe.method.NAME] += 1
        return inner(pipe, recipe, seed, **prompt)

    monkeypatch.setattr(latency, "denoise", denoise)
    return counted


def test_a_recipe_is_timed_warm_whatever_the_config_says(run, called):
    backbones.forget()
    latency.profile(job_of(replace(run, latency=Latency(warmup=0, repeats=1))), quiet)
    assert called == {"none": 2, "uniform": 2}  # one of each is timed, and none of them the first


def test_what_made_the_samples_is_warm(run, called):
    backbones.forget()
    stages.execute(job_of(replace(run, stages=("generate", "latency"))), quiet)
    assert called == {"none": 2, "uniform": 1}  # the reference is timed for itself and beside the method
    latency.profile(job_of(replace(run, latency=Latency(warmup=4, repeats=2))), quiet)
    assert called["uniform"] == 1 + 1 + 2  # two samples were made and one call timed: one more to warm up


def test_another_pipeline_is_cold_again(run, called):
    latency.profile(job_of(run), quiet)
    assert backbones.calls[recipe_id(run.recipe)] >= 2
    backbones.forget()
    assert not backbones.calls


def test_a_resumed_run_takes_its_time_over(run, called):
    latency.profile(job_of(run), quiet)
    before = called.total()
    latency.profile(job_of(run), quiet)
    assert called.total() == before
    latency.profile(job_of(replace(run, latency=Latency(repeats=2))), quiet)
    assert called.total() > before


def changed_threads(run, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    return run


CONDITIONS = {
    "offload": lambda run, _: replace(run, offload="group"),
    "attention": lambda run, _: replace(
        run, recipe=replace(run.recipe, numerics=replace(run.recipe.numerics, attention="_native_math"))
    ),
    "dtype": lambda run, _: replace(
        run, recipe=replace(run.recipe, numerics=replace(run.recipe.numerics, dtype="bfloat16"))
    ),
    "threads": changed_threads,
}


@pytest.mark.parametrize("what", CONDITIONS)
def test_time_under_other_conditions_is_not_taken_over(run, called, monkeypatch, what):
    latency.profile(job_of(run), quiet)
    before = called.total()
    other = CONDITIONS[what](run, monkeypatch)
    assert latency.stored(job_of(other)) is None
    latency.profile(job_of(other), quiet)
    assert called.total() > before
    assert latency.stored(job_of(other))["conditions"][what] == latency.conditions(other)[what]
    if what != "threads":
        assert latency.stored(job_of(run))["conditions"][what] == latency.conditions(run)[what]  # both are kept


def test_the_environments_attention_backend_is_refused(monkeypatch):
    """A reference by one backend and a method by another would be compared as if they were alike."""
    monkeypatch.setattr(backbones, "DIFFUSERS_ATTN_BACKEND", "_native_math")
    with pytest.raises(ConfigError, match=r"unset it, and give model\.numerics\.attention=_native_math"):
        cli.run_from(["method=none", *SMALL])
    assert latency.conditions(cli.run_from(["method=none", "model.numerics.attention=native"]))["attention"] == "native"


def test_several_prompts_are_timed_and_their_ratios_kept_apart(run):
    run = replace(run, latency=Latency(repeats=2, prompts=5), seeds=[3, 4])
    latency.profile(job_of(run), quiet)
    timed = record.build(job_of(run))["latency"]
    assert [(each["prompt"], each["seed"]) for each in timed["prompts"]] == [(prompt, 3) for prompt in run.prompts]
    assert timed["speedup"]["values"] == [x for each in timed["prompts"] for x in each["speedup"]["values"]]
    assert len(timed["speedup_over_macs_speedup"]["values"]) == 4
    for each in timed["prompts"]:
        assert each["macs_speedup"] == pytest.approx(timed["macs_speedup_of_timed"])  # uniform: alike for all
        assert "trace" not in each
    one = replace(run, latency=Latency(repeats=2))
    assert latency.stored(job_of(one))["prompts"][0]["prompt"] == one.prompts[0]


def test_more_prompts_than_were_timed_are_timed(run, called):
    latency.profile(job_of(run), quiet)
    before = called.total()
    latency.profile(job_of(replace(run, latency=Latency(repeats=1, prompts=2))), quiet)
    assert called.total() > before
    before = called.total()
    latency.profile(job_of(run), quiet)  # the first of them is there
    assert called.total() == before


def test_peaks_are_of_denoising_and_of_each_recipe_apart(run, monkeypatch):
    """Bytes as a counter that every call raises: more for the method than for the reference, most for decoding."""
    most = 0

    def using(size, inner):
        def work(*args, **kwargs):
            nonlocal most
            most = max(most, size(*args) if callable(size) else size)
            return inner(*args, **kwargs)

        return work

    def reset(device):
        nonlocal most
        most = 0

    by_method = {"none": 100, "uniform": 170}
    monkeypatch.setattr(
        latency, "denoise", using(lambda pipe, recipe, seed: by_method[recipe.method.NAME], latency.denoise)
    )
    monkeypatch.setattr(latency, "decode", using(10_000, latency.decode))
    monkeypatch.setattr(devices, "reset_peak", reset)
    monkeypatch.setattr(devices, "peak", lambda device: most)
    run = replace(run, latency=Latency(repeats=3))
    latency.profile(job_of(run), quiet)
    timed = latency.stored(job_of(run))
    assert (timed["peak_gpu_bytes"], timed["reference_peak_gpu_bytes"]) == (170, 100)


def test_the_text_encoder_is_timed_warm(run, monkeypatch):
    family = backbones.family(run.recipe.backbone)
    calls, inner = [], family.embed
    monkeypatch.setattr(family, "embed", lambda *args: calls.append(1) or inner(*args))
    latency.profile(job_of(replace(run, latency=Latency(repeats=2))), quiet)
    assert len(calls) == 3


def test_latency_needs_at_least_one_prompt():
    with pytest.raises(ConfigError, match=r"latency\.prompts"):
        Latency(prompts=0)


def test_runs_over_other_seeds_or_prompts_add_to_what_was_timed(run, called):
    """Those of a sweep timed each other's samples anew, at every repetition of the line."""
    both = [replace(run, seeds=[seed]) for seed in (0, 1)]
    for each in both:
        latency.profile(job_of(each), quiet)
    timed = latency.stored(job_of(run))
    assert [(sample["prompt"], sample["seed"]) for sample in timed["prompts"]] == [
        (run.prompts[0], 0),
        (run.prompts[0], 1),
    ]
    before = called.total()
    for each in both:
        latency.profile(job_of(each), quiet)
    assert called.total() == before
    latency.profile(job_of(replace(both[1], latency=Latency(repeats=3))), quiet)
    again = latency.stored(job_of(run))
    assert again["prompts"][0] == timed["prompts"][0]
    assert [len(sample["speedup"]["values"]) for sample in again["prompts"]] == [1, 3]
    assert again["repeats"] == 1


def test_a_record_keeps_its_timing_when_other_things_are_asked_for_under_other_conditions(run):
    stages.execute(job_of(replace(run, stages=("generate", "latency", "score"))), quiet)
    timed = record.read(job_of(run))["latency"]
    stages.execute(job_of(replace(run, stages=("score",), fidelity=("videosys",), offload="group")), quiet)
    data = record.read(job_of(run))
    assert data["latency"] == timed
    assert data["latency"]["conditions"]["offload"] == "none"
