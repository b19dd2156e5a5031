"""A table of numbers with intervals, and its three forms: Markdown, LaTeX (booktabs and adjustbox), CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pcbench.store import write_whole

DASH = "–"
LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "×": r"$\times$", "÷": r"$\div$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "–": "--", "−": "$-$", "α": r"$\alpha$", "δ": r"$\delta$", "±": r"$\pm$",
    "●": r"$\bullet$", "…": r"\ldots{}",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A number, with its interval (both ends or none), how to write it, and if it is missing, why.

    text: what to write instead of a number.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    spec: str = ".2f"
    unit: str = ""
    text: str = ""
    why: str = ""

    @property
    def missing(self) -> bool:
        return not self.text and (self.value is None or math.isnan(self.value))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None if there is no interval."""
        if self.missing or self.low is None or self.high is None or math.isnan(self.low) or math.isnan(self.high):
            return None
        return self.low, self.high

    def words(self) -> tuple[str, str]:
        """The number, and its interval: empty where there is none, or where it is no wider than the digits shown."""
        if self.text:
            return self.text, ""
        if self.missing:
            return DASH, ""
        value = f"{self.value:{self.spec}}{self.unit}"
        plain = self.spec.lstrip("+")
        ends = [f"{end:{plain}}" for end in self.interval or ()]
        return value, f"[{', '.join(ends)}]" if len(set(ends)) == 2 else ""


@dataclass(frozen=True)
class Block:
    """Rows under a common heading, which may be empty."""

    heading: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """name: its files' names. columns: their headings, one per cell of a row. notes: one line each, below the table."""

    name: str
    title: str
    columns: tuple[str, ...]
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """A GitHub table with a bold row per block: the first column to the left, the others to the right."""
        lines = [list(self.columns), ["---", *["---:"] * (len(self.columns) - 1)]]
        for block in self.blocks:
            if block.heading:
                lines.append([f"**{_plain(block.heading)}**", *[""] * (len(self.columns) - 1)])
            lines += [[_plain(" ".join(filter(None, cell.words()))) for cell in row] for row in block.rows]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.all_notes())
        return f"**{self.title}**\n\n{rows}\n" + (f"\n{notes[1:]}\n" if notes else "")

    def latex(self) -> str:
        """A table environment, no wider or higher than the page; it needs \\usepackage{booktabs,adjustbox}.

        An interval stands small below its number: beside it, the paper's Table 1 would be two pages wide.
        """
        width = len(self.columns)
        lines = [r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        lines += [rf"\caption{{{_latex(self.title)}}}", rf"\label{{tab:{self.name}}}"]
        lines += [r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.75\textheight}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_latex, self.columns)) + r" \\"]
        for block in self.blocks:
            lines.append(r"\midrule")
            if block.heading:
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{_latex(block.heading)}}}}} \\")
            lines += [line for row in block.rows for line in _latex_row(row)]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}"]
        lines += [rf"\par\raggedright\scriptsize {_latex(note)}" for note in self.all_notes()]
        return "\n".join([*lines, r"\end{table}", ""])

    def csv(self) -> str:
        """One line per row, numbers in full: a column `block`, then each column, followed by its interval's ends."""
        ends = [any(row[i].interval for block in self.blocks for row in block.rows) for i in range(len(self.columns))]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["block", *_heads(self.columns, ends)])
        for block in self.blocks:
            for row in block.rows:
                values: list[object] = []
                for cell, has_ends in zip(row, ends, strict=True):
                    values.append(cell.text or ("" if cell.missing else cell.value))
                    values += list(cell.interval or ("", "")) if has_ends else []
                writer.writerow([block.heading, *values])
        return file.getvalue()

    def all_notes(self) -> list[str]:
        """`notes`, and why numbers are missing: each reason once, with its columns."""
        missing: dict[str, dict[str, int]] = {}
        rows = [row for block in self.blocks for row in block.rows]
        for row in rows:
            for column, cell in zip(self.columns, row, strict=True):
                if cell.missing and cell.why:
                    counts = missing.setdefault(cell.why, {})
                    counts[column] = counts.get(column, 0) + 1
        absent = [
            f"{DASH} in {', '.join(column.rstrip(' ↑↓') for column in counts)} "
            f"({max(counts.values())} of {len(rows)} rows): {why}."
            for why, counts in missing.items()
        ]
        return [*self.notes, *absent]

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.md, NAME.tex and NAME.csv."""
        written = []
        for suffix, text in ((".md", self.markdown()), (".tex", self.latex()), (".csv", self.csv())):
            path = folder / f"{self.name}{suffix}"
            write_whole(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))  # type: ignore[misc]
            written.append(path)
        return written


def _heads(columns: tuple[str, ...], ends: list[bool]) -> Iterator[str]:
    for column, has_ends in zip(columns, ends, strict=True):
        name = column.rstrip(" ↑↓")
        yield from (name, f"{name} low", f"{name} high") if has_ends else (name,)


def _plain(text: str) -> str:
    """Text for a Markdown table's cell: bars escaped, on one line."""
    return text.replace("|", "\\|").replace("\n", " ")


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_row(row: list[Cell]) -> list[str]:
    """The line of a row's numbers, and a line of their intervals if there are any."""
    numbers, intervals = zip(*(cell.words() for cell in row), strict=True)
    lines = [" & ".join(map(_latex, numbers)) + r" \\"]
    if any(intervals):
        small = (rf"{{\tiny {_latex(interval)}}}" if interval else "" for interval in intervals)
        lines = [lines[0] + "[-3pt]", " & ".join(small) + r" \\"]
    return lines
