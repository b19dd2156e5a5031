"""Planned memory is what a method really keeps, and what cannot fit is refused before anything is loaded."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

from methods.engine.anatomy import anatomy_of
from pcbench import backbones, cli, devices
from pcbench.config import ConfigError
from pcbench.cost import memory
from pcbench.cost.dry_run import rehearse
from pcbench.cost.held import Held
from pcbench.job import job_of
from pcbench.sampling import generate

SMALL = ["model.sampling.steps=10", "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64"]
METHODS = {
    "pab": [], "taylorseer": [], "fora": [], "fastercache": [], "seacache": [], "teacache": [], "magcache": [],
    "easycache": [], "first_block_cache": [], "dicache": [], "sencache": [], "adacache": [],
    "uniform": ["method.steps=5"], "controlled": [], "corrected": [], "planned": ["method.steps=5"],
    "searched": ["method.actions=FFrFrrFrFF"],
    "precisecache_flash": ["method.downsample_factor=[2,2,2]"],
}  # fmt: skip


STORAGES = {  # of methods that keep blocks, or their parts, or the stack's residual
    f"{name} {storage}": [*METHODS[name], f"method.kept={storage}"]
    for name in ("precisecache_flash", "taylorseer", "pab", "fastercache", "teacache", "first_block_cache", "dicache")
    for storage in ("bfloat16", "float8", "cpu")
}


def most_held(run) -> tuple[int, int]:
    """Most bytes that the rule keeps in a real call, on the device and not: looked at as the rehearsal does."""
    pipe = backbones.load(run.recipe, "cpu")
    embeds = backbones.family(run.recipe.backbone).embed(pipe, run.prompts[0], run.recipe)
    held = Held(torch.Tensor.numel)

    def look(forward, *args, **kwargs):
        held.look(handle.in_progress[1])
        return forward(*args, **kwargs)

    def after_step(pipe, index, timestep, tensors):
        held.look(handle.in_progress[1], between_steps=True)
        return tensors

    blocks = [block.module for block in anatomy_of(pipe.transformer).blocks(pipe.transformer)]
    for block in blocks:
        block.forward = functools.partial(look, block.forward)
    try:
        with generate.cached(pipe, run, run.recipe) as handle:
            generate.denoise(pipe, run.recipe, 0, callback_on_step_end=after_step, **embeds)
    finally:
        for block in blocks:
            del block.forward
    return held.whole + held.inside, held.waiting


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_cogvideox"])
@pytest.mark.parametrize("method", [*METHODS, *STORAGES])
def test_what_a_method_keeps_is_what_was_planned(method, model):
    words = METHODS.get(method) or STORAGES.get(method) or []
    try:
        run = cli.run_from([f"model={model}", f"method={method.partition(' ')[0]}", *words, *SMALL])
    except (ConfigError, ValueError) as error:
        pytest.skip(str(error))
    planned = rehearse(run.recipe)
    assert most_held(run) == (pytest.approx(planned.held, rel=0.03), pytest.approx(planned.waiting, rel=0.03))
    assert (planned.waiting > 0) == method.endswith("cpu")


def test_features_and_residuals_in_float32_count_as_such():
    """SeaCache's filtered feature and AdaCache's residual of Wan-14B: B·tokens·width, one and two branches."""
    tokens = 75600 * 5120
    sea = rehearse(cli.run_from(["model=wan", "method=seacache", "model.sampling.steps=4"]).recipe).held
    assert sea >= 2 * tokens * 2
    ada = rehearse(cli.run_from(["model=wan", "method=adacache", "model.sampling.steps=4"]).recipe).held
    assert ada == pytest.approx(2 * tokens * (2 + 4), rel=0.02)


def test_fourier_transforms_of_features_are_planned():
    run = cli.run_from(["model=wan", "method=seacache"])
    assert memory.arithmetic_bytes(run.recipe) >= 2 * 75600 * 5120 * 8  # a complex spectrum and its product
    assert memory.arithmetic_bytes(run.recipe.reference) == 0


def held_free(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(gib * memory.GIB))


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    held_free(monkeypatch, 0.001)
    monkeypatch.setattr(backbones, "load", lambda *args: pytest.fail("loaded"))
    words = ["method=taylorseer", *SMALL, "prompts.limit=1", f"results={tmp_path / 'r'}"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tiny_wan taylorseer: needs at least" in line
    assert not list((tmp_path / "r").rglob("*.json"))


def test_what_is_there_already_fits(monkeypatch, tmp_path):
    words = ["method=uniform", "method.steps=2", "model.sampling.steps=4", *SMALL[1:], "prompts.limit=1"]
    words += ["stages=[generate]", f"results={tmp_path / 'r'}"]
    assert cli.main(words) == 0
    held_free(monkeypatch, 0.001)
    assert cli.main(words) == 0


def test_weights_that_wait_elsewhere_do_not_count():
    run = cli.run_from(["model=tiny_wan", "method=none"])
    rehearsal = rehearse(run.recipe)
    assert memory.needed(run, rehearsal)[0] > 0
    assert memory.needed(replace(run, offload="group"), rehearsal)[0] == 0
    assert memory.needed(replace(run, offload="model"), rehearsal)[0] == memory.needed(run, rehearsal)[0]


def test_of_two_transformers_one_waits_with_model_offload():
    run = cli.run_from(["model=wan2_2_a14b", "method=none", "prompts=smoke"])
    rehearsal = rehearse(run.recipe)
    weights = {each: memory.needed(replace(run, offload=each), rehearsal)[0] for each in ("none", "model", "group")}
    assert weights["none"] == 2 * weights["model"] > weights["group"] == 0


def test_gpus_share_what_is_kept_of_blocks_and_nothing_else():
    """TeaCache's feature is measured before the blocks, on each GPU; whole predictions are on each too."""

    def kept(method: str, gpus: int, *words: str) -> int:
        recipe = cli.run_from(["model=wan", f"method={method}", "model.sampling.steps=8", *words]).recipe
        run = cli.run_from(["model=wan", f"method={method}", "model.sampling.steps=8", *words])
        numerics = replace(recipe.numerics, parallel=gpus)
        return memory.needed(replace(run, recipe=replace(recipe, numerics=numerics)), rehearse(recipe))[2]

    tokens, prediction = 75600 * 5120 * 2, 16 * 21 * 90 * 160 * 2
    assert kept("uniform", 4, "method.steps=4") == kept("uniform", 1, "method.steps=4") == 2 * prediction
    assert kept("fora", 4) == kept("fora", 1) // 4
    flash = [kept("precisecache_flash", n) for n in (1, 4)]
    assert flash[0] - flash[1] == pytest.approx((flash[0] - 2 * prediction) * 3 / 4, rel=1e-3)
    teacache = [kept("teacache", n) for n in (1, 4)]
    assert teacache[0] - teacache[1] == pytest.approx(2 * tokens * 3 / 4, rel=0.01)  # residuals; not the feature


def test_a_cpu_is_never_said_to_be_too_small():
    assert devices.free_bytes("cpu") is None
    assert memory.why_too_large(job_of(cli.run_from(["method=none", "device=cpu"]))) is None


def test_a_plan_counts_the_same_bytes(capsys):
    assert cli.main(["method=adacache", *SMALL, "plan=json"]) == 0
    row = json.loads(capsys.readouterr().out)["runs"][-1]
    run = cli.run_from(["method=adacache", *SMALL])
    parts = memory.needed(run, rehearse(run.recipe))
    assert row["peak_gib"] * memory.GIB == pytest.approx(sum(parts))
