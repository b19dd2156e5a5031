"""Every figure of the paper from records, with its claims answered in words: `python -m analysis figures [results]`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pcbench.store import write_whole

from ..command import Parser, run
from ..load import Bench, benches, file_names
from . import blocks, bound, budget, choices, fewsteps, pareto, quality, reuse, sizes, steps, strips, style, trial_map
from .claims import BRACKETS, Claim, Drawing, NotDrawnError
from .highlight import DEFAULT, Options, read_oracle

__all__ = [
    "Claim", "Drawing", "NotDrawnError", "Options", "claims_table", "drawings", "main", "read_oracle", "write",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of figure, and the experiment whose records it shows.

    each: whether a model has one per bench. together: which benches of an experiment it is drawn from at once, as a
    list: those of which this function says the same; None: one alone. compares: whether it takes `options`, which say
    what stands out among methods.
    """

    name: str
    made_by: str
    draw: Callable[..., Drawing]
    each: bool = False
    together: Callable[[Bench], str] | None = None
    compares: bool = False


def everything(bench: Bench) -> str:
    """For figures of all benches of an experiment."""
    return ""


KINDS = (
    Kind("fig2", "fig2", reuse.fig2),
    Kind("fig2-videos", "fig2", strips.fig2),
    Kind("fig3", "fig3", steps.fig3),
    Kind("fig4", "fig4", steps.fig4),
    Kind("fig5", "fig5", sizes.fig5),
    Kind("fig6", "fig6", blocks.fig6),
    Kind("fig7", "fig7", strips.fig7),
    Kind("trial-map", "trial_map", trial_map.trial_map),
    Kind("gap", "trial_map", trial_map.gap, together=everything),
    Kind("bound", "bound", bound.bound),
    Kind("alpha", "alpha", quality.alpha),
    Kind("ambiguities", "ambiguities", choices.ambiguities),
    Kind("downsample", "table3", quality.downsample),
    Kind("pareto", "table1", pareto.pareto, each=True, compares=True),
    Kind("pareto-ssim", "table1", partial(pareto.pareto, view=pareto.BY_SSIM), each=True, compares=True),
    Kind("pareto-latency", "table1", partial(pareto.pareto, view=pareto.BY_LATENCY), each=True, compares=True),
    Kind("budget", "budget", budget.budget, together=everything, compares=True),
    Kind("fewsteps", "fewsteps", fewsteps.fewsteps, together=fewsteps.alike, compares=True),
)


@style.uncollected()
def drawings(results: Path, options: Options = DEFAULT) -> tuple[list[Drawing], list[str]]:
    """Every figure that the records under a folder suffice for; and one line for each kind that has no figure.

    Raises ValueError if there are no records at all, or none of what the options name.
    """
    found_benches = benches(results)
    options.check(found_benches)
    found: list[Drawing] = []
    missing: list[str] = []
    for kind in KINDS:
        drawn, reasons = [], []
        draw = partial(kind.draw, options=options) if kind.compares else kind.draw
        for group in _groups(kind, found_benches):
            try:
                with style.styled():
                    drawn.append((group[0], draw(group if kind.together else group[0])))
            except NotDrawnError as error:
                reasons += [str(error)] if str(error) else []
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # one record ends no other figure
                what = f"{type(error).__name__}: {' '.join(str(error).split())}"
                missing.append(f"{kind.name}: not drawn of {group[0].experiment} on {group[0].heading}, {what}")
        found += _named(kind, drawn)
        if not drawn:
            command = f"python -m pcbench +experiment={kind.made_by} (or {kind.made_by}_tiny)"
            missing.append(f"{kind.name}: not drawn, {reasons[-1] if reasons else 'no records'}; {command} makes it")
    return found, missing


def _groups(kind: Kind, found: Sequence[Bench]) -> list[list[Bench]]:
    """The benches that each figure of a kind is drawn from."""
    if kind.together is None:
        return [[bench] for bench in found]
    groups: dict[tuple[str, str], list[Bench]] = {}
    for bench in found:
        groups.setdefault((bench.experiment, kind.together(bench)), []).append(bench)
    return list(groups.values())


def _named(kind: Kind, drawn: list[tuple[Bench, Drawing]]) -> list[Drawing]:
    """Drawings of one kind, each with the shortest name that tells it from the others. Of two that could have one
    name, the one with more records gets it."""
    folders = file_names(bench.experiment for bench, _ in drawn)

    def names(bench: Bench) -> list[str]:
        folder = folders[bench.experiment]
        if kind.together:
            candidates = [kind.name if folder == kind.name else f"{kind.name}-{folder}"]
        else:
            candidates = [f"{kind.name}-{bench.model}"] if not kind.each else []
        candidates += [f"{kind.name}-{folder}-{bench.model}"]
        endings = (bench.reference, bench.machine, f"{bench.reference}-{bench.machine}")
        return [*candidates, *(f"{candidates[-1]}-{end}" for end in endings)]

    sizes: dict[str, list[int]] = {}
    for bench, _ in drawn:
        for name in names(bench):
            sizes.setdefault(name, []).append(len(bench.records))

    def is_free(name: str, bench: Bench) -> bool:
        *others, most = sorted(sizes[name])
        return not others or others[-1] < most == len(bench.records)

    return [
        replace(drawing, name=next((name for name in names(bench) if is_free(name, bench)), names(bench)[-1]))
        for bench, drawing in drawn
    ]


def write(results: Path, out: Path, say: Callable[[str], None] = print, options: Options = DEFAULT) -> int:
    """Write <name>.pdf, .png and .md of every figure, and claims.md, which has all answers in one table.

    Reports what is missing, and the command that makes it. Returns the number of figures. Raises ValueError if there
    are no records, or none of what the options name.
    """
    found, missing = drawings(results, options)
    for drawing in found:
        start = time.perf_counter()
        style.save(drawing.figure, out / drawing.name)
        _write_text(out / f"{drawing.name}.md", drawing.caption)
        say(f"{out / drawing.name}.pdf, .png, .md ({time.perf_counter() - start:.1f} s)")
    if any(drawing.claims for drawing in found):
        _write_text(out / "claims.md", claims_table(found))
        say(str(out / "claims.md"))
    for line in missing:
        say(line)
    return len(found)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def claims_table(found: Sequence[Drawing]) -> str:
    """Every claim in one Markdown table."""
    rows = [
        f"| {drawing.name} | {claim.question} | **{claim.answer}** | {claim.measured.rstrip(',')} | {claim.number} |"
        f" {claim.yes} | {claim.prompts} |"
        for drawing in found
        for claim in drawing.claims
    ]
    head = [
        "| figure | question | answer | measured | is | yes would be | prompts |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows, "", BRACKETS, *_beside(found)]) + "\n"


def _beside(found: Sequence[Drawing]) -> list[str]:
    """The answers of several models beside one another, a line for each question that more than one of them answers.
    Models that answer fewer than half of these have no column."""
    answers: dict[tuple[str, str], dict[str, list[Claim]]] = {}
    for drawing in found:
        for claim in drawing.claims:
            question = claim.question.replace(f", on {claim.model}?", "?")
            of_model = answers.setdefault((drawing.kind, question), {})
            of_model.setdefault(claim.model or drawing.model, []).append(claim)
    shared = {key: each for key, each in answers.items() if len(each) > 1 and max(map(len, each.values())) == 1}
    counts = Counter(model for each in shared.values() for model in each)
    models = sorted(model for model, count in counts.items() if 2 * count >= len(shared))
    if len(models) < 2:
        return []
    rows = []
    for (kind, question), each in shared.items():
        cells = [f"**{each[model][0].answer}**: {each[model][0].number}" if model in each else "–" for model in models]
        (yes, *_) = (claim.yes for (claim,) in each.values())
        rows.append(f"| {kind} | {question} | {' | '.join(cells)} | {yes} |")
    head = [f"| figure | question | {' | '.join(models)} | yes would be |", f"|---|---|{'---|' * len(models)}---:|"]
    return ["", "What several backbones answer, beside one another:", "", *head, *rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figures; exit code 2 with one line if there is nothing to draw from."""
    parser = Parser(prog="analysis figures", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="folder with records in it")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to write to")
    parser.add_argument("--highlight", help="methods or curves that stand out, separated by commas")
    parser.add_argument(
        "--oracle", type=Path, help="summaries of pcbench.oracle, or JSON {model: [[speedup, PSNR], …]}"
    )
    args = parser.parse_args(argv)

    def work() -> str:
        highlight = args.highlight.split(",") if args.highlight else None
        options = Options(highlight, read_oracle(args.oracle) if args.oracle else [])
        return f"{write(args.results, args.out, options=options)} figures"

    return run(work)
