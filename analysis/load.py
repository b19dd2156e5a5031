"""Records to data frames: one row a record, one row a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pcbench.store import records

IDENTICAL_PSNR_1 = 100.0


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    recipe = record["recipe"]
    return {
        "machine": record["machine"]["name"],
        "model": recipe["backbone"]["name"],
        "method": recipe["method"]["name"],
        "fields": {k: v for k, v in recipe["method"].items() if k not in {"name", "version"}},
        "id": record["id"],
        "reference": record["reference"],
    }


def load_records(results: Path) -> pd.DataFrame:
    """One row a record: who it is, mean MACs in PMACs, latency in seconds and its ratios (missing: NaN)."""
    rows = []
    for record in records(results):
        latency = record["latency"]
        row = _identity(record) | {"status": record["status"], "samples": len(record["samples"])}
        row |= {f"macs_{name}": value for name, value in (record["macs"] or {}).items()}
        for name in ("denoise_seconds", "speedup", "speedup_over_macs_speedup") if latency else ():
            row |= {f"{name}_{part}": latency[name][part] for part in ("median", "min", "max")}
        rows.append(row)
    return pd.DataFrame(rows)


def one_machine(results: Path, model: str, machine: str | None = None) -> pd.DataFrame:
    """The records of one model. Raises ValueError if there are none, or of two machines and none is named."""
    frame = load_records(results)
    if len(frame):
        frame = frame[(frame["model"] == model) & ((frame["machine"] == machine) | (machine is None))]
    if not len(frame):
        raise ValueError(f"no records of {model} under {results}")
    if frame["machine"].nunique() > 1:
        raise ValueError(
            f"records of several machines: {', '.join(frame['machine'].unique())}; latency cannot be mixed"
        )
    return frame


def load_samples(results: Path) -> pd.DataFrame:
    """One row a sample: who it is, its prompt and seed, steps, computed steps, MACs, and each fidelity score.

    Records from before psnr@2 have psnr@1, which differs where a frame is identical to its reference: 100 dB there.
    Below 100 it stands in, for a video whose every frame differs; at 100 the video is identical and has no PSNR.
    """
    rows = []
    for record in records(results):
        for sample in record["samples"]:
            plain = {name: sample[name] for name in ("prompt", "seed", "steps", "computed", "macs", "seconds")}
            scores = dict(sample["fidelity"])
            if scores.get("psnr@1", IDENTICAL_PSNR_1) < IDENTICAL_PSNR_1:
                scores.setdefault("psnr@2", scores["psnr@1"])
            rows.append(_identity(record) | plain | scores)
    return pd.DataFrame(rows)
