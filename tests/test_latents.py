"""The final latent under a schedule, begun where the schedule first differs from computing everything."""

from __future__ import annotations

import functools

import pytest
import torch

from methods import ReplayConfig, apply
from methods.engine.anatomy import anatomy_of
from pcbench.calibrate.latents import final_latent
from pcbench.observe.watch import Seen

from .conftest import STEPS
from .families import FAMILIES
from .test_observe_measures import FamilyCaller, caller_of


@functools.cache
def watched(name: str) -> tuple[FamilyCaller, Seen]:
    """A family's caller, and its call without a cache: read it only."""
    caller = caller_of(name)
    return caller, caller.watch()


@pytest.mark.parametrize("name", ["wan", "hunyuan_true_cfg", "cogvideox_2b", "opensora"])
@pytest.mark.parametrize(
    "actions", ["F" * STEPS, "FFFFFrFrrFFr", "FrrrrrrrrrrF"], ids=["all", "in the middle", "at once"]
)
@pytest.mark.parametrize("reuse", ["prediction", "extrapolate", "residual", "stack"])
def test_it_is_the_latent_of_a_replayed_schedule_bit_for_bit(name, actions, reuse):
    (caller, seen), family = watched(name), FAMILIES[name]
    with apply(caller.pipe, ReplayConfig(actions=actions, reuse=reuse), **family.options):
        expected = family.call(caller.pipe)
    assert torch.equal(final_latent(caller, actions, reuse), expected)
    assert torch.equal(final_latent(caller, actions, reuse, seen.moments), expected)
    assert torch.equal(seen.latents[-1], expected) is ("r" not in actions)


@pytest.mark.parametrize("name", ["wan", "cogvideox_2b"])
@pytest.mark.parametrize("reuse", ["prediction", "extrapolate", "taylorseer", "residual", "stack"])
def test_a_schedule_goes_on_from_another_one_bit_for_bit(name, reuse):
    caller = caller_of(name)
    along, actions, moments = "FFFrFrrFrFFr", "FFFrFrFrrFFr", []
    expected = final_latent(caller, along, reuse, keep=moments)
    assert torch.equal(expected, final_latent(caller, along, reuse))
    assert len(moments) == STEPS
    ran = []
    block = next(block.module for block in anatomy_of(caller.pipe.transformer).blocks(caller.pipe.transformer))
    hook = block.register_forward_pre_hook(lambda *_: ran.append(1))
    found = final_latent(caller, actions, reuse, moments, along)
    hook.remove()
    assert torch.equal(found, final_latent(caller, actions, reuse))
    if reuse != "stack":
        assert len(ran) == 3 * len(moments[0].predictions)  # steps 6, 9 and 10


def test_known_steps_are_not_computed():
    (caller, seen), ran = watched("wan"), []
    hook = caller.pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    final_latent(caller, "F" * 8 + "rFFr", known=seen.moments)
    hook.remove()
    assert len(ran) == 2 * 2  # two steps of two branches


def test_options_of_the_reuse_arrive_and_wrong_schedules_are_refused():
    caller, seen = watched("wan")
    actions = "FFFrFFrFFrFF"
    held, line = (final_latent(caller, actions, "extrapolate", damping=damping) for damping in (0.0, 1.0))
    assert torch.equal(held, final_latent(caller, actions))
    assert not torch.equal(held, line)
    with pytest.raises(ValueError, match="must begin with F"):
        final_latent(caller, "r" * STEPS)
    with pytest.raises(ValueError, match="3 actions for 12 steps"):
        final_latent(caller, "FrF", known=seen.moments)
