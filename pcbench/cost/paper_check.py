"""The plan in reverse: how many computed steps explain the MACs that the paper prints, and which MACs none explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.table import Table

from methods import Method, PreciseCacheConfig

from .. import paper
from ..config import Run
from .dry_run import rehearse
from .estimate import Known
from .macs import PETA

# Largest relative error of a number that still fits. The paper does not say which of Open-Sora's 480P sizes it used.
UNCACHED = {"opensora": 0.05}
TOLERANCE = 0.015
MODELS = tuple(dict.fromkeys(row["model"] for row in paper.table("table1")))
SCHEDULED = ("pab", "fastercache")
OURS = ("base", "turbo", "flash")
Compose = Callable[[str, str], Run]  # composes a run from the names of a model and a method preset


@dataclass(frozen=True)
class Explained:
    """A row of Table 1.

    pmacs: as printed. trials: cost of its trials, in full steps. steps: full steps that its MACs amount to without the
    trials, out of `total`. ours: the PMACs that we compute for it, if any. why: a remark.
    """

    model: str
    method: str
    pmacs: float
    trials: float
    steps: float
    total: int
    ours: float | None
    fits: bool | None  # None: nothing to compare it with
    why: str


@dataclass(frozen=True)
class Downsampled:
    """A row of Table 3. implied: the speedup if as many steps are computed as Table 1 implies. steps: the number of
    computed steps that the printed speedup needs. trials: cost of the trials, in full steps."""

    factor: str
    trials: float
    speedup: float
    implied: float
    steps: float

    @property
    def fits(self) -> bool:
        return abs(self.implied / self.speedup - 1) < 0.05


def _known(run: Run, method: Method | None = None) -> Known:
    run = run if method is None else replace(run, recipe=replace(run.recipe, method=method), preset=None)
    return Known(run, rehearse(run.recipe))


def table1(models: Sequence[str], compose: Compose) -> list[Explained]:
    """Every row of the paper's Table 1 for these backbones; their configs have the paper's workloads."""
    rows: list[Explained] = []
    for model in models:
        printed = {row["method"]: row for row in paper.table("table1") if row["model"] == model}
        published = {method: float(row["pmacs"]) for method, row in printed.items()}
        presets = {method: paper.to_the_letter(row) for method, row in printed.items()}
        turbo = _known(compose(model, presets["turbo"]))
        total, trials = turbo.rehearsal.steps, turbo.trial.total / turbo.step.total
        for method, pmacs in published.items():
            own_trials = trials if method in OURS else 0.0
            steps = pmacs / published["none"] * total - own_trials
            ours, fits, why = _judge(method, model, partial(compose, model, presets[method]), published, turbo, steps)
            rows.append(Explained(model, method, pmacs, own_trials, steps, total, ours, fits, why))
    return rows


def _judge(
    method: str, model: str, compose: Callable[[], Run], published: dict[str, float], turbo: Known, steps: float
) -> tuple[float | None, bool | None, str]:
    """The PMACs that we compute, whether the printed ones fit them, and a remark."""
    total = turbo.rehearsal.steps
    uncached = total * turbo.step.total / PETA
    if method == "none":
        off = uncached / published["none"] - 1
        return uncached, abs(off) <= UNCACHED.get(model, TOLERANCE), f"{off:+.1%}"
    if method in SCHEDULED:
        scheduled = _known(compose())
        ours = scheduled.upper.total / PETA * published["none"] / uncached
        off = ours / published[method] - 1
        return ours, abs(off) <= TOLERANCE, f"{off:+.1%} by the schedule of its preset here"
    if method == "flash":
        trials = turbo.trial.total / turbo.step.total
        turbo_steps = published["turbo"] / published["none"] * total - trials
        flash = _known(compose())
        ours = flash.at(turbo_steps).total / PETA * published["none"] / uncached
        printed, computed = published["flash"] / published["turbo"], ours / published["turbo"]
        why = f"{printed:.2f} of turbo; 40 % of blocks cached and L = 3 make it {computed:.2f}"
        return ours, abs(computed / printed - 1) <= TOLERANCE, why
    return None, None, f"a run that computes {steps:.1f} of {total} costs this; the setting decides"


def table3(run: Run) -> list[Downsampled]:
    """Every row of Table 3 but the first, on Turbo's run of Wan2.1-14B at Table 1's workload."""
    rows = {row["factor"]: float(row["latency_s"]) for row in paper.table("table3")}
    base, turbo = _known(run), run.recipe.method
    assert isinstance(turbo, PreciseCacheConfig)
    total = base.rehearsal.steps
    implied = paper.implied_share("wan", "precisecache_turbo")
    assert implied is not None
    computed = implied[1] * total - base.trial.total / base.step.total
    explained = []
    for factor, latency in rows.items():
        if factor == "none":
            continue
        frames, height, width = map(int, factor.split("x"))
        known = _known(run, replace(turbo, downsample_factor=(frames, height, width)))
        trials, speedup = known.trial.total / known.step.total, rows["none"] / latency
        explained.append(Downsampled(factor, trials, speedup, total / (computed + trials), total / speedup - trials))
    return explained


def show(models: Sequence[str], compose: Compose, say: Callable[[str], None] = print) -> None:
    """Print Table 1's rows, Table 3's if "wan" is among the models, and a line for each row that does not fit."""
    rows = table1(models, compose)
    cells = [
        (
            f"{r.model} {r.method}", f"{r.pmacs:g}", f"{r.trials:.2f}" if r.trials else "", f"{r.steps:.1f}/{r.total}",
            "" if r.ours is None else f"{r.ours:.4g}", {True: "yes", False: "NO", None: "any"}[r.fits], r.why,
        )
        for r in rows
    ]  # fmt: skip
    _print("Table 1", ("row", "PMACs", "trials", "full steps", "foreseen", "fits?", ""), cells, say)
    say("full steps: PMACs over the row's own uncached ones, times the steps, less the trials (in full steps).")
    say("foreseen: our MACs, scaled to the paper's uncached ones (none: as they are).")
    misfits = [f"{r.model} {r.method} ({r.why})" for r in rows if r.fits is False]
    if "wan" in models:
        third = table3(compose("wan", "precisecache_turbo"))
        table3_cells = [
            (d.factor, f"{d.trials:.2f}", f"{d.speedup:.2f}", f"{d.implied:.2f}", f"{d.steps:.1f}", _yes(d.fits))
            for d in third
        ]
        heads = ("factor", "trials", "speedup printed", "speedup by MACs", "steps that would explain it", "fits?")
        _print("Table 3, Wan2.1-14B, as many steps computed as Turbo's in Table 1", heads, table3_cells, say)
        misfits += [f"Table 3 {d.factor} ({d.speedup:.2f}, MACs say {d.implied:.2f})" for d in third if not d.fits]
    for misfit in misfits:
        say(f"does not fit: {misfit}")


def _yes(fits: bool) -> str:
    return "yes" if fits else "NO"


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], say: Callable[[str], None]) -> None:
    grid = Table(title=title, title_justify="left")
    for name in heads:
        grid.add_column(name, justify="left" if name in ("row", "factor", "") else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console = Console(highlight=False, width=400)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().rstrip().splitlines():
        say(line)
