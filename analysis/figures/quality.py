"""Quality against speed: every bench's curves; PreciseCache over α, and over the size of its trial (Table 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..load import NO_CACHE, Bench
from ..paper.published import published
from ..pareto import METRICS, kind_of
from ..stats import Interval, mean_interval
from . import style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError, at_least, at_most, over_prompts, words
from .measures import spearman
from .sizes import times

PSNR, SSIM = METRICS
PRESETS = {0.5: "base", 0.7: "turbo"}
SAME = 0.1  # relative distance within which a MACs ratio agrees with the paper's
SIZE = (2, 4, 4)


def _require_experiment(bench: Bench, experiment: str) -> None:
    """Raise NotDrawnError if the bench is of another experiment."""
    if bench.name != experiment:
        raise NotDrawnError


def _settings(bench: Bench, name: str, block_cache: bool = False) -> pd.DataFrame:
    """PreciseCache's records that differ in this field alone, in rising order, with or without BlockCache: of several
    such lines the one with the most usual choices, and of these the one with the most settings."""
    of_method = bench.records[(bench.records["method"] == "precisecache") & (bench.records["samples"] > 0)]
    fits = [name in fields and bool(fields.get("block_cache_rate")) == block_cache for fields in of_method["fields"]]
    rows = of_method[np.array(fits, dtype=bool)]
    lines: dict[str, list[Any]] = {}
    for place, row in rows.iterrows():
        rest = {field: value for field, value in row["fields"].items() if field != name} | {"version": row["version"]}
        lines.setdefault(repr(sorted(rest.items())), []).append(place)
    chosen = min(lines.values(), key=lambda places: (*_unusual(rows.loc[places[0]]), -len(places)), default=[])
    rows = rows.loc[chosen]
    return rows.assign(**{name: [_plain(fields[name]) for fields in rows["fields"]]}).sort_values(name, kind="stable")


def _unusual(row: pd.Series) -> tuple[float, int]:
    """How old a record's version is, then how many of its choices are not as usual (pareto.kind_of)."""
    usual = kind_of({"name": row["method"], "reuse": "prediction"})
    fields = kind_of(row["fields"] | {"name": row["method"]})
    return -row["version"], sum(value != usual[field] for field, value in fields.items())


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _samples(bench: Bench, identity: str) -> pd.DataFrame:
    found = bench.samples[bench.samples["id"] == identity]
    return found.reindex(columns=[*dict.fromkeys([*found.columns, PSNR, SSIM])])


def _macs_ratio(bench: Bench, row: pd.Series) -> Interval:
    """The uncached call's MACs over those of these samples, which differ from prompt to prompt."""
    samples = _samples(bench, row["id"])
    found = mean_interval(samples["macs"], samples["prompt"])
    full = row["macs_reference_peta_per_video"] * 1e15
    return Interval(full / found.value, full / found.high, full / found.low)


def _psnr(bench: Bench, row: pd.Series) -> Interval:
    samples = _samples(bench, row["id"])
    return mean_interval(samples[PSNR], samples["prompt"])


def _ssim(bench: Bench, row: pd.Series) -> Interval:
    samples = _samples(bench, row["id"])
    return mean_interval(samples[SSIM], samples["prompt"])


def _errorbar(axes: Axes, x: Any, found: list[Interval], **look: Any) -> None:
    value, low, high = np.array(found).T
    axes.errorbar(
        x, value, np.nan_to_num(np.maximum([value - low, high - value], 0)), capsize=2, elinewidth=0.8, **look
    )


def _hollow(axes: Axes, x: Any, worst: list[float], look: dict[str, Any]) -> None:
    """The worst video under each mean."""
    axes.plot(
        x, worst, color=look["color"], marker=look["marker"], linestyle="", markerfacecolor="white", markersize=3.5
    )


def alpha(bench: Bench) -> Drawing:
    """Speed and quality of LFCache over its threshold factor α."""
    _require_experiment(bench, "alpha")
    rows, flash = (_settings(bench, "alpha", cached) for cached in (False, True))
    if len(rows) < 2:
        raise NotDrawnError("fewer than two α")
    figure, axes = style.panels(1, 3, height=2.4)
    for table, label, variant in ((rows, "LFCache", 0), (flash, "with BlockCache", 1)):
        look = style.of_method("precisecache", variant) | {"label": label, "markersize": 3}
        for panel, measure in zip(axes[0], (_macs_ratio, _psnr, _ssim), strict=True):
            if len(table):
                _errorbar(panel, table["alpha"], [measure(bench, row) for _, row in table.iterrows()], **look)
        for panel, metric in zip(axes[0, 1:], (PSNR, SSIM), strict=True):
            worst = [_samples(bench, row["id"])[metric].min() for _, row in table.iterrows()]
            _hollow(panel, table["alpha"], worst, look)
    paper = _published_ratios()
    for value, ratios in paper.items():
        named = {"label": "paper's LFCache"} if value == min(paper) else {}
        axes[0, 0].plot([value] * len(ratios), list(ratios), "_", color=style.BLUE, markersize=9, **named)
    for panel, label in zip(axes[0], ("speedup by MACs", "PSNR, dB", "SSIM"), strict=True):
        panel.set(xlabel="threshold factor α", ylabel=label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    title = (
        f"PreciseCache over its threshold factor α on {bench.title}; bars are intervals, hollow markers"
        " the worst video, blue dashes the MACs ratios of Base and Turbo on the four backbones of the paper's Table 1."
    )
    claims = [_carries(bench, rows, value) for value in PRESETS if (rows["alpha"] == value).any()]
    return Drawing("alpha", "alpha", bench.model, title, figure, (*claims, _falls(bench, rows)))


def _published_ratios() -> dict[float, pd.Series]:
    """MACs of the uncached call over those of Base (α 0.5) and Turbo (α 0.7), of the four backbones of Table 1."""
    table = published("table1").set_index(["model", "method"])["pmacs"].unstack("method")
    return {value: (table[NO_CACHE] / table[name]).dropna() for value, name in PRESETS.items()}


def _carries(bench: Bench, rows: pd.DataFrame, value: float) -> Claim:
    row = rows[rows["alpha"] == value].iloc[0]
    ratios = _published_ratios()[value]
    return Claim(
        f"Does α = {value:g} save what it saves in the paper?",
        f"one α for all models; their MACs fall by {ratios.min():.2f} to {ratios.max():.2f} times (§4.1, Table 1)",
        "The uncached call's MACs over LFCache's",
        _macs_ratio(bench, row),
        (round(ratios.min() * (1 - SAME), 2), round(ratios.max() * (1 + SAME), 2)),
        _samples(bench, row["id"])["prompt"].nunique(),
    )


def _falls(bench: Bench, rows: pd.DataFrame) -> Claim:
    """Quality over α, prompt by prompt; by SSIM, which an identical video has too."""
    tables = [_samples(bench, row["id"]).groupby("prompt")[SSIM].mean() for _, row in rows.iterrows()]
    scores = pd.concat(tables, axis=1, join="inner").to_numpy(float)
    values = [spearman(rows["alpha"].to_numpy(float), line) for line in scores]
    found, count = over_prompts(values, [str(number) for number in range(len(values))])
    return Claim(
        "Does quality fall as α rises?",
        "a larger threshold relaxes the bound on the degradation (appendix A.2.5)",
        "Spearman's rank correlation of SSIM with α, prompt by prompt,",
        found,
        at_most(-0.7),
        count,
    )


def downsample(bench: Bench) -> Drawing:
    """Quality and speed of LFCache by the size of its trial."""
    _require_experiment(bench, "table3")
    rows = _settings(bench, "downsample_factor")
    if len(rows) < 2:
        raise NotDrawnError("fewer than two sizes of the trial")
    timed = rows["overall_speedup_median"].notna().all()
    figure, axes = style.panels(
        1, 2 if timed else 1, width=style.PAGE if timed else style.COLUMN, height=2.6, sharey=True
    )
    for panel, by in zip(axes[0], ("MACs", "latency"), strict=False):
        for number, (_, row) in enumerate(rows.iterrows()):
            x = _macs_ratio(bench, row).value if by == "MACs" else row["overall_speedup_median"]
            look = {"color": style.CYCLE[number % len(style.CYCLE)], "marker": "osD^v"[number % 5], "linestyle": ""}
            _errorbar(panel, [x], [_psnr(bench, row)], label=_factor(row), **look)
            _hollow(panel, [x], [_samples(bench, row["id"])[PSNR].min()], look)
        panel.set_xlabel(f"speedup by {by}")
        panel.margins(x=0.12)
    axes[0, 0].set_ylabel("PSNR, dB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5 if timed else 3)
    title = (
        f"LFCache by the downsampling of its trial (frames × height × width) on {bench.title}; bars are intervals,"
        " hollow markers the worst video."
    )
    return Drawing("downsample", "downsample", bench.model, title, figure, _sizes_claims(bench, rows))


def _factor(row: pd.Series) -> str:
    return times("x".join(map(str, row["downsample_factor"])))


def _sizes_claims(bench: Bench, rows: pd.DataFrame) -> tuple[Claim, ...]:
    """The paper's size against those that it finds too small, by quality, and too large, by speed."""
    chosen = rows[rows["downsample_factor"] == SIZE]
    if not len(chosen):
        return ()
    chosen_samples, claims = _samples(bench, chosen.iloc[0]["id"]), []
    for _, row in rows.iterrows():
        other_samples = _samples(bench, row["id"])
        both = chosen_samples.merge(other_samples, on=["prompt", "seed"], suffixes=("", " theirs"))
        smaller = np.prod(row["downsample_factor"]) > np.prod(SIZE)
        if row["downsample_factor"] == SIZE or not len(both):
            continue
        if smaller:
            found, count = over_prompts(list(both[PSNR] - both[f"{PSNR} theirs"]), list(both["prompt"]))
            measured = f"PSNR at {times('2x4x4')} minus PSNR at {_factor(row)}, prompt by prompt, in dB,"
            question, span = f"Does a trial downsampled by {_factor(row)} spoil the video?", ABOVE_ZERO
            paper = "over-downsampling leads to suboptimal decisions and degraded videos (Table 3)"
        else:
            found, count = over_prompts(list(both["macs theirs"] / both["macs"]), list(both["prompt"]), geometric=True)
            measured = f"MACs at {_factor(row)} over MACs at {times('2x4x4')}, prompt by prompt,"
            question, span = f"Does a trial downsampled by {_factor(row)} only cost more?", at_least(1)
            paper = "a small ratio makes a large trial, which significantly increases the time (Table 3)"
        score = words(_psnr(bench, row))
        claims.append(Claim(question, paper, measured, found, span, count, more=f"Its PSNR is {score} dB."))
    return tuple(claims)
