"""Names written beside the lines they belong to, where there is room: over no other name, and over few lines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

CELL = 2  # pixels of a figure at 100 per inch: how finely places are looked for
PADDING = 1.5  # pixels around a name
CROSSED = 120.0  # pixels of distance that a name goes to cover no line rather than nothing but lines
FAR = 9.0  # pixels from its point beyond which a thin line leads to a name
TRIED = 5000  # places, the best first, among which one is taken whose thin line crosses no other name
ORDERS = 4  # in which names choose, if such lines cross names
START = 14.0  # pixels by which a line's end is preferred to its start


@dataclass(frozen=True)
class Line:
    """A line in data coordinates: x and y in the order of x, without NaN. text: its name, or "" for one without."""

    x: np.ndarray
    y: np.ndarray
    text: str = ""
    color: str = "black"
    weight: str = "normal"


def place(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Line]]], size: float) -> None:
    """Write every line's name, at `size` points; those given first have the first choice.

    Call it last: limits that change afterwards would move lines away from their names.
    """
    if not isinstance(figure.canvas, FigureCanvasAgg):
        FigureCanvasAgg(figure)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)  # a whole drawing would take a third longer
    figure.set_layout_engine("none")  # what was laid out stays
    for axes, lines in panels:
        named = [(line, _written(axes, line, size)) for line in lines if line.text and len(line.x)]
        tries: list[list[tuple[Line, Text, _Place]]] = []
        while len(tries) < ORDERS and not (tries and not _crossings(tries[-1])):
            room = _Room(axes, lines)
            tries.append([(line, text, room.find(line, text)) for line, text in named])
            named = [(line, text) for line, text, _ in sorted(tries[-1], key=lambda each: not each[2].crosses)]
        for line, text, found in min(tries, key=_crossings):
            _write(axes, line, text, found)


def _crossings(places: Sequence[tuple[Line, Text, _Place]]) -> int:
    return sum(found.crosses for _, _, found in places)


def _written(axes: Axes, line: Line, size: float) -> Text:
    """The line's name, somewhere."""
    text = axes.text(
        0, 0, line.text, fontsize=size, color=line.color, weight=line.weight, transform=None, linespacing=0.95,
        ha="left", va="bottom", zorder=6,
    )  # fmt: skip
    text.set_in_layout(False)
    return text


@dataclass(frozen=True)
class _Place:
    """Where a name goes: its lower left corner, with padding; the line from there to its point; whether that line
    crosses another name."""

    low: np.ndarray
    leader: np.ndarray
    crosses: bool


class _Room:
    """What is free in one panel. Pixels are counted from the lower left corner of the axes."""

    def __init__(self, axes: Axes, lines: Sequence[Line]) -> None:
        self.axes = axes
        box = axes.get_window_extent()
        self.corner, self.shape = np.array([box.x0, box.y0]), (int(box.height) // CELL + 1, int(box.width) // CELL + 1)
        self.crowded = np.zeros(self.shape)  # 1 where a line passes
        self.taken = np.zeros(self.shape, dtype=bool)  # by a name, or the thin line to one
        for line in lines:
            self._draw(self._pixels(line))

    def _pixels(self, line: Line) -> np.ndarray:
        """The line's points (points, 2)."""
        transformed: np.ndarray = self.axes.transData.transform(np.column_stack([line.x, line.y])) - self.corner
        return transformed

    def _draw(self, points: np.ndarray) -> None:
        for start, end in itertools.pairwise(points):
            count = int(np.abs(end - start).max() / CELL) + 2
            self._mark(np.linspace(start, end, count), self.crowded)
        for shift in itertools.product((-CELL, 0, CELL), repeat=2):  # a marker
            self._mark(points + shift, self.crowded)

    def _mark(self, points: np.ndarray, table: np.ndarray) -> None:
        columns, rows = (points // CELL).astype(int).T
        inside = (rows >= 0) & (rows < self.shape[0]) & (columns >= 0) & (columns < self.shape[1])
        table[rows[inside], columns[inside]] = 1

    def find(self, line: Line, text: Text) -> _Place:
        """The best place that is left for the line's name, which it then takes."""
        extent = text.get_window_extent()
        sides = np.array([extent.width, extent.height]) + 2 * PADDING
        ends = self._pixels(line)[[-1, 0]]
        columns, rows = np.ceil(sides / CELL).astype(int)
        if rows >= self.shape[0] or columns >= self.shape[1]:  # larger than the panel
            return _Place(np.zeros(2), ends[[0, 0]], crosses=True)
        crowded, taken = (_sums(table, rows, columns) for table in (self.crowded, self.taken))
        corners = np.stack(np.meshgrid(np.arange(taken.shape[1]), np.arange(taken.shape[0])), -1) * float(CELL)
        apart = np.stack([np.clip(end, corners, corners + sides) - end for end in ends])
        far = np.hypot(apart[..., 0], apart[..., 1]) + np.array([0, START])[:, None, None]
        cost = far.min(0) + CROSSED * crowded / columns + 1e6 * (taken > 0)
        places = np.argsort(cost, axis=None, kind="stable")[:TRIED]
        free = places[~(taken > 0).flat[places]]
        found = []
        for number in free if len(free) else places[:1]:
            row, column = np.unravel_index(number, cost.shape)
            low, end = corners[row, column], ends[far[:, row, column].argmin()]
            leader = np.array([np.clip(end, low + PADDING, low + sides - PADDING), end])
            found.append(_Place(low, leader, crosses=self._crosses(leader)))
            if not found[-1].crosses:
                break
        best = found[0] if found[-1].crosses else found[-1]
        column, row = (best.low // CELL).astype(int)
        self.taken[row : row + rows, column : column + columns] = True
        if _length(best.leader) > FAR:
            self._mark(_dots(best.leader), self.taken)
        return best

    def _crosses(self, leader: np.ndarray) -> bool:
        columns, rows = (_dots(leader) // CELL).astype(int).T
        return bool(self.taken[rows.clip(0, self.shape[0] - 1), columns.clip(0, self.shape[1] - 1)].any())


def _write(axes: Axes, line: Line, text: Text, place: _Place) -> None:
    """Put a name in its place."""
    corner, inverse = axes.get_window_extent().min, axes.transAxes.inverted()
    x, y = inverse.transform(place.low + PADDING + corner)
    text.set_transform(axes.transAxes)
    text.set_position((x, y))
    if place.leader[1, 0] > place.low[0] + text.get_window_extent().width / 2:
        text.set_multialignment("right")  # towards its point
    if _length(place.leader) > FAR:
        ends = inverse.transform(place.leader + corner)
        made = Line2D(*ends.T, color=line.color, linewidth=0.5, zorder=5, transform=axes.transAxes)
        axes.add_artist(made).set_in_layout(False)


def _dots(leader: np.ndarray) -> np.ndarray:
    """Points (points, 2) on a line from one to another, a cell apart."""
    return np.linspace(leader[0], leader[1], int(_length(leader) / CELL) + 2)


def _length(leader: np.ndarray) -> float:
    return float(np.hypot(*(leader[1] - leader[0])))


def _sums(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The sum of every window (rows, columns) of a table, by the window's first corner."""
    summed = np.pad(table.astype(float), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows: np.ndarray = (
        summed[rows:, columns:] - summed[:-rows, columns:] - summed[rows:, :-columns] + summed[:-rows, :-columns]
    )
    return windows
