"""Draws a run: its operations with their attempts on a time line, or its events one by one.

`stepfold.client.story` gives the outcomes; this module adds words and colours. The record of an attempt's end says when the
attempt was queued and when it began. Records of older workers do not say it: then the line of a step starts with the first known
time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table

from ..client.status import State, run_state
from ..client.story import Line, attempts_in_words, note
from ..client.waiting import sentence, waits
from ..core.records import Request, Tone
from ..core.state import RunState
from ..errors import ErrorInfo
from ..events import Event
from ..values.times import utc
from ..values.words import joined, sender, short, span
from .output import Text, beside, local, table, zone

LINE_WIDTH = 32

STATE_STYLE: dict[str, str] = {
    "completed": "green",
    "failed": "red",
    "quarantined": "red",
    "cancelled": "yellow",
    "waiting": "cyan",
    "running": "cyan",
}
_MARKS: dict[str, tuple[str, str]] = {
    "done": ("✔", "green"),
    "failed": ("✗", "red"),
    "open": ("…", "cyan"),
    "dropped": ("–", "dim"),
    "timed out": ("⧖", "yellow"),
}
_TONES: dict[Tone, str] = {
    "plain": "cyan",
    "trouble": "yellow",
    "failure": "red",
    "success": "green",
    "message": "magenta",
}
_POINTS = {"queued": "┄", "began": "╶", "ended": "●", "failed": "✗", "lost": "†", "timed out": "⧖"}
_UNNAMED = "(a first attempt is not in the log before it ends, unless its step has heartbeats, at_most_once or record_input)"
WINDOW = 50
"""How many operations are drawn by default."""


def operations_table(lines: Sequence[Line], *, first_ms: int, now_ms: int) -> Table:
    """Draw operations, each on a time line from the start of the run (`first_ms`) to its end, or to `now_ms`."""
    last = max(now_ms, first_ms + 1)
    made = table(
        *("", "step", "attempts", "queued", "ran", "time line", "at", ""),
        right=("queued", "ran", "at"),
        spare=("time line", "queued", "at", "ran", "attempts", ""),
    )
    for step in lines:
        mark, colour = _MARKS[step.became]
        scope, slash, name = step.step_id.rpartition("/")
        made.add_row(
            Text(mark, colour),
            Text.assemble((scope + slash, "dim"), name),
            attempts_in_words(step),
            "" if step.queued_ms is None else span(step.queued_ms),
            "" if step.ran_ms is None else span(step.ran_ms),
            _time_line(step, first_ms, last),
            f"+{span(step.points[-1][0] - first_ms)}" if step.points else "",
            Text(note(step, now_ms, beside), "red" if step.became == "failed" else "dim"),
        )
    return made


def _time_line(step: Line, first: int, last: int) -> Text:
    cells = [" "] * LINE_WIDTH
    scale = (LINE_WIDTH - 1) / (last - first)

    def column(at: int) -> int:
        return min(max(round((at - first) * scale), 0), LINE_WIDTH - 1)

    if step.points:
        begin = column(step.points[0][0])
        end = LINE_WIDTH - 1 if step.became == "open" else column(step.points[-1][0])
        for at in range(begin, end + 1):
            cells[at] = "─"
        for (at, mark), (then, _) in pairwise(step.points):
            if mark == "queued":
                cells[column(at) : column(then)] = "┄" * (column(then) - column(at))
        for at, mark in step.points:
            cells[column(at)] = _POINTS[mark]
    line = Text("".join(cells), "cyan" if step.became == "open" else "green")
    line.highlight_words(["✗", "†"], "red")
    return line


def state_text(state: State) -> Text:
    """A run's state in its colour."""
    return Text(state, f"bold {STATE_STYLE.get(state, 'white')}")


def chosen(lines: Sequence[Line], limit: int | None, *, failed: bool = False) -> list[Line]:
    """The last `limit` lines and all open ones; `failed`: only lines with an attempt that failed or was lost."""
    if failed:
        lines = [line for line in lines if line.error is not None or line.lost or line.became == "failed"]
    if limit is None or len(lines) <= limit:
        return list(lines)
    first = len(lines) - limit
    return [line for at, line in enumerate(lines) if at >= first or line.became == "open"]


def run_picture(
    run: RunState,
    lines: Sequence[Line],
    owner: str | None,
    *,
    now_ms: int,
    total: int = 0,
    asked: Mapping[str, str | None] | None = None,
) -> RenderableType:
    """Draw a run: its state, the things it waits for, the given operations out of `total`, and its end. `asked`: from
    `askers`."""
    who = asked or {}
    end = run.ended_at if run.ended_at is not None else now_ms
    head = Text.assemble((run.id, "bold"), "  ", run.workflow, (f" version {run.version}" if run.version else "", "dim"), "  ")
    head.append_text(state_text(run_state(run, owner is not None)))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    verb = "took" if run.ended else "for"
    facts.add_row("started", f"{local(run.started_at)} {zone()}, {verb} {span(max(end - run.started_at, 0))}")
    if run.parent is not None:
        facts.add_row("parent", f"{run.parent.run_id} (step {run.parent.step_id}{', detached' * run.parent.detached})")
    if said := sender(who.get("by"), who.get("why")):
        facts.add_row("asked", said)
    facts.add_row("input", short(run.input, 200))
    if not run.ended:
        for index, wait in enumerate(waits(run, owner is not None)):
            words = sentence(replace(wait, command=None), utc(now_ms), beside)
            facts.add_row("" if index else "waits for", words.removeprefix("waits for "))
            if wait.command is not None:
                facts.add_row("", Text(wait.command, "bold"))
        if run.phase == "open" and owner is not None and not run.open and not run.awaits_worker:
            facts.add_row("", Text(_UNNAMED, "dim"))
        facts.add_row("last event", f"{beside(run.now, run.started_at)}, {span(max(now_ms - run.now, 0))} ago")
        facts.add_row("owner", owner or Text("none: no worker owns its partition", "yellow"))
    error = None if run.error is None else ErrorInfo.from_json(run.error)
    if run.phase == "completed":
        facts.add_row("result", Text(short(run.result, 400), "green"))
    elif run.phase == "failed" and error is not None:
        facts.add_row("error", Text(str(error) + (f" (step {error.step_id})" if error.step_id else ""), "red"))
        if who.get("at_line"):
            facts.add_row("", f"at {who['at_line']}")
    elif run.cancel_requested:
        words = joined(run.reason or "nobody said why", sender(who.get("cancelled_by"), None))
        facts.add_row("cancelled" if run.ended else "cancelling", words)
    parts: list[RenderableType] = [head, facts]
    if error is not None and error.traceback:
        parts += ["", *(Text(f"  {line}", "dim") for line in error.traceback.rstrip().split("\n"))]
    if lines or total:
        parts.append("")
    if len(lines) < total:
        parts.append(Text(f"{len(lines):,} of {total:,} operations (--limit, --failed):", "dim"))
    if lines:
        parts.append(operations_table(lines, first_ms=run.started_at, now_ms=end))
    return Group(*parts)


def event_row(event: Event) -> tuple[Text, str, Text]:
    """An event's type in its colour, its step id, and its content."""
    step_id = cast(str, getattr(event, "step_id", ""))
    line = cast("str | None", getattr(event, "at_line", None))
    who = event.sender() if isinstance(event, Request) else ""
    return Text(event.type, _TONES[event.tone]), step_id, Text(joined(event.detail(beside), who, f"at {line}" if line else ""))


def event_line(event: Event, first_ms: int) -> Text:
    """An event on one line, with the time since the run began."""
    type_, step_id, said = event_row(event)
    type_.pad_right(18 - len(type_.plain))
    return Text.assemble((since((event.timestamp or event.at) - first_ms), "dim"), type_, f"{step_id:<16} ", (said.plain, "dim"))


def since(ms: int) -> str:
    """A time difference, as a column of fixed width."""
    return f"{ms / 1000:+9.3f} s  "


def history_table(events: Sequence[Event]) -> Table:
    """All events of a run."""
    time = f"time ({zone()})"
    made = table("offset", time, "event", "step", "", right=("offset",), spare=("offset", time, ""))
    for event in events:
        type_, step_id, said = event_row(event)
        made.add_row(str(event.offset), local(event.timestamp), type_, step_id, said)
    return made
