"""Forecasts of other methods as reuse strategies: by hand, beside the official code's numbers, and at their edges."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from methods import ReplayConfig, TeaCacheConfig, UniformConfig, apply
from methods.engine.anatomy import Anatomy
from methods.engine.forecast import Chebyshev, Forecast, Hermite, MeanVelocity, SecondDifference
from methods.engine.reuse import STRATEGIES, strategy

from .conftest import STEPS, call, pipeline_of, random_transformer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "forecasts.json").read_text())
FORECASTS = {name: each for name, each in STRATEGIES.items() if issubclass(each, Forecast)}
NUMBER = 20
LEVELS = [3 * s / (1 + 2 * s) for s in (1 - i / NUMBER for i in range(NUMBER))]


def random(seed: int) -> torch.Tensor:
    """Of each step (2, 3): as for the golden file."""
    return torch.randn(NUMBER, 2, 3, generator=torch.Generator().manual_seed(seed))


class Moment:
    """As much of a denoiser as a forecast looks at: step `index` of a call at `levels`."""

    anatomy = Anatomy("any", (1, 2, 2))

    def __init__(self, index: int, levels=LEVELS, latent=None, accumulated=None, branch="cond") -> None:
        self.index, self.levels, self.num_steps = index, levels, len(levels)
        self.branch = type("B", (), {"name": branch, "inputs": {"hidden_states": latent}})()
        self.step = type("S", (), {"sigma": levels[index], "accumulated": accumulated})()

    def next_sigma(self) -> float:
        return self.levels[self.index + 1] if self.index + 1 < len(self.levels) else 0.0


def answers(memory, predictions, computed, moment=Moment) -> dict[int, torch.Tensor]:
    """What every step that is not computed is answered."""
    found = {}
    for index in range(len(predictions)):
        if index in computed:
            memory.store(moment(index), predictions[index])
        elif computed and index > min(computed):
            found[index] = memory.predict(moment(index))
    return found


@pytest.mark.parametrize("case", GOLDEN["answers"])
def test_official_numbers(case):
    name, *options = case.split()
    fields = {key: float(value) for key, value in (each.split("=") for each in options)}
    memory = strategy(name, 1.0, order=int(fields.get("order", 1)), blend=fields.get("blend", 1.0))
    predictions, latents, computed = random(0), random(1), GOLDEN["computed"]
    if name == "second_difference":
        predictions, computed = predictions + latents, GOLDEN["computed_by_d2cache"]

    def moment(index: int) -> Moment:
        return Moment(index, latent=latents[index], accumulated=GOLDEN["accumulated"][index] or None)

    found = answers(memory, predictions, computed, moment)
    expected = GOLDEN["answers"][case]
    assert len(expected) >= 10
    for index, values in expected.items():
        assert found[int(index)].flatten().tolist() == pytest.approx(values, rel=1e-4, abs=2e-5), index


@pytest.mark.parametrize("name", FORECASTS)
def test_one_computed_step_is_held_and_weights_of_any_number_are_finite(name):
    memory = strategy(name, 1.0, order=3)
    for number in range(1, NUMBER):
        if memory.kept is not None and number > memory.kept:
            continue
        places = [memory.place(Moment(index)) for index in range(number)]
        weights = memory.weights(places, memory.place(Moment(number)), memory.place(Moment(NUMBER - 1)))
        assert len(weights) == number
        assert all(math.isfinite(weight) for weight in weights)
        assert sum(weights) == pytest.approx(1.0, abs=0.15 if name == "chebyshev" and number > 4 else 1e-9)
    assert memory.weights(places[:1], places[0], 0.0) == [1.0]


def test_chebyshev_by_hand():
    """Degree 0 and ridge 0.1: the mean, shrunk by n / (n + 0.1); a blend of a half is half the line."""

    class Constant(Chebyshev):
        DEGREE = 0

    assert Constant().weights([-1.0, 0.0, 0.5], 0.75, 0.0) == pytest.approx([1 / 3.1] * 3)
    assert Constant(blend=0.5).weights([0.0, 0.5], 0.75, 0.0) == pytest.approx([0.5 / 2.1 - 0.25, 0.5 / 2.1 + 0.75])
    assert Chebyshev().weights([-1.0, -0.8, -0.6, -0.4], -0.2, 0.0) == pytest.approx([0, 0, -1, 2])  # not yet five


def test_chebyshev_is_exact_for_a_polynomial_of_its_degree_but_for_the_ridge():
    class Free(Chebyshev):
        RIDGE = 1e-9

    def smooth(index: int) -> torch.Tensor:
        t = 2 * index / NUMBER - 1
        return torch.tensor([10 + 3 * t - 2 * t**4])

    computed = set(range(0, NUMBER, 2))
    for memory, off in ((Free(), 1e-4), (Chebyshev(), 2.0)):
        found = answers(memory, [smooth(index) for index in range(NUMBER)], computed)
        assert all(float(found[index]) == pytest.approx(float(smooth(index)), abs=off) for index in range(9, NUMBER, 2))
        assert len(memory.memory["cond"]) == 10  # all of them
    assert float(found[17]) < float(smooth(17)) - 1  # shrunk, as published


def test_hermite_by_hand():
    """F = i² at 0, 2, 4: F = 16, D_1 = 6, D_2 = 2; x = 2, c x = 1: H_1 = 2, H_2 = 2."""
    for order, expected in ((0, 16.0), (1, 16 + 0.5 * 2 * 6), (2, 16 + 0.5 * 2 * 6 + 0.25 * 2 / 2 * 2)):
        found = answers(Hermite(order=order), [torch.tensor([float(i**2)]) for i in range(7)], {0, 2, 4})
        assert float(found[6]) == pytest.approx(expected)


def test_hermite_of_order_one_is_taylorseers_line_damped_by_half():
    predictions, computed = random(0), set(GOLDEN["computed"])
    hermite = answers(Hermite(order=1), predictions, computed)
    taylor = answers(strategy("taylorseer", 1.0, 1), predictions, computed)
    held = answers(strategy("prediction", 1.0, 1), predictions, computed)
    assert all(torch.allclose(hermite[i], (taylor[i] + held[i]) / 2, atol=1e-6) for i in held)


def test_second_difference_by_hand():
    """R = 5 - 1 = 4, then 9 - 2 = 7; with nothing accumulated r is of the levels: (0.4 - 0.6) / (0.6 - 1) = 0.5."""
    levels = [1.0, 0.6, 0.4]
    for before, now, ratio in (
        (None, None, 0.5),
        (0.2, 0.1, 0.5),
        (0.2, 0.05, 0.25),
        (0.0, 0.1, 0.5),
        (0.2, None, 0.5),
    ):
        memory = SecondDifference()
        memory.store(Moment(0, levels, torch.full((1, 2), 1.0)), torch.full((1, 2), 5.0))
        memory.store(Moment(1, levels, torch.full((1, 2), 2.0), before), torch.full((1, 2), 9.0))
        answer = memory.predict(Moment(2, levels, torch.full((1, 2), 3.0), now))
        assert answer.flatten().tolist() == pytest.approx([3 + 7 + ratio * 3] * 2)
    with pytest.raises(ValueError, match="latent's shape"):
        memory.store(Moment(0, levels, torch.zeros(1, 4)), torch.zeros(1, 8))


def test_mean_velocity_by_hand():
    """From 1.0 by 10 to 0.8 and by 6 to 0.4: the mean is 22 / 3, (10 - 22/3) / -0.6 = -40/9, times -0.1 taken from 6.

    The answer counts: at 0.3 the two are 6 and 50/9, whose mean from 0.8 to 0.3 is 266 / 45.
    """
    levels, memory = [1.0, 0.8, 0.4, 0.3], MeanVelocity()
    found = answers(
        memory, [torch.tensor([10.0]), torch.tensor([6.0]), None, None], {0, 1}, lambda i: Moment(i, levels)
    )
    assert float(found[2]) == pytest.approx(50 / 9)
    assert float(found[3]) == pytest.approx(50 / 9 - (0 - 0.3) * (6 - 266 / 45) / (0.3 - 0.8))
    assert len(memory.memory["cond"]) == 2


def test_mean_velocity_without_a_schedule_goes_as_far_again():
    memory, known = MeanVelocity(), MeanVelocity()
    for each in (memory, known):
        for index in (0, 1):
            each.store(Moment(index, [1.0, 0.9, 0.7, 0.5]), torch.tensor([float(index)]))
    moment = Moment(2, [1.0, 0.9, 0.7, 0.5])
    expected = known.predict(moment)
    moment.levels = None
    assert torch.equal(memory.predict(moment), expected)


@pytest.mark.parametrize("name", FORECASTS)
def test_a_place_visited_twice_counts_once(name):
    """As Heun's solver does, for what lies in noise levels; the last visit replaces the first."""
    levels = [1.0, 0.8, 0.8, 0.5, 0.5, 0.3]
    memory, latents = strategy(name, 1.0, order=1), random(1)
    found = answers(memory, random(0)[:6], {0, 1, 2, 3}, lambda i: Moment(i, levels, latents[i]))
    assert all(each.isfinite().all() for each in found.values())
    kept = [place for place, _ in memory.memory["cond"]]
    assert all(abs(a - b) > 1e-3 for a, b in itertools.pairwise(kept))


@pytest.mark.parametrize("name", FORECASTS)
def test_levels_close_together_do_not_blow_up(name):
    """Closer than a half training step they are one, and no difference is divided by next to nothing."""
    levels = [1.0, 0.9, 0.9 - 1e-4, 0.8]
    memory, latents = strategy(name, 1.0, order=2), random(1)
    found = answers(memory, random(0)[:4], {0, 1, 2}, lambda i: Moment(i, levels, latents[i]))
    assert found[3].abs().max() < 20


@pytest.mark.parametrize("name", FORECASTS)
def test_another_transformer_and_a_forgotten_branch(name):
    """No difference is taken between two transformers, and branches are apart."""
    memory, predictions, latent = strategy(name, 1.0, order=1), random(0), torch.zeros(2, 3)
    for index in range(6):
        for branch in ("cond", "uncond"):
            memory.store(Moment(index, latent=latent, branch=branch), predictions[index] + (branch == "uncond"))
    memory.change_transformer()
    assert torch.equal(memory.predict(Moment(6, latent=latent)), predictions[5])
    memory.store(Moment(7, latent=latent), predictions[7])
    assert torch.allclose(memory.predict(Moment(8, latent=latent)), predictions[7])
    memory.forget_branch("cond")
    assert not memory.ready(Moment(9))
    assert torch.equal(memory.predict(Moment(9, latent=latent, branch="uncond")), predictions[5] + 1)


@pytest.mark.parametrize("name", FORECASTS)
def test_bfloat16_is_summed_in_float32(name):
    """Within the rounding of what is kept and of the answer, and of its dtype."""
    computed = set(GOLDEN["computed"])
    rounded, latents = random(0).bfloat16(), random(1).bfloat16()
    found = answers(strategy(name, 1.0, 2), rounded, computed, lambda i: Moment(i, latent=latents[i]))
    exact = answers(strategy(name, 1.0, 2), rounded.float(), computed, lambda i: Moment(i, latent=latents[i].float()))
    assert {each.dtype for each in found.values()} == {torch.bfloat16}
    largest = {i: 1 + exact[i].abs().max() for i in exact}
    assert all((found[i].float() - exact[i]).abs().max() < 0.05 * largest[i] for i in exact)


@pytest.mark.parametrize("name", FORECASTS)
def test_a_nan_is_answered_as_such(name):
    memory, latent = strategy(name, 1.0, order=1), torch.zeros(2, 3)
    for index in range(5):
        memory.store(Moment(index, latent=latent), torch.full((2, 3), math.nan if index == 4 else 1.0))
    assert memory.predict(Moment(5, latent=latent)).isnan().all()


@pytest.mark.parametrize("name", FORECASTS)
def test_two_transformers(name):
    pipe = pipeline_of(random_transformer(0), random_transformer(1), boundary_ratio=0.8)
    with apply(pipe, ReplayConfig(actions="FFr" * 4, reuse=name)) as handle:
        first, second = call(pipe), call(pipe)
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert handle.trace.reused == 4


def test_second_difference_takes_the_decisions_own_measure(pipe):
    """TeaCache's ratio is not that of the noise levels; uniform has none of its own, and takes those."""
    kept = []

    class Watched(SecondDifference):
        def places(self, denoiser, at):
            kept.append(super().places(denoiser, at)[0])
            return super().places(denoiser, at)

    for config in (
        TeaCacheConfig(coefficients=[1.0, 0.0], threshold=1.5, reuse="second_difference"),
        UniformConfig(steps=6, reuse="second_difference"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(STRATEGIES, "second_difference", Watched)
            kept.clear()
            with apply(pipe, config) as handle:
                call(pipe)
        assert handle.trace.reused > 0
        own = [at for at in kept if len(at) == 2 and at[1] == 0.0]
        assert bool(own) == isinstance(config, TeaCacheConfig)


@pytest.mark.parametrize("blend", [-0.1, 1.1])
def test_a_blend_is_a_share(blend):
    with pytest.raises(ValueError, match="blend must be from 0 to 1"):
        UniformConfig(blend=blend)


def test_options_change_what_is_answered(pipe):
    def latents(**fields) -> torch.Tensor:
        with apply(pipe, ReplayConfig(actions="F" * 6 + "r" * (STEPS - 6), **fields)):
            return call(pipe)

    one = latents(reuse="chebyshev")
    assert not torch.equal(one, latents(reuse="chebyshev", blend=0.5))
    assert not torch.equal(latents(reuse="hermite"), latents(reuse="hermite", taylor_order=2))
    assert torch.equal(latents(reuse="hermite", taylor_order=0), latents(reuse="prediction"))
