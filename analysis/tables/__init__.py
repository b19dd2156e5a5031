"""Tables from records, in Markdown, LaTeX and CSV: `python -m analysis tables [results] [--out tables]`.

An experiment is a folder of records. `table1` to `table4` get the layout of the paper's table of that number; every
other gets the general one, the paired comparisons of pareto.py where its methods have several settings, and all get
their worst videos. A row's latency and speedup come from its own record, timed in one process: two machines, or two
uncached references, are two blocks and never share a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import pareto
from ..command import Parser, publish, run
from ..load import Bench, experiments, file_names
from ..render import Block, Cell, Table
from ..stats import worst
from . import budget, choices, oracle
from .cells import Row
from .layouts import Layout, layout_of
from .noise import noise_floor
from .videos import complete

CONVENTION = "raw"
WORST = 10


def tables(results: Path, convention: str = CONVENTION, against: str | None = None, more: bool = False) -> list[Table]:
    """Every table of a results folder. convention: whose PSNR, SSIM and LPIPS (docs/fidelity.md).

    against: the curve to compare with at equal speed and quality. more: whether the paper's tables get the columns that
    they lack, the worst prompt and peak memory. Raises ValueError if there are no records.
    """
    made, found = [], experiments(results)
    _check(convention, [bench for benches in found.values() for bench in benches])
    names = file_names(found)
    for experiment, benches in found.items():
        name = names[experiment]
        layout = layout_of(benches[0]).with_more() if more else layout_of(benches[0])
        made.append(main_table(name, layout, benches, convention))
        made += pareto.tables(name, benches, against) if layout.curves else []
        made += budget.tables(name, benches, layout.budgets) if layout.budgets else []
        made += oracle.tables(name, benches)
        made += choices.tables(name, benches) if layout.choices else []
        made += worst_table(name, benches, convention)
    return made


def _check(convention: str, benches: Sequence[Bench]) -> None:
    """Raise ValueError for a convention of which no record has a score."""
    scored = {str(name).partition("@")[0] for bench in benches for name in bench.samples if "@" in str(name)}
    conventions = {name.rpartition(".")[0] or CONVENTION for name in scored} | {CONVENTION}
    if convention not in conventions:
        raise ValueError(f"no record has scores by {convention!r}; there are: {', '.join(sorted(conventions))}")


def main_table(name: str, layout: Layout, benches: Sequence[Bench], convention: str = CONVENTION) -> Table:
    """One row per record, one block per bench, in the layout's order. `layout.optional` columns go if all missing."""
    rows: dict[str, list[Row]] = {}
    notes = []
    for bench in benches:
        bench_rows = [Row(bench, number, convention) for number in range(len(bench.records))]
        kept = [row for row in bench_rows if layout.kept(row)]
        heading = bench.machine if layout.merged else bench.heading
        if heading in rows and not layout.merged:  # two uncached references of one size
            heading = f"{heading}; against {bench.reference}"
        rows[heading] = sorted([*rows.get(heading, []), *kept], key=layout.order)
        notes += [f"{bench.model}: {line}" for line in noise_floor(bench).words()]
        notes += [f"{bench.model}, {row.label}: failed: {row.record['error']}" for row in kept if row.failed]
        if absent := layout.absent(bench_rows):
            notes.append(f"{bench.model}: no record of {', '.join(absent)}.")
    columns = layout.columns(benches, convention)
    cells = {
        heading: [(layout.label(row), {key: column.cell(row) for key, column in columns.items()}) for row in group]
        for heading, group in rows.items()
    }
    written = [row_cells for group in cells.values() for _, row_cells in group]
    shown = [
        key for key in columns if key not in layout.optional or any(not row_cells[key].missing for row_cells in written)
    ]
    blocks = [
        Block(heading, [[Cell(text=label), *(row_cells[key] for key in shown)] for label, row_cells in group])
        for heading, group in cells.items()
    ]
    headings = (layout.first, *(columns[key].heading for key in shown))
    title = layout.title or f"{name}: every record"
    return Table(name, title, headings, blocks, [*layout.notes(benches, convention), *notes])


def worst_table(name: str, benches: Sequence[Bench], convention: str = CONVENTION, count: int = WORST) -> list[Table]:
    """The `count` prompts with the lowest mean PSNR, and the worst record on each; [] if none.

    A mean over other records would be another prompt's advantage: it is over those with a PSNR of every video.
    """
    blocks, notes = [], []
    for bench in benches:
        first = Row(bench, 0, convention)
        psnr, ssim = first.metric("psnr"), first.metric("ssim")
        if psnr is None:
            continue
        cached = complete(bench, psnr)
        if not len(cached):
            notes.append(f"{bench.heading}: no record has a PSNR of every video that all have.")
        by_video = cached.groupby(["prompt", "seed"])
        videos = by_video[[metric for metric in (psnr, ssim) if metric]].mean().reset_index()
        labels = bench.records.set_index("id")["label"]
        rows = []
        for _, video in worst(videos, psnr, count).iterrows():
            of_video = cached[(cached["prompt"] == video["prompt"]) & (cached["seed"] == video["seed"])]
            lowest = worst(of_video, psnr, 1).iloc[0]
            rows.append([
                Cell(text=f"{video['prompt']} (seed {video['seed']})"),
                Cell(video[psnr]), Cell(video[ssim] if ssim else None, spec=".4f"),
                Cell(lowest[psnr]), Cell(text=labels[lowest["id"]]), Cell(int(of_video[psnr].notna().sum()), spec="d"),
            ])  # fmt: skip
        if rows:
            blocks.append(Block(bench.heading, rows))
    columns = ("prompt", "mean PSNR (dB)", "mean SSIM", "lowest PSNR (dB)", "of", "records")
    notes.insert(
        0,
        f"The {count} prompts with the lowest mean over the cached records of a block, the worst first: of the videos"
        " that all have, over the records with a PSNR of each; one identical to its reference has none.",
    )
    return [Table(f"{name}-worst", f"{name}: the worst prompts", columns, blocks, notes)] if blocks else []


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables; exit code 2 with one line if there is nothing to show."""
    parser = Parser(prog="analysis tables", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", default="tables", help="folder to write to; - prints them in Markdown instead")
    parser.add_argument("--convention", default=CONVENTION, help="whose PSNR, SSIM, LPIPS: raw, videosys, easycache, …")
    parser.add_argument("--against", help="the method that comparisons at equal speed and quality are to")
    parser.add_argument("--more", action="store_true", help="worst prompt and peak memory in the paper's tables too")
    args = parser.parse_args(argv)
    return run(lambda: publish(tables(args.results, args.convention, args.against, args.more), args.out))
