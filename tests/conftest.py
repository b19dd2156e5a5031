"""Tiny random pipelines: real classes, no weights, no text encoder, no VAE; a generation takes under a second.

torch and diffusers are imported where they are needed: pytest-xdist reads this file in a process that runs no test, and
its workers start only then.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# imageio forks for each ffmpeg, which copies a large process' page tables; without, Ctrl-C ends a test's ffmpeg too.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline, WanTransformer3DModel

STEPS = 12
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def random_transformer(seed: int = 0) -> WanTransformer3DModel:
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    return model.eval()


def pipeline_of(transformer, transformer_2=None, **config) -> WanPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
        transformer_2=transformer_2,
        **config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe() -> WanPipeline:
    return pipeline_of(random_transformer())


def call(
    pipe, prompt: int = 0, seed: int = 0, steps: int = STEPS, guidance_scale: float = 4.0, **kwargs
) -> torch.Tensor:
    """One generation: final latents (1, 4, 5, 16, 16), or of another size. `prompt` seeds the text embeddings."""
    import torch

    text = torch.Generator().manual_seed(1000 + prompt)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=text),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **{"height": 128, "width": 128, **kwargs},
    ).frames


# Files that take over ten seconds. `make test-fast` leaves them out, and the contract of all families but Wan's.
SLOW = {
    f"test_{name}.py"
    for name in (
        "algorithm1", "backbones", "block_cache", "calibrate", "cli", "clock", "clone", "committed_results", "compared",
        "compose", "contract_steps", "custom", "dbcache", "experiments", "failures", "faults", "figures", "fuzz",
        "group_offload", "image_pipelines", "latency", "launch", "launch_cluster", "memory", "new_things", "notebooks",
        "observe", "observe_measures", "paper_check", "parallel", "pictures", "plan", "planned_memory", "presets",
        "report", "report_browser", "report_stage", "sharing", "stages", "tiny_training", "tiny_world", "tracking",
        "tune", "twins", "vbench", "vbench_cli", "vbench_real", "wheel",
    )
}  # fmt: skip


PRICING = {"test_experiments.py", "test_paper_check.py", "test_plan.py"}  # price many of the same recipes


def family_of(item: pytest.Item) -> str | None:
    return item.callspec.params.get("family") if hasattr(item, "callspec") else None


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items) -> Iterator[None]:
    """Mark what is slow; order the tests so that what shares generations, prices, or a file's fixtures, is together.

    A process of pytest-xdist begins with a stretch of them and makes what they share once; one that has run out of work
    takes over the rest of another's.
    """
    for item in items:
        if item.path.name in SLOW or (item.path.name == "test_contract.py" and family_of(item) not in (None, "wan")):
            item.add_marker(pytest.mark.slow)
    yield  # here pytest leaves out what is not asked for
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        file = "pricing" if item.path.name in PRICING else item.path.name
        groups.setdefault(family_of(item) or file, []).append(item)
    items[:] = itertools.chain(*groups.values())


def pytest_collection_finish() -> None:
    """Half a million objects of imports are there to stay: no garbage collection needs to look at them again.

    And fewer collections of what tests make, nearly all of which is freed without: they took a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def impatient() -> None:
    """What waits for another process, or a folder, looks again soon. Freed memory is kept: to have it back from the
    system for every picture of a VAE took a seventh of the time of test_twins.py."""
    from pcbench import stages
    from pcbench.launch import progress
    from pcbench.store import away
    from pcbench.tracking import projection

    for module in (stages, progress, away, projection):
        module.PAUSE = 0.1  # seconds
    with contextlib.suppress(AttributeError, OSError):  # of glibc alone
        libc = ctypes.CDLL(None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 1 << 30)


def pytest_report_teststatus(report) -> tuple[str, str, str] | None:
    """Name what fails at once: a run that is stopped before its end says no more than that."""
    if report.when == "call" and report.failed:
        return "failed", f"\nFAILED {report.nodeid}\n", "FAILED"
    return None


MATRIX: dict[str, dict[str, str]] = {}  # preset -> family -> "works" or why not; filled by test_contract.py


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what works where."""
    if not MATRIX:
        return
    families = sorted({family for row in MATRIX.values() for family in row})
    terminalreporter.section("method x family")
    terminalreporter.write_line(f"{'':26}" + "".join(f"{name:>18}" for name in families))
    reasons = []
    for preset, row in sorted(MATRIX.items()):
        cells = []
        for family in families:
            cell = row.get(family, "not run")
            if cell.startswith("refused"):
                reasons.append((preset, family, cell))
            cells.append(f"{cell.partition(':')[0]:>18}")
        terminalreporter.write_line(f"{preset:26}" + "".join(cells))
    for preset, family, reason in reasons:
        terminalreporter.write_line(f"{preset} on {family}: {reason}")
