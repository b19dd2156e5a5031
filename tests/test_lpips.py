"""LPIPS: without its parts a reason and no number; with a trunk of random weights the numbers of the official codes.

The numbers need the `lpips` extra, which has an environment of its own: make test-lpips.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcbench import cli, record, stages
from pcbench.fidelity import lpips
from pcbench.fidelity.metrics import METRICS
from pcbench.fidelity.stage import measure
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.sampling.video import read_mp4
from pcbench.store import read_json

GOLDEN = Path(__file__).parent / "golden" / "fidelity"
OFFICIAL = json.loads(GOLDEN.with_suffix(".json").read_text())
LPIPS = [name for name in METRICS if "lpips" in name]
HERE = importlib.util.find_spec("lpips") is not None
needs_lpips = pytest.mark.skipif(not HERE, reason="the lpips extra is not installed here: make test-lpips")


@pytest.fixture
def no_trunk(tmp_path, monkeypatch) -> Path:
    """Torch hub's folder, empty; and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("went to the network"))
    lpips._network.cache_clear()
    yield lpips.trunk_file()
    lpips._network.cache_clear()


@pytest.fixture
def random_trunk(no_trunk, monkeypatch) -> Path:
    """The trunk the goldens were made with: AlexNet as seed 0 makes it, taken for the published file."""
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(no_trunk.parents[2]))
    from torchvision.models import alexnet

    no_trunk.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), no_trunk)
    monkeypatch.setattr(lpips, "SHA256", hashlib.sha256(no_trunk.read_bytes()).hexdigest())
    return no_trunk


def videos(entry) -> tuple[np.ndarray, np.ndarray]:
    return read_mp4(GOLDEN / entry["video"]), read_mp4(GOLDEN / entry["reference"])


@pytest.mark.parametrize("name", LPIPS)
def test_without_its_parts_there_is_a_reason_and_no_number(name, no_trunk):
    entry = measure(name, *videos(OFFICIAL["pairs"][0]))
    assert entry["value"] is None
    assert entry["frames"] == []
    if HERE:
        assert lpips.TRUNK in entry["note"]
        assert "hub/checkpoints" in entry["note"]
        assert lpips.URL in entry["note"]
        assert str(no_trunk.parent) not in entry["note"]  # records name no machine's folders
    else:
        assert "pip install 'pcbench[lpips]'" in entry["note"]


@needs_lpips
def test_another_file_is_not_taken_for_the_trunk(no_trunk):
    no_trunk.parent.mkdir(parents=True)
    no_trunk.write_bytes(b"half a download")
    assert "damaged or another file" in measure("lpips@1", *videos(OFFICIAL["pairs"][0]))["note"]


@needs_lpips
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry["video"]) for entry in OFFICIAL["pairs"]])
def test_every_convention_is_its_official_code(entry, random_trunk):
    ours = measure("videosys.lpips@1", *videos(entry))
    assert ours["frames"] == pytest.approx(entry["videosys"]["lpips"], abs=1e-5)
    assert ours["frames"] == pytest.approx(entry["videosys"]["lpips"], rel=1e-3)  # the values themselves are small
    assert measure("easycache.lpips@1", *videos(entry))["value"] == pytest.approx(entry["easycache"]["lpips"], rel=1e-4)
    assert measure("chitu.lpips@1", *videos(entry))["value"] == pytest.approx(entry["chitu"]["lpips"], rel=1e-4)
    assert len(measure("chitu.lpips@1", *videos(entry))["frames"]) == 1


@needs_lpips
def test_raw_lpips_is_the_package_s_own_number(random_trunk, monkeypatch):
    package = importlib.import_module("lpips")
    network = package.LPIPS(net="alex", verbose=False).eval()
    video, reference = videos(OFFICIAL["pairs"][1])
    x, y = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1 for frames in (video, reference))
    with torch.no_grad():
        expected = network(x, y).flatten().tolist()
    assert measure("lpips@1", video, reference)["frames"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(lpips, "CHUNK", 1)
    assert measure("lpips@1", video, reference)["frames"] == pytest.approx(expected, rel=1e-5)
    assert measure("lpips@1", video, video)["value"] == 0


@needs_lpips
def test_a_trunk_that_comes_later_adds_lpips_alone(no_trunk, tmp_path, monkeypatch, request):
    (tmp_path / "prompts.txt").write_text("a red circle moving left on a black background\n")
    size = [f"model.sampling.{name}" for name in ("height=64", "width=64", "frames=13", "steps=4")]
    words = ["method=uniform", "method.steps=2", *size, f"prompts.file={tmp_path / 'prompts.txt'}"]
    run = cli.run_from([*words, "stages=[generate,score]", f"results={tmp_path / 'results'}"])
    said: list[str] = []
    stages.execute(job_of(run), said.append)
    data = record.build(job_of(run))
    assert data["samples"][0]["fidelity"]["lpips@1"] is None
    assert lpips.TRUNK in data["samples"][0]["fidelity_notes"]["lpips@1"]
    assert (data["fidelity"]["lpips@1"]["n"], data["fidelity"]["lpips@1"]["unscored"]) == (0, 1)
    file = job_of(run).place.sample(sample_key(*run.samples[0])).fidelity
    before, touched = read_json(file)["metrics"], file.stat().st_mtime_ns
    stages.execute(job_of(run), said.append)
    assert file.stat().st_mtime_ns == touched
    request.getfixturevalue("random_trunk")
    stages.execute(job_of(replace(run, stages=("score",))), said.append)
    after = read_json(file)["metrics"]
    assert after["lpips@1"]["value"] > 0
    assert {name: after[name] for name in after if name != "lpips@1"} == {
        name: before[name] for name in before if name != "lpips@1"
    }
