"""The bundled backbones, whole: every preset of conf/method on each, from prompt to frames, or refused in a line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from methods import apply
from pcbench import cli
from pcbench.backbones import family, load
from pcbench.sampling import generate

from .contract_parts import REFUSED

CONF = Path(__file__).parents[1] / "conf"
TWINS = sorted(path.stem for path in (CONF / "model").glob("tiny_*.yaml"))
PRESETS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - {"replay"})  # which asks for a schedule
SMALL = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.steps=8"]
# Schedules of 25 steps and more need fewer here.
SHORTENED = ("uniform", "planned", "fewer_steps", "fewer_steps_32", "fewer_steps_37")
STEPS = dict.fromkeys(SHORTENED, "method.steps=5")
STEPS |= dict.fromkeys(("searched", "searched_budcache"), "method.actions=FFFrFrrF")
SHORTEST = {"tiny_opensora": 17, "tiny_cogvideox": 9}  # the fewest frames that its schedule, or its VAE, knows
AS_IN_THE_CONTRACT = {
    "tiny_wan": "wan",
    "tiny_hunyuan": "hunyuan",
    "tiny_cogvideox": "cogvideox_5b",
    "tiny_opensora": "opensora",
}


# Their eight first blocks are more than a twin has.
TOO_DEEP = {"dbcache", "dbcache_dmd", "dbcache_scm", "dbcache_taylorseer"}


# By model and latent: what presets reuse in so few steps, if anything, is often the same.
decoded: dict[tuple[str, bytes], np.ndarray] = {}


def refused(preset: str, model: str) -> bool:
    return AS_IN_THE_CONTRACT[model] in REFUSED.get(preset, set()) or preset in TOO_DEEP


def attached(words: list[str]) -> None:
    run = cli.run_from(words)
    apply(load(run.recipe, "cpu"), run.recipe.method, guidance_scale=4.0).remove()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", TWINS)  # the outer loop: each is loaded once
def test_every_allowed_preset_makes_a_video(preset, model):
    count = SHORTEST.get(model, 5)
    words = [f"method={preset}", f"model={model}", f"model.sampling.frames={count}", *SMALL]
    words += [STEPS[preset]] if preset in STEPS else []
    if refused(preset, model):
        with pytest.raises(ValueError, match=r"\S"):
            attached(words)
        return
    run = cli.run_from(words)
    pipe = load(run.recipe, "cpu")
    guidance = family(run.recipe.backbone).guidance_scale(run.recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a setting for 50 steps need not reuse any of these
        with apply(pipe, run.recipe.method, guidance_scale=guidance) as cache:
            latents = generate.denoise(pipe, run.recipe, 0, prompt="a red circle moving left on a black background")
    key = model, latents.numpy().tobytes()
    if key not in decoded:
        decoded[key] = family(run.recipe.backbone).decode(pipe, latents, run.recipe)
    frames = decoded[key]
    assert 0 < len(cache.trace.steps) <= run.recipe.sampling.steps
    assert frames.shape == (count, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 1
