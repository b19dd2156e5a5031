"""Published numbers beside ours: `python -m analysis compare [results] [--out tables]`.

The paper's tables 1 to 4 beside the records of the experiments of those names, and what other papers print of the same
methods. Only dimensionless numbers are subtracted; seconds of different machines are shown, never compared. A bundled
backbone stands beside the one it is the twin of: there a difference says how far the two behave alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..command import Parser, publish, run
from ..load import Bench, experiments
from ..metrics import RAW, metric_of
from ..render import Block, Cell, Table
from ..tables.cells import COLUMNS, Row
from ..tables.layouts import NAMES, devices
from .published import published

TWIN = "tiny_"
CONVENTIONS = ("videosys", RAW)  # the first that was scored: the paper names none; its peers' code is VideoSys'
HEADINGS = ("method", "quantity", "paper", "ours", "ours − paper", "n")
NO_RECORD = "no record here yet"


@dataclass(frozen=True)
class Quantity:
    """paper: from a published row and its table's uncached row. ours: the cell from our row and our uncached row.

    spec: number format; absolute: whether it is shown, never subtracted.
    """

    name: str
    paper: Callable[[pd.Series, pd.Series], float]
    ours: Callable[[Row, Row | None], Cell]
    spec: str = ".2f"
    absolute: bool = False


def _cell(column: str) -> Callable[[Row, Row | None], Cell]:
    return lambda row, _: COLUMNS[column].cell(row)


def _gain(row: Row, uncached: Row | None) -> Cell:
    """VBench minus that of the uncached videos, in points."""
    vbench = COLUMNS["vbench"].cell
    score, baseline = vbench(row), vbench(uncached) if uncached else Cell(why=NO_RECORD)
    if score.value is None or baseline.value is None:
        return Cell(why=score.why or baseline.why)
    return Cell(score.value - baseline.value)


def _printed(name: str) -> Callable[[pd.Series, pd.Series], float]:
    return lambda row, _: float(row[name])


QUANTITIES = {
    "macs": Quantity("MACs ÷", lambda row, none: none["pmacs"] / row["pmacs"], _cell("macs_ratio")),
    "speedup": Quantity("speedup", _printed("speedup"), _cell("speedup")),
    "latency": Quantity("latency, s", _printed("latency_s"), _cell("latency"), absolute=True),
    "vbench": Quantity("VBench − uncached", lambda row, none: row["vbench"] - none["vbench"], _gain),
    "lpips": Quantity("LPIPS", _printed("lpips"), _cell("lpips"), metric_of("lpips").spec),
    "ssim": Quantity("SSIM", _printed("ssim"), _cell("ssim"), metric_of("ssim").spec),
    "psnr": Quantity("PSNR, dB", _printed("psnr"), _cell("psnr"), metric_of("psnr").spec),
}


def compare(results: Path) -> list[Table]:
    """A table for each of the paper's that has records, and one of the peers. Raises ValueError if there is none."""
    innermost_first = sorted(experiments(results).items(), key=lambda item: -item[0].count("/"))
    found = {benches[0].name: benches for _, benches in innermost_first}  # of two of one name, the outer one
    paired = {name: found[name] for name in ("table1", "table2", "table3", "table4") if name in found}
    if not paired:
        raise ValueError(f"no records of table1 to table4 under {results}; python -m pcbench +experiment=table1_tiny")
    made = [_paper(name, benches) for name, benches in paired.items()]
    return [*made, *([_peers(paired["table1"])] if "table1" in paired else [])]


def base_model(model: str) -> str:
    """The published backbone that a model is, or is a twin of."""
    return model.removeprefix(TWIN)


def _rows(bench: Bench) -> list[Row]:
    named = [str(name).partition("@")[0] for name in bench.samples]
    convention = next((c for c in CONVENTIONS if c == RAW or f"{c}.psnr" in named), RAW)
    return [Row(bench, number, convention) for number in range(len(bench.records))]


def _paper(name: str, benches: Sequence[Bench]) -> Table:
    blocks, conventions = [], set()
    for bench in benches:
        rows = _rows(bench)
        conventions.add(rows[0].convention)
        lines = list(_lines(name, bench, rows))
        if lines:
            blocks.append(
                Block(f"{base_model(bench.model)} (paper) and {bench.model} on {bench.machine} (ours)", lines)
            )
    notes = [
        f"Fidelity of ours by {' and '.join(sorted(conventions))} (docs/fidelity.md), brackets as in {name}: 95 % over "
        "prompts, of speedup and latency the range of the timed calls. The paper gives no intervals.",
        "Seconds of two machines are not subtracted.",
    ]
    if any(bench.model.startswith(TWIN) for bench in benches):
        notes.append("tiny_ models are toy twins: a difference says how far they behave like the backbone, no more.")
    return Table(f"compare-{name}", f"The paper's {name.replace('table', 'Table ')} and ours", HEADINGS, blocks, notes)


def _lines(name: str, bench: Bench, rows: list[Row]) -> Iterator[list[Cell]]:
    """A line for each published row of this backbone and each quantity."""
    table = published(name)
    if "model" in table:
        table = table[table["model"] == base_model(bench.model)]
    elif base_model(bench.model) != "wan":  # of tables 3 and 4
        return
    key, matches = KEYS[name]
    uncached = next((row for row in rows if row.uncached), None)
    baseline = table[table[key] == "none"] if name != "table4" else published("table1").query("model == 'wan'").head(1)
    for _, line in table.iterrows():
        if line[key] == "none":
            continue
        reference = line if baseline.empty else baseline.iloc[0]
        matching: list[Row | None] = [row for row in rows if not row.uncached and matches(row, line[key])]
        for row in matching or [None]:
            title = _title(str(line.get("presets", line[key])), row, len(matching) > 1)
            for quantity in _quantities(name, line):
                yield _line(title, quantity, quantity.paper(line, reference), row, uncached)


def _title(printed: str, row: Row | None, several: bool) -> str:
    """A line's first cell: our row's name as Table 1 has it, or the printed row's; and our label, if it needs one."""
    if row is not None and row.preset in NAMES:
        return NAMES[row.preset]
    named = printed.split()[0]
    return NAMES.get(named, named) + (f" ({row.label})" if row and several else "")


def _quantities(name: str, line: pd.Series) -> list[Quantity]:
    """The quantities that the paper prints in this row."""
    if name == "table2":
        ratio = Quantity("speedup", lambda row, _: row["latency_s"] / row["precisecache_latency_s"], _cell("speedup"))
        seconds = Quantity("latency, s", _printed("precisecache_latency_s"), _cell("latency"), absolute=True)
        return [ratio, seconds]
    columns = {"macs": "pmacs", "latency": "latency_s"}
    return [q for key, q in QUANTITIES.items() if pd.notna(line.get(columns.get(key, key)))]


def _line(title: str, quantity: Quantity, paper: float, row: Row | None, uncached: Row | None) -> list[Cell]:
    ours = quantity.ours(row, uncached) if row else Cell(why=NO_RECORD)
    difference = Cell(text="not compared") if quantity.absolute else Cell()
    if not quantity.absolute and not ours.missing and ours.value is not None:
        low, high = ours.interval or (math.nan, math.nan)
        difference = Cell(ours.value - paper, low - paper, high - paper, f"+{quantity.spec}")
    shown = Cell(ours.value, ours.low, ours.high, quantity.spec, why=ours.why)
    n = Cell(len(row.samples), spec="d") if row else Cell()
    return [Cell(text=title), Cell(text=quantity.name), Cell(paper, spec=quantity.spec), shown, difference, n]


def _same_factor(row: Row, printed: object) -> bool:
    return "x".join(map(str, row.field("downsample_factor") or ())) == printed


# Table -> the published column that names a row, and the test whether a row of ours matches that name.
KEYS: dict[str, tuple[str, Callable[[Row, object], bool]]] = {
    "table1": ("presets", lambda row, printed: row.preset in str(printed).split()),
    "table2": ("gpus", lambda row, printed: devices(row) == printed),
    "table3": ("factor", _same_factor),
    "table4": ("strategy", lambda row, printed: row.field("reuse") == printed),
}


def _peers(benches: Sequence[Bench]) -> Table:
    """What papers print of each method of ours on its backbone, each paper's own workload, beside ours."""
    printed = pd.concat([published("peers"), published("table1").assign(paper="PreciseCache", setting="")])
    kinds = {"speedup": ".2f", **{kind: metric_of(kind).spec for kind in ("lpips", "ssim", "psnr")}}
    blocks = []
    for bench in benches:
        family = printed[printed["model"].str.startswith(base_model(bench.model))]
        for row in _rows(bench):
            same = family["method"] == row.record["method"]  # at whatever settings, which are in the rows
            peers = family[same | family["presets"].map(lambda printed, row=row: row.preset in str(printed).split())]
            if row.uncached or peers.empty:
                continue
            own = [COLUMNS[kind].cell(row) for kind in kinds]
            lines = [[Cell(text="ours"), Cell(text=f"{bench.model}, {row.label}"), *own]]
            for _, line in peers.iterrows():
                where = ", ".join(str(part) for part in (line["workload"], line["setting"]) if part and pd.notna(part))
                numbers = [Cell(None if pd.isna(line[k]) else float(line[k]), spec=spec) for k, spec in kinds.items()]
                lines.append([Cell(text=str(line["paper"])), Cell(text=where), *numbers])
            name = NAMES.get(row.preset or "", row.label)
            blocks.append(Block(f"{name} on {base_model(bench.model)}", lines))
    notes = ["Every paper has its own workload, prompts and metric code: nothing here is subtracted."]
    columns = ("paper", "workload, setting", *(COLUMNS[kind].heading for kind in kinds))
    return Table("compare-peers", "What papers print of the same methods, and ours", columns, blocks, notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables; exit code 2 with one line if there is nothing to compare."""
    parser = Parser(prog="analysis compare", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", default="tables", help="folder to write to; - prints them in Markdown instead")
    args = parser.parse_args(argv)
    return run(lambda: publish(compare(args.results), args.out))
