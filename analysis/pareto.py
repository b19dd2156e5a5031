"""Quality against speed, every method at several settings: `python -m analysis.pareto results/methods tiny_wan`.

Prints who is where at 1.5, 2 and 2.5 times, in Markdown, and draws the curves. Speed is the ratio of MACs, or of
latency: each record's measured efficiency (latency ratio over MACs ratio, interleaved in one process) times its MACs
ratio over all prompts. Intervals are 95 %, over prompts.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .load import load_samples, one_machine
from .stats import at_speedup, bootstrap
from .tables import markdown

Measure = Callable[[np.ndarray], float]  # of the prompts with these indices
TARGETS = (1.5, 2.0, 2.5)
BASELINE = "uniform prediction"
METRICS = {"psnr@2": "PSNR dB", "ssim@2": "SSIM"}
# What makes another curve of one method, and its usual value, which is not named.
CURVE_FIELDS = {
    "damping": 1.0,
    "block_cache_rate": 0.0,
    "reference": "previous_trial",
    "retention_steps": False,
    "variant": "official",
}


@dataclass
class Curve:
    """One method's settings: `speedups` (settings, prompts) by MACs, `efficiency` a setting, scores by metric."""

    name: str
    macs: np.ndarray
    reference_macs: float
    efficiency: np.ndarray
    scores: dict[str, np.ndarray]

    def speedups(self, prompts: np.ndarray, latency: bool) -> np.ndarray:
        """Of each setting over these prompts."""
        ratio = self.reference_macs / self.macs[:, prompts].mean(1)
        return ratio * self.efficiency if latency else ratio

    def at(self, metric: str, target: float, latency: bool, prompts: np.ndarray) -> float:
        """Mean score over these prompts at a speedup."""
        return at_speedup(self.speedups(prompts, latency), mean_score(self.scores[metric][:, prompts]), target)


def mean_score(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the videos that have a score: one identical to its reference has no PSNR."""
    counts = (~np.isnan(scores)).sum(-1)
    return np.divide(np.nansum(scores, -1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def curves(results: Path, model: str) -> tuple[dict[str, Curve], int]:
    """All curves of one model on one machine, over the prompts that every record has; and the number of prompts.

    Raises ValueError if there are no records, records of several machines, or no common prompt.
    """
    records, samples = one_machine(results, model), load_samples(results)
    samples = samples[samples["id"].isin(records["id"])].assign(key=lambda s: s["prompt"] + "|" + s["seed"].astype(str))
    keys = sorted(set.intersection(*(set(group["key"]) for _, group in samples.groupby("id"))))
    if not keys:
        raise ValueError("the records have no prompt in common")
    found: dict[str, Curve] = {}
    cached = records[records["method"] != "none"]
    for name, group in cached.groupby(cached.apply(_curve_name, axis=1)):
        tables = [samples[samples["id"] == identity].set_index("key").loc[keys] for identity in group["id"]]
        found[str(name)] = Curve(
            str(name),
            np.stack([table["macs"].to_numpy(float) for table in tables]),
            float(group["macs_reference_peta_per_video"].iloc[0]) * 1e15,
            group.get("speedup_over_macs_speedup_median", pd.Series(np.nan, group.index)).to_numpy(float),
            {metric: np.stack([table[metric].to_numpy(float) for table in tables]) for metric in METRICS},
        )
    return found, len(keys)


def _curve_name(record: pd.Series) -> str:
    """The method, and those of its fields that say what it does rather than how much."""
    fields = record["fields"]
    words = [record["method"], *([fields["reuse"]] if "reuse" in fields else [])]
    told = [name for name, usual in CURVE_FIELDS.items() if fields.get(name, usual) != usual]
    return " ".join([*words, *(f"{name.replace('_', ' ')} {fields[name]}" for name in told)])


def standings(
    found: dict[str, Curve], prompts: int, metric: str, latency: bool, against: str = BASELINE
) -> pd.DataFrame:
    """One row a curve: the score at each target with its interval, and the paired difference to the curve `against`."""
    baseline = found.get(against)
    rows = []
    for curve in found.values():
        row: dict[str, Any] = {"method": curve.name}
        for target in TARGETS:
            there = functools.partial(curve.at, metric, target, latency)
            row[f"{target:g}×"] = _cell(there, prompts, metric)
            if baseline is not None and curve is not baseline:
                theirs = functools.partial(baseline.at, metric, target, latency)
                name = against.split()[0]
                row[f"− {name} at {target:g}×"] = _cell(_minus(there, theirs), prompts, metric, signed=True)
        row["order"] = curve.at(metric, 2.0, latency, np.arange(prompts))
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("order", ascending=False, na_position="last").drop(columns="order")
    return table.fillna("–")


def _minus(a: Measure, b: Measure) -> Measure:
    return lambda prompts: a(prompts) - b(prompts)


def _cell(measure: Measure, prompts: int, metric: str, signed: bool = False) -> str:
    value, low, high = bootstrap(measure, prompts, resamples=1000)
    if np.isnan(value):
        return "–"
    digits, sign = (2, "+") if metric.startswith("psnr") else (4, "+")
    text = f"{value:{sign if signed else ''}.{digits}f}"
    return text if np.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _mean_interval(scores: np.ndarray, prompts: int) -> tuple[float, float, float]:
    return bootstrap(lambda chosen: float(mean_score(scores[chosen])), prompts, resamples=500)


def draw(found: dict[str, Curve], prompts: int, path: Path) -> None:
    """PSNR and SSIM against both speeds, one line a curve, bars of the 95 % interval over prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = [plt.get_cmap("tab20")(number) for number in range(20)]
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), sharey="row")
    everything = np.arange(prompts)
    for number, curve in enumerate(found.values()):
        for row, (metric, title) in enumerate(METRICS.items()):
            values = curve.scores[metric]
            intervals = [_mean_interval(each, prompts) for each in values]
            mean, low, high = np.array(intervals).T
            for column, latency in enumerate((False, True)):
                x = curve.speedups(everything, latency)
                if np.isnan(x).any():
                    continue
                order = np.argsort(x)
                control = curve.name.startswith(("uniform", "fewer"))
                axes[row, column].errorbar(
                    x[order], mean[order], [(mean - low)[order], (high - mean)[order]], label=curve.name,
                    color="black" if control else colours[number % 20], linestyle=":" if control else "-",
                    marker="os^vD"[number // 4 % 5], markersize=4, linewidth=1.2, elinewidth=0.4,
                )  # fmt: skip
                axes[row, column].set_xlabel("speedup by latency" if latency else "speedup by MACs")
                axes[row, column].set_ylabel(title)
                axes[row, column].grid(alpha=0.3)
    for row, metric in enumerate(METRICS):  # the few best and worst points would flatten all others
        means = np.concatenate([mean_score(curve.scores[metric]) for curve in found.values()])
        low, high = np.percentile(means, [12, 94])
        axes[row, 0].set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.subplots_adjust(right=0.76)
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.77, 0.5), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> int:
    """Print the standings, draw the curves; exit code 2 with one line if there is nothing to show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("model", nargs="?", default="tiny_wan")
    parser.add_argument("--against", default=BASELINE, help="the curve that others are compared with")
    parser.add_argument("--figure", type=Path, help="where to draw the curves")
    args = parser.parse_args()
    try:
        found, prompts = curves(args.results, args.model)
    except ValueError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    if args.against not in found:
        print(f"analysis: no curve {args.against!r}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    for metric, title in METRICS.items():
        for latency in (False, True):
            if latency and all(np.isnan(curve.efficiency).any() for curve in found.values()):
                continue
            print(f"\n{title} at equal {'latency' if latency else 'MACs'} ({prompts} prompts)\n")
            print(markdown(standings(found, prompts, metric, latency, args.against)))
    if identical := sum(int(np.isnan(curve.scores["psnr@2"]).sum()) for curve in found.values()):
        print(f"\n{identical} videos have no PSNR, being identical to their reference, and are left out of its means.")
    if args.figure:
        draw(found, prompts, args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
