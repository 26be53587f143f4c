"""The story of a run, for people: its operations, each with its outcome.

The outcomes come from the folded state (the run's open operations and its journal); this module does not judge them again. The
accepted events add times, attempts and workers. Pure and total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.lifecycle import CancelRequested, Failed, Started
from ..core.records import Base, OperationDecision, OperationRequest, Request
from ..core.state import RunState
from ..events import Event
from ..operations import BY_NAME, ENDS, GIVES_BACK, KIND_OF, TELLS
from ..operations.line import Line
from ..values.words import Beside, iso, joined, sender


def story(
    run: RunState,
    events: Iterable[Event],
    owners: Mapping[int, str | None] | None = None,
    asked_by: Callable[[str], Request | None] | None = None,
) -> list[Line]:
    """The operations of the run, in the order of their first records.

    `events`: the accepted events of this run, from the fold; `run`: its state after them. `owners`: offset of a claim -> worker.
    `events` may be those of some operations alone; `asked_by` then gives the other requests by their id.
    """
    lines: dict[str, Line] = {}
    asked: dict[str, Request] = {}
    for event in events:
        if isinstance(event, OperationDecision):
            _tell(lines, event, event.type, owners or {})
        elif isinstance(event, Request):
            asked[event.request] = event
            if isinstance(event, OperationRequest) and event.type in TELLS and event.step_id in lines:
                TELLS[event.type](lines[event.step_id], event, _at(event))
    for step_id, outcome, at, value in run.journal:
        line, end = lines.get(step_id), ENDS.get(outcome)
        if line is None or end is None:  # a cancellation, no end, or `events` do not reach back to the run's start
            continue
        line.running_since = line.next_at = None
        end(line, value, at)
        line.returned = outcome in GIVES_BACK and step_id in run.returned
        request = asked.get(line.request or "") or (asked_by(line.request) if asked_by and line.request else None)
        if request is not None:
            line.by, line.why = request.by, getattr(request, "why", None)
    for step_id, op in run.open.items():
        if step_id in lines and not run.ended:
            lines[step_id].heartbeat_by = op.due_by_log
    owner = owners[max(owners)] if owners else None
    for line in lines.values():
        line.left = line.worker is not None and line.worker != owner
        over = line.step_id not in run.open or run.ended
        if line.returned or (line.became == "open" and over):
            line.became = "dropped"
            line.running_since = line.next_at = None
    return list(lines.values())


def _tell(lines: dict[str, Line], event: OperationDecision, type: str, owners: Mapping[int, str | None]) -> None:
    """Add an event to the line of its operation."""
    line = lines.get(event.step_id)
    kind = KIND_OF.get(type)
    if line is None:
        line = lines[event.step_id] = Line(event.step_id, "step" if kind is None else kind.name)
    line.worker = owners.get(event.claim, line.worker)
    line.at_line = getattr(event, "at_line", None) or line.at_line
    if kind is not None:
        TELLS[type](line, event, _at(event))


def _at(event: Base) -> int:
    return event.at if event.timestamp is None else event.timestamp


def note(line: Line, now_ms: int, beside: Beside) -> str:
    """Details of an operation beside its outcome, in words."""
    words = BY_NAME[line.kind].note
    if line.became != "dropped":
        stands = "" if line.at_line is None or line.became not in ("open", "failed") else f"at {line.at_line}"
        return joined(words(line, now_ms, beside), sender(line.by, line.why), stands)
    return joined("the code no longer waits for it", words(line, now_ms, beside) if line.returned else "")


ASKING = ("started", "cancel-requested", "failed")
"""The types of the events that `askers` reads."""


def askers(events: Iterable[Event]) -> dict[str, str | None]:
    """The people who started the run (`by`, `why`) and cancelled it (`cancelled_by`), and the line of the code that failed it
    (`at_line`), as far as the events say."""
    known: dict[str, str | None] = {"by": None, "why": None, "cancelled_by": None, "at_line": None}
    for event in events:
        if isinstance(event, Started):
            known |= {"by": event.by, "why": event.why}
        elif isinstance(event, CancelRequested):
            known["cancelled_by"] = event.by
        elif isinstance(event, Failed):
            known["at_line"] = event.at_line
    return known


def attempts_in_words(line: Line) -> str:
    """How many attempts are over; "" for an operation without attempts."""
    if not BY_NAME[line.kind].attempts:
        return ""
    return f"{line.attempts}" + (f" ({line.lost} lost)" if line.lost else "")


def line_json(line: Line) -> dict[str, Any]:
    """An operation, for programs. `first_at`, `last_at`: the log's times of the first and the last known point.

    An open step has, as far as the log knows: `next_at`, when its next attempt is due, or `running_since`; the `worker` of the
    attempt; the last `heartbeat` with its time; and the last `error`. `input`: the recorded arguments of the last attempt;
    `input_note`: what is missing there. `until`: the end of a sleep, or the time-out of a wait or callback. `child`: the run id
    of a child. An open callback may have the time of the last heartbeat, and `heartbeat_by`, when the next one must have come.
    `queued_ms`, `ran_ms`: how long the last attempt that is over waited for a slot, and ran. `at_line`: the line of the code.
    `by`, `why`: of the signal or answer that ended it.
    """
    return {
        "step_id": line.step_id,
        "kind": line.kind,
        "state": line.became,
        "attempts": line.attempts,
        "lost": line.lost,
        "first_at": iso(line.points[0][0]) if line.points else None,
        "last_at": iso(line.points[-1][0]) if line.points else None,
        "queued_ms": line.queued_ms,
        "ran_ms": line.ran_ms,
        "at_line": line.at_line,
        "by": line.by,
        "why": line.why,
        "next_at": iso(line.next_at),
        "running_since": iso(line.running_since),
        "worker": line.worker,
        "heartbeat": line.heartbeat,
        "heartbeat_at": iso(line.heartbeat_at),
        "heartbeat_by": iso(line.heartbeat_by),
        "until": iso(line.until),
        "child": line.child,
        "input": line.input,
        "input_note": line.input_note,
        "error": None if line.error is None else line.error.to_json(),
    }
