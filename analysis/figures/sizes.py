"""Figure 5: the LFD of trials of several sizes beside that of the full size."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from ..load import Bench
from . import style
from .claims import Claim, Drawing, NotDrawnError, at_least, over_prompts, words
from .measures import FACTOR, Entry, array, entries, ratio, spearman

RESOLUTION, FULL = "resolution@1", "1x1x1"
ORDER = (FULL, "1x2x2", "1x4x4", "1x8x8", "2x4x4", "4x4x4")  # the paper's Table 3
KINDS = {
    "adjacent": "(a) trial against the last trial",
    "literal": "(b) trial against the last prediction, downsampled",
}
ALIKE = 0.9  # the rank correlation from which two LFDs count as consistent
NEAR = (0.8, 1.25)  # the range in which their ratio counts as 1


def fig5(bench: Bench) -> Drawing:
    """LFD over steps at each size, against the last trial and, as in Algorithm 1, against the last prediction."""
    seen = entries(bench, RESOLUTION)
    factors = [factor for factor in ORDER if all(factor in entry[RESOLUTION] for entry in seen)]
    if FULL not in factors or len(factors) < 2:
        raise NotDrawnError("no size but the full one was looked at")
    figure, axes = style.panels(1, 2, height=2.9, sharey=True)
    for panel, (kind, title) in zip(axes[0], KINDS.items(), strict=True):
        _lines(panel, seen, factors, kind)
        panel.set_title(title)
    axes[0, 0].set_ylabel("LFD, RMS")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(factors))
    title = (
        f"Figure 5 on {bench.title}: the LFD at every step of the uncached call, on latents downsampled by"
        " frames × height × width; geometric mean over prompts."
    )
    rest = [factor for factor in factors if factor not in (FULL, FACTOR)]
    notes = [] if not rest else ["The other sizes, as (a) has it. " + " ".join(_note(seen, factor) for factor in rest)]
    return Drawing("fig5", "fig5", bench.model, title, figure, _claims(seen, factors), tuple(notes))


def _lines(axes: Axes, seen: list[Entry], factors: list[str], kind: str) -> None:
    for number, factor in enumerate(factors):
        lines = np.array([array(entry[RESOLUTION][factor][kind]) for entry in seen])
        lines = np.log(np.where(lines > 0, lines, np.nan))
        has_value = ~np.isnan(lines).all(0)
        steps = np.flatnonzero(has_value)
        full = factor == FULL
        axes.plot(
            steps, np.exp(np.nanmean(lines[:, has_value], 0)), color=style.BLACK if full else style.CYCLE[number - 1],
            linewidth=1.8 if full else 1, linestyle="-" if full else style.DASHES[(number - 1) % 3],
            label="full size" if full else times(factor),
        )  # fmt: skip
    axes.set_yscale("log")
    style.over_steps(axes, len(seen[0][RESOLUTION][FULL]["adjacent"]))


def times(factor: str) -> str:
    """A factor as text shows it: `2×4×4` for `2x4x4`."""
    return factor.replace("x", "×")


def _against_full(seen: list[Entry], factor: str, kind: str) -> tuple[list[float], list[float]]:
    """For each sample the rank correlation with the LFD at full size, and the mean ratio to it."""
    pairs = [(array(entry[RESOLUTION][factor][kind]), array(entry[RESOLUTION][FULL]["adjacent"])) for entry in seen]
    return [spearman(a, b) for a, b in pairs], [ratio(a, b) for a, b in pairs]


def _claims(seen: list[Entry], factors: list[str]) -> tuple[Claim, ...]:
    factor = FACTOR if FACTOR in factors else factors[-1]
    prompt_names = [entry["prompt"] for entry in seen]
    claims = []
    for kind, name in (
        ("adjacent", "against the last trial"),
        ("literal", "against the last prediction (Algorithm 1, line 10)"),
    ):
        rhos, ratios = _against_full(seen, factor, kind)
        rho, count = over_prompts(rhos, prompt_names)
        share, _ = over_prompts(ratios, prompt_names, geometric=True)
        claims.append(
            Claim(
                f"Does the LFD of a trial {name} follow that of the full size?",
                "the two are highly consistent (§3.3, fig. 5)",
                f"Spearman's rank correlation over steps at {times(factor)}",
                rho,
                at_least(ALIKE),
                count,
            )
        )
        claims.append(
            Claim(
                f"Is the LFD of a trial {name} as large as that of the full size?",
                "downsampling has little effect on the LFD (fig. 5)",
                f"Its mean ratio to the LFD of the full size at {times(factor)}",
                share,
                NEAR,
                count,
            )
        )
    return tuple(claims)


def _note(seen: list[Entry], factor: str) -> str:
    prompt_names = [entry["prompt"] for entry in seen]
    rhos, ratios = _against_full(seen, factor, "adjacent")
    rho, share = over_prompts(rhos, prompt_names)[0], over_prompts(ratios, prompt_names, geometric=True)[0]
    return f"{times(factor)}: rank correlation {words(rho)}, ratio {words(share)}."
