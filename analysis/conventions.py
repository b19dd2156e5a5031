"""The same videos under every convention of fidelity: `python -m analysis.conventions results/fidelity`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from .load import NO_CACHE, one_bench
from .render import Block, Cell, Table

METRICS = {"psnr": 2, "ssim": 4, "lpips": 4}  # metric -> digits


def conventions_table(results: Path, model: str, metric: str, machine: str | None = None) -> pd.DataFrame:
    """One row per convention, one column per method: the mean over videos as that convention takes it.

    Raises ValueError if there are no records, records of two machines or references, or none with the metric.
    """
    bench = one_bench(results, model, machine)
    cached = bench.records[bench.records["method"] != NO_CACHE].sort_values("macs_peta_per_video", ascending=False)
    columns = [pd.Series(_column(bench.raw[number]["fidelity"], metric), dtype=object) for number in cached.index]
    table = pd.concat(columns, axis=1, keys=cached["label"]) if columns else pd.DataFrame()
    if not len(table):
        raise ValueError(f"no record of {model} under {results} has a score called {metric}")
    table = table.loc[sorted(table.index, key=lambda name: (name != "raw", name))]  # ours first
    return table.fillna("–").rename_axis("convention").reset_index()


def _column(fidelity: dict[str, dict], metric: str) -> dict[str, str]:
    """Convention -> cell, for the newest version of the metric in each."""
    cells = {}
    for name in sorted(fidelity):  # of two versions of one definition the later comes last
        convention, _, kind = name.partition("@")[0].rpartition(".")
        if kind == metric:
            cells[convention or "raw"] = _cell(fidelity[name], METRICS[metric])
    return cells


def _cell(summary: dict, digits: int) -> str:
    if summary["mean"] is None:
        return "identical" if summary["identical"] else "not scored"
    missing = [f"{summary[state]} {state}" for state in ("identical", "unscored") if summary.get(state)]
    unscored = f" ({', '.join(missing)})" if missing else ""
    return f"{summary['mean']:.{digits}f}{unscored}"


def main() -> int:
    """Print one table per metric; exit code 2 with one line if there is nothing to show."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results/fidelity")
    model = sys.argv[2] if len(sys.argv) > 2 else "tiny_wan"
    try:
        for metric in METRICS:
            frame = conventions_table(results, model, metric)
            rows = [[Cell(text=str(cell)) for cell in row] for row in frame.to_numpy().tolist()]
            print(Table(f"conventions-{metric}", metric.upper(), tuple(frame.columns), [Block("", rows)]).markdown())
    except ValueError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
