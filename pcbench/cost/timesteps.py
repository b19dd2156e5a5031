"""The timesteps at which a recipe's pipeline calls its transformers, before anything is loaded."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .. import backbones
from ..backbones import weights
from ..config import Backbone, Recipe

CONFIG = "scheduler/scheduler_config.json"  # of a checkpoint
_counted: dict[str, int] = {}  # a sweep asks for every run


def scheduler_of(recipe: Recipe) -> Any:
    """The scheduler that the pipeline will have: the checkpoint's own if that is here, else the family's."""
    backbone, shift = recipe.backbone, recipe.sampling.flow_shift
    if (config := weights.stored(backbone, CONFIG)) is not None:
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    else:
        scheduler = backbones.family(backbone).scheduler()
    name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    if shift is None or name not in scheduler.config:
        return scheduler
    return type(scheduler).from_config(scheduler.config, **{name: shift})


def boundary_of(backbone: Backbone) -> float | None:
    """The share of the noise above which the first of two transformers is called: the checkpoint's own if that is here,
    else the family's; None if there is one transformer."""
    if "guidance_scale_2" not in backbone.call:
        return None
    index = weights.stored(backbone, "model_index.json")
    return backbones.family(backbone).BOUNDARY if index is None else index["boundary_ratio"]


def timesteps_on(scheduler: Any, recipe: Recipe) -> torch.Tensor:
    """The timesteps, set as the family's pipeline sets them on its scheduler."""
    backbones.family(recipe.backbone).set_timesteps(scheduler, recipe.sampling)
    return scheduler.timesteps


def num_steps(recipe: Recipe) -> int:
    """How often the transformer is called: a solver of second order calls it twice in most of the steps asked for."""
    key = repr((recipe.backbone.family, recipe.sampling, weights.stored(recipe.backbone, CONFIG)))
    if key not in _counted:
        _counted[key] = len(timesteps_on(scheduler_of(recipe), recipe))
    return _counted[key]
