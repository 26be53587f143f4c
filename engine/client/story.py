"""The story of a run, for people: its operations, each with its outcome.

The outcomes come from the folded state (the run's open operations and its journal); this module does not judge them again. The
accepted events add times, attempts and workers. Pure and total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.records import StepDecision
from ..core.state import RunState
from ..events import Event
from ..operations import ENDS, GIVES_BACK, KIND_OF, TELLS
from ..operations.line import Line


def story(run: RunState, events: Sequence[Event], owners: Mapping[int, str | None] | None = None) -> list[Line]:
    """The operations of the run, in the order of their first records.

    `events`: the accepted events of this run, from the fold; `run`: its state after them. `owners`: offset of a claim -> worker.
    """
    lines: dict[str, Line] = {}
    for event in events:
        if isinstance(event, StepDecision):
            _tell(lines, event, event.type, owners or {})
    for step_id, kind, at, value in run.journal:
        line = lines.get(step_id)
        if line is None:  # a cancellation, or `events` do not reach back to the run's start
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
    """Add an event to the line of its operation."""
    at = event.at if event.timestamp is None else event.timestamp
    line = lines.get(event.step_id)
    kind = KIND_OF.get(type)
    if line is None:
        line = lines[event.step_id] = Line(event.step_id, "step" if kind is None else kind.name)
    line.worker = owners.get(event.claim, line.worker)
    if kind is not None:
        TELLS[type](line, event, at)
