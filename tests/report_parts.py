"""A small results folder: real mp4 files whose frames say which they are, and records as pcbench writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from pcbench.store import Place

FRAMES, FPS, HEIGHT, WIDTH = 20, 10, 64, 96
MACHINE, MODEL = "m", "tiny"
HOSTILE = "a </script><img src=x onerror=alert(1)> & a 'quoted' \"cat\""
PROMPTS = {HOSTILE: 40.0, "the worst": 20.0, "the best": 60.0}  # and the PSNR of its better setting
STEPS = 10
ACTIONS = {"none": "F" * STEPS, "precisecache": "FFFrrpFrrF", "teacache": "FFrFrrrrFF"}
ERROR = 24  # grey levels by which a cached video is off in its lower right quarter


def frames(off: int = 0) -> np.ndarray:
    """Frame i is of grey level 10 + 11 i; the lower right quarter is `off` levels brighter."""
    video = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    video[:] = (10 + 11 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
    video[:, HEIGHT // 2 :, WIDTH // 2 :] += off
    return video


def record(method: str, number: int = 0, machine: str = MACHINE, reference: str = "none0", **changes: Any) -> dict:
    cached = method != "none"
    speedup = [1.0, 1.5, 2.5][number] if cached else 1.0
    latency = {
        "denoise_seconds": {"median": 3.0 / speedup, "min": 3.0 / speedup, "max": 3.0 / speedup},
        "speedup": {"median": speedup, "min": speedup - 0.1, "max": speedup + 0.1},
        "speedup_over_macs_speedup": {"median": 0.9, "min": 0.88, "max": 0.92},
    }
    return {
        "schema": 2,
        "id": f"{method}{number}",
        "reference": reference,
        "status": "ok",
        "error": None,
        "recipe": {
            "backbone": {"name": MODEL},
            "sampling": {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "steps": STEPS},
            "method": {"name": method, "version": 1, **({"threshold": 0.1 * number} if cached else {})},
        },
        "machine": {"name": machine, "cpu": "a CPU", "gpu": None, "torch": "2.13.0"},
        "macs": {"peta_per_video": 2e-4 / speedup, "reference_peta_per_video": 2e-4, "speedup": speedup},
        "latency": latency,
        "samples": [sample(method, number, prompt, speedup) for prompt in PROMPTS],
    } | changes


def sample(method: str, number: int, prompt: str, speedup: float) -> dict[str, Any]:
    cached, actions = method != "none", ACTIONS[method]
    worse = PROMPTS[prompt] - 3 * number - (1 if method == "teacache" else 0)
    known = [0.05 * i if cached and i > 2 else None for i in range(STEPS)]
    return {
        "prompt": prompt,
        "seed": 0,
        "steps": STEPS,
        "computed": sum(a != "r" for a in actions),
        "partial": actions.count("p"),
        "macs": 2e11 / speedup,
        "seconds": 1.0,
        "fidelity": {"psnr@2": worse, "ssim@2": 1 - 1 / worse, "lpips@1": None} if cached else {},
        "fidelity_notes": {"lpips@1": "LPIPS needs a package"} if cached else {},
        "notes": [],
        "trace": {
            "actions": actions,
            "sigma": [1 - i / STEPS for i in range(STEPS)],
            "indicator": known,
            "accumulated": known,
            "threshold": [0.2 if cached else None] * STEPS,
            "trial_size": None,
        },
    }


def put(results: Path, data: dict, videos: bool = False, off: int = 0) -> Place:
    """Write a record; with `videos`, its samples' mp4 files and traces too."""
    place = Place(results, data["machine"]["name"], MODEL, data["recipe"]["method"]["name"], data["id"])
    place.record.parent.mkdir(parents=True, exist_ok=True)
    place.record.write_text(json.dumps(data))
    for number, each in enumerate(data["samples"] if videos else []):
        files = place.sample(f"sample-{number}")
        files.video.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(
            files.video, frames(off), fps=FPS, codec="libx264", pixelformat="yuv420p", macro_block_size=2,
            output_params=["-crf", "10", "-movflags", "+faststart"],
        )  # fmt: skip
        files.trace.write_text(json.dumps({"prompt": each["prompt"], "seed": each["seed"]}))
    return place


def make(results: Path, videos: bool = True) -> Path:
    """No cache, two settings of PreciseCache and one of TeaCache, on three prompts."""
    put(results, record("none"), videos)
    for method, number in (("precisecache", 1), ("precisecache", 2), ("teacache", 1)):
        put(results, record(method, number), videos, ERROR)
    return results
