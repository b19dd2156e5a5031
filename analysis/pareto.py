"""Quality against speed, every method at several settings: quality at equal speed, and speed at equal quality.

Speed is the ratio of MACs, or of latency: each record's measured efficiency (latency ratio over MACs ratio, timed in
turn in one process) times its MACs ratio over all prompts. Intervals are 95 %, over prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .load import NO_CACHE, REPLAY, Bench
from .render import Block, Cell, Table
from .stats import at_quality, at_speedup, interval, weights

TARGETS = (1.5, 2.0, 2.5)
RESAMPLES = 1000
PSNR = "psnr@2"
BASELINES = ("uniform prediction", "fewer_steps")  # the first that the bench has
METRICS = {"psnr@2": "PSNR dB", "ssim@2": "SSIM"}
SPECS = {"psnr@2": ".2f", "ssim@2": ".4f"}
LEVELS = ("high", "middle", "low")  # of quality: the quartiles of all settings
ROUNDED = {"psnr@2": 0, "ssim@2": 3}  # digits of the qualities at which speeds are compared
# Fields that separate curves of one method -> their usual value, which is not named.
CURVE_FIELDS = {
    "damping": 1.0,
    "blend": 1.0,
    "block_cache_rate": 0.0,
    "reference": "cached_output",
    "retention_steps": False,
    "variant": "official",
    "kept": "exact",
}
# The same for choices that one method's paper leaves open (docs/precisecache.md).
CHOICES: dict[str, dict[str, Any]] = {
    "precisecache": {
        "accumulate": True,
        "subtract_bias": False,
        "norm": "rms",
        "threshold_from": "trial",
        "count_warmup": False,
        "spectrum": "spatial",
        "whole_bins": False,
        "low_pass_first": False,
        "downsample_mode": "nearest-exact",
        "guidance": "guided",
        "protect_last": 0,
        "max_reused": 0,
        "block_ranking": "absolute",
        "block_sets": "apart",
        "radius_of": "trial",
    }
}


@dataclass
class Curve:
    """One method's settings: MACs of a video `macs` (settings, prompts), `efficiency` (settings), `scores` as `macs`.

    For a prompt with several seeds, values are means over its seeds; a video without a score is left out. labels: each
    setting's, as in the bench's records. fields: as `kind_of` returns them, and the method's `version`; an older
    version has curves of its own. scores: by metric. approach: what it leaves out, and by what rule (approaches.py).
    """

    name: str
    approach: str
    fields: dict[str, Any]
    labels: list[str]
    macs: np.ndarray
    reference_macs: float
    efficiency: np.ndarray
    scores: dict[str, np.ndarray]

    def speedups(self, prompts: np.ndarray, latency: bool) -> np.ndarray:
        """Speedup of each setting over these prompts: from indices (..., prompts) an array (..., settings)."""
        ratio = np.moveaxis(self.reference_macs / self.macs[:, prompts].mean(-1), 0, -1)
        return ratio * self.efficiency if latency else ratio

    def at(self, metric: str, target: float, latency: bool, prompts: np.ndarray) -> Any:
        """Mean score over these prompts at a speedup: from indices (..., prompts) an array (...)."""
        scores = np.moveaxis(mean_score(self.scores[metric][:, prompts]), 0, -1)
        return at_speedup(self.speedups(prompts, latency), scores, target)


def mean_score(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the videos that have a score: one identical to its reference has no PSNR."""
    counts = (~np.isnan(scores)).sum(-1)
    return np.divide(np.nansum(scores, -1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def worst_score(scores: np.ndarray) -> np.ndarray:
    """Lowest over the last axis of the videos that have a score; NaN where none has."""
    lowest = np.where(np.isnan(scores), np.inf, scores).min(-1)
    return np.where(np.isinf(lowest), np.nan, lowest)


def curves(bench: Bench) -> tuple[dict[str, Curve], int]:
    """All curves of a bench, over the prompts that every record has; and the number of prompts.

    Raises ValueError if the records have no prompt and seed in common. Failed records, without samples, are left out,
    and so are replayed schedules, whose settings are not more or less of one thing.
    """
    cached = bench.records[~bench.records["method"].isin([NO_CACHE, REPLAY]) & (bench.records["samples"] > 0)]
    samples = bench.samples[bench.samples["id"].isin(cached["id"])]
    groups = [set(zip(group["prompt"], group["seed"], strict=True)) for _, group in samples.groupby("id")]
    keys = set.intersection(*groups) if groups else set()
    if not keys:
        raise ValueError(f"the records of {bench.experiment} have no prompt in common")
    common = [key in keys for key in zip(samples["prompt"], samples["seed"], strict=True)]
    values = ["macs", *(metric for metric in METRICS if metric in samples)]
    means = samples[common].groupby(["id", "prompt"])[values].mean()
    found: dict[str, Curve] = {}
    older = cached["version"] < cached.groupby("method")["version"].transform("max")
    names = cached.apply(_curve_name, axis=1) + (" version " + cached["version"].astype(str)).where(older, "")
    for name, group in cached.groupby(names):
        tables = [means.loc[identity].sort_index() for identity in group["id"]]
        nothing = np.full(len(tables[0]), np.nan)
        found[str(name)] = Curve(
            str(name),
            group["approach"].iloc[0],
            _kind(group.iloc[0]) | {"version": group["version"].iloc[0]},
            list(group["label"]),
            np.stack([table["macs"].to_numpy(float) for table in tables]),
            float(group["macs_reference_peta_per_video"].iloc[0]) * 1e15,
            group["speedup_over_macs_speedup_median"].to_numpy(float),
            {m: np.stack([table[m].to_numpy(float) if m in table else nothing for table in tables]) for m in METRICS},
        )
    return found, len({prompt for prompt, _ in keys})


def kind_of(method: dict[str, Any]) -> dict[str, Any]:
    """What settings on one line have in common: `name`, `reuse` if any, and fields that say what is done, not how much.

    method: as in a record's recipe. A field that it lacks gets its usual value.
    """
    usual = CURVE_FIELDS | CHOICES.get(method["name"], {})
    return {name: method.get(name, value) for name, value in {"name": "", "reuse": "", **usual}.items()}


def _kind(record: pd.Series) -> dict[str, Any]:
    return kind_of(record["fields"] | {"name": record["method"]})


def _curve_name(record: pd.Series) -> str:
    """The method, and the fields of `kind_of` that are not as usual."""
    kind = _kind(record)
    usual = kind_of({"name": kind["name"]})
    changed = [name for name, value in kind.items() if value != usual[name] and name != "reuse"]
    reuse = [kind["reuse"]] if kind["reuse"] else []
    return " ".join([kind["name"], *reuse, *(f"{name.replace('_', ' ')} {kind[name]}" for name in changed)])


def short_names(found: dict[str, Curve]) -> dict[str, str]:
    """A shorter name for each curve: the method, with what tells the curve from the others of this method here."""
    names = {}
    for name, curve in found.items():
        peers = [each.fields for each in found.values() if each.fields["name"] == curve.fields["name"]]
        usual = kind_of({"name": curve.fields["name"]}) | {"version": max(peer["version"] for peer in peers)}
        told = [
            _told(field, value)
            for field, value in curve.fields.items()
            if value != usual[field] and any(peer[field] != value for peer in peers)
        ]
        names[name] = ", ".join([curve.fields["name"], *told]).replace("_", " ")
    return names if len(set(names.values())) == len(names) else {name: name for name in found}


def _told(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return field if value else f"no {field}"
    return value if isinstance(value, str) else f"{field} {value}"


def qualities(found: dict[str, Curve], metric: str) -> list[float]:
    """Scores at which speeds are compared: the quartiles of all settings' means, the highest first; or []."""
    means = np.concatenate([mean_score(curve.scores[metric]) for curve in found.values()])
    means = means[~np.isnan(means)]
    return [round(float(v), ROUNDED[metric]) for v in np.percentile(means, [75, 50, 25])] if len(means) else []


def tables(name: str, benches: Sequence[Bench], against: str | None = None) -> list[Table]:
    """Quality at equal speed and speed at equal quality, a block for each bench, metric and kind of speed.

    against: the curve that is subtracted in paired differences; None: the first of BASELINES that a bench has. Benches
    in which no method has two settings on common prompts are left out; if none is left, there are no tables. Raises
    ValueError for a curve that no bench has.
    """
    groups = []
    for bench in benches:
        with contextlib.suppress(ValueError):
            found, prompts = curves(bench)
            if any(len(curve.labels) > 1 for curve in found.values()):
                groups.append((bench.heading, found, prompts))
    curves_found = dict.fromkeys(curve for _, found, _ in groups for curve in found)
    if against and groups and against not in curves_found:
        raise ValueError(f"no curve {against!r} in {name}; there are: {', '.join(curves_found)}")
    speed, quality = [], []
    for title, found, prompts in groups:
        baseline = next((found[curve] for curve in ([against] if against else BASELINES) if curve in found), None)
        timed = not any(np.isnan(curve.efficiency).any() for curve in found.values())
        for metric, unit in METRICS.items():
            levels = qualities(found, metric)
            for latency in ((False, True) if timed else (False,)) if levels else ():
                points = {curve.name: resampled(curve, metric, latency, prompts) for curve in found.values()}
                by, n = "latency" if latency else "MACs", f"{prompts} prompts"
                minus = partial(paired, metric=metric, prompts=prompts, latency=latency)
                rows = _rows(found, points, baseline, at_speedup, minus, TARGETS, Cell(spec=SPECS[metric]))
                speed.append(Block(f"{title}: {unit} at equal {by}, {n}", rows))
                rows = _rows(found, points, baseline, at_quality, None, levels, Cell(unit="×"))
                at = " / ".join(f"{level:g}" for level in levels)
                quality.append(Block(f"{title}: speedup by {by} at {unit} {at}, {n}", rows))
        if qualities(found, PSNR):
            heading = f"{title}: {METRICS[PSNR]} of the worst prompt at equal MACs, {prompts} prompts"
            speed.append(Block(heading, _worst_rows(found, baseline)))
    notes = [
        "Over the prompts that all records of a block have; brackets: 95 % bootstrap intervals over prompts.",
        "On straight lines between a method's settings, over the share of the cost that is left; – where no two "
        "settings lie on either side.",
        f"Differences are paired, prompt by prompt, to {against or ' or else '.join(BASELINES)}; those of scores are"
        " over the prompts for which both have one.",
    ]
    fast = [f"at {target:g}×" for target in TARGETS]
    good = [f"at {level} quality" for level in LEVELS]
    made = [
        Table(f"{name}-equal-speed", f"{name}: quality at equal speed", _heads(fast), speed, notes),
        Table(f"{name}-equal-quality", f"{name}: speedup at equal quality", _heads(good), quality, notes),
    ]
    return [table for table in made if table.blocks]


def _heads(targets: Sequence[str]) -> tuple[str, ...]:
    return ("method", *(head for target in targets for head in (target, f"difference {target}")))


def resampled(curve: Curve, metric: str, latency: bool, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Speedups and mean scores (1 + resamples, settings); the first row is over all prompts."""
    drawn, scores = weights(prompts, RESAMPLES), curve.scores[metric]
    macs = drawn @ curve.macs.T / prompts
    totals, counts = drawn @ np.nan_to_num(scores).T, drawn @ (~np.isnan(scores)).T
    means = np.divide(totals, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return curve.reference_macs / macs * (curve.efficiency if latency else 1.0), means


def paired(
    curve: Curve, target: float | np.ndarray, *, other: Curve, metric: str, prompts: int, latency: bool = False
) -> np.ndarray:
    """How much better a curve's scores are than another's at a speedup, (1 + resamples,): the mean of the differences,
    prompt by prompt, over those for which both have scores there. target: one, or (1 + resamples,)."""
    gaps = _at_each(curve, metric, prompts, target, latency) - _at_each(other, metric, prompts, target, latency)
    drawn = weights(prompts, RESAMPLES)
    totals, counts = (drawn * np.nan_to_num(gaps)).sum(-1), (drawn * ~np.isnan(gaps)).sum(-1)
    return np.divide(totals, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _at_each(curve: Curve, metric: str, prompts: int, target: float | np.ndarray, latency: bool) -> np.ndarray:
    """The score of each prompt where the curve has a speedup, (1 + resamples, prompts), on the straight line between
    the two settings on either side; NaN for a prompt without a score at one of these."""
    speedups, means = resampled(curve, metric, latency, prompts)
    scores, each = curve.scores[metric].T, np.asarray(target)[..., None]
    return at_speedup(speedups[:, None], scores, each, better=means[:, None])


def at_least(curve: Curve, metric: str, target: float) -> np.ndarray:
    """The score of each prompt at a speedup, (prompts,), of means over the prompts. Where a video is identical to its
    reference at one of the two settings on either side, which has no PSNR, it is no worse than at the other one."""
    scores = curve.scores[metric].T
    speedups, known = curve.speedups(np.arange(len(scores)), latency=False), ~np.isnan(scores)
    total = at_speedup(speedups, np.where(known, scores, 0.0), target)
    weight = at_speedup(speedups, known.astype(float), target)
    return np.divide(total, weight, out=np.full(len(scores), np.nan), where=weight > 1e-9)  # more than rounding


def _rows(
    found: Mapping[str, Curve],
    points: dict[str, tuple[np.ndarray, np.ndarray]],
    baseline: Curve | None,
    measure: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    minus: Callable[..., np.ndarray] | None,
    targets: Sequence[float],
    style: Cell,
) -> list[list[Cell]]:
    """One row per curve: its number at each target and the paired difference to the baseline; the best first.
    minus: as `paired`, of a curve, a target and the `other` curve that difference; None: that of the numbers."""
    measured = {name: [measure(*drawn, target) for target in targets] for name, drawn in points.items()}
    middle = {name: np.nan_to_num(values[len(targets) // 2][0], nan=-np.inf) for name, values in measured.items()}
    baseline_values = measured[baseline.name] if baseline else []
    rows = []
    for name in sorted(measured, key=lambda name: (-middle[name], name)):
        row = [Cell(text=name)]
        for number, values in enumerate(measured[name]):
            row.append(_cell(values, style))
            if baseline is None or name == baseline.name:
                row.append(Cell())
            elif minus is None:
                row.append(_cell(values - baseline_values[number], style, sign="+"))
            else:
                row.append(_cell(minus(found[name], targets[number], other=baseline), style, sign="+"))
        rows.append(row)
    return rows


def _worst_rows(found: dict[str, Curve], baseline: Curve | None) -> list[list[Cell]]:
    """One row per curve: the PSNR at each target of the prompt that is worst there, and how much more it is than the
    baseline's worst; the best first. Speeds are means over the prompts."""
    measured = {
        name: [float(worst_score(at_least(curve, PSNR, target))) for target in TARGETS] for name, curve in found.items()
    }
    behind = measured[baseline.name] if baseline else []
    rows = []
    for name in sorted(
        measured, key=lambda name: (-np.nan_to_num(measured[name][len(TARGETS) // 2], nan=-np.inf), name)
    ):
        row = [Cell(text=name)]
        for number, value in enumerate(measured[name]):
            row.append(Cell(value, spec=SPECS[PSNR]))
            same = baseline is None or name == baseline.name
            row.append(Cell() if same else Cell(value - behind[number], spec=f"+{SPECS[PSNR]}"))
        rows.append(row)
    return rows


def _cell(measured: np.ndarray, style: Cell, sign: str = "") -> Cell:
    found = interval(measured[0], measured[1:])
    return Cell(*found, sign + style.spec, style.unit)
