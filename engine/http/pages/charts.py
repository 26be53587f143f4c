"""Charts as SVG: a plain drawing of 100 by 100, which the stylesheet stretches, with its labels beside it.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

from stepfold.projections import Cell

SERIES = 6
"""The most series of a chart: people can tell this many colours apart."""
TICKS = 4
NAMES = 6
BAR_PART = 0.8
"""The part of each row's width that its bars fill."""


class ChartBar(NamedTuple):
    """A bar, in percent of the drawing. `series`: its number. `words`: its name on the axis, and its value."""

    series: int
    x: float
    y: float
    width: float
    height: float
    words: str


class Curve(NamedTuple):
    """A line of a chart. `points`: as in SVG's polyline; `dots`: x, y and words of each value."""

    series: int
    points: str
    dots: list[tuple[float, float, str]]


class Tick(NamedTuple):
    """A label of an axis. `at`: in percent."""

    at: float
    words: str


class Drawing(NamedTuple):
    """A drawn chart. `left`: ticks of the values, from the bottom up; `below`: names along the axis; `zero`: the height of the
    value 0; `hidden`: how many series are left out."""

    series: list[str]
    bars: list[ChartBar]
    curves: list[Curve]
    left: list[Tick]
    below: list[Tick]
    zero: float
    hidden: int


def number_words(value: Cell) -> str:
    """A number with separators and at most four digits behind the point; other values as text; a dash for null."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.2f}"


def drawing(kind: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], unit: str) -> Drawing | None:
    """The chart of these rows; None if there is nothing to draw."""
    names = list(columns[1 : SERIES + 1])
    values = [[_number(cell) for cell in row[1 : SERIES + 1]] for row in rows]
    known = [value for row in values for value in row if value is not None]
    if not known:
        return None
    steps = _steps(min(0.0, *known), max(0.0, *known), whole=all(one.is_integer() for one in known))
    low, high = steps[0], steps[-1]
    places = _places(rows, kind)
    words = [_words(row[0]) for row in rows]

    def y(value: float) -> float:
        return round(100 - (value - low) / (high - low) * 100, 3)

    def told(row: int, series: int) -> str:
        return f"{words[row]}, {names[series]}: {number_words(rows[row][series + 1])} {unit}".strip()

    bars: list[ChartBar] = []
    curves: list[Curve] = []
    if kind == "bars":
        width = 100 / len(rows) * BAR_PART / len(names)
        for row, line in enumerate(values):
            for series, value in enumerate(line):
                if value is not None:
                    x = places[row] + (series - len(names) / 2) * width
                    top, bottom = y(max(value, 0.0)), y(min(value, 0.0))
                    bars.append(ChartBar(series, round(x, 3), top, round(width, 3), round(bottom - top, 3), told(row, series)))
    else:
        for series in range(len(names)):
            dots = [
                (round(places[row], 3), y(value), told(row, series))
                for row, line in enumerate(values)
                if (value := line[series]) is not None
            ]
            dots.sort(key=lambda dot: dot[0])
            curves.append(Curve(series, " ".join(f"{x},{height}" for x, height, _ in dots), dots))
    return Drawing(
        series=names,
        bars=bars,
        curves=curves,
        left=[Tick(y(step), number_words(step)) for step in steps],
        below=_below(places, words),
        zero=y(0.0),
        hidden=max(0, len(columns) - 1 - SERIES),
    )


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def _steps(low: float, high: float, *, whole: bool) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if low == high:
        high = low + 1
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next(factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    if whole:
        size = float(math.ceil(size))
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [step * size for step in range(first, last + 1)]


def _places(rows: Sequence[Sequence[Cell]], kind: str) -> list[float]:
    """Where each row is on the axis, in percent: evenly spaced, or for lines by their number or time."""
    if kind == "lines":
        at = [_on_axis(row[0]) for row in rows]
        numbers = [one for one in at if one is not None]
        if len(numbers) == len(rows) and max(numbers) > min(numbers):
            return [(one - min(numbers)) / (max(numbers) - min(numbers)) * 100 for one in numbers]
    return [(number + 0.5) / len(rows) * 100 for number in range(len(rows))]


def _on_axis(cell: Cell) -> float | None:
    if isinstance(cell, str):
        for parser in (datetime, date):
            try:
                found = parser.fromisoformat(cell)
            except ValueError:
                continue
            if isinstance(found, datetime):
                return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
            return float(found.toordinal())
        return None
    return _number(cell)


def _words(cell: Cell) -> str:
    """The name of a row on the axis: a number, a text, or a time without its seconds."""
    return cell[:16].replace("T", " ") if isinstance(cell, str) and _on_axis(cell) is not None else number_words(cell)


def _below(places: Sequence[float], words: Sequence[str]) -> list[Tick]:
    """About `NAMES` of the names, evenly spaced."""
    every = max(1, math.ceil(len(words) / NAMES))
    return [Tick(round(places[row], 3), words[row]) for row in range(0, len(words), every)]
