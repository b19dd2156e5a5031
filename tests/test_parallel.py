"""One video shared by several processes: what is refused, and that outputs and actions are those of one process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline

from methods import AdaCacheConfig, EasyCacheConfig, PreciseCacheConfig, TeaCacheConfig
from pcbench import cli
from pcbench.backbones import shares
from pcbench.config import ConfigError
from pcbench.sampling import parallel

from .parallel_parts import CASES, FOUR, GUIDED, MODULES, OVERRULED, SPLIT, alone, shared

PARALLEL, GUIDED_TOO = "model.numerics.parallel", "model.numerics.cfg_parallel=true stages=[latency]"
BAD = {
    f"{PARALLEL}=0": "from 1 to 1024, not 0",
    f"{PARALLEL}=2": "add stages=[latency]",
    f"{PARALLEL}=2 stages=[latency] method=adacache method.moreg=true": "adacache would decide by each GPU's share",
    f"{PARALLEL}=4 stages=[latency] model=tiny_hunyuan": "its 6 attention heads leave one of 4 GPUs without any",
    f"{PARALLEL}=3 {GUIDED_TOO}": "model.numerics.parallel=3 is not even",
    f"{PARALLEL}=2 {GUIDED_TOO} model=tiny_hunyuan": "tiny_hunyuan has one guidance branch",
    f"{PARALLEL}=2 {GUIDED_TOO} method=magcache": "magcache needs both of wan's guidance branches at once",
    f"{PARALLEL}=4 {GUIDED_TOO} method=precisecache_flash": "torchrun --nproc-per-node 4",
    f"{PARALLEL}=2 {GUIDED_TOO} model=ltx2 method=easycache": "ltx2: video and sound were never split over GPUs",
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
    run = cli.run_from(["method=none", "stages=[latency]", f"{PARALLEL}=2"])
    with pytest.raises(ConfigError, match="how to split a Linear over GPUs is not known"):
        shares.check(run.recipe, SimpleNamespace(TRANSFORMER=torch.nn.Linear, PIPELINE=WanPipeline), {})


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
    return shared(2, [*CASES, *MODULES, *OVERRULED, *GUIDED], tmp_path_factory.mktemp("two"))


def agrees(found, case, heads: int) -> None:
    """Outputs, actions, transformer calls and cached blocks of each process are those of one process alone."""
    whole, actions, details = alone(*case[:2], heads)
    for latents, taken, chosen, _ in found:
        assert taken == actions
        for own, expected in zip(chosen, details, strict=True):  # with cfg_parallel, of its own branch
            assert own.items() <= expected.items()
            assert bool(own) == bool(expected)
        assert float((latents - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())


@pytest.mark.parametrize("case", [*CASES, *MODULES, *GUIDED], ids=str)
def test_two_processes_make_what_one_makes(two, case):
    agrees([rank[case] for rank in two], case, heads=2)
    assert {action for action, _ in two[0][case][1]} - {"full"}


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
    assert {action for action, _ in first[1]} - {"full"}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What each of four processes found."""
    return shared(4, FOUR, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("case", FOUR, ids=str)
def test_four_processes_make_what_one_makes(four, case):
    agrees([rank[case] for rank in four], case, heads=4)


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
