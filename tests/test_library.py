"""pcbench in a script: `pcbench.load`, and README's example as it is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pcbench
from pcbench import compose, library
from pcbench.backbones import weights
from pcbench.sampling.generate import denoise

from . import forks

README = Path(__file__).parents[1] / "README.md"


def test_readmes_example_runs_as_printed(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [each for each in blocks if "pcbench.load" in each]
    promised = re.search(r"# (precisecache: 50 steps, \d+ computed, \d+ reused)", block)[1]
    done = forks.code(block, tmp_path, README.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("precisecache: 50 steps")
    computed = [int(re.search(r"(\d+) computed", text)[1]) for text in (promised, done.stdout)]
    assert abs(computed[0] - computed[1]) <= 2  # another processor may decide a step near the threshold otherwise


def test_the_pipeline_makes_the_harness_s_videos():
    run = compose.run_from(["model=tiny_wan", "method=none", "model.sampling.steps=2"])
    pipe = pcbench.load("tiny_wan", "cpu")
    arguments = pcbench.arguments("tiny_wan") | {"num_inference_steps": 2, "output_type": "latent"}
    mine = pipe(prompt="a red circle", generator=torch.Generator().manual_seed(0), **arguments).frames
    assert torch.equal(mine, denoise(pipe, run.recipe, 0, prompt="a red circle"))
    assert arguments["height"] == 128
    assert pcbench.load("tiny_wan", "cpu") is not pipe  # the caller's alone
    weight = pcbench.load("tiny_wan", "cpu", "bfloat16").transformer.blocks[0].attn1.to_q.weight
    assert weight.dtype == torch.bfloat16


def test_a_folder_of_ones_own(tmp_path):
    shutil.copytree(weights.BUNDLED / "tiny_cogvideox", tmp_path / "mine")
    pipe = pcbench.load(str(tmp_path / "mine"), "cpu", "float32")
    assert type(pipe).__name__ == "CogVideoXPipeline"
    assert pcbench.arguments(str(tmp_path / "mine"))["num_frames"] == pipe.transformer.config.sample_frames


@pytest.mark.parametrize("name", ["mine", "${oc.env:HOME}", "dol$lar", "a=b,c", "~"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_may_have_any_name_and_be_a_path(name, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(weights.BUNDLED / "tiny_cogvideox", tmp_path / name)
    for folder in (tmp_path / name, Path("~") / name):
        assert library._run(kind(folder), []).recipe.backbone.source == str(tmp_path / name)


def test_mistakes_are_a_line_with_the_nearest_names(tmp_path):
    for arguments, words in {
        ("tiny_wam",): "unknown model 'tiny_wam': did you mean 'tiny_wan'",
        ("tiny_wan", "tpu"): "device must be auto",
        ("tiny_wan", "cpu", "int8"): "model.numerics.dtype cannot be 'int8'",
        (str(tmp_path / "nothing"),): "no such folder",
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            pcbench.load(*arguments)
        assert "\n" not in str(error.value)


def test_importing_pcbench_loads_no_torch():
    code = "import pcbench, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
