"""VBench-2.0: its scores, how its environment is made known, and how it is asked. Its code is a stand-in here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pcbench import cli
from pcbench.config import ConfigError
from pcbench.job import job_of
from pcbench.store import read_record
from pcbench.vbench import environment, formula, results, stage
from pcbench.vbench.__main__ import main
from pcbench.vbench.dimensions import DIMENSIONS, VBENCH2, members
from pcbench.vbench.tasks import require

from .vbench_parts import OTHER, make_samples, run_of

BASKETBALL, YOGA = "A man is playing basketball.", "A man is doing yoga. " + "Slowly, " * 40 + "slowly."
ENTRIES = [
    {"prompt_en": BASKETBALL, "dimension": ["Diversity"]},
    {"prompt_en": BASKETBALL, "dimension": ["Human_Identity"]},
    {"prompt_en": YOGA, "dimension": ["Human_Identity"]},
]
# As the official class: what it is given, where it looks for videos, what it writes.
CODE = """
import json, os
class VBench2:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.info, self.out = device, full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)
    def build_full_dimension_list(self):
        return {names!r}
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, mode="vbench_standard"):
        assert os.path.isfile("vbench2/config.yaml"), "configs are named from its own folder"
        (dimension,), found = dimension_list, sorted(os.listdir(videos_path))
        if mode == "custom_input" and dimension != "Diversity":
            videos = found
        elif mode == "custom_input":
            videos = [name for name in found if name.endswith("-0.mp4")]
        else:
            entries = [entry for entry in json.load(open(self.info)) if dimension in entry["dimension"]]
            count = 1 if dimension == "Diversity" else 3
            names = [entry["prompt_en"][:180] + "-" + str(i) + ".mp4" for entry in entries for i in range(count)]
            videos = [name for name in names if name in found]
        values = [-1 if "yoga" in name and name.endswith("-1.mp4") else 0.5 for name in videos]
        each = [dict(video_path=os.path.join(videos_path, v), video_results=x) for v, x in zip(videos, values)]
        scores = [value for value in values if value != -1]
        with open(os.path.join(self.out, name + "_eval_results.json"), "w") as file:
            json.dump({{dimension: [sum(scores) / len(scores), each]}}, file)
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A clone's folder VBench-2.0, in which the code of Mechanics lacks a package; a home for what set-up writes."""
    monkeypatch.setenv("PCBENCH_VBENCH2", str(tmp_path / "home"))
    monkeypatch.setenv("VBENCH2_CACHE_DIR", str(tmp_path / "weights"))
    package, names = tmp_path / "VBench-2.0" / "vbench2", members(VBENCH2)
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE.format(names=list(names)))
    (package / "config.yaml").write_text("")
    (package / "VBench2_full_info.json").write_text(json.dumps(ENTRIES))
    for name in names:
        code = "import llava" if name == "Mechanics" else ""
        (package / f"{name.lower().replace('-', '_')}.py").write_text(code)
    vision = package.parent / "torchvision"
    vision.mkdir()
    (vision / "__init__.py").write_text("from . import extension")
    (vision / "extension.py").write_text("def _has_ops(): return True")
    return package.parent


@pytest.fixture
def ready(source, monkeypatch) -> Path:
    """Its environment made known, and no weights needed."""
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    assert main(["setup-2.0", "--python", sys.executable, "--source", str(source)]) == 0
    return source


def score(run) -> list[str]:
    said: list[str] = []
    stage.score(job_of(run), said.append)
    return said


def test_scores_are_the_official_scripts():
    """Random scores of all dimensions, and what the official scripts/cal_final_score.py made of them."""
    values = (0.134, 0.847, 0.764, 0.255, 0.495, 0.449, 0.652, 0.789, 0.094, 0.028, 0.836, 0.433, 0.762, 0.002)
    scores = dict(zip(sorted(members(VBENCH2)), (*values, 0.445, 0.722, 0.229, 0.945), strict=True))
    expected = (0.375, 0.5775, 0.5895714285714285, 0.3036666666666667, 0.4845)
    assert [formula.group(scores, name) for name in VBENCH2.shares] == pytest.approx(expected)
    assert formula.total(scores, VBENCH2) == pytest.approx(0.46604761904761904)
    del scores["Diversity"]
    with pytest.raises(ValueError, match="no score without Diversity"):
        formula.total(scores, VBENCH2)


def test_the_official_protocol_is_3770_videos():
    assert sum(DIMENSIONS[name].prompts for name in members(VBENCH2)) == 1230
    assert sum(DIMENSIONS[name].official for name in members(VBENCH2)) == 3 * 1220 + 20 * 10


def test_set_up_tries_every_dimension_and_status_says_what_is_missing(source, capsys):
    assert main(["setup-2.0", "--python", sys.executable, "--source", str(source)]) == 0
    assert "the code of 17 of 18 dimensions is ready" in capsys.readouterr().out
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "Mechanics                     ModuleNotFoundError: No module named 'llava'" in out
    assert f"needs {environment.weights_folder(VBENCH2)}/arcface/resnet18_110.pth" in out
    found = environment.load(VBENCH2)
    assert found.source == source
    assert found.versions["vbench2"].startswith("code ")


@pytest.mark.parametrize(
    ("python", "folder", "line"),
    [
        (sys.executable, "elsewhere", "elsewhere has no vbench2/VBench2_full_info.json: --source names the folder"),
        ("/bin/false", "VBench-2.0", "/bin/false cannot run VBench-2.0: it said nothing"),
        ("/nowhere/python", "VBench-2.0", "/nowhere/python: No such file or directory"),
    ],
)
def test_what_cannot_be_made_known_is_one_line(source, tmp_path, capsys, python, folder, line):
    assert main(["setup-2.0", "--python", python, "--source", str(tmp_path / folder)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (tmp_path / "home" / "environment.json").exists()


def test_diversity_compares_twenty_samples_of_a_prompt(ready, tmp_path):
    run = run_of(tmp_path / "out", [BASKETBALL], "Diversity", seeds=tuple(range(20)))
    make_samples(run)
    assert "VBench-2.0 Diversity 0.5000  20 videos" in score(run)[0]
    (suite,) = results.summary(job_of(run).place.folder, VBENCH2)
    told = suite["dimensions"]["Diversity"]
    assert (told["n"], told["unscored"], told["official"]) == (1, {results.WITH_FIRST: 19}, 200)
    assert "Diversity: 20 of 200 videos" in suite["missing"]
    assert suite["creativity"] is None
    assert score(run) == []  # not again


def test_the_record_has_it_beside_vbenchs_own(ready, tmp_path):
    (tmp_path / "prompts.txt").write_text(BASKETBALL)
    words = [f"prompts.file={tmp_path / 'prompts.txt'}", f"prompts.seeds={list(range(20))}".replace(" ", "")]
    small = [f"model.sampling.{size}" for size in ("height=64", "width=64", "frames=1", "steps=2")]
    words += ["method=none", *small, "stages=[generate,score]", "score.vbench=[Diversity]", f"results={tmp_path}"]
    assert cli.main(words) == 0
    (path,) = (tmp_path / "records").rglob("*.json")
    record = read_record(path)
    assert record["vbench"] == []
    (suite,) = record["vbench2"]
    assert suite["dimensions"]["Diversity"]["score"] == 0.5
    assert sum("Diversity" in sample["vbench"] for sample in record["samples"]) == 1


def test_a_dimension_takes_its_three_samples_and_leaves_out_what_it_cannot_judge(ready, tmp_path, monkeypatch):
    run = run_of(tmp_path / "out", [BASKETBALL, YOGA], "Human_Identity", seeds=(7, 8, 9, 10))
    make_samples(run)
    monkeypatch.setattr("pcbench.vbench.tasks.resolve", lambda device: "cuda:0")  # which its official code asks for
    assert "Human_Identity 0.5000  6 videos" in score(run)[0]
    (suite,) = results.summary(job_of(run).place.folder, VBENCH2)
    told = suite["dimensions"]["Human_Identity"]
    assert told["n"] == 5
    (why,) = told["unscored"]
    assert why.startswith(results.LEFT_OUT)


def test_other_prompts_are_scored_where_that_is_allowed(ready, tmp_path, monkeypatch):
    run = run_of(tmp_path / "out", ["a boat / a ship " * 30, BASKETBALL], "Diversity", seeds=tuple(range(22)))
    make_samples(run)
    assert "40 videos" in score(run)[0]
    assert len(results.per_sample(job_of(run).place.folder)) == 2
    with pytest.raises(ConfigError, match=r"VBench-2.0's Composition is defined on VBench-2.0's own prompts alone"):
        require(run_of(tmp_path / "out", [OTHER], "Composition"))


@pytest.mark.parametrize(
    ("name", "seeds", "line"),
    [
        ("Human_Identity", 3, "VBench-2.0's Human_Identity needs a GPU"),
        ("Diversity", 3, "VBench-2.0's Diversity compares 20 samples of a prompt, and the run has 3 seeds"),
        ("Diversity", 21, "takes at most 20 samples of a prompt, and the run has 21 seeds"),
        ("Camera_Motion", 3, "VBench-2.0's Camera_Motion has none of its 108 prompts among the run's"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_runs(ready, tmp_path, name, seeds, line):
    with pytest.raises(ConfigError, match=line):
        require(run_of(tmp_path / "out", [BASKETBALL], name, seeds=tuple(range(seeds))))


def test_without_an_environment_the_command_is_named(source, tmp_path):
    with pytest.raises(ConfigError, match=r"VBench-2.0 has no environment in .* setup-2.0 --python PATH --source FOLD"):
        require(run_of(tmp_path / "out", [BASKETBALL], "Diversity", seeds=tuple(range(20))))
