"""Reuse strategies: their arithmetic by hand, and what each is exact for."""

from __future__ import annotations

import pytest
import torch

from methods import ReplayConfig, UniformConfig, apply
from methods.engine.anatomy import Anatomy, anatomy_of
from methods.engine.anatomy.opensora import OpenSoraAnatomy
from methods.engine.reuse import strategy

from .conftest import STEPS, call
from .families import FAMILIES


class Moment:
    """As much of a denoiser as a strategy looks at."""

    anatomy = Anatomy("any", (1, 2, 2))

    def __init__(self, index: int, sigma: float, latent: torch.Tensor | None = None) -> None:
        self.index = index
        self.branch = type("B", (), {"name": "cond", "inputs": {"hidden_states": latent}})()
        self.step = type("S", (), {"sigma": sigma})()


def taught(name: str, predictions: dict[int, torch.Tensor], sigma=lambda i: 1 - i / 10, latent=None, **options):
    memory = strategy(name, **{"damping": 1.0, "order": 1, **options})
    for index, value in predictions.items():
        memory.store(Moment(index, sigma(index), latent), value)
    return memory


def test_prediction_is_the_last_computed_one():
    memory = taught("prediction", {0: torch.ones(2), 3: torch.full((2,), 5.0)})
    assert torch.equal(memory.predict(Moment(4, 0.6)), torch.full((2,), 5.0))


def test_residual_follows_the_latent():
    memory = taught("residual", {0: torch.full((1, 2), 5.0)}, latent=torch.full((1, 2), 2.0))
    assert torch.equal(memory.predict(Moment(1, 0.9, torch.full((1, 2), 7.0))), torch.full((1, 2), 10.0))


def test_residual_needs_a_prediction_of_the_latents_shape():
    with pytest.raises(ValueError, match="latent's shape"):
        taught("residual", {0: torch.zeros(1, 8)}, latent=torch.zeros(1, 4))


def test_residual_leaves_a_predicted_variance_as_it_was(monkeypatch):
    """Open-Sora's prediction has channels that are no velocity; the latent has none to go with them."""
    monkeypatch.setattr(
        Moment, "anatomy", OpenSoraAnatomy("opensora", (1, 2, 2), {"in_channels": 1, "out_channels": 2})
    )
    latent, shape = torch.full((1, 1, 1, 1, 1), 2.0), (1, 2, 1, 1, 1)
    memory = taught("residual", {0: torch.tensor([5.0, 9.0]).view(shape)}, latent=latent)
    assert memory.predict(Moment(1, 0.9, latent + 5)).flatten().tolist() == [10.0, 9.0]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer_is_exact_for_polynomials_of_its_order_up_to_newtons_form(order):
    """Order 0 repeats, order 1 continues a line; order 2 is TaylorSeer's own formula, checked by hand."""
    memory = taught("taylorseer", {i: torch.tensor([float(i**2)]) for i in (0, 2, 4)}, order=order)
    # at step 4: F = 16, d1 = (16 - 4) / 2 = 6, d2 = (6 - (4 - 0) / 2) / 2 = 2
    by_hand = {0: 16.0, 1: 16 + 6 * 2, 2: 16 + 6 * 2 + 2 * 2**2 / 2}
    assert float(memory.predict(Moment(6, 0.4))) == pytest.approx(by_hand[order])


def test_extrapolate_is_a_damped_line_in_sigma():
    sigma = {0: 1.0, 2: 0.9, 3: 0.6}.__getitem__
    predictions = {0: torch.tensor([100.0]), 2: torch.tensor([4.0]), 3: torch.tensor([10.0])}
    for damping, expected in ((0.0, 10.0), (1.0, 16.0), (0.5, 13.0)):
        memory = taught("extrapolate", predictions, sigma=sigma, damping=damping)
        assert float(memory.predict(Moment(4, 0.3))) == pytest.approx(expected)


def test_extrapolate_without_noise_levels_is_refused():
    with pytest.raises(ValueError, match="noise level"):
        taught("extrapolate", {0: torch.ones(1)}, sigma=lambda i: None)


@pytest.mark.parametrize("reuse", ["taylorseer", "extrapolate"])
def test_undamped_or_of_order_zero_they_are_plain_reuse(pipe, reuse):
    with apply(pipe, UniformConfig(steps=6)):
        plain = call(pipe)
    with apply(pipe, UniformConfig(steps=6, reuse=reuse, damping=0.0, taylor_order=0)):
        assert torch.equal(call(pipe), plain)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_stack_runs_embeddings_and_head_on_the_residual(family):
    """At a reused step: head(embed(latent) + (stack_out - stack_in) of the last computed step), by hand."""
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    first, *_, last = (block.module for block in anatomy_of(pipe.transformer).blocks(pipe.transformer))
    ins, outs = [], []

    def tokens(values, kwargs, output):
        return kwargs.get("hidden_states", values[0] if values else None), output[0] if isinstance(
            output, tuple
        ) else output

    def note_in(module, args, kwargs, output):
        ins.append(tokens(args, kwargs, output)[0])

    def note_out(module, args, kwargs, output):
        outs.append(tokens(args, kwargs, output)[1])

    with apply(pipe, ReplayConfig(actions="FFr" + "F" * (STEPS - 3), reuse="stack"), **kind.options) as handle:
        a = first.register_forward_hook(note_in, with_kwargs=True)
        b = last.register_forward_hook(note_out, with_kwargs=True)
        kind.call(pipe)
        a.remove()
        b.remove()
    n = kind.branches
    for branch in range(n):
        residual = outs[n + branch] - ins[n + branch]
        assert torch.allclose(outs[2 * n + branch], ins[2 * n + branch] + residual)
    assert handle.trace.steps[2].action == "reuse"


def test_unknown_strategies_and_orders_are_refused():
    with pytest.raises(ValueError, match="reuse must be one of"):
        UniformConfig(reuse="magic")
    with pytest.raises(ValueError, match="taylor_order"):
        UniformConfig(taylor_order=-1)


@pytest.mark.parametrize(
    ("actions", "words"), [("", "letters F"), ("FFx", "letters F"), ("rFF", "must begin with F"), ("FFr", "3 actions")]
)
def test_impossible_schedules_are_refused(pipe, actions, words):
    with pytest.raises(ValueError, match=words), apply(pipe, ReplayConfig(actions=actions)):
        call(pipe)


def test_replay_computes_exactly_what_it_is_told(pipe):
    actions = "FFrFrrFFFrrr"
    with apply(pipe, ReplayConfig(actions=actions)) as handle:
        call(pipe)
    assert "".join("r" if row.action == "reuse" else "F" for row in handle.trace.steps) == actions
