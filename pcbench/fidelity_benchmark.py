"""Time PSNR and SSIM against the official code: `python -m pcbench.fidelity_benchmark official=FOLDER`.

FOLDER holds calculate_psnr.py and calculate_ssim.py of VideoSys (eval/pab/common_metrics) or of TeaCache, which are the
same files; they need opencv. Both codes get the same frames in turn, video by video; of the official code only the two
functions are timed, not its conversion of the frames. Prints a table.
"""

from __future__ import annotations

import importlib.util
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from . import provenance
from .command import Command, Progress, options_of
from .config import ConfigError
from .fidelity import stage as fidelity

DEFAULTS = {"official": "", "videos": "16", "size": "65x480x640", "seed": "0"}
COMMAND = Command(
    "pcbench.fidelity_benchmark",
    __doc__ or "",
    {
        "official=FOLDER": "the official code's folder; without it only our code is timed",
        "videos=N": "how many videos; default: 16",
        "size=FxHxW": "frames, height and width; default: 65x480x640",
        "seed=N": "of the synthetic videos; default: 0",
    },
    resumes=False,
)
METRICS = ("videosys.psnr@1", "videosys.ssim@1")
Scores = tuple[float, float]  # PSNR in dB, SSIM: means over a video's frames


def synthetic_pair(size: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A video whose error grows with time, and its reference of drifting textures and flat parts.

    Both are uint8 (frames, height, width, 3); `size` is (frames, height, width).
    """
    frames, height, width = size
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, height // 8, width // 8)))
    picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    picture[: height // 3] = generator.uniform(0, 255, 3)
    reference, video = np.empty((2, frames, height, width, 3), np.uint8)
    for t in range(frames):
        reference[t] = np.roll(picture, 2 * t, axis=1).clip(0, 255)
        noise = generator.normal(0, 0.3 + 12 * t / frames, (height, width, 3))
        video[t] = (reference[t] + noise).clip(0, 255).round()
    return video, reference


def ours(video: np.ndarray, reference: np.ndarray) -> Scores:
    """PSNR in dB and SSIM by our code, with the `videosys` convention, of uint8 videos (frames, height, width, 3)."""
    psnr, ssim = (fidelity.measure(name, video, reference)["value"] for name in METRICS)
    return psnr, ssim


def official_code(folder: Path) -> Callable[[torch.Tensor, torch.Tensor], Scores]:
    """The official functions as one, for frames (1, frames, 3, height, width) in [0, 1]. ConfigError if absent."""
    functions = []
    for name in ("calculate_psnr", "calculate_ssim"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        if spec is None or spec.loader is None or not (folder / f"{name}.py").is_file():
            raise ConfigError(f"no {name}.py in {folder}")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise ConfigError(f"the official code does not import: {error}") from error
        functions.append(getattr(module, name))

    def both(reference: torch.Tensor, video: torch.Tensor) -> Scores:
        psnr, ssim = (list(function(reference, video)["value"].values()) for function in functions)
        return float(np.mean(psnr)), float(np.mean(ssim))

    return both


def timed(function: Callable[..., Scores], *arguments: Any) -> tuple[float, Scores]:
    """Seconds that the function takes, and what it returns."""
    began = time.perf_counter()
    scores = function(*arguments)
    return time.perf_counter() - began, scores


def peak_gib() -> float:
    """Peak memory of this process so far in GiB, including everything it has imported."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class Work:
    """What to time: videos of (frames, height, width), from this seed on; and the official code, if it is there."""

    videos: int
    size: tuple[int, int, int]
    seed: int
    official: Callable[[torch.Tensor, torch.Tensor], Scores] | None


def prepare(arguments: Sequence[str]) -> Work:
    """The options of a command line, checked. Raises ValueError for an unknown or impossible one."""
    chosen = options_of(arguments, DEFAULTS)
    try:
        videos, seed = int(chosen["videos"]), int(chosen["seed"])
        frames, height, width = (int(part) for part in chosen["size"].split("x"))
    except ValueError as error:
        raise ConfigError("videos and seed are whole numbers, size is FRAMESxHEIGHTxWIDTH") from error
    if min(videos, frames) < 1 or min(height, width) < 16:
        raise ConfigError("there must be a video, with a frame, of at least 16x16")
    official = official_code(Path(chosen["official"])) if chosen["official"] else None
    return Work(videos, (frames, height, width), seed, official)


def carry_out(work: Work) -> None:
    """Time both codes and print the table."""
    official, progress = work.official, Progress(lambda line: print(line, flush=True))
    ours(*synthetic_pair((2, *work.size[1:]), work.seed))  # warm up
    our_seconds, official_seconds, memory = 0.0, 0.0, 0.0
    largest = [0.0, 0.0]  # differences of PSNR in dB and of SSIM
    for number in range(work.videos):
        progress(number, work.videos)
        video, reference = synthetic_pair(work.size, work.seed + number)
        seconds, scores = timed(ours, video, reference)
        our_seconds += seconds
        memory = memory or peak_gib()  # before the official code allocates any; all videos need the same
        if official is not None:
            tensors = [torch.from_numpy(f).permute(0, 3, 1, 2).contiguous()[None] / 255.0 for f in (reference, video)]
            seconds, official_scores = timed(official, *tensors)
            official_seconds += seconds
            largest = [max(most, abs(a - b)) for most, a, b in zip(largest, scores, official_scores, strict=True)]
            del tensors
    compared = None if official is None else official_seconds
    _print(work.videos, "x".join(map(str, work.size)), our_seconds, compared, largest, memory)


def _print(
    videos: int, size: str, our_seconds: float, official: float | None, largest: list[float], memory: float
) -> None:
    """Print the table. official: seconds of the official code; None if it was not timed."""
    machine = provenance.machine("cpu")
    table = Table(title=f"PSNR + SSIM of {videos} videos of {size}, {machine['name']}", title_justify="left")
    for name in ("code", "seconds", "a video", "speedup", "largest difference: PSNR dB", "SSIM", "peak memory GiB"):
        table.add_column(name, justify="left" if name == "code" else "right")
    comparison = ["-"] * 3
    if official is not None:
        table.add_row("official", f"{official:.1f}", f"{official / videos:.2f}", "1.0x", "", "", "")
        comparison = [f"{official / our_seconds:.1f}x", *(f"{value:.1e}" for value in largest)]
    table.add_row("pcbench", f"{our_seconds:.1f}", f"{our_seconds / videos:.2f}", *comparison, f"{memory:.2f}")
    Console(highlight=False, width=140).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return COMMAND.run(argv, prepare, carry_out)


if __name__ == "__main__":
    sys.exit(main())
