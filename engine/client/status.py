"""The status of a run, in words for people: from its folded state, wherever that was read. Pure."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from ..core.state import RunState
from ..errors import ErrorInfo
from ..operations.step import completed
from ..values.times import utc
from ..values.wait import Wait
from ..values.words import iso
from .actions import actions
from .waiting import wait_json, waits

State = Literal["pending", "running", "waiting", "quarantined", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run. `started_at`, `ended_at`: UTC.

    `waiting_on`: in words, what must happen next; `waits`: the same with since when, until when, who must act, what happened last
    and the command that moves it. `actions`: the requests that the run accepts now: "signal", "cancel", and "complete", "fail",
    "heartbeat" while a callback is open. `parent`, `parent_step`: the id of the run that started it, and the operation there;
    None: no run did.
    """

    id: str
    workflow: str
    version: str | None
    state: State
    started_at: datetime
    ended_at: datetime | None
    waiting_on: list[str]
    attempt: int
    result: Any
    error: ErrorInfo | None
    reason: str | None
    steps_completed: int
    waits: list[Wait]
    actions: frozenset[str]
    parent: str | None
    parent_step: str | None


def status_of(run: RunState, owned: bool) -> RunStatus:
    """The status of a run. `owned`: whether a worker owns the run's partition."""
    return RunStatus(
        id=run.id,
        workflow=run.workflow,
        version=run.version,
        state=run_state(run, owned),
        started_at=utc(run.started_at),
        ended_at=None if run.ended_at is None else utc(run.ended_at),
        waiting_on=[] if run.ended else waiting_words(run, owned),
        attempt=1,
        result=deepcopy(run.result),
        error=None if run.error is None else ErrorInfo.from_json(run.error),
        reason=run.reason,
        steps_completed=completed(run),
        waits=waits(run, owned),
        actions=actions(run),
        parent=None if run.parent is None else run.parent.run_id,
        parent_step=None if run.parent is None else run.parent.step_id,
    )


def status_json(run: RunState, owned: bool) -> dict[str, Any]:
    """The status of a run, for programs. `owned`: whether a worker owns the run's partition."""
    return {
        "id": run.id,
        "workflow": run.workflow,
        "version": run.version,
        "parent": None if run.parent is None else run.parent.run_id,
        "parent_step": None if run.parent is None else run.parent.step_id,
        "state": run_state(run, owned),
        "started_at": iso(run.started_at),
        "ended_at": iso(run.ended_at),
        "waiting_on": [] if run.ended else waiting_words(run, owned),
        "waits": [wait_json(wait) for wait in waits(run, owned)],
        "actions": sorted(actions(run)),
        "steps_completed": completed(run),
        "input": run.input,
        "result": run.result,
        "error": run.error,
        "reason": run.reason,
    }


def run_state(run: RunState, owned: bool) -> State:
    """The state in one word. `owned`: whether a worker owns the run's partition."""
    if run.phase != "open":
        return cast(State, run.phase)
    if run.awaits_worker or (not run.decided and not owned):
        return "pending"
    return "waiting" if run.open else "running"


def waiting_words(run: RunState, owned: bool) -> list[str]:
    """The things that the run waits for, for people."""
    if run.phase == "quarantined" or run.awaits_worker:
        return [wait.on for wait in waits(run, owned)]
    words = [op.words(step_id) for step_id, op in run.open.items()]
    if not words:
        words.append("the result of a step" if owned else "a worker")
    return words


def waiting_line(run: RunState, owned: bool) -> str:
    """The things that a run waits for, on one line; the word for its end if it has ended."""
    if run.ended:
        return run.phase
    words = f"waits for {'; '.join(waiting_words(run, owned))}"
    return words if owned else f"{words} (no worker serves its partition)"
