"""Pictures of a run for people: its operations with their attempts on a time line, and its events one by one.

`stepfold.client.story` gives the outcomes; this module gives them words and colours. The log holds when an attempt ended, not
when it began. So the line of a step starts with the first known time: a single attempt is one point, a retried step goes from the
first failure to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.table import Table

from .. import events
from ..client.status import State, run_state, waiting_words
from ..client.story import Line
from ..core.state import RunState
from ..errors import ErrorInfo
from ..events import (
    AttemptLost,
    AttemptStarted,
    Cancelled,
    CancelRequested,
    Claim,
    CodeCleared,
    CodeSuspected,
    Completed,
    Event,
    Failed,
    InputCompleted,
    Quarantined,
    SignalReceived,
    SleepScheduled,
    Started,
    StepCompleted,
    StepHeartbeat,
    WaitStarted,
)
from ..values.times import NEVER_MS
from .output import Text, local, short, table, took, utc, zone

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
_POINTS = {"began": "╶", "ended": "●", "failed": "✗", "lost": "†", "timed out": "⧖"}
_UNNAMED = "(a first attempt is not in the log before it ends, unless its step has heartbeats, at_most_once or record_input)"
WINDOW = 50
"""How many operations are drawn by default."""


def attempts_in_words(line: Line) -> str:
    if line.kind != "step":
        return ""
    return f"{line.attempts}" + (f" ({line.lost} lost)" if line.lost else "")


def note(line: Line, now_ms: int) -> str:
    """Details of an operation beside its outcome."""
    last = line.points[-1][0] if line.points else now_ms
    if line.became == "dropped":
        return "the code no longer waits for it" + ("; its signal went back" if line.returned else "")
    if line.kind == "sleep":
        done = line.became == "done"
        return f"slept {took(last - line.points[0][0])}" if done else _until(line.until, last)
    if line.kind == "wait":
        if line.became == "done":
            return f"signal {line.signal!r} {short(line.result, 40)}"
        until = "" if line.until is None else f" {_until(line.until, line.points[0][0])}"
        return f"no signal: {line.signal!r}{until}" if line.became == "timed out" else f"for signal {line.signal!r}{until}"
    given = input_in_words(line)
    if line.became == "done":
        return _joined("" if line.result is None else short(line.result, 48), given)
    failed = "" if line.error is None else f"{line.error}"
    if line.became == "failed":
        return _joined(failed, given)
    return _joined(_attempt_in_words(line, now_ms), _heartbeat_in_words(line, now_ms), failed, given)


def _joined(*words: str) -> str:
    return "; ".join(one for one in words if one)


def input_in_words(one: Line | AttemptStarted) -> str:
    """The recorded arguments; "" if the step does not record them."""
    given = "" if one.input is None else f"input {short(one.input, 60)}"
    return given if one.input_note is None else f"{given} ({one.input_note})".lstrip()


def _attempt_in_words(line: Line, now_ms: int) -> str:
    """The attempt that runs or comes next: since when and on which worker, as far as the log knows."""
    attempt = f"attempt {line.attempts + 1}"
    if line.next_at is not None:
        return f"{attempt} {'at' if line.next_at > now_ms else 'was due at'} {beside(line.next_at, now_ms)}"
    on = f" on {line.worker}" if line.worker is not None else ""
    if line.running_since is not None:
        left = ", which no longer owns its partition" if line.left else ""
        return f"{attempt} began at {beside(line.running_since, now_ms)}{on}{left}"
    return f"{attempt} follows one that was lost with its worker" if line.lost else attempt


def _heartbeat_in_words(line: Line, now_ms: int) -> str:
    if line.heartbeat_at is None:
        return ""
    details = "" if line.heartbeat is None else f" {short(line.heartbeat, 40)}"
    return f"heartbeat at {beside(line.heartbeat_at, now_ms)}{details}"


def steps_table(lines: Sequence[Line], *, first_ms: int, now_ms: int) -> Table:
    """Operations, each with its time line from the start of the run (`first_ms`) to its end, or to `now_ms`."""
    last = max(now_ms, first_ms + 1)
    made = table("", "step", "attempts", "time line", "at", "", right=("at",), spare=("time line", "at", "attempts", ""))
    for step in lines:
        mark, colour = _MARKS[step.became]
        scope, slash, name = step.step_id.rpartition("/")
        made.add_row(
            Text(mark, colour),
            Text.assemble((scope + slash, "dim"), name),
            attempts_in_words(step),
            _time_line(step, first_ms, last),
            f"+{took(step.points[-1][0] - first_ms)}" if step.points else "",
            Text(note(step, now_ms), "red" if step.became == "failed" else "dim"),
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
        for at, mark in step.points:
            cells[column(at)] = _POINTS[mark]
    line = Text("".join(cells), "cyan" if step.became == "open" else "green")
    line.highlight_words(["✗", "†"], "red")
    return line


def _until(ms: int | None, other_ms: int) -> str:
    return "for ever" if ms is not None and ms >= NEVER_MS else f"until {beside(ms, other_ms)}"


def beside(ms: int | None, other_ms: int) -> str:
    """A time for people beside another time: with its date if the days differ."""
    return local(ms, date=local(ms)[:10] != local(other_ms)[:10])


def status_json(run: RunState, owner: str | None) -> dict[str, Any]:
    """The status of a run, for programs."""
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


def steps_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Operations, for programs. `first_at`, `last_at`: the log's times of the first and the last known point.

    An open step has, as far as the log knows: `next_at`, when its next attempt is due, or `running_since`; the `worker` of the
    attempt; the last `heartbeat` with its time; and the last `error`. `input`: the recorded arguments of the last attempt;
    `input_note`: what is missing there.
    """
    return [
        {
            "step_id": step.step_id,
            "kind": step.kind,
            "state": step.became,
            "attempts": step.attempts,
            "lost": step.lost,
            "first_at": utc(step.points[0][0]) if step.points else None,
            "last_at": utc(step.points[-1][0]) if step.points else None,
            "next_at": utc(step.next_at),
            "running_since": utc(step.running_since),
            "worker": step.worker,
            "heartbeat": step.heartbeat,
            "heartbeat_at": utc(step.heartbeat_at),
            "input": step.input,
            "input_note": step.input_note,
            "error": None if step.error is None else step.error.to_json(),
        }
        for step in lines
    ]


def waiting_line(run: RunState, owner: str | None) -> str:
    """The things that a run waits for, on one line."""
    if run.ended:
        return run.phase
    words = f"waits for {'; '.join(waiting_words(run, owner is not None))}"
    return words if owner is not None else f"{words} (no worker serves its partition)"


def state_text(state: State) -> Text:
    """A run's state in its colour."""
    return Text(state, f"bold {STATE_STYLE.get(state, 'white')}")


def chosen(lines: Sequence[Line], limit: int | None, *, failed: bool = False) -> list[Line]:
    """The last `limit` lines and all open ones; `failed`: only lines of which an attempt failed or was lost."""
    if failed:
        lines = [line for line in lines if line.error is not None or line.lost or line.became == "failed"]
    if limit is None or len(lines) <= limit:
        return list(lines)
    first = len(lines) - limit
    return [line for at, line in enumerate(lines) if at >= first or line.became == "open"]


def run_picture(run: RunState, lines: Sequence[Line], owner: str | None, *, now_ms: int, total: int = 0) -> RenderableType:
    """A run with its state, what it waits for, the given operations out of `total`, and its end."""
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
        if run.phase == "open" and owner is not None and not run.open and not run.awaits_worker:
            facts.add_row("", Text(_UNNAMED, "dim"))
        facts.add_row("last event", f"{beside(run.now, run.started_at)}, {took(max(now_ms - run.now, 0))} ago")
        facts.add_row("owner", owner or Text("none: no worker owns its partition", "yellow"))
    error = None if run.error is None else ErrorInfo.from_json(run.error)
    if run.phase == "completed":
        facts.add_row("result", Text(short(run.result, 400), "green"))
    elif run.phase == "failed" and error is not None:
        facts.add_row("error", Text(str(error) + (f" (step {error.step_id})" if error.step_id else ""), "red"))
    elif run.cancel_requested:
        facts.add_row("cancelled" if run.ended else "cancelling", run.reason or "no reason given")
    parts: list[RenderableType] = [head, facts]
    if error is not None and error.traceback:
        parts += ["", *(Text(f"  {line}", "dim") for line in error.traceback.rstrip().split("\n"))]
    if lines or total:
        parts.append("")
    if len(lines) < total:
        parts.append(Text(f"{len(lines):,} of {total:,} steps, sleeps and waits (--limit, --failed):", "dim"))
    if lines:
        parts.append(steps_table(lines, first_ms=run.started_at, now_ms=end))
    return Group(*parts)


def detail(event: Event) -> str:
    """The content of an event beyond its type and step id, in words."""
    if isinstance(event, Started):
        return f"{event.workflow} {short(event.input)}"
    if isinstance(event, InputCompleted):
        return short(event.input)
    if isinstance(event, CodeSuspected):
        return "workers have died, perhaps because of this run's code; it runs alone next"
    if isinstance(event, CodeCleared):
        return "its code has run, and its worker survived"
    if isinstance(event, StepCompleted):
        return (f"attempt {event.attempt} " if event.attempt > 1 else "") + ("" if event.result is None else short(event.result))
    if isinstance(event, events.StepFailed):
        again = "the last attempt" if event.next_at is None else f"again in {took(max(event.next_at - event.at, 0))}"
        return f"attempt {event.attempt}: {event.error.type}: {event.error.message}; {again}"
    if isinstance(event, AttemptStarted):
        return _joined(f"attempt {event.attempt}", input_in_words(event))
    if isinstance(event, StepHeartbeat):
        return f"attempt {event.attempt} {short(event.details)}"
    if isinstance(event, AttemptLost):
        return f"attempt {event.attempt} may have been running when its worker died"
    if isinstance(event, SleepScheduled):
        return _until(event.wake_at, event.at)
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
    "code-suspected": "yellow",
    "wait-timed-out": "yellow",
    "cancel-requested": "yellow",
    "failed": "red",
    "quarantined": "red",
    "completed": "green",
    "signal-received": "magenta",
}


def event_row(event: Event) -> tuple[Text, str, Text]:
    """An event's type in its colour, its step id, and its content."""
    step_id = cast(str, getattr(event, "step_id", ""))
    return Text(event.type, _EVENT_STYLE.get(event.type, "cyan")), step_id, Text(detail(event))


def event_line(event: Event, first_ms: int) -> Text:
    """An event on one line, with the time since the run began."""
    kind, step_id, said = event_row(event)
    kind.pad_right(18 - len(kind.plain))
    return Text.assemble((since((event.timestamp or event.at) - first_ms), "dim"), kind, f"{step_id:<16} ", (said.plain, "dim"))


def since(ms: int) -> str:
    """A time difference, as a column of fixed width."""
    return f"{ms / 1000:+9.3f} s  "


def history_table(events: Sequence[Event]) -> Table:
    """All events of a run."""
    time = f"time ({zone()})"
    made = table("offset", time, "event", "step", "", right=("offset",), spare=("offset", time, ""))
    for event in events:
        kind, step_id, said = event_row(event)
        made.add_row(str(event.offset), local(event.timestamp), kind, step_id, said)
    return made
