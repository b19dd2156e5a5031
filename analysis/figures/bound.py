"""Appendix A.2: the final error of runs with a cache against their threshold δ, and the bound's steps one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..load import Bench
from . import style
from .claims import Claim, Drawing, NotDrawnError, at_least, at_most, over_prompts, words
from .measures import array, entries, power, through_zero

BOUND, DEVIATION = "bound@1", "deviation@1"
KEYS = ["prompt", "seed"]
LINEAR = 0.9  # the R² from which a line through 0 counts as a fit
UNIT = (0.8, 1.25)  # the range in which an exponent counts as 1


def bound(bench: Bench) -> Drawing:
    """Error against δ with both bounds; deviations of the predictions over the steps of one run."""
    runs = _runs(bench)
    figure, axes = style.panels(1, 2, height=2.8, width_ratios=(1, 1))
    _errors(axes[0, 0], runs)
    shown = _steps(axes[0, 1], runs)
    title = (
        f"The bound of appendix A.2 on {bench.title}. (a) Distance of the final latent from the uncached one, RMS, of"
        " runs of PreciseCache with several thresholds δ; a point is a prompt and a threshold, lines are mean bounds."
        f" (b) Distance of every step's prediction from the uncached call's, {shown}."
    )
    return Drawing("bound", "bound", bench.model, title, figure, _claims(runs))


def _runs(bench: Bench) -> pd.DataFrame:
    """One row per sample with a cache: δ, alpha, error (final latent) and video, the deviations and actions over steps,
    and its prompt's bounds: `product` (C_Z of (30) times δ) and `sum` (a sum in the product's place, sharper)."""
    factors = {(e["prompt"], e["seed"]): e[BOUND]["factors"] for e in entries(bench, BOUND)}
    rows = []
    for record in bench.raw:
        samples = {(sample["prompt"], sample["seed"]): sample for sample in record["samples"]}
        for entry in record.get("observations", []):
            key = entry["prompt"], entry["seed"]
            if DEVIATION in entry and entry[DEVIATION]["delta"] is not None and key in factors:
                rows.append(_row(record, entry, factors[key], samples[key]["trace"]["actions"]))
    if not rows:
        raise NotDrawnError("no deviation of a run with a threshold observed")
    return pd.DataFrame(rows).sort_values([*KEYS, "delta"], ignore_index=True)


def _row(record: dict[str, Any], entry: dict[str, Any], factors: dict[str, float], actions: str) -> dict[str, Any]:
    seen, kind = entry[DEVIATION], "trial" if "C_Z_trial" in factors else "full"
    delta = seen["delta"]
    return {
        **{key: entry[key] for key in KEYS},
        "alpha": record["recipe"]["method"].get("alpha"),
        "delta": delta,
        "error": seen["latent"][-1],
        "video": seen["video"],
        "deviations": array(seen["prediction"]),
        "actions": actions,
        "product": factors[f"C_Z_{kind}"] * delta,
        "sum": factors[f"sum_{kind}"] * delta,
        "step": factors[f"c_{kind}"] * delta,
        "c_full": factors["c_full"],
    }


def _errors(axes: Axes, runs: pd.DataFrame) -> None:
    reused = runs[runs["error"] > 0]
    for number, (_, group) in enumerate(reused.groupby(KEYS)):
        axes.plot(group["delta"], group["error"], "o", markersize=2.5, color=style.CYCLE[number % 6], alpha=0.8)
    if len(reused):
        ends = np.array([reused["delta"].min(), reused["delta"].max()])
        slopes = {name: (runs[name] / runs["delta"]).mean() for name in ("product", "sum")}
        axes.plot(ends, slopes["product"] * ends, color=style.BLACK, label="bound, (31)")
        axes.plot(ends, slopes["sum"] * ends, color=style.BLACK, linestyle="--", label="bound, sharper")
        line = (reused["delta"] * reused["error"]).sum() / (reused["delta"] ** 2).sum()
        axes.plot(ends, line * ends, color=style.GREY, linestyle=":", label="line through 0")
        axes.set(xscale="log", yscale="log")
    axes.set(title="(a) final error", xlabel="threshold δ", ylabel="error of the final latent, RMS")
    axes.legend(loc="center", bbox_to_anchor=(0.5, 0.53))  # between the bounds and what they bound


def _steps(axes: Axes, runs: pd.DataFrame) -> str:
    """Draw the run of median threshold among those that reuse; return a text that names it."""
    reused = runs[runs["error"] > 0]
    if not len(reused):
        return "no run reuses a step"
    run = reused.sort_values("delta", kind="stable").iloc[len(reused) // 2]
    steps, computed = np.arange(len(run["actions"])), _computed(run["actions"])
    axes.plot(steps, run["deviations"], color=style.GREY, linewidth=0.6)
    for chosen, label, colour, marker in (
        (~computed, "reused", style.ORANGE, "o"),
        (computed, "computed: (22) says 0", style.BLUE, "s"),
    ):
        axes.plot(steps[chosen], run["deviations"][chosen], marker, color=colour, markersize=3, label=label)
    highest = max(float(np.nanmax(run["deviations"])), 1e-12)
    axes.axhline(run["step"], color=style.BLACK, linewidth=1, label=f"bound, (23): {run['step']:.2g}")
    axes.set(title="(b) one run, step by step", ylabel="deviation of the prediction, RMS")
    axes.set_ylim(-0.03 * highest, min(1.1 * run["step"], 2 * highest) if run["step"] > highest else 1.1 * highest)
    style.over_steps(axes, len(steps))
    axes.legend(loc="best")
    return f"“{run['prompt']}” at α = {run['alpha']:g}"


def _computed(actions: str) -> np.ndarray:
    return np.array([action != "r" for action in actions])


def _after_reuse(run: pd.Series) -> float:
    """The largest deviation at a computed step over that at a reused one; NaN if none follows a reuse."""
    computed = _computed(run["actions"])
    after = computed & (np.arange(len(computed)) > np.argmax(~computed))
    if computed.all() or not after.any():
        return float("nan")
    return float(run["deviations"][after].max() / run["deviations"][~computed].max())


def _claims(runs: pd.DataFrame) -> tuple[Claim, ...]:
    by_prompt = [group for _, group in runs.groupby(KEYS)]
    prompt_names = [str(group["prompt"].iloc[0]) for group in by_prompt]
    r2, n_line = over_prompts(
        [through_zero(g["delta"].to_numpy(), g["error"].to_numpy()) for g in by_prompt], prompt_names
    )
    exponent, n = over_prompts([power(g["delta"].to_numpy(), g["error"].to_numpy()) for g in by_prompt], prompt_names)
    video, _ = over_prompts([power(g["delta"].to_numpy(), g["video"].to_numpy()) for g in by_prompt], prompt_names)
    claims = [
        Claim(
            "Is the final error linear in δ?",
            "it is bounded linearly in the threshold δ (appendix A.2, (31))",
            "R² of a line through 0, error of the final latent against δ, prompt by prompt,",
            r2,
            at_least(LINEAR),
            n_line,
        ),
        Claim(
            "Does the final error grow with the first power of δ?",
            "it is bounded linearly in the threshold δ (appendix A.2, (31))",
            "The exponent of a power law, error of the final latent against δ, prompt by prompt,",
            exponent,
            UNIT,
            n,
            more=f"Of the RMS error of the video it is {words(video)}.",
        ),
    ]
    return (*claims, *_links(runs))


def _links(runs: pd.DataFrame) -> tuple[Claim, ...]:
    """The bound and its steps, each of which a single run can refute."""
    reused, prompts = runs[runs["error"] > 0], runs["prompt"].nunique()

    def largest(values: pd.Series) -> Any:
        return over_prompts([values.max()], [""])[0] if values.notna().any() else over_prompts([np.nan], [""])[0]

    slack = {name: (reused[name] / reused["error"]).median() for name in ("product", "sum")}
    within = reused["deviations"].map(np.nanmax) / reused["step"]
    after = reused.apply(_after_reuse, axis=1) if len(reused) else pd.Series(dtype=float)
    return (
        Claim(
            "Does the bound hold?",
            "the final error is at most C_Z δ (appendix A.2, (31))",
            f"The largest error over its bound, of {len(reused)} runs that reuse something,",
            largest(reused["error"] / reused["product"]),
            at_most(1),
            prompts,
            exact=True,
            more=f"It is loose: in the median {slack['product']:.3g} times the error; a sum over the solver's steps in"
            f" place of the product (30) is {slack['sum']:.3g} times the error.",
        ),
        Claim(
            "Is every prediction within c_LF δ of the uncached one?",
            "it is, at every step (appendix A.2, (23))",
            "The largest deviation of a prediction over its bound",
            largest(within),
            at_most(1),
            prompts,
            exact=True,
        ),
        Claim(
            "Do computed steps predict what the uncached call predicts?",
            "their deviation is 0 (appendix A.2, (22))",
            "After a reuse the largest deviation at a computed step, over the largest at a reused one of the same run,",
            largest(after),
            (0.0, 0.0),
            prompts,
            exact=True,
            more="A computed step starts from a latent that reuse has moved.",
        ),
        Claim(
            "Is the change of predictions of low frequency?",
            "its whole is at most c_LF times its low part, dominated by it (appendix A.2, assumption 2, (20))",
            "The largest c_LF, full predictions,",
            largest(runs["c_full"]),
            at_most(2**0.5),
            prompts,
            exact=True,
            more="At √2 the low part has half of the squared change.",
        ),
    )
