"""Planned memory is what a method really keeps, and what cannot fit is refused before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pcbench import backbones, cli, devices
from pcbench.config import ConfigError
from pcbench.cost import memory
from pcbench.cost.dry_run import _bytes_held, rehearse
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


def most_held(run) -> int:
    """Most bytes that the rule keeps after any step of a real call."""
    pipe = backbones.load(run.recipe, "cpu")
    embeds = backbones.family(run.recipe.backbone).embed(pipe, run.prompts[0], run.recipe)
    most = 0

    def look(pipe, index, timestep, tensors):
        nonlocal most
        _, rule = handle.in_progress
        most = max(most, sum(_bytes_held(rule.held(), torch.Tensor.numel)))
        return tensors

    with generate.cached(pipe, run, run.recipe) as handle:
        generate.denoise(pipe, run.recipe, 0, callback_on_step_end=look, **embeds)
    return most


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_cogvideox"])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_keeps_is_what_was_planned(method, model):
    try:
        run = cli.run_from([f"model={model}", f"method={method}", *METHODS[method], *SMALL])
    except (ConfigError, ValueError) as error:
        pytest.skip(str(error))
    assert most_held(run) == pytest.approx(rehearse(run.recipe).held, rel=0.03)


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
    assert memory.needed(run, 0)[0] > 0
    assert memory.needed(replace(run, offload="group"), 0)[0] == 0


def test_a_cpu_is_never_said_to_be_too_small():
    assert devices.free_bytes("cpu") is None
    assert memory.why_too_large(job_of(cli.run_from(["method=none", "device=cpu"]))) is None


def test_a_plan_counts_the_same_bytes(capsys):
    assert cli.main(["method=adacache", *SMALL, "plan=json"]) == 0
    row = json.loads(capsys.readouterr().out)["runs"][-1]
    run = cli.run_from(["method=adacache", *SMALL])
    parts = memory.needed(run, rehearse(run.recipe).held)
    assert row["peak_gib"] * memory.GIB == pytest.approx(sum(parts))
