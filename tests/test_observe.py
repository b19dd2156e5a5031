"""The stage `observe` on the bundled backbone at a small size: files, resuming, records, plans; and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pcbench import backbones, cli, compose, plan, record
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.observe import change, impact
from pcbench.observe import stage as observe
from pcbench.observe.kinds import OBSERVATIONS
from pcbench.observe.watch import Caller
from pcbench.sampling.generate import latents_of
from pcbench.stages import execute
from pcbench.store import load_json

STEPS = 6
SMALL = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.frames=13"]
SMALL += [f"model.sampling.steps={STEPS}", "prompts.limit=1"]
CONF = Path(__file__).parents[1] / "conf" / "experiment"
EXPERIMENTS = ("fig2", "fig3", "fig4", "fig5", "fig6", "bound")


def run_of(results: Path, *words: str, stages: str = "[generate,observe]", method: str = "none"):
    return cli.run_from([*SMALL, f"results={results}", f"stages={stages}", f"method={method}", *words])


def carried_out(results: Path, *words: str, **options):
    run = run_of(results, *words, **options)
    execute(job_of(run), say=lambda line: None)
    return run


def files_of(run):
    prompt, seed = run.samples[0]
    return job_of(run).place.sample(sample_key(prompt, seed))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A run of one sample with all that can be seen of it; what was planned; the calls made, by the rows of tokens that
    the first block sees: full size, or a trial's."""
    run = run_of(tmp_path_factory.mktemp("all"), "observe=[difference,resolution,trial,blocks,impact,bound]")
    planned = observe.work(job_of(run))
    execute(job_of(replace(run, stages=("generate",), observe=())), say=lambda line: None)
    calls: Counter[int] = Counter()
    first = backbones.load(run.recipe, "cpu").transformer.blocks[0]
    hook = first.register_forward_pre_hook(lambda _, args: calls.update([args[0].shape[1]]))
    execute(job_of(run), say=lambda line: None)
    hook.remove()
    return run, planned, calls


@pytest.fixture(scope="module")
def everything(counted):
    return counted[0]


def found_in(run) -> dict:
    found = load_json(files_of(run).observations)
    assert {name: found.pop(name) for name in ("recipe", "sample")} == files_of(run).identity
    found.pop("latent")  # which latent it was seen of
    return found


def test_the_record_has_all_that_was_seen(everything):
    (entry,) = json.loads(job_of(everything).place.record.read_text())["observations"]
    prompt, seed = everything.samples[0]
    assert entry == {"prompt": prompt, "seed": seed, **found_in(everything)}
    assert list(entry) == ["prompt", "seed", "rerun_rmse", *(each.name for each in OBSERVATIONS if not each.cached)]
    assert entry["rerun_rmse"] == 0.0
    difference, sizes = entry["difference@1"], entry["resolution@1"]
    for part in change.PARTS:
        for values in (*difference[part].values(), *entry["impact@1"][part].values()):
            assert len(values) == STEPS
            assert values[0] is None
            assert all(value > 0 for value in values[1:])
    assert {name: of["size"] for name, of in sizes.items()} == {
        "2x4x4": [2, 2, 2],
        "1x1x1": [4, 8, 8],
        "1x2x2": [4, 4, 4],
        "1x4x4": [4, 2, 2],
        "4x4x4": [1, 2, 2],
    }
    assert entry["blocks@1"]["paths"] == [f"blocks.{index}" for index in range(6)]
    assert len(entry["bound@1"]["step_prediction"]) == STEPS
    assert sizes["1x1x1"]["adjacent"] == difference["low"]["rms"]


def test_a_record_of_nothing_seen_has_no_such_entry(tmp_path):
    run = carried_out(tmp_path, stages="[generate]")
    assert "observations" not in record.build(job_of(run))


def test_the_impact_is_what_a_replayed_schedule_scores(everything, tmp_path):
    at = 2
    actions = "".join("r" if step == at else "F" for step in range(STEPS))
    run = carried_out(tmp_path, f"method.actions={actions}", stages="[generate,score]", method="replay")
    found = found_in(everything)["impact@1"]["whole"]
    scores = record.build(job_of(run))["samples"][0]["fidelity"]
    assert found["psnr@2"][at] == pytest.approx(scores["psnr@2"], rel=1e-4)
    moved = latents_of(files_of(run)) - latents_of(files_of(run.reference))
    assert found["latent_rmse"][at] == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-4)


def test_the_deviation_of_a_cached_run(everything, tmp_path):
    actions = "FFrFrr"
    words = [f"method.actions={actions}", "observe=bound"]
    run = carried_out(tmp_path, *words, method="replay")
    entry = found_in(run)
    assert list(entry) == ["rerun_rmse", "deviation@1"]
    found, seen = entry["deviation@1"], found_in(everything)["difference@1"]["whole"]["rms"]
    assert found["delta"] is None  # a schedule has no threshold
    assert found["prediction"][:2] == [0.0, 0.0]
    assert found["latent"][:2] == [0.0, 0.0]
    assert found["prediction"][2] == seen[2]  # the first reuse: the prediction of the step before
    assert found["prediction"][3] > 0  # computed, from another latent: (22) of the appendix says 0
    moved = latents_of(files_of(run)) - latents_of(files_of(run.reference))
    assert found["latent"][-1] == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-4)
    assert "bound@1" in found_in(run.reference)


def test_the_threshold_is_in_the_deviation(tmp_path):
    words = ["method.alpha=1.0", "method.downsample_factor=[2,2,2]", "observe=bound"]
    run = carried_out(tmp_path, *words, method="precisecache")
    thresholds = record.build(job_of(run))["samples"][0]["trace"]["threshold"]
    assert found_in(run)["deviation@1"]["delta"] == pytest.approx(thresholds[-1], rel=1e-4)


def test_only_what_is_missing_is_looked_for(tmp_path, monkeypatch):
    first = found_in(carried_out(tmp_path, "observe=difference"))
    monkeypatch.setattr(change, "difference", None)  # would not survive a call
    run = carried_out(tmp_path, "observe=[difference,blocks]")
    found = found_in(run)
    assert found == first | {"blocks@1": found["blocks@1"]}
    monkeypatch.setattr(backbones, "load", None)
    observe.observe(job_of(run), lambda line: pytest.fail(line))


def test_an_impact_that_was_cut_off_goes_on_where_it_was(everything, tmp_path, monkeypatch):
    """At a stride, which tries fewer steps; then at a smaller one, which tries the rest."""
    original, calls = impact.errors, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(impact, "errors", failing)
        with pytest.raises(KeyboardInterrupt):
            carried_out(tmp_path, "observe=impact")
    run = run_of(tmp_path, "observe=impact")
    assert impact.missing(found_in(run)["impact@1"], STEPS, 1) == [3, 4, 5]
    assert observe.work(job_of(run)).decodes == 1 + 3 * 3
    monkeypatch.setattr(impact, "errors", lambda *args: calls.append(args) or original(*args))
    run = carried_out(tmp_path, "observe=impact", "observe_stride=2")
    assert len(calls) == 8 + 3 * 2
    tried = found_in(run)["impact@1"]["low"]["latent_rmse"]
    assert [step for step, value in enumerate(tried) if value is not None] == [1, 2, 3, 5]
    run = carried_out(tmp_path, "observe=impact")
    assert len(calls) == 8 + 3 * 3
    assert found_in(run)["impact@1"] == found_in(everything)["impact@1"]


def test_what_an_older_definition_gave_does_not_count(tmp_path, monkeypatch):
    run = carried_out(tmp_path, "observe=difference")
    newer = replace(OBSERVATIONS[0], name="difference@2")
    monkeypatch.setattr(observe, "OBSERVATIONS", (newer,))
    assert observe.missing(run, files_of(run)) == [newer]
    assert record.build(job_of(run))["observations"] == [
        {"prompt": run.samples[0][0], "seed": run.samples[0][1], "rerun_rmse": 0.0}
    ]


def test_a_machine_that_does_not_repeat_itself_is_told(tmp_path, monkeypatch):
    run = carried_out(tmp_path, stages="[generate]")
    monkeypatch.setattr(observe, "latents_of", lambda files: latents_of(files) + 0.25)
    said: list[str] = []
    observe.observe(job_of(run_of(tmp_path, "observe=difference")), said.append)
    assert "the final latent is 0.25 RMS away" in said[0]
    assert found_in(run)["rerun_rmse"] == 0.25


def test_a_sample_that_was_not_generated_is_told(tmp_path):
    said: list[str] = []
    observe.observe(job_of(run_of(tmp_path, "observe=blocks")), said.append)
    assert "not observed, the sample was not generated" in said[0]


def test_the_plan_counts_the_calls_that_are_made(counted):
    run, planned, calls = counted
    branches = 2
    by_tokens = Counter({4 * 4 * 4: branches * planned.steps})
    for (frames, height, width), number in planned.trials.items():
        by_tokens[frames * (height // 2) * (width // 2)] += branches * number
    assert calls == by_tokens
    assert planned.steps == STEPS + 3 * sum(range(STEPS - 1))
    assert observe.plan(job_of(run)) is None


def test_the_plan_names_and_prices_it(tmp_path, capsys):
    words = [*SMALL, f"results={tmp_path}", "method=none", "stages=[generate,observe]", "observe=[impact,resolution]"]
    assert cli.main([*words, "plan=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (todo,) = document["observations"]
    uncached = document["runs"][0]["pmacs"]
    assert todo["generations"] == pytest.approx(1 + 3 * 10 / STEPS)
    assert todo["generations"] * uncached < todo["pmacs"] < 1.5 * todo["generations"] * uncached  # and the trials
    assert todo["gpu_hours"] == pytest.approx(plan.Device().seconds(todo["pmacs"] * 1e15) / 3600)
    assert cli.main([*words, "plan=true"]) == 0
    assert "36 steps at full size (6 videos' worth), 24 trials, 16 videos to decode" in capsys.readouterr().out


BAD = {
    "stages=[generate,observe] observe=magic": "unknown observation 'magic'; there are difference, resolution, trial",
    "stages=[generate,observe]": "observe=[…] and the stage of that name go together",
    "observe=[blocks]": "observe=[…] and the stage of that name go together",
    "stages=[observe] observe=impact observe_stride=0": "observe_stride must be from 1 to 1000, not 0",
    "stages=[observe] observe=bound method=fewer_steps": "fewer_steps takes other steps",
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_is_one_clear_line(words, tmp_path, capsys):
    assert cli.main([*words.split(), f"results={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD[words] in line


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_and_its_twin_differ_in_backbone_and_prompts_alone(name, tmp_path):
    def runs(experiment: str) -> list:
        return compose.compose([f"+experiment={experiment}", f"results={tmp_path}"]).runs

    full, tiny = runs(name), runs(f"{name}_tiny")
    assert {run.recipe.backbone.name for run in full} == {"wan"}
    assert {run.recipe.backbone.name for run in tiny} == {"tiny_wan"}
    for a, b in zip(full, tiny, strict=True):
        assert (a.recipe.method, a.stages, a.observe) == (b.recipe.method, b.stages, b.observe)
    if name == "fig2":
        reused = [run.recipe.method.actions.count("r") for run in full]
        assert reused == [12, 12, 18, 18]
        assert all(run.recipe.method.actions[25:].count("r") in (0, reused[i]) for i, run in enumerate(full))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_call_from_its_own_predictions_ends_where_it_did(tmp_path):
    run = run_of(tmp_path, "observe=difference", "device=cuda")
    caller = Caller.of(run, *run.samples[0])
    seen = caller.watch()
    again = caller.again(lambda index, branch: seen.moments[index].predictions[branch])
    assert torch.equal(again, seen.latents[-1])
