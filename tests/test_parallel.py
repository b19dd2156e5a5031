"""One video shared by several processes: what is refused, and that outputs and actions are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from methods import AdaCacheConfig, EasyCacheConfig, PreciseCacheConfig, TeaCacheConfig
from pcbench import cli
from pcbench.backbones import shares
from pcbench.config import ConfigError
from pcbench.sampling import parallel

from .parallel_parts import CASES, FOUR, MODULES, OVERRULED, SPLIT, alone, shared

PARALLEL = "model.numerics.parallel"
BAD = {
    f"{PARALLEL}=0": "from 1 to 1024, not 0",
    f"{PARALLEL}=2": "add stages=[latency]",
    f"{PARALLEL}=2 stages=[latency] method=adacache method.moreg=true": "adacache would decide by each GPU's share",
    f"{PARALLEL}=4 stages=[latency] model=tiny_hunyuan": "its 6 attention heads leave one of 4 GPUs without any",
    f"{PARALLEL}=2 stages=[latency]": "torchrun --nproc-per-node 2",
    f"{PARALLEL}=2 stages=[latency] method=teacache model=tiny_hunyuan": "torchrun --nproc-per-node 2",
    f"{PARALLEL}=8 stages=[latency] method=precisecache_flash model=tiny_opensora": "torchrun --nproc-per-node 8",
}
TOLERANCE = 2e-6  # of the largest value; attention adds up keys in another order, and so do norms over processes


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_split_is_refused_in_one_line(words, tmp_path, capsys):
    assert cli.main([*words.split(), f"results={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD[words] in line


def test_a_transformer_without_a_plan_is_refused():
    run = cli.run_from(["method=none", "stages=[latency]"])
    with pytest.raises(ConfigError, match="how to split a Linear over GPUs is not known"):
        shares.check(run.recipe.backbone, torch.nn.Linear, {}, 2)


def test_a_method_says_whether_it_works_on_a_shared_video():
    for method in (PreciseCacheConfig(block_cache_rate=0.4), TeaCacheConfig(), EasyCacheConfig(), AdaCacheConfig()):
        assert method.shares_videos
    assert not AdaCacheConfig(moreg=True).shares_videos


def test_the_others_keep_their_results_to_themselves(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdout", None)  # put back afterwards
    monkeypatch.setenv("RANK", "1")
    asked = ["method=none", f"results={tmp_path}"]
    *kept, last = parallel.own_arguments(asked)
    assert kept == asked  # of one key the last counts
    folder = Path(last.removeprefix("results="))
    assert folder.is_dir()
    assert folder != tmp_path
    folder.rmdir()
    monkeypatch.setenv("RANK", "0")
    assert parallel.own_arguments(asked) == asked


def test_one_process_cannot_do_the_work_of_two(monkeypatch, tmp_path):
    run = cli.run_from(["method=none", "stages=[latency]", "model.numerics.parallel=2", f"results={tmp_path}"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            parallel.start([run])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found in all cases, started once."""
    return shared(2, [*CASES, *MODULES, *OVERRULED], tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", [*CASES, *MODULES], ids=str)
def test_two_processes_make_what_one_makes(two, case):
    whole, actions, details = alone(case, heads=2)
    for found, taken, chosen, _ in (rank[case] for rank in two):
        assert (taken, chosen) == (actions, details)
        assert float((found - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())
    assert set(actions) - {"full"}


def test_each_process_has_a_part_of_the_tokens(two):
    """Of 100 tokens at full size, the first block's half of them; of Open-Sora's 5 frames, 3 and 2."""
    seen = {family: [rank[family, "precisecache_flash", ""][3] for rank in two] for family in SPLIT}
    assert seen["wan"] == seen["hunyuan"] == [50, 50]
    assert seen["opensora"] == [3 * 30, 2 * 30]


@pytest.mark.parametrize("case", OVERRULED, ids=str)
def test_a_process_that_would_decide_otherwise_cannot(two, case):
    """The second process is made to disagree at every chance; both do the same all the same."""
    first, second = (rank[case] for rank in two)
    assert first[1:3] == second[1:3]
    assert torch.equal(first[0], second[0])
    assert "reuse" in first[1] or "partial" in first[1]


def test_four_processes_make_what_one_makes(tmp_path):
    found = shared(4, FOUR, tmp_path)
    for case in FOUR:
        whole, actions, details = alone(case, heads=4)
        for rank in found:
            assert rank[case][1:3] == (actions, details)
            assert float((rank[case][0] - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_two_gpus(tmp_path):
    import subprocess
    import sys

    words = ["stages=[latency]", "latency.repeats=1", "model.numerics.parallel=2", f"results={tmp_path}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pcbench"]
    done = subprocess.run([*torchrun, "method=precisecache_turbo", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("records/*/tiny_wan/*.json"))) == 2
