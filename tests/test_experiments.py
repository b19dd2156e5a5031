"""Every experiment composes; a twin is its full one on smaller backbones; full ones are priced; one slice runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pcbench import cli, compose
from pcbench.config import ConfigError, Run
from pcbench.job import job_of

CONF = Path(__file__).parents[1] / "conf"
ALL = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
FULL = [name for name in ALL if f"{name}_tiny" in ALL]
OURS = {f"precisecache_{reading}{name}" for reading in ("", "trial_") for name in ("base", "turbo", "flash")}
METHODS = {"none", "pab", "teacache", "fastercache", *OURS}
# What the experiments of the paper's tables are over; others are over wan.
MODELS = {"table1": ["opensora", "hunyuan", "cogvideox", "wan"], "table2": ["hunyuan", "wan"]}


# These try every method on every model, and leave out what has no numbers or no rule for one, with the reason.
TRY_ALL = ("budget", "fewsteps", "claims_small")
REASONS = "measure them|there is no published rule|no adapter for"


def runs_of(experiment: str, results: Path, *words: str) -> list[Run]:
    """The experiment's runs."""
    composed = compose.compose([f"+experiment={experiment}", *words, f"results={results}"])
    check_left_out(experiment, composed)
    return composed.runs


def check_left_out(experiment: str, composed: compose.Composed) -> None:
    assert not composed.left_out or experiment.removesuffix("_tiny") in TRY_ALL
    assert all(re.search(REASONS, reason) for reason in composed.left_out)


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_composes(name):
    composed = compose.compose([f"+experiment={name}"])
    check_left_out(name, composed)
    asked = [(str(run.recipe), run.results, run.observe, run.budget) for run in composed.runs]
    assert len(set(asked)) == len(asked) > 0


@pytest.mark.parametrize("name", sorted(set(FULL) - set(TRY_ALL)))  # more work on the twins
def test_a_twin_differs_in_backbone_size_prompts_and_scores_alone(name, tmp_path):
    full, tiny = runs_of(name, tmp_path), runs_of(f"{name}_tiny", tmp_path)
    assert list(dict.fromkeys(run.recipe.backbone.name for run in full)) == MODELS.get(name, ["wan"])
    for a, b in zip(full, tiny, strict=True):
        assert b.recipe.backbone.name == f"tiny_{a.recipe.backbone.name}"
        assert b.recipe.backbone.source.startswith("bundled:")
        assert (a.label, a.stages, a.fidelity, a.observe) == (b.label, b.stages, b.fidelity, b.observe)
        assert a.recipe.method.NAME == b.recipe.method.NAME
        assert len(b.prompts) <= 16
        assert b.seeds == [0]


@pytest.mark.parametrize("name", sorted(set(FULL) & {"table1", "table2", "table3", "table4", "alpha", "ambiguities"}))
def test_an_experiment_writes_to_a_folder_of_its_name(name):
    """Tables are found by the bench's name."""
    for each in (name, f"{name}_tiny"):
        assert {str(run.results) for run in runs_of(each, Path(f"results/{name}"))} == {f"results/{name}"}
    assert f"results: results/{name}\n" in (CONF / "experiment" / f"{name}.yaml").read_text()


def test_table1_has_every_row_of_the_papers(tmp_path):
    runs = runs_of("table1", tmp_path)
    rows = {(run.recipe.backbone.name, run.label.removesuffix("_opensora")) for run in runs}
    assert rows == {(model, method) for model in MODELS["table1"] for method in METHODS}
    assert {run.score.vbench for run in runs if isinstance(run.score.vbench, str)} <= {"all"}


def samples_of(experiment: str) -> set[tuple[Path, tuple[str, int]]]:
    """The folder and sample of every video."""
    runs = runs_of(experiment, Path("r"))
    return {(folder, sample) for run in runs for folder in [job_of(run).place.folder] for sample in run.samples}


def test_figure7_makes_nothing_that_table1_has_made():
    made, wanted = samples_of("table1"), samples_of("fig7")
    assert len(wanted) == 20
    assert wanted <= made
    text = (CONF / "experiment" / "fig7.yaml").read_text()
    assert "results: results/table1\n" in text


def test_ambiguities_change_one_choice_at_a_time(tmp_path):
    by_label = {run.label: run.recipe.method for run in runs_of("ambiguities", tmp_path)}
    for label, method in by_label.items():
        preset, *changes = label.split(" ")
        if not changes:
            continue
        default = by_label[preset]
        changed = {key for key, value in vars(method).items() if value != getattr(default, key)}
        assert changed == {change.partition("=")[0] for change in changes}
        assert len(changed) == 1
    assert len(by_label) == 37


@pytest.mark.parametrize("name", ["table1", "table2", "fig2", "fig3", "bound"])  # the rest has their kinds of run
def test_full_experiments_are_priced_without_weights(name, tmp_path, capsys):
    assert cli.main([f"+experiment={name}", "plan=json", "prompts.limit=1", f"results={tmp_path}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    asked = {(run.recipe.backbone.name, job_of(run).place.id) for run in runs_of(name, tmp_path)}
    priced = {(row["model"], row["id"]): row["pmacs"] for row in plan["runs"]}
    assert asked <= set(priced)
    assert all(price > 1 for price in priced.values())  # of real backbones


def test_an_experiment_of_several_sweeps_can_be_narrowed(tmp_path):
    def pairs(*words: str) -> set[tuple[str, str]]:
        return {(run.recipe.backbone.name, run.label) for run in runs_of("table1", tmp_path, *words)}

    assert {model for model, _ in pairs("model=wan")} == {"wan"}
    assert {label for _, label in pairs("model=wan")} == METHODS
    assert pairs("model=opensora,wan", "method=pab,none") == {
        (model, method) for model in ("opensora", "wan") for method in ("pab", "none")
    }
    assert pairs("method=teacache_fast", "model=cogvideox") == {("cogvideox", "teacache_fast")}  # none of its own
    assert {model for model, _ in pairs("method=fastercache")} == {"hunyuan", "cogvideox", "wan"}
    (alpha,) = runs_of("alpha", tmp_path, "method=precisecache", "method.alpha=0.33")
    assert alpha.recipe.method.alpha == 0.33


REFUSED = ("model=wan_1_3b,wan2_2_a14b", "method=none,fastercache_as_published", "plan=json")


def test_a_refused_pair_is_left_out_with_a_line_and_the_sweep_goes_on(tmp_path, capsys):
    words = ["+experiment=table1", *REFUSED, "prompts.limit=1", f"results={tmp_path}"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert {row["method"] for row in json.loads(out)["runs"]} == {"none"}
    assert err
    for line in err.splitlines():
        assert line.startswith("pcbench: left out: wan")
        assert "fastercache_as_published: fastercache: branch=as_published reproduces a defect" in line
    assert cli.main([*words, "method=fastercache_as_published"]) == 2  # nothing is left
    assert cli.main(["-m", *words[1:]]) == 2  # the user's own sweep: an error, as ever
    with pytest.raises(ConfigError, match="uncond"):
        cli.run_from(["model=wan_1_3b", "method=fastercache_as_published"])


SMALL = [f"model.sampling.{size}" for size in ("frames=5", "height=64", "width=64")]  # a twentieth of the usual work
SMALL += ["model=tiny_wan", "latency.warmup=0", "latency.repeats=1"]


def test_a_slice_really_runs_and_says_what_was_left_out(tmp_path, capfd):
    small = [*SMALL, "model.sampling.steps=5", "prompts.limit=1"]
    asked = "method=none,precisecache_turbo,fastercache_as_published"
    assert cli.main(["+experiment=table1_tiny", *small, asked, f"results={tmp_path}"]) == 0
    out, err = capfd.readouterr()
    assert err.count("left out: tiny_wan fastercache_as_published") >= 1
    assert "left out: tiny_wan fastercache_as_published" in out  # below the table too
    records = [json.loads(path.read_text()) for path in tmp_path.glob("records/*/tiny_wan/*.json")]
    assert {record["recipe"]["method"]["name"] for record in records} == {"none", "precisecache"}
    assert all(record["status"] == "ok" and record["latency"]["repeats"] == 1 for record in records)


def test_latency_alone_fills_a_row(tmp_path, capfd):
    small = [*SMALL, "model.sampling.steps=4", "method=none"]
    assert cli.main(["+experiment=table2_tiny", *small, f"results={tmp_path}"]) == 0
    row = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("│ none"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:4] == ["-"] * 3
    assert float(cells[4]) > 0
    assert cells[5].startswith("1.00x")
