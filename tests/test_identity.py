"""A recipe's id: frozen for every preset, unmoved by new defaults, blind to all that is not pixels."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from methods import FewerStepsConfig, NoCacheConfig, PreciseCacheConfig, UniformConfig
from pcbench.config import Backbone, Numerics, Recipe, Sampling
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
    "precisecache literal": recipe(PreciseCacheConfig(reference="cached_output")),
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


def test_what_only_prices_a_plan_is_not_in_it():
    backbone = Backbone(name="example", family="wan", source="somewhere", revision="1", transformer={"num_layers": 3})
    assert recipe_id(recipe(backbone=backbone)) == recipe_id(RECIPES["none"])


def test_sparse_keeps_what_has_no_default():
    assert sparse(PreciseCacheConfig()) == {"name": "precisecache"}
    assert sparse(PreciseCacheConfig(downsample_factor=(1, 2, 2))) == {
        "name": "precisecache",
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
