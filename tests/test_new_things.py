"""What it takes to add a metric, an observation or a family: its own file and line, and everything else shows it.

A method is added by notebooks/your_method.ipynb, which a test runs.
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from diffusers import WanTransformer3DModel

from analysis.report import data as report
from analysis.tables import tables
from methods.engine.anatomy.base import Anatomy
from methods.engine.anatomy.wan import WanAnatomy
from pcbench import backbones, cli
from pcbench.backbones import wan, weights
from pcbench.fidelity import metrics
from pcbench.observe import kinds
from pcbench.observe import stage as observe
from pcbench.store import records

SMALL = [
    "method=uniform", "method.steps=2", "prompts=held_out", "prompts.limit=2", "model.sampling.steps=4",
    "model.sampling.frames=9", "model.sampling.height=64", "model.sampling.width=64",
]  # fmt: skip


def brightness(video: np.ndarray, reference: np.ndarray, device: str) -> list[float]:
    """How far the frames' mean brightness is from the reference's."""
    return [float(abs(a.mean() - b.mean())) for a, b in zip(video, reference, strict=True)]


def test_a_new_metric_is_one_line_and_shows_everywhere(tmp_path, monkeypatch, capsys):
    new = metrics.Metric(frames=brightness, title="brightness", unit="levels", digits=3, lower_is_better=True)
    monkeypatch.setitem(metrics.METRICS, "brightness@1", new)
    monkeypatch.setitem(metrics.CONVENTIONS, "raw", {**metrics.CONVENTIONS["raw"], "brightness@1": new})
    assert cli.main([*SMALL, "stages=[generate,score]", f"results={tmp_path}"]) == 0
    assert "brightness levels" in capsys.readouterr().out
    monkeypatch.undo()  # what reads records has never heard of it
    cached = next(record for record in records(tmp_path) if record["recipe"]["method"]["name"] == "uniform")
    summary = cached["fidelity"]["brightness@1"]
    assert summary["worst"] == max(sample["fidelity"]["brightness@1"] for sample in cached["samples"])
    table = tables(tmp_path)[0]
    place = table.columns.index("brightness (levels) ↓")
    assert table.columns[place - 1] == "worst"
    assert table.blocks[0].rows[1][place].value == pytest.approx(summary["mean"])
    assert f"{summary['mean']:.3f}" in table.markdown()
    (bench,) = report.benches(tmp_path)
    assert {"name": "brightness@1", "title": "brightness, levels", "lower": True} in bench["metrics"]


def test_a_new_observation_is_one_line_and_is_made_recorded_and_planned(tmp_path, monkeypatch, capsys):
    new = kinds.Observation(
        kind="norm",
        name="norm@1",
        measure=lambda subject: iter([{"rms": [float(each.norm()) for each in subject.seen.predictions()]}]),
        cost=lambda steps, left: kinds.Cost(steps, 3),
    )
    monkeypatch.setattr(observe, "OBSERVATIONS", (*kinds.OBSERVATIONS, new))
    monkeypatch.setattr(observe, "KINDS", (*kinds.KINDS, "norm"))
    words = [*SMALL[2:], "method=none", "stages=[generate,observe]", "observe=norm", f"results={tmp_path}"]
    assert cli.main([*words, "plan=true"]) == 0
    assert "16 steps at full size" in capsys.readouterr().out
    assert cli.main(words) == 0
    (record,) = records(tmp_path)
    assert [len(each["norm@1"]["rms"]) for each in record["observations"]] == [4, 4]


class NewTransformer(WanTransformer3DModel):
    """A class that no method has ever seen."""


def test_a_new_family_is_an_anatomy_a_module_and_a_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Anatomy, "KNOWN", dict(Anatomy.KNOWN))
    assert cli.main(["model.backbone.family=new", "method=none", f"results={tmp_path}"]) == 2
    assert "unknown backbone family 'new'" in capsys.readouterr().err

    class NewAnatomy(WanAnatomy):  # methods/engine/anatomy/new.py
        TRANSFORMER: ClassVar = "NewTransformer"
        FAMILY: ClassVar = "new"

    def build(recipe, device):
        pipe = wan.build(recipe, device)
        pipe.transformer.__class__ = NewTransformer
        return pipe

    own = {"TRANSFORMER": NewTransformer, "ANATOMY": NewAnatomy("new", (1, 2, 2)), "build": build}
    # pcbench/backbones/new.py and its line
    monkeypatch.setitem(backbones.FAMILIES, "new", SimpleNamespace(**{**vars(wan), **own}))
    folder = tmp_path / "published"
    shutil.copytree(weights.BUNDLED / "tiny_wan", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "NewTransformer"))
    model = ["model.backbone.family=new", f"model.backbone.source={folder}", "model.weights=random"]
    words = [*SMALL[2:], *model, "method=precisecache_flash", f"results={tmp_path}"]
    assert cli.main([*words, "plan=true"]) == 0
    assert cli.main([*words, "stages=[generate,score]"]) == 0
    cached = next(record for record in records(tmp_path) if record["recipe"]["method"]["name"] == "precisecache")
    assert cached["recipe"]["backbone"]["family"] == "new"
    assert len(cached["samples"]) == 2
