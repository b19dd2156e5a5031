"""Context parallelism: what is refused, and two processes that share the tokens of a small random Wan."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from methods import EasyCacheConfig, PreciseCacheConfig, TeaCacheConfig, apply
from pcbench import backbones, cli
from pcbench.config import ConfigError
from pcbench.sampling import parallel

from .conftest import call, pipeline_of, random_transformer

BAD = {
    "model.numerics.parallel=0": "from 1 to 1024, not 0",
    "model.numerics.parallel=2": "add stages=[latency]",
    "model.numerics.parallel=2 stages=[latency] method=teacache": "teacache looks at tokens or blocks",
    "model.numerics.parallel=2 stages=[latency] method=precisecache_flash": "precisecache looks at tokens or blocks",
    "model.numerics.parallel=2 stages=[latency] model=hunyuan": "cannot split this family",
    "model.numerics.parallel=2 stages=[latency]": "torchrun --nproc-per-node 2",
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_split_is_refused_in_one_line(words, tmp_path, capsys):
    assert cli.main([*words.split(), f"results={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD[words] in line


def test_methods_that_look_at_whole_predictions_split():
    assert PreciseCacheConfig().predictions_only
    assert not PreciseCacheConfig(block_cache_rate=0.4).predictions_only
    assert not PreciseCacheConfig(reuse="stack").predictions_only
    assert not TeaCacheConfig().predictions_only
    assert not EasyCacheConfig().predictions_only  # its means are over the latent, never tried


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


def _share(rank: int, port: int, folder: str) -> None:
    """One of two processes: the same generations with the tokens whole and shared."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers 0.42.1 divides by it, and on a CPU it is 0
    dist.init_process_group("gloo", rank=rank, world_size=2)
    assert parallel.broadcast_from_rank0({"rank": rank}) == {"rank": 0}
    pipe, tokens = pipeline_of(random_transformer()), []
    block = pipe.transformer.blocks[0].attn1
    block.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append((kwargs.get("hidden_states", args[0] if args else None)).shape[1]),
        with_kwargs=True,
    )
    found = {}
    for shared in (False, True):
        if shared:
            backbones.spread(pipe.transformer, 2)
        tokens.clear()
        plain = call(pipe)
        seen = set(tokens)
        with apply(pipe, PreciseCacheConfig(alpha=2.0, downsample_factor=(2, 2, 2))) as handle:
            cached = call(pipe)
        found[shared] = plain, cached, "".join(step.action[0] for step in handle.trace.steps), seen
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_the_tokens_and_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_share, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    (whole,), shares = ranks[0][False][3], [ranks[rank][True][3] for rank in (0, 1)]
    assert sum(min(share) for share in shares) == whole
    assert all(len(share) == 1 for share in shares)
    for rank in ranks:
        for kind in (0, 1):  # uncached, cached
            assert torch.allclose(rank[True][kind], ranks[0][False][kind], rtol=1e-4, atol=1e-5)
        assert rank[True][2] == ranks[0][False][2]
    assert "r" in ranks[0][True][2]


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
