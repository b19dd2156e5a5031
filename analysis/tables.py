"""The table of one model on one machine, in Markdown: `python -m analysis.tables results [model]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from .load import load_samples, one_machine

COLUMNS = ("method", "steps computed", "PMACs", "MACs ÷", "latency s", "speedup", "efficiency", "PSNR dB", "SSIM", "n")


def labels(frame: pd.DataFrame) -> pd.Series:
    """A method's name, with the fields in which records of that method differ; tables of numbers are left out."""

    def label(row: pd.Series) -> str:
        peers = frame[frame["method"] == row["method"]]["fields"]
        told = {name: value for name, value in row["fields"].items() if not _is_table(value)}
        varied = [name for name, value in told.items() if any(peer.get(name) != value for peer in peers)]
        return " ".join([row["method"], *(f"{name}={told[name]}" for name in varied)])

    return frame.apply(label, axis=1)


def _is_table(value: Any) -> bool:
    """Whether a field holds calibrated numbers: a polynomial, or ratios for every step."""
    longest = max(map(_length, value.values()), default=0) if isinstance(value, dict) else _length(value)
    return longest > 3


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def method_table(results: Path, model: str, machine: str | None = None) -> pd.DataFrame:
    """One row a method, the reference first, then by MACs. Raises ValueError for records of two machines."""
    frame, samples = one_machine(results, model, machine), load_samples(results)
    frame = frame.assign(label=labels(frame), none=frame["method"] != "none")
    frame = frame.sort_values(["none", "macs_peta_per_video"], ascending=[True, False])
    rows = [_row(row, samples[samples["id"] == row["id"]]) for _, row in frame.iterrows()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(row: pd.Series, samples: pd.DataFrame) -> list[Any]:
    def mean(name: str, digits: int) -> str:
        scored = samples[name].notna().any() if name in samples else False
        return f"{samples[name].mean():.{digits}f}" if scored else "–"

    timed = pd.notna(row.get("speedup_median"))
    half = (row["speedup_max"] - row["speedup_min"]) / 2 if timed else 0
    return [
        row["label"],
        f"{samples['computed'].mean():.3g}/{samples['steps'].mean():.3g}",
        f"{row['macs_peta_per_video']:.3g}",
        f"{row['macs_speedup']:.2f}×",
        f"{row['denoise_seconds_median']:.2f}" if timed else "–",
        f"{row['speedup_median']:.2f}× ± {half:.2f}" if timed else "–",
        f"{row['speedup_over_macs_speedup_median']:.2f}" if timed else "–",
        mean("psnr@2", 2),
        mean("ssim@2", 4),
        len(samples),
    ]


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table: first column to the left, the rest to the right."""
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Print the table; exit code 2 with one line if there is none."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    model = sys.argv[2] if len(sys.argv) > 2 else "tiny_wan"
    try:
        print(markdown(method_table(results, model)))
    except ValueError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
