"""Small records as pcbench writes them, with numbers that are easy to reckon with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPTS = ("a", "b", "c", "d")
IDENTICAL = "identical to the reference"
NO_LPIPS = "LPIPS needs a package"


def record(
    method: str,
    speedup: float = 1.0,
    psnr: float | None = None,
    model: str = "tiny_wan",
    machine: str = "m",
    seeds: int = 1,
    preset: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A record: MACs are 1 P over `speedup`, latency 10 s over it; prompt i has `psnr` + i dB (None: identical)."""
    told = json.dumps(fields, sort_keys=True)
    samples = [sample(method, number, seed, speedup, psnr) for number in range(len(PROMPTS)) for seed in range(seeds)]
    seconds, reference = [10 / speedup] * 3, [10.0, 10.5, 9.5]
    ratios = [speedup - 0.1, speedup, speedup + 0.1] if method != "none" else [1.0]
    return {
        "schema": 2,
        "id": f"{method}{speedup}{told}".replace("/", ""),
        "reference": "none",
        "status": "ok",
        "error": None,
        "preset": preset,
        "recipe": {
            "backbone": {"name": model, "family": "wan"},
            "sampling": {"frames": 29, "height": 128, "width": 128, "steps": 50, "guidance_scale": 4.0},
            "method": {"name": method, "version": 1, **fields},
            "numerics": {"dtype": "float32"},
        },
        "machine": {"name": machine, "cpu": "a CPU", "gpu": None, "threads": 2},
        "macs": {"peta_per_video": 1 / speedup, "reference_peta_per_video": 1.0, "speedup": speedup},
        "vbench": [],
        "latency": {
            "repeats": 3,
            "denoise_seconds": spread(seconds),
            "reference_denoise_seconds": spread(reference),
            "decode_seconds": spread([1.0]),
            "speedup": spread(ratios),
            "speedup_over_macs_speedup": spread([ratio / speedup for ratio in ratios]),
        },
        "samples": samples,
    }


def spread(values: list[float]) -> dict[str, Any]:
    return {"median": sorted(values)[len(values) // 2], "min": min(values), "max": max(values), "values": values}


def sample(method: str, number: int, seed: int, speedup: float, psnr: float | None) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if method != "none":
        value = None if psnr is None else psnr + number
        scores = {"psnr@2": value, "ssim@2": 1.0 if value is None else value / 100, "lpips@1": None}
        notes = {"lpips@1": NO_LPIPS} | ({"psnr@2": IDENTICAL} if value is None else {})
    computed = round(50 / speedup)
    return {
        "prompt": PROMPTS[number],
        "seed": seed,
        "steps": 50,
        "computed": computed,
        "partial": 0,
        "macs": round(1e15 / speedup),
        "seconds": 1.0,
        "fidelity": scores,
        "fidelity_notes": notes,
        "notes": [],
        "trace": {"actions": "F" * computed + "r" * (50 - computed)},
    }


def write(results: Path, *found: dict[str, Any]) -> Path:
    """Put records where pcbench would; returns the folder."""
    for data in found:
        name = f"{data['recipe']['method']['name']}-{abs(hash(data['id']))}.json"
        path = results / "records" / data["machine"]["name"] / data["recipe"]["backbone"]["name"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return results


def ours(name: str, speedup: float, psnr: float, **settings: Any) -> dict[str, Any]:
    """A record of a preset of PreciseCache."""
    return record("precisecache", speedup, psnr, preset=f"precisecache_{name}", reuse="prediction", **settings)


def table1(machine: str = "m", model: str = "tiny_wan") -> list[dict[str, Any]]:
    """Every row of the paper's Table 1 but FasterCache, and a shorter schedule."""
    where: dict[str, Any] = {"machine": machine, "model": model}
    return [
        record("none", **where, preset="none"),
        record("pab", 1.3, 30.0, **where, preset="pab", spatial_range=2),
        record("teacache", 1.9, 40.0, **where, preset="teacache", threshold=0.1),
        record("fewer_steps", 2.0, 35.0, **where, steps=25),
        ours("base", 1.6, 45.0, **where, alpha=0.5, block_cache_rate=0.0),
        ours("turbo", 2.2, 38.0, **where, alpha=0.7, block_cache_rate=0.0),
        ours("flash", 2.6, 30.0, **where, alpha=0.7, block_cache_rate=0.4),
    ]
