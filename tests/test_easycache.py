"""EasyCache against its official forwards, and its criterion by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from methods import apply
from methods.easycache import EasyCache, EasyCacheConfig
from methods.engine.anatomy import anatomy_of

from .conftest import STEPS
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "easycache.json").read_text())["cases"]


def letters(trace) -> str:
    return "".join("r" if step.action == "reuse" else "F" for step in trace.steps)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['family']}-{g['threshold']}")
def test_parity_with_the_official_code(golden):
    family = FAMILIES[golden["family"]]
    pipe = family.pipeline()
    config = EasyCacheConfig(threshold=golden["threshold"], protect_first=golden["protect_first"])
    with apply(pipe, config) as handle:
        latents = family.call(pipe, steps=golden["steps"])
    calls = "".join(letter * family.branches for letter in letters(handle.trace))
    assert calls == golden["calls"]
    assert 4 <= handle.trace.reused <= golden["steps"] - 6
    errors = golden["accumulated"][:: family.branches]
    for step, error in zip(handle.trace.steps, errors, strict=True):
        if step.action == "reuse":
            assert step.accumulated == pytest.approx(error, rel=1e-4)
    expected = torch.tensor(golden["latents"]["every_41st"])
    torch.testing.assert_close(latents.flatten()[::41], expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().abs().mean()) == pytest.approx(golden["latents"]["absmean"], rel=1e-5)


@pytest.mark.parametrize(
    ("family", "threshold", "first"),
    [("wan", 0.05, 10), ("hunyuan", 0.025, 5), ("hunyuan_true_cfg", 0.025, 5), ("cogvideox_2b", 0.05, 10)],
)
def test_official_values_of_each_family(family, threshold, first):
    anatomy = anatomy_of(FAMILIES[family].pipeline().transformer)
    filled = EasyCacheConfig().for_backbone(anatomy)
    assert (filled.threshold, filled.protect_first, filled.protect_last) == (threshold, first, 1)
    assert filled.reuse == "residual"
    assert filled.for_backbone(anatomy) == filled
    chosen = EasyCacheConfig(threshold=0.0, protect_first=0).for_backbone(anatomy)
    assert (chosen.threshold, chosen.protect_first) == (0.0, 0)


def tracks(pipe, family, steps=STEPS) -> tuple[list, list]:
    """Latents and predictions of each step's first branch, seen from outside."""
    latents, predictions = [], []
    forward = pipe.transformer.forward

    def spy(*args, **kwargs):
        output = forward(*args, **kwargs)
        latents.append(kwargs["hidden_states"])
        predictions.append(output[0])
        return output

    pipe.transformer.forward = spy
    family.call(pipe, steps=steps)
    pipe.transformer.forward = forward
    return latents[:: family.branches], predictions[:: family.branches]


@pytest.mark.parametrize("name", ["wan", "hunyuan_true_cfg", "cogvideox_5b"])
def test_the_criterion_by_hand(name):
    family = FAMILIES[name]
    pipe = family.pipeline()
    config = EasyCacheConfig(threshold=0.25, protect_first=3, protect_last=2)
    with apply(pipe, config, **family.options) as handle:
        latents, predictions = tracks(pipe, family)
    change = lambda a, b: float((a - b).abs().mean())  # noqa: E731
    error, rate, computed, expected = 0.0, None, None, []
    for i in range(STEPS):
        reuse = False
        if 3 <= i < STEPS - 2:
            error += rate * change(latents[i], latents[i - 1]) / float(predictions[computed].abs().mean())
            reuse = error < 0.25
            assert handle.trace.steps[i].accumulated == pytest.approx(error, rel=1e-5)
        else:
            assert handle.trace.steps[i].indicator is None
        expected.append("r" if reuse else "F")
        if reuse:
            residual = predictions[computed] - latents[computed]
            torch.testing.assert_close(predictions[i], latents[i] + residual)
        else:
            error = 0.0
            if computed is not None:
                rate = change(predictions[i], predictions[computed]) / change(latents[i], latents[computed])
            computed = i
    assert letters(handle.trace) == "".join(expected)
    assert 0 < handle.trace.reused < STEPS - 5


def test_the_unconditional_branch_follows_with_its_own_residual():
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    seen = []
    with apply(pipe, EasyCacheConfig(threshold=1e9, protect_first=3)) as handle:
        forward = pipe.transformer.forward

        def spy(*args, **kwargs):
            output = forward(*args, **kwargs)
            seen.append(output[0] - kwargs["hidden_states"])
            return output

        pipe.transformer.forward = spy
        family.call(pipe)
        pipe.transformer.forward = forward
    assert letters(handle.trace) == "FFF" + "r" * (STEPS - 4) + "F"
    assert {step.forwards for step in handle.trace.steps} == {0, 2}
    cond, uncond = seen[0::2], seen[1::2]
    for i in range(3, STEPS - 1):
        torch.testing.assert_close(cond[i], cond[2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(uncond[i], uncond[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cond[2], uncond[2], atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*never hit")
def test_nan_never_skips(monkeypatch):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    uncached = family.call(pipe)
    observe = EasyCache.observe

    def broken(self, denoiser, prediction):
        observe(self, denoiser, prediction)
        self.rate = torch.tensor(math.nan)

    monkeypatch.setattr(EasyCache, "observe", broken)
    with apply(pipe, EasyCacheConfig(threshold=1e9, protect_first=3)), pytest.warns(UserWarning, match="NaN"):
        assert torch.equal(family.call(pipe), uncached)


def test_a_latent_that_does_not_move_is_no_crash_and_no_skip():
    """Change over no change is not a number."""
    pipe = FAMILIES["wan"].pipeline()
    latent, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    config = EasyCacheConfig(threshold=1e9, protect_first=2, protect_last=0)
    with apply(pipe, config) as handle, torch.no_grad():
        for timestep in (900, 800, 700, 600):
            pipe.transformer(hidden_states=latent, timestep=torch.tensor([timestep]), encoder_hidden_states=text)
    assert letters(handle.trace) == "FFFF"


@pytest.mark.parametrize("reuse", ["prediction", "taylorseer", "extrapolate", "stack"])
def test_every_reuse_strategy_works_with_the_decision(reuse):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    with apply(pipe, EasyCacheConfig(threshold=0.3, protect_first=3, reuse=reuse)) as handle:
        latents = family.call(pipe)
    assert handle.trace.reused > 0
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"threshold": math.nan}, "threshold must be a finite number"),
        ({"reuse": "all"}, "reuse must be one of"),
        ({"protect_first": -1}, "at least 0"),
        ({"protect_last": -1}, "at least 0"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EasyCacheConfig(**options)
