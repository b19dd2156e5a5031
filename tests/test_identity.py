"""A recipe's id: frozen for every preset, unmoved by new defaults, blind to all that is not pixels."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from methods import (
    DiCacheConfig,
    FewerStepsConfig,
    NoCacheConfig,
    PreciseCacheConfig,
    SearchedConfig,
    SenCacheConfig,
    UniformConfig,
)
from pcbench.config import Backbone, Numerics, Recipe, Run, Sampling
from pcbench.cost.estimate import SOURCES
from pcbench.identity import recipe_id, sample_key, sparse

GOLDEN = Path(__file__).parent / "golden" / "recipe_ids.json"


def recipe(method=None, **changes) -> Recipe:
    base = Recipe(
        backbone=Backbone(name="example", family="wan", source="somewhere", revision="1"),
        sampling=Sampling(height=128, width=128, frames=29),
        method=method or NoCacheConfig(),
        numerics=Numerics(),
    )
    return dataclasses.replace(base, **changes)


RECIPES = {
    "none": recipe(),
    "fewer_steps": recipe(FewerStepsConfig()),
    "uniform": recipe(UniformConfig()),
    "uniform 20": recipe(UniformConfig(steps=20)),
    "precisecache_base": recipe(PreciseCacheConfig(alpha=0.5)),
    "precisecache_turbo": recipe(PreciseCacheConfig(alpha=0.7)),
    "precisecache_trial_turbo": recipe(PreciseCacheConfig(reference="previous_trial")),
    "dicache": recipe(DiCacheConfig()),
    "sencache": recipe(SenCacheConfig()),
    "searched": recipe(SearchedConfig()),
    "bfloat16": recipe(numerics=Numerics(dtype="bfloat16")),
    "20 steps": recipe(sampling=Sampling(height=128, width=128, frames=29, steps=20)),
}


def test_ids_are_frozen():
    """An id that moves orphans every video made under it. Change the file only with a CHANGELOG line that says why."""
    assert {name: recipe_id(each) for name, each in RECIPES.items()} == json.loads(GOLDEN.read_text())


def test_ids_are_distinct():
    assert len({recipe_id(each) for each in RECIPES.values()}) == len(RECIPES)


def test_a_new_field_with_a_default_renames_nothing():
    @dataclass(kw_only=True)
    class Grown(PreciseCacheConfig):
        NAME: ClassVar[str] = "precisecache"
        new_knob: int = 3

    assert recipe_id(recipe(Grown(alpha=0.5))) == recipe_id(RECIPES["precisecache_base"])
    assert recipe_id(recipe(Grown(alpha=0.5, new_knob=4))) != recipe_id(RECIPES["precisecache_base"])


def test_a_new_version_of_a_method_is_a_new_recipe():
    class Second(UniformConfig):
        VERSION = 2

    assert recipe_id(recipe(Second())) != recipe_id(RECIPES["uniform"])


# Ids of version 1, whose `reference` was "previous_trial" unless set.
VERSION_1 = {
    "precisecache_base": "7e6acdafe63c",
    "precisecache_turbo": "ce223f9b8580",
    "precisecache with reference=cached_output": "0278b72508e8",
}


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.5}, {}, {"reference": "cached_output"}, {"reference": "previous_trial"}]
)
def test_no_old_record_of_precisecache_is_read_as_a_new_one(settings):
    """Neither by its id, nor by its fields where a plan looks for the same method on another backbone."""
    new = recipe(PreciseCacheConfig(**settings))
    assert recipe_id(new) not in VERSION_1.values()

    class First(PreciseCacheConfig):
        VERSION = 1

    old = recipe(First(**{"reference": "previous_trial", **settings}))
    run = Run(label="", recipe=new, prompts=["a cat"], seeds=[0], results=Path("nowhere"))
    known = SimpleNamespace(run=run, rehearsal=SimpleNamespace(steps=50, least=3), at=lambda steps: steps)
    sample = {"computed": 12, "steps": 50, "macs": 1}

    def record(recipe):
        method = {"name": "precisecache", "version": recipe.method.VERSION, **dataclasses.asdict(recipe.method)}
        fields = json.loads(json.dumps({"backbone": {"name": "another"}, "method": method}))
        return {"id": recipe_id(recipe), "recipe": fields, "samples": [sample]}

    assert [source(known, [record(old)]) for source in SOURCES] == [None, None, None]
    assert SOURCES[-1](known, [record(new)]) is not None  # it would have been found


def test_what_only_prices_a_plan_is_not_in_it():
    backbone = Backbone(name="example", family="wan", source="somewhere", revision="1", transformer={"num_layers": 3})
    assert recipe_id(recipe(backbone=backbone)) == recipe_id(RECIPES["none"])


def test_sparse_keeps_what_has_no_default():
    assert sparse(PreciseCacheConfig()) == {"name": "precisecache", "version": 2}
    assert sparse(PreciseCacheConfig(downsample_factor=(1, 2, 2))) == {
        "name": "precisecache",
        "version": 2,
        "downsample_factor": [1, 2, 2],
    }


@pytest.mark.parametrize("prompts", [("a cat", "a  cat"), ("A cat", "a cat"), ("é" * 80, "é" * 81), ("", " ")])
def test_sample_keys_tell_prompts_apart(prompts):
    keys = {sample_key(prompt, seed) for prompt in prompts for seed in (0, 1)}
    assert len(keys) == 4
    assert all(len(key) < 80 for key in keys)
    assert all("/" not in key for key in keys)


def test_the_reference_is_the_same_recipe_without_a_cache():
    assert recipe_id(RECIPES["precisecache_base"].reference) == recipe_id(RECIPES["none"])
