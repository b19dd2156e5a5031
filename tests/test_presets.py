"""A record says which preset its method is: every field counts, and it does not matter how they were asked for."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from methods import PreciseCacheConfig
from pcbench import cli, record
from pcbench.compose import names, run_from
from pcbench.job import job_of

OTHER = {  # a value for every field of PreciseCache that is no preset's, beside alpha 0.7
    "protect_first": "2", "protect_last": "1", "reuse": "residual", "damping": "0.5", "taylor_order": "2",
    "blend": "0.5", "kept": "float8",
    "alpha": "0.6", "warmup_steps": "4", "downsample_factor": "[1,8,8]", "radius_ratio": "0.3",
    "block_cache_rate": "0.6", "block_cache_steps": "2", "accumulate": "false", "reference": "anchor_trial",
    "subtract_bias": "true", "norm": "l2", "threshold_from": "full", "count_warmup": "true", "spectrum": "volume",
    "whole_bins": "true", "low_pass_first": "true", "downsample_mode": "area", "guidance": "cond", "max_reused": "1",
    "block_ranking": "relative", "block_sets": "shared", "radius_of": "latent",
}  # fmt: skip


def preset(*words: str) -> str | None:
    return run_from(words).preset


def test_every_field_is_tried():
    assert set(OTHER) == {each.name for each in fields(PreciseCacheConfig)}


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"kept"}))
def test_one_other_field_is_no_preset(name):
    assert preset("method=precisecache_turbo", f"method.{name}={OTHER[name]}") is None


def test_otherwise_stored_it_costs_what_the_preset_costs_and_is_not_it(tmp_path):
    run = run_from(["method=precisecache_flash", f"method.kept={OTHER['kept']}", f"results={tmp_path}"])
    assert run.preset == "precisecache_flash"  # whose published MACs a plan looks for
    assert record.build(job_of(run))["preset"] is None


def test_it_does_not_matter_how_a_preset_was_asked_for(tmp_path):
    one, other = (
        run_from([*words, f"results={tmp_path}"])
        for words in (["method=precisecache", "method.alpha=0.5"], ["method=precisecache_base"])
    )
    assert one.preset == other.preset == "precisecache_base"
    assert json.dumps(record.build(job_of(one))) == json.dumps(record.build(job_of(other)))
    assert record.build(job_of(one))["preset"] == "precisecache_base"
    assert preset("method=precisecache") == preset("method=precisecache_turbo") == "precisecache_turbo"
    flash = ["method.block_cache_rate=0.4", "method.reference=previous_trial"]
    assert preset("method=precisecache", *flash) == "precisecache_trial_flash"


def test_what_depends_on_the_backbone_is_filled_in_first():
    assert preset("model=tiny_opensora", "method=pab") == preset("model=tiny_opensora", "method=pab_246") == "pab_246"
    assert preset("model=tiny_wan", "method=pab") == "pab"


@pytest.mark.parametrize("name", sorted(set(names("method")) - {"replay"}))
def test_every_preset_is_itself_or_one_of_a_longer_name(name):
    """On any model that takes it."""
    for model in ("tiny_wan", "tiny_opensora", "tiny_cogvideox"):
        try:
            run = run_from([f"model={model}", f"method={name}"])
        except ValueError:  # refused on this backbone, or for want of a package
            continue
        assert run.preset is not None
        assert len(run.preset) >= len(name)
        same = run_from([f"model={model}", f"method={run.preset}"])
        assert same.recipe == run.recipe
        return
    pytest.skip("a package is not installed")


def test_the_uncached_reference_is_the_preset_none():
    assert run_from(["method=precisecache"]).reference.preset == preset("method=none") == "none"


def test_records_of_a_sweep_say_it(tmp_path):
    small = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.frames=5", "model.sampling.steps=4"]
    words = ["-m", "method=precisecache_base", "method.max_reused=0,1", *small, "prompts.limit=1", "stages=[generate]"]
    assert cli.main([*words, f"results={tmp_path}"]) == 0
    found = [json.loads(path.read_text()) for path in Path(tmp_path, "records").rglob("*.json")]
    said = {
        (each["recipe"]["method"]["name"], each["recipe"]["method"].get("max_reused")): each["preset"] for each in found
    }
    assert said[("precisecache", 0)] == "precisecache_base"
    assert said[("precisecache", 1)] is None
