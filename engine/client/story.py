"""The story of a run: its steps, sleeps and waits, each with what became of it, for whoever shows a run to people.

What became of a step is what the fold says (the run's open ops and its journal), and nothing is judged here a second time;
the accepted events add when that was, in which attempt, and on which worker. Pure and total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.records import StepDecision
from ..core.state import RunState
from ..events import Event
from ..operations import ENDS, GIVES_BACK, KIND_OF, TELLS
from ..operations.line import Line


def story(run: RunState, events: Sequence[Event], owners: Mapping[int, str | None] | None = None) -> list[Line]:
    """What the run has begun, in the order in which the log first speaks of it.

    `events`: the accepted ones of this run, as the fold gave them; `run`: as it is after them. `owners`: who made which claim,
    by the claim's offset.
    """
    lines: dict[str, Line] = {}
    for event in events:
        if isinstance(event, StepDecision):
            _tell(lines, event, event.type, owners or {})
    for step_id, kind, at, value in run.journal:
        line = lines.get(step_id)
        if line is None:  # a cancellation, or events that begin later than the run
            continue
        line.running_since = line.next_at = None
        ENDS[kind](line, value, at)
        line.returned = kind in GIVES_BACK and f"@returned/{step_id}" in run.done
    owner = owners[max(owners)] if owners else None
    for line in lines.values():
        line.left = line.worker is not None and line.worker != owner
        over = line.step_id not in run.open or run.ended
        if line.returned or (line.became == "open" and over):
            line.became = "dropped"
            line.running_since = line.next_at = None
    return list(lines.values())


def _tell(lines: dict[str, Line], event: StepDecision, type: str, owners: Mapping[int, str | None]) -> None:
    """What the event adds to the line of its step."""
    at = event.at if event.timestamp is None else event.timestamp
    line = lines.get(event.step_id)
    kind = KIND_OF.get(type)
    if line is None:
        line = lines[event.step_id] = Line(event.step_id, "step" if kind is None else kind.name)
    line.worker = owners.get(event.claim, line.worker)
    if kind is not None:
        TELLS[type](line, event, at)
