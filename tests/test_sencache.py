"""SenCache against its official forward, its estimate by hand, and its calibration against plain forwards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from methods import apply, sencache
from methods.calibration import NotCalibratedError
from methods.engine.anatomy import anatomy_of
from methods.engine.clock import times
from methods.sencache import SenCache, SenCacheConfig
from pcbench.calibrate import sensitivity

from .conftest import STEPS, pipeline_of, random_transformer
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sencache.json").read_text())
TABLE = {"levels": [1.0, 0.9, 0.6, 0.2], "latent": [0.2, 0.3, 0.5, 0.4], "level": [0.5, 0.4, 0.1, 0.3]}
WHOLE = {"threshold_first": 0.1, "threshold": 0.1, "max_skip": 9, "sensitivity": TABLE}


def letters(trace) -> str:
    return "".join("r" if step.action == "reuse" else "F" for step in trace.steps)


@pytest.mark.parametrize("golden", GOLDEN["cases"], ids=lambda g: f"{g['threshold']}-{g['max_skip']}")
def test_parity_with_the_official_code(golden):
    family = FAMILIES[golden["family"]]
    pipe = family.pipeline()
    settings = {name: golden[name] for name in ("threshold", "threshold_first", "max_skip")}
    with apply(pipe, SenCacheConfig(**settings, sensitivity=GOLDEN["table"])) as handle:
        latents = family.call(pipe, steps=golden["steps"])
    assert "".join(letter * family.branches for letter in letters(handle.trace)) == golden["calls"]
    assert 4 <= handle.trace.reused <= golden["steps"] - 5
    expected = torch.tensor(golden["latents"]["every_41st"])
    torch.testing.assert_close(latents.flatten()[::41], expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().abs().mean()) == pytest.approx(golden["latents"]["absmean"], rel=1e-5)


@pytest.mark.parametrize(
    ("constant", "shape"),
    [(1447.97790038, (16, 21, 60, 104)), (1099.8181667894016, (16, 14, 60, 90))],
    ids=["wan", "cogvideox"],
)
def test_the_official_constants_are_roots_of_a_latents_size(constant, shape):
    """Wan2.1/sencache.py:373 and CogVideoX/sencache.py:23: why root mean squares need none."""
    assert math.sqrt(math.prod(shape)) == pytest.approx(constant, rel=1e-8)


def inputs_of(pipe, run) -> list[dict]:
    """The arguments of each call of the transformer."""
    seen, forward = [], pipe.transformer.forward

    def spy(*args, **kwargs):
        seen.append(kwargs)
        return forward(*args, **kwargs)

    pipe.transformer.forward = spy
    run()
    pipe.transformer.forward = forward
    return seen


def root_mean_square(tensor) -> float:
    return float(tensor.square().mean().sqrt())


@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox_5b", "opensora"])
def test_the_estimate_by_hand(name):
    family = FAMILIES[name]
    pipe = family.pipeline()
    config = SenCacheConfig(**WHOLE, protect_last=1)
    with apply(pipe, config, **family.options) as handle:
        calls = inputs_of(pipe, lambda: family.call(pipe))[:: family.branches]
    computed, time = 0, times(pipe.scheduler)
    for i, step in enumerate(handle.trace.steps):
        if i == 0 or i == STEPS - 1:
            assert step.action == "full"
            assert step.indicator is None
            continue
        row = min(range(4), key=lambda k: abs(TABLE["levels"][k] - time[computed]))
        moved = root_mean_square(calls[i]["hidden_states"] - calls[computed]["hidden_states"])
        expected = TABLE["latent"][row] * moved + TABLE["level"][row] * (time[computed] - time[i])
        assert step.indicator == pytest.approx(expected, rel=1e-4)
        assert (step.action == "reuse") == (expected < 0.1)
        computed = computed if step.action == "reuse" else i
    assert 0 < handle.trace.reused < STEPS - 2


def run(steps=20, **options):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with apply(pipe, SenCacheConfig(**{**WHOLE, **options})) as handle:
        family.call(pipe, steps=steps)
    return letters(handle.trace), handle.trace.steps


def test_no_more_than_k_steps_in_a_row():
    assert run(threshold=1e9, threshold_first=1e9, max_skip=3)[0] == "Frrr" * 5
    assert run(threshold=1e9, threshold_first=1e9, max_skip=1)[0] == "Fr" * 10


@pytest.mark.filterwarnings("ignore:.*never hit")
def test_the_first_fifth_has_a_threshold_of_its_own():
    made, steps = run(threshold=1e9, threshold_first=0.0, max_skip=99)
    assert made == "FFFF" + "r" * 16
    assert [step.threshold for step in steps[1:]] == [0.0] * 3 + [1e9] * 16
    assert run(threshold=1e9, threshold_first=0.0, max_skip=99, first_share=0.5)[0] == "F" * 10 + "r" * 10
    assert run(threshold=1e9, threshold_first=0.0, max_skip=99, first_share=1.0)[0] == "F" * 20


@pytest.mark.parametrize(
    ("family", "published"), [("wan", (2.0, 0.045, 3, 0)), ("cogvideox_2b", (0.07, 0.005, 10, 1)),
                              ("hunyuan", (2.0, 0.045, 3, 0)), ("opensora", (2.0, 0.045, 3, 0))],
)  # fmt: skip
def test_official_values_of_each_family(family, published):
    anatomy = anatomy_of(FAMILIES[family].pipeline().transformer)
    filled = SenCacheConfig(sensitivity=TABLE).for_backbone(anatomy)
    assert (filled.threshold, filled.threshold_first, filled.max_skip, filled.protect_last) == published
    assert filled.for_backbone(anatomy) == filled
    chosen = SenCacheConfig(threshold=0.0, max_skip=0, protect_last=4, sensitivity=TABLE).for_backbone(anatomy)
    assert (chosen.threshold, chosen.max_skip, chosen.protect_last) == (0.0, 0, 4)


def test_without_a_calibration_it_says_how_to_get_one():
    with pytest.raises(NotCalibratedError, match=r"python -m pcbench\.calibrate method=sencache model="):
        apply(FAMILIES["wan"].pipeline(), SenCacheConfig())


@pytest.mark.filterwarnings("ignore:.*never hit")
@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox_5b", "opensora"])
def test_the_calibration_is_the_change_with_each_argument_alone(name):
    family = FAMILIES[name]
    pipe = family.pipeline()
    before = family.call(pipe)
    data = sensitivity.measure(pipe, [lambda: family.call(pipe), lambda: family.call(pipe, 1, 5)])
    assert torch.equal(family.call(pipe), before)
    anatomy, tables, levels = anatomy_of(pipe.transformer), [], []
    half = {"cond_first": slice(0, 1), "uncond_first": slice(1, 2), None: slice(None)}[anatomy.BATCHED]
    for prompt, seed in ((0, 0), (1, 5)):
        with apply(pipe, SenCacheConfig(**WHOLE, protect_first=STEPS), **family.options):
            calls = inputs_of(pipe, lambda p=prompt, s=seed: family.call(pipe, p, s))[:: family.branches]
        levels = times(pipe.scheduler)

        def forward(call, **changed):
            with torch.no_grad():
                output = pipe.transformer(**{**call, **changed, "return_dict": False})[0]
            return anatomy.used(output)[half]

        rows = []
        for one, other, level, following in zip(calls, calls[1:], levels, levels[1:], strict=False):
            here = forward(one)
            moved = root_mean_square((other["hidden_states"] - one["hidden_states"])[half])
            latent = root_mean_square(forward(one, hidden_states=other["hidden_states"]) - here) / moved
            change = root_mean_square(forward(one, timestep=other["timestep"]) - here)
            rows.append((latent, change / (level - following)))
        tables.append(rows)
    mean = torch.tensor(tables).mean(dim=0)
    assert data["levels"] == pytest.approx(levels[:-1], rel=1e-4)
    assert data["latent"] == pytest.approx(mean[:, 0].tolist(), rel=1e-3)
    assert data["level"] == pytest.approx(mean[:, 1].tolist(), rel=1e-3)
    assert data["samples"] == 2


def test_what_cannot_be_measured_is_refused():
    two = pipeline_of(random_transformer(), random_transformer(1), boundary_ratio=0.8)
    with pytest.raises(ValueError, match="two transformers"):
        sensitivity.measure(two, [])
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with pytest.raises(ValueError, match="ask for more steps"):
        sensitivity.measure(pipe, [lambda: family.call(pipe, steps=1)])


@pytest.mark.filterwarnings("ignore:.*never hit")
def test_nan_never_skips(monkeypatch):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    uncached = family.call(pipe)
    monkeypatch.setattr(SenCache, "_estimate", lambda *_: math.nan)
    config = SenCacheConfig(**{**WHOLE, "threshold": 1e9, "threshold_first": 1e9})
    with apply(pipe, config), pytest.warns(UserWarning, match="NaN"):
        assert torch.equal(family.call(pipe), uncached)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"threshold_first": -0.1}, "threshold_first must be at least 0"),
        ({"threshold": math.nan}, "threshold must be a finite number"),
        ({"max_skip": -1}, "max_skip must be at least 0"),
        ({"protect_last": -1}, "at least 0"),
        ({"sensitivity": {"levels": [1.0]}}, "sensitivity must have levels, latent, level, not levels"),
        ({"sensitivity": {name: [] for name in sencache.TABLE}}, "one length, at least one number"),
        ({"sensitivity": {**TABLE, "level": [1.0]}}, "one length"),
        ({"sensitivity": {**TABLE, "latent": [0.1, 0.1, 0.1, -0.1]}}, "at least 0"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        SenCacheConfig(**options)
