"""The operations of a run as bars, in percent of the width. Long idle times, in which no attempt ran or waited for a slot, are
drawn narrow.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ...operations import BY_NAME
from ...operations.line import Line

FOLDED_MS = 1000
FOLD_PERCENT = 5.0
FOLDS_PERCENT = 40.0
LEAST_PERCENT = 0.5


class Fold(NamedTuple):
    """An idle time that is drawn narrow. `begin`, `end`: ms since 1970; `x`, `width`: percent."""

    begin: int
    end: int
    x: float
    width: float


class Bar(NamedTuple):
    """A part of an operation's bar, in the units of Fold. `look`: a class of the stylesheet."""

    look: str
    x: float
    width: float
    begin: int
    end: int


class Scale:
    """Maps times in ms to percent. `folds`: the idle times between `begin` and `end` that are drawn narrow."""

    def __init__(self, begin: int, end: int, busy: Sequence[tuple[int, int]]) -> None:
        self.begin, self.end = begin, max(end, begin + 1)
        gaps = [(a, b) for a, b in _idle(self.begin, self.end, busy) if b > a]
        worked = self.end - self.begin - sum(b - a for a, b in gaps)
        long = [(a, b) for a, b in gaps if worked and b - a > max(FOLDED_MS, worked / 3)]
        width = min(FOLD_PERCENT, FOLDS_PERCENT / len(long)) if long else 0
        drawn = self.end - self.begin - sum(b - a for a, b in long)
        per_ms = (100 - width * len(long)) / drawn
        self._pieces: list[tuple[int, float, float]] = []  # (begin, x, percent per ms)
        self.folds: list[Fold] = []
        at, x = self.begin, 0.0
        for a, b in long:
            self._pieces.append((at, x, per_ms))
            x += (a - at) * per_ms
            self._pieces.append((a, x, width / (b - a)))
            self.folds.append(Fold(a, b, round(x, 3), round(width, 3)))
            at, x = b, x + width
        self._pieces.append((at, x, per_ms))

    def percent(self, ms: int) -> float:
        ms = min(max(ms, self.begin), self.end)
        begin, x, per_ms = next(piece for piece in reversed(self._pieces) if piece[0] <= ms)
        return x + (ms - begin) * per_ms


def _idle(begin: int, end: int, busy: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The times between `begin` and `end` that are not busy."""
    at = begin
    for a, b in sorted(busy):
        if a > at:
            yield at, min(a, end)
        at = max(at, b)
    if at < end:
        yield at, end


def _parts(line: Line, end: int) -> Iterable[tuple[str, int, int]]:
    """The parts of an operation's time: class of the stylesheet, begin, end."""
    attempts = BY_NAME[line.kind].attempts
    for (a, mark), (b, then) in pairwise(line.points):
        if not attempts:
            yield "seg-cut" if then == "timed out" else "seg-wait", a, b
        elif mark in ("failed", "lost", "ended"):
            yield "seg-backoff", a, b
        elif then == "began":
            yield "seg-queue", a, b
        else:
            yield {"failed": "seg-failed", "lost": "seg-cut"}.get(then, "seg-done"), a, b
    if line.became == "open" and line.points:
        look = "seg-wait" if not attempts else "seg-run" if line.running_since is not None else "seg-backoff"
        yield look, line.points[-1][0], end


def scale_of(lines: Sequence[Line], begin: int, end: int) -> Scale:
    idle = ("seg-wait", "seg-backoff", "seg-cut")
    busy = [(a, b) for line in lines for look, a, b in _parts(line, end) if look not in idle]
    return Scale(begin, end, busy)


def bars(line: Line, scale: Scale) -> list[Bar]:
    """The bars of an operation. If only one time of it is known, its bar has the least width."""
    made: list[Bar] = []
    parts = list(_parts(line, scale.end))
    if not parts and line.points:
        parts = [("seg-failed" if line.became == "failed" else "seg-done", line.points[0][0], line.points[0][0])]
    for look, a, b in parts:
        x = scale.percent(a)
        width = max(scale.percent(b) - x, LEAST_PERCENT)
        made.append(Bar(look, round(min(x, 100 - LEAST_PERCENT), 3), round(width, 3), a, b))
    return made
