"""Figures 3 and 4: what reuse at one step does to the video, how predictions change, and if the change predicts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..load import Bench
from . import style
from .claims import ABOVE_ZERO, Claim, Drawing, NotDrawnError, at_least, at_most, over_prompts, words
from .measures import FACTOR, Entry, array, entries, quarters, ratio, spearman, stretch

IMPACT, DIFFERENCE, RESOLUTION, BOUND = "impact@1", "difference@1", "resolution@1", "bound@1"
PARTS = {"whole": "whole prediction", "low": "low frequencies", "high": "high frequencies"}
LETTERS = "abc"
CLOSELY = 0.7  # the rank correlation from which one counts as tracking the other
MEASURES = {"video_mse": "MSE of the video", "latent_rmse": "RMSE of the latent"}


def _part(name: str, measure: str) -> Callable[[Entry], np.ndarray]:
    return lambda entry: array(entry[DIFFERENCE][name][measure])


def _trial(kind: str) -> Callable[[Entry], np.ndarray]:
    return lambda entry: array(entry[RESOLUTION][FACTOR][kind])


def _weighted(entry: Entry) -> np.ndarray:
    return array(entry[BOUND]["final_prediction"]) * _part("whole", "rms")(entry)


# What could predict the impact: name -> array over an entry's steps. KeyError where it was not observed.
PREDICTORS: dict[str, Callable[[Entry], np.ndarray]] = {
    "LFD, full size": _part("low", "rms"),
    "LFD, trial 2×4×4": _trial("adjacent"),
    "LFD, trial, literal": _trial("literal"),
    "plain difference": _part("whole", "rms"),
    "plain, relative": _part("whole", "relative"),
    "high frequencies": _part("high", "rms"),
    "plain × solver's weight": _weighted,
}
LFD, TRIAL, PLAIN, WEIGHTED = "LFD, full size", "LFD, trial 2×4×4", "plain difference", "plain × solver's weight"


def fig3(bench: Bench) -> Drawing:
    """Impact of reusing the last prediction at each step; rank correlations of what could predict it."""
    seen = [entry for entry in entries(bench, IMPACT, DIFFERENCE) if _stride(entry)]
    if not seen:
        raise NotDrawnError("no prompt whose impact was observed to the last step")
    steps = np.arange(len(seen[0][IMPACT]["whole"]["video_mse"]))
    figure, axes = style.panels(2, 2, height=4.6)
    flat = axes.ravel()
    for place, (name, description) in enumerate(PARTS.items()):
        panel = flat[place]
        style.by_prompt(panel, steps, [_positive(entry[IMPACT][name]["video_mse"]) for entry in seen])
        panel.set(yscale="log", title=f"({LETTERS[place]}) {description} reused")
        style.over_steps(panel, len(steps))
        panel.set_ylabel("MSE of the video")
    limits = np.array([panel.get_ylim() for panel in flat[:3]])
    for panel in flat[:3]:
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    flat[0].legend(loc="upper center")
    _correlations(flat[3], seen)
    flat[3].set_title("(d) what foretells (a)")
    claims = [_tracks(seen, LFD, "the LFD", "it closely aligns with the impact (fig. 3a, 4b)")]
    if _has(seen, TRIAL):
        claims.append(_tracks(seen, TRIAL, "the trial's LFD", "it can be used as an effective indicator (§3.3)"))
    claims += [_better(seen), _negligible_late(seen), _negligible_high(seen)]
    notes = [_weights(seen)] if _has(seen, WEIGHTED) else []
    title = (
        f"Figure 3 on {bench.title}: the last prediction reused at one step at a time, all others computed;"
        f" {_tried(seen)}. Thin lines are prompts. (d) Spearman's rank correlation over steps with the impact of"
        " reusing the whole."
    )
    return Drawing("fig3", "fig3", bench.model, title, figure, tuple(claims), tuple(notes))


def _positive(values: list[float | None]) -> np.ndarray:
    """The values for a logarithmic axis: NaN for zero, which is not drawn."""
    found = array(values)
    return np.where(found > 0, found, np.nan)


def _impact(entry: Entry, measure: str = "video_mse", part: str = "whole") -> np.ndarray:
    return array(entry[IMPACT][part][measure])


def _stride(entry: Entry) -> int:
    """Steps from one observation of the impact to the next; 0 if they stopped before the last step."""
    tried = np.flatnonzero(~np.isnan(_impact(entry, "latent_rmse", "high")))  # the last part to be tried at a step
    stride = int(tried[1] - tried[0]) if len(tried) > 1 else 0
    whole = stride and list(tried) == list(range(tried[0], len(_impact(entry)), stride))
    return stride if whole else 0


def _tried(seen: list[Entry]) -> str:
    """`every step was tried`, `every 2nd step or every 5th step was tried`."""
    ordinals = {1: "", 2: "2nd ", 3: "3rd "}
    strides = sorted({_stride(entry) for entry in seen})
    return " or ".join(f"every {ordinals.get(stride, f'{stride}th ')}step" for stride in strides) + " was tried"


def _has(seen: list[Entry], predictor: str) -> bool:
    try:
        return all(PREDICTORS[predictor](entry).size for entry in seen)
    except KeyError:
        return False


def _rho(seen: list[Entry], predictor: str, measure: str = "video_mse") -> list[float]:
    return [spearman(PREDICTORS[predictor](entry), _impact(entry, measure)) for entry in seen]


def _prompts(seen: list[Entry]) -> list[str]:
    return [entry["prompt"] for entry in seen]


def _correlations(axes: Axes, seen: list[Entry]) -> None:
    shown = [name for name in PREDICTORS if _has(seen, name)]
    for offset, (measure, label) in zip((-0.12, 0.12), MEASURES.items(), strict=True):
        found = [over_prompts(_rho(seen, name, measure), _prompts(seen))[0] for name in shown]
        value, low, high = np.array(found).T
        axes.errorbar(
            value, np.arange(len(shown)) + offset, xerr=_bars(value, low, high), fmt="o", capsize=2, elinewidth=0.8,
            color=style.BLUE, markerfacecolor=style.BLUE if measure == "video_mse" else "white", label=label,
        )  # fmt: skip
    axes.axvline(0, color=style.GREY, linewidth=0.6)
    axes.axvline(CLOSELY, color=style.GREY, linewidth=0.6, linestyle="--")
    axes.set(yticks=range(len(shown)), yticklabels=shown, xlim=(-1.05, 1.05), xlabel="rank correlation with the impact")
    axes.invert_yaxis()
    axes.legend(loc="best")


def _bars(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
    return np.nan_to_num(np.maximum([value - low, high - value], 0))


def _tracks(seen: list[Entry], predictor: str, name: str, paper: str) -> Claim:
    found, count = over_prompts(_rho(seen, predictor), _prompts(seen))
    more = ""
    if found.high < CLOSELY and found.low > 0:
        more = "It does rise with the impact, but loosely."
    latent = over_prompts(_rho(seen, predictor, "latent_rmse"), _prompts(seen))[0]
    return Claim(
        f"Does {name} track the impact of reuse?",
        paper,
        f"Spearman's rank correlation of {name} with the MSE of the video, over steps",
        found,
        at_least(CLOSELY),
        count,
        more=" ".join(filter(None, [more, f"With the RMSE of the latent it is {words(latent)}."])),
    )


def _better(seen: list[Entry]) -> Claim:
    advantage = np.array(_rho(seen, LFD)) - np.array(_rho(seen, PLAIN))
    found, count = over_prompts(list(advantage), _prompts(seen))
    plain = over_prompts(_rho(seen, PLAIN), _prompts(seen))[0]
    return Claim(
        "Does the LFD track the impact of reuse better than the plain difference?",
        "the plain difference does not align with the impact, its low frequencies do (§3.2, fig. 4a, 4b)",
        "The LFD's rank correlation minus the plain difference's, prompt by prompt,",
        found,
        ABOVE_ZERO,
        count,
        more=f"The plain difference's own is {words(plain)}.",
    )


def _negligible_late(seen: list[Entry]) -> Claim:
    found, count = over_prompts([quarters(_impact(entry)) for entry in seen], _prompts(seen), geometric=True)
    return Claim(
        "Is reuse harmless at low noise?",
        "it matters at early steps, at later ones its impact is negligible (fig. 3a)",
        "The mean MSE of the last quarter of the steps over that of the first",
        found,
        at_most(0.1),
        count,
    )


def _negligible_high(seen: list[Entry]) -> Claim:
    def ratios(part: str) -> list[float]:
        return [ratio(_impact(entry, part=part), _impact(entry)) for entry in seen]

    found, count = over_prompts(ratios("high"), _prompts(seen), geometric=True)
    low = over_prompts(ratios("low"), _prompts(seen), geometric=True)[0]
    return Claim(
        "Is reuse of the high frequencies harmless?",
        "the low frequencies predominantly affect the result, the high ones have a negligible influence (fig. 3b, 3c)",
        "The MSE with the high frequencies reused over that with the whole reused, geometric mean over steps,",
        found,
        at_most(0.1),
        count,
        more=f"With the low frequencies reused it is {words(low)}.",
    )


def _weights(seen: list[Entry]) -> str:
    """A note on what the paper does not try: the change times the solver's weight (one constant per step)."""
    rho, latent = _rho(seen, WEIGHTED), _rho(seen, WEIGHTED, "latent_rmse")
    found, count = over_prompts(rho, _prompts(seen))
    advantage = over_prompts(list(np.array(rho) - np.array(_rho(seen, LFD))), _prompts(seen))[0]
    return (
        "Not in the paper: the plain difference times the solver's weight of the step (how far the final latent moves"
        f" per change of that step's prediction) has a rank correlation of {words(found)} with the MSE of the video,"
        f" {words(over_prompts(latent, _prompts(seen))[0])} with the RMSE of the latent. Minus the LFD's, prompt by"
        f" prompt, the former is {words(advantage)}, n = {count}."
    )


def fig4(bench: Bench) -> Drawing:
    """How much predictions change from step to step, whole and by frequency."""
    seen = entries(bench, DIFFERENCE)
    steps = np.arange(len(seen[0][DIFFERENCE]["whole"]["rms"]))
    figure, axes = style.panels(1, 3, sharey=True)
    for place, (name, description) in enumerate(PARTS.items()):
        panel = axes[0, place]
        style.by_prompt(panel, steps, [_positive(entry[DIFFERENCE][name]["rms"]) for entry in seen])
        panel.set(yscale="log", title=f"({LETTERS[place]}) {description}")
        style.over_steps(panel, len(steps))
    axes[0, 0].set_ylabel("change of the prediction, RMS")
    axes[0, 0].legend(loc="upper center")
    title = (
        f"Figure 4 on {bench.title}: the change of the prediction since the step before, RMS per element; its low part"
        " is the LFD. Thin lines are prompts."
    )
    return Drawing("fig4", "fig4", bench.model, title, figure, _changes(seen))


def _changes(seen: list[Entry]) -> tuple[Claim, ...]:
    def change(entry: Entry, part: str) -> np.ndarray:
        return array(entry[DIFFERENCE][part]["rms"])

    def late(entry: Entry) -> float:
        whole = change(entry, "whole")
        return stretch(whole, 0.75, 1) / stretch(whole, 0.25, 0.75)

    def share(entry: Entry) -> float:
        return stretch(change(entry, "high") ** 2, 0.75, 1) / stretch(change(entry, "whole") ** 2, 0.75, 1)

    prompt_names = _prompts(seen)
    rise, count = over_prompts([late(entry) for entry in seen], prompt_names, geometric=True)
    high, _ = over_prompts([share(entry) for entry in seen], prompt_names)
    fall, _ = over_prompts([quarters(change(entry, "low")) for entry in seen], prompt_names, geometric=True)
    return (
        Claim(
            "Do predictions change much at low noise?",
            "the difference is relatively large in the low-noise stage (fig. 4a)",
            "The mean change in the last quarter of the steps over that in the middle half",
            rise,
            at_least(1),
            count,
        ),
        Claim(
            "Is the change of predictions at low noise of high frequency?",
            "the difference there primarily arises from high-frequency components (fig. 4c)",
            "The high frequencies' share of the squared change in the last quarter",
            high,
            at_least(0.5),
            count,
        ),
        Claim(
            "Does the LFD fall from high noise to low noise?",
            "it closely aligns with the impact, which does (fig. 4b)",
            "The mean LFD of the last quarter of the steps over that of the first",
            fall,
            at_most(1),
            count,
        ),
    )
