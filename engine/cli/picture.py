"""A run as people see it: its steps with their attempts on a time line, and its events one by one.

Made from the accepted events alone. The log holds when an attempt ended, not when it began, so the line of a step starts
with the first thing known of it: its only attempt is one point, a retried one goes from the first failure to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..client import State, run_state, waiting_words
from ..errors import ErrorInfo
from ..events import (
    AttemptLost,
    Cancelled,
    CancelRequested,
    Claim,
    Completed,
    Event,
    Failed,
    Quarantined,
    SignalReceived,
    SleepCompleted,
    SleepScheduled,
    Started,
    StepCancelled,
    StepCompleted,
    StepDecision,
    StepFailed,
    WaitStarted,
    WaitTimedOut,
)
from ..fold import RunState
from .output import local, short, table, took, utc, zone

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


class StepLine:
    """What the events say of one step, sleep or wait."""

    def __init__(self, step_id: str, kind: str) -> None:
        self.step_id = step_id
        self.kind = kind  # step | sleep | wait
        self.state = "open"  # open | done | failed | dropped | timed out
        self.attempts = 0
        self.points: list[tuple[int, str]] = []  # (log time in ms, mark)
        self.note = ""
        self.lost = 0

    @property
    def attempts_in_words(self) -> str:
        if self.kind != "step":
            return ""
        return f"{self.attempts}" + (f" ({self.lost} lost)" if self.lost else "")


def steps_of(run: RunState, events: Sequence[Event]) -> list[StepLine]:
    """The steps, sleeps and waits of a run in the order in which the log first speaks of them.

    Which signal went to which wait is in the run's journal.
    """
    lines: dict[str, StepLine] = {}

    def line(event: StepDecision, kind: str) -> StepLine:
        found = lines.get(event.step_id)
        if found is None:
            found = lines[event.step_id] = StepLine(event.step_id, kind)
        return found

    for event in events:
        at = event.timestamp or event.at
        if isinstance(event, StepCompleted):
            step = line(event, "step")
            step.state, step.attempts = "done", event.attempt
            step.points.append((at, "●"))
            if event.result is not None:
                step.note = short(event.result, 48)
        elif isinstance(event, StepFailed):
            step = line(event, "step")
            step.state, step.attempts = "failed" if event.next_at is None else "open", event.attempt
            step.points.append((at, "✗"))
            step.note = f"{event.error.type}: {event.error.message}"
            if event.next_at is not None:
                step.note += f"; attempt {event.attempt + 1} at {beside(event.next_at, at)}"
        elif isinstance(event, AttemptLost):
            step = line(event, "step")
            step.attempts, step.lost = event.attempt, step.lost + 1
            step.points.append((at, "†"))
            step.note = "lost with its worker, running again"
        elif isinstance(event, SleepScheduled):
            step = line(event, "sleep")
            step.points.append((at, "╶"))
            step.note = f"until {beside(event.wake_at, at)}"
        elif isinstance(event, SleepCompleted):
            step = line(event, "sleep")
            step.state = "done"
            step.points.append((at, "●"))
            step.note = f"slept {took(at - step.points[0][0])}"
        elif isinstance(event, WaitStarted):
            step = line(event, "wait")
            step.points.append((at, "╶"))
            until = "" if event.timeout_at is None else f" until {beside(event.timeout_at, at)}"
            step.note = f"for signal {event.signal!r}{until}"
        elif isinstance(event, WaitTimedOut):
            step = line(event, "wait")
            step.state, step.note = "timed out", f"no signal: {step.note.removeprefix('for signal ')}"
            step.points.append((at, "⧖"))
        elif isinstance(event, StepCancelled):
            step = line(event, "step")
            if step.state == "open":
                step.state, step.note = "dropped", "the code no longer waits for it"
        elif isinstance(event, StepDecision):
            line(event, "step")
    for step_id, kind, at, value in run.journal:
        if kind == "signal" and step_id in lines:
            step = lines[step_id]
            step.state, step.note = "done", f"signal {value[0]!r} {short(value[1], 40)}"
            step.points.append((at, "●"))
    return list(lines.values())


def steps_table(run: RunState, events: Sequence[Event], *, now_ms: int) -> Table:
    """The steps of a run, each with its time line from the start of the run to its end, or to `now_ms`."""
    first = events[0].timestamp or events[0].at
    last = max(now_ms, first + 1)
    made = table("", "step", "attempts", "time line", "at", "", right=("at",), spare=("time line", "at", "attempts", ""))
    for step in steps_of(run, events):
        mark, colour = _MARKS[step.state]
        scope, slash, name = step.step_id.rpartition("/")
        made.add_row(
            Text(mark, colour),
            Text.assemble((scope + slash, "dim"), name),
            step.attempts_in_words,
            _time_line(step, first, last),
            f"+{took(step.points[-1][0] - first)}" if step.points else "",
            Text(step.note, "red" if step.state == "failed" else "dim"),
        )
    return made


def _time_line(step: StepLine, first: int, last: int) -> Text:
    cells = [" "] * LINE_WIDTH
    scale = (LINE_WIDTH - 1) / (last - first)

    def column(at: int) -> int:
        return min(max(round((at - first) * scale), 0), LINE_WIDTH - 1)

    if step.points:
        begin = column(step.points[0][0])
        end = LINE_WIDTH - 1 if step.state == "open" else column(step.points[-1][0])
        for at in range(begin, end + 1):
            cells[at] = "─"
        for at, mark in step.points:
            cells[column(at)] = mark
    line = Text("".join(cells), "cyan" if step.state == "open" else "green")
    line.highlight_words(["✗", "†"], "red")
    return line


def beside(ms: int, other_ms: int) -> str:
    """A time for people who have just read another one: with its date if that is another day."""
    return local(ms, date=local(ms)[:10] != local(other_ms)[:10])


def status_json(run: RunState, owner: str | None) -> dict[str, Any]:
    """Where a run stands, for programs."""
    return {
        "id": run.id,
        "workflow": run.workflow,
        "version": run.version,
        "state": run_state(run, owner is not None),
        "started_at": utc(run.started_at),
        "ended_at": utc(run.ended_at),
        "waiting_on": [] if run.ended else waiting_words(run, owner is not None),
        "steps_completed": sum(delivery.kind == "result" for delivery in run.journal),
        "input": run.input,
        "result": run.result,
        "error": run.error,
        "reason": run.reason,
    }


def steps_json(run: RunState, events: Sequence[Event]) -> list[dict[str, Any]]:
    """The steps of a run, for programs. `first_at`, `last_at`: the log's times of the first and the last that is known."""
    return [
        {
            "step_id": step.step_id,
            "kind": step.kind,
            "state": step.state,
            "attempts": step.attempts,
            "lost": step.lost,
            "first_at": utc(step.points[0][0]) if step.points else None,
            "last_at": utc(step.points[-1][0]) if step.points else None,
        }
        for step in steps_of(run, events)
    ]


def waiting_line(run: RunState, owner: str | None) -> str:
    """What a run waits for, on one line."""
    if run.ended:
        return run.phase
    words = f"waits for {'; '.join(waiting_words(run, owner is not None))}"
    return words if owner is not None else f"{words} (no worker serves its partition)"


def state_text(state: State) -> Text:
    """A run's state in its colour."""
    return Text(state, f"bold {STATE_STYLE.get(state, 'white')}")


def run_picture(run: RunState, events: Sequence[Event], owner: str | None, *, now_ms: int) -> RenderableType:
    """The whole run: where it stands, what it waits for, its steps, and how it ended."""
    end = run.ended_at if run.ended_at is not None else now_ms
    head = Text.assemble((run.id, "bold"), "  ", run.workflow, (f" version {run.version}" if run.version else "", "dim"), "  ")
    head.append_text(state_text(run_state(run, owner is not None)))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    verb = "took" if run.ended else "for"
    facts.add_row("started", f"{local(run.started_at)} {zone()}, {verb} {took(max(end - run.started_at, 0))}")
    facts.add_row("input", short(run.input, 200))
    if not run.ended:
        for index, words in enumerate(waiting_words(run, owner is not None)):
            facts.add_row("" if index else "waits for", words)
        facts.add_row("owner", owner or Text("none: nobody owns its partition", "yellow"))
    if run.phase == "completed":
        facts.add_row("result", Text(short(run.result, 400), "green"))
    elif run.phase == "failed":
        error = ErrorInfo.from_json(run.error)
        facts.add_row("error", Text(str(error) + (f" (step {error.step_id})" if error.step_id else ""), "red"))
    elif run.cancel_requested:
        facts.add_row("cancelled" if run.ended else "cancelling", run.reason or "no reason given")
    steps = steps_table(run, events, now_ms=end)
    parts: list[RenderableType] = [head, facts]
    if steps.row_count:
        parts += ["", steps]
    return Group(*parts)


def detail(event: Event) -> str:
    """What an event says beyond its type and step, in words."""
    if isinstance(event, Started):
        return f"{event.workflow} {short(event.input)}"
    if isinstance(event, StepCompleted):
        return (f"attempt {event.attempt} " if event.attempt > 1 else "") + ("" if event.result is None else short(event.result))
    if isinstance(event, StepFailed):
        again = "the last attempt" if event.next_at is None else f"again in {took(max(event.next_at - event.at, 0))}"
        return f"attempt {event.attempt}: {event.error.type}: {event.error.message}; {again}"
    if isinstance(event, AttemptLost):
        return f"attempt {event.attempt} may have been under way when its worker died"
    if isinstance(event, SleepScheduled):
        return f"until {beside(event.wake_at, event.at)}"
    if isinstance(event, WaitStarted):
        return f"for signal {event.signal!r}"
    if isinstance(event, SignalReceived):
        return f"{event.signal} {short(event.data)}"
    if isinstance(event, Completed):
        return short(event.result)
    if isinstance(event, Failed | Quarantined):
        return f"{event.error.type}: {event.error.message}"
    if isinstance(event, CancelRequested | Cancelled):
        return event.reason or ""
    if isinstance(event, Claim):
        return event.owner or ""
    return ""


_EVENT_STYLE = {
    "step-failed": "yellow",
    "attempt-lost": "yellow",
    "wait-timed-out": "yellow",
    "cancel-requested": "yellow",
    "failed": "red",
    "quarantined": "red",
    "completed": "green",
    "signal-received": "magenta",
}


def event_row(event: Event) -> tuple[Text, str, Text]:
    """An event's type in its colour, its step, and what it says."""
    step_id = cast(str, getattr(event, "step_id", ""))
    return Text(event.type, _EVENT_STYLE.get(event.type, "cyan")), step_id, Text(detail(event))


def event_line(event: Event, first_ms: int) -> Text:
    """An event on one line, with the time since the run began."""
    kind, step_id, said = event_row(event)
    kind.pad_right(18 - len(kind.plain))
    return Text.assemble((since((event.timestamp or event.at) - first_ms), "dim"), kind, f"{step_id:<16} ", (said.plain, "dim"))


def since(ms: int) -> str:
    """The time since something, as a column of its own."""
    return f"{ms / 1000:+9.3f} s  "


def history_table(events: Sequence[Event]) -> Table:
    """All events of a run."""
    time = f"time ({zone()})"
    made = table("offset", time, "event", "step", "", right=("offset",), spare=("offset", time, ""))
    for event in events:
        kind, step_id, said = event_row(event)
        made.add_row(str(event.offset), local(event.timestamp), kind, step_id, said)
    return made
