"""Generations by one process, and by several on a CPU (gloo) that share each video."""

from __future__ import annotations

import functools
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from methods import apply
from methods.engine.caller import transformers_of
from methods.first_block_cache import FirstBlockCache
from pcbench.backbones import shares
from pcbench.sampling import parallel

from .contract_parts import PRESETS
from .families import FAMILIES

STEPS = 6
# Gloo gathers equal parts alone: the tokens of a video and of its trial are to be halved and quartered. Of Open-Sora it
# is the frames that are shared, which need not be whole patches.
SIZES = {"opensora": {"height": 72, "width": 88}}
KINDS = {name: replace(kind, size=SIZES.get(name, {"height": 64, "width": 80})) for name, kind in FAMILIES.items()}
SPLIT = ("wan", "hunyuan", "opensora")
PAPER = ("precisecache_turbo", "precisecache_flash", "teacache", "magcache", "easycache")
Case = tuple[str, str, str]  # family, preset, and "guided" (cfg_parallel) or how the second process is made to disagree
CASES: list[Case] = [(family, preset, "") for family in SPLIT for preset in PAPER]
MODULES: list[Case] = [  # that decide or keep by block or by module; HunyuanVideo has two streams and two lists
    ("hunyuan", "first_block_cache", ""),
    ("hunyuan", "dicache", ""),
    ("hunyuan", "adacache", ""),
    ("opensora", "pab", ""),
    ("wan", "taylorseer", ""),
    ("wan_ti2v", "precisecache_flash", ""),
    ("wan_ti2v", "teacache", ""),
    ("hunyuan_true_cfg", "precisecache_flash", ""),
    ("cogvideox_5b", "precisecache_flash", ""),
]
OVERRULED: list[Case] = [
    ("wan", "precisecache_flash", "decides"),
    ("wan", "teacache", "decides"),
    ("opensora", "magcache", "decides"),
    ("wan", "easycache", "decides"),
    ("hunyuan", "precisecache_flash", "ranks"),
    ("opensora", "first_block_cache", "measures"),
]
GUIDED: list[Case] = [
    ("wan", "precisecache_flash", "guided"),
    ("wan_two", "teacache", "guided"),
    ("hunyuan_true_cfg", "easycache", "guided"),
    ("hunyuan15", "precisecache_flash", "guided"),
    ("opensora", "precisecache_flash", "guided"),
    ("opensora", "magcache", "guided"),
    ("cogvideox_5b", "first_block_cache", "guided"),
]
FOUR: list[Case] = [*CASES, GUIDED[0], GUIDED[4]]


def pipeline(family: str, heads: int) -> Any:
    """A random pipeline with so many attention heads."""
    pipe = KINDS[family].pipeline()
    if heads != pipe.transformer.config.num_attention_heads:
        torch.manual_seed(0)
        pipe.transformer = pipe.transformer.from_config(pipe.transformer.config, num_attention_heads=heads).eval()
    return pipe


def generate(pipe: Any, family: str, preset: str) -> tuple[torch.Tensor, list[Any], list[Any]]:
    """Final latents, and of each step its action with the transformer's calls, and the blocks it chose to cache."""
    kind = KINDS[family]

    def padded(**options: Any) -> Any:  # a prompt shorter than its embedding
        if "prompt_attention_mask" in options:
            options["prompt_attention_mask"] = (torch.arange(8) < 3)[None].long()
        return pipe(**options)

    with apply(pipe, PRESETS[preset], **kind.options) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        latents = kind.call(padded, steps=STEPS)
    steps = handle.trace.steps
    actions = [(step.action, [asdict(call) for call in step.calls]) for step in steps]
    return latents, actions, [step.details.get("cached_blocks", {}) for step in steps]


@functools.cache
def alone(family: str, preset: str, heads: int) -> tuple[torch.Tensor, list[Any], list[Any]]:
    """The same by one process."""
    return generate(pipeline(family, heads), family, preset)


def shared(count: int, cases: Sequence[Case], folder: Path) -> list[dict[Case, tuple[Any, ...]]]:
    """What each of `count` processes found in each case: as `generate`, and the tokens its first block saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked, so that nothing is imported anew
    mp.start_processes(_share, (count, port, cases, folder), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _share(rank: int, count: int, port: int, cases: Sequence[Case], folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANK": str(rank)}
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers 0.42.1 divides by it, and on a CPU it is 0
    torch._C._get_accelerator = lambda: torch.device("cpu")
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=60))  # ends a deadlock
    assert parallel.broadcast_from_rank0({"rank": rank}) == {"rank": 0}
    found: dict[Case, tuple[Any, ...]] = {}
    pipes: dict[str, Any] = {}
    for case in cases:
        family, preset, how = case
        name, guided = family + how * (how == "guided"), how == "guided"
        if name not in pipes:
            pipes[name] = pipeline(family, max(2, count))
            for transformer in transformers_of(pipes[name]).values():
                shares.spread(transformer, count, guided)
        pipe, tokens = pipes[name], set()
        block = pipe.transformer.get_submodule("blocks.0" if "wan" in family else "transformer_blocks.0")
        watch = block.ff if hasattr(block, "ff") else block.ffn
        hook = watch.register_forward_pre_hook(lambda module, args, seen=tokens: seen.add(args[0].shape[1]))
        with disagreeing(preset, how if rank == 1 else ""):
            found[case] = (*generate(pipe, family, preset), max(tokens))
        hook.remove()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def disagreeing(preset: str, how: str) -> Iterator[None]:
    """Make this process alone come to the contrary: decide, rank blocks, or measure."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "decides":
            kind = type(PRESETS[preset].rule())
            right = kind.decide
            patch.setattr(kind, "decide", lambda self, now, step: not right(self, now, step) or now.must_compute)
        elif how == "ranks":
            norm = torch.linalg.vector_norm
            patch.setattr(torch.linalg, "vector_norm", lambda tokens: 1 / norm(tokens))
        elif how == "measures":
            near = FirstBlockCache._near
            patch.setattr(FirstBlockCache, "_near", lambda self, now, a, b: near(self, now, a + 0.7 * a.abs(), b))
        yield
