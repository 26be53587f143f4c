"""Records and rules of a run's life: start, cancellation, quarantine and end; and the claims of its partition. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field

from ..operations import GIVES_BACK
from ..values.words import Beside, short
from .messages import Parent, parent_of
from .records import PASSED_OVER, Base, Decision, ErrorModel, OperationDecision, ParentModel, Request, Words
from .state import RunState, deliver

MAX_REASON_CHARS = 10_000
"""The limit for the reason of a request, as requests and `cancelled` carry it."""


def is_reason(text: object) -> TypeGuard[str]:
    """Whether this is a text of up to 10,000 characters without lone surrogates."""
    return type(text) is str and len(text) <= MAX_REASON_CHARS and text.encode(errors="ignore").decode() == text


class Claim(Base):
    """`owner` owns the partition from this offset on, if `prev` is the offset of the claim that was current (-1: none).

    `owner` null: the previous owner released the partition and nobody owns it. `memory_ms` counts in a partition's first claim
    only: how long the partition remembers request ids and ids of ended runs; 24 hours if that claim does not say.
    """

    counts_if = "its key is `@claim`, and its `prev` is the offset of the last accepted claim (-1: there is none)"

    type: Literal["claim"] = "claim"
    prev: int
    owner: str | None
    nonce: str
    memory_ms: Annotated[int | None, Field(ge=0), PASSED_OVER] = None

    def detail(self, beside: Beside) -> str:
        return self.owner or ""


class Delivered(Base):
    """The owner has appended the messages that were caused at or below `through`, an offset for each target partition."""

    counts_if = "its key is `@outbox`, and its `claim` is the current one"

    type: Literal["delivered"] = "delivered"
    claim: int
    through: dict[str, int]


class Started(Request):
    """Starts a run, unless its id is known. `parent`: the operation of another run that asks for it, if one does.
    `traceparent`, `tracestate`: the trace of the asker, as in the headers of the W3C.
    """

    counts_if = "no run with this id is open, and none has ended within the memory, by the log's time"

    type: Literal["started"] = "started"
    workflow: str
    version: str | None = None
    input: Any
    trigger: dict[str, Any] | None = None
    reply_to: str | None = None
    parent: ParentModel | None = None
    why: Words = None
    traceparent: Words = None
    tracestate: Words = None

    def detail(self, beside: Beside) -> str:
        return f"{self.workflow} {short(self.input)}"


class CancelRequested(Request):
    """Asks the run to end; its code gets CancelledError. `parent`: the operation that started the run lets it go."""

    tone = "trouble"
    counts_if = "the run is open, no other request to cancel it has counted, and a `parent` is the run's own"

    type: Literal["cancel-requested"] = "cancel-requested"
    reason: str | None = None
    parent: ParentModel | None = None

    def detail(self, beside: Beside) -> str:
        return self.reason or ""


class StepCancelled(OperationDecision):
    """The code no longer waits for this operation. A signal that was delivered to it goes back to the front of its queue."""

    counts_if = "the operation is open; or it is a wait that got a signal, which goes back to its queue, once"

    type: Literal["step-cancelled"] = "step-cancelled"


class WorkflowUnknown(Decision):
    """The owner does not know the run's workflow or version; the run waits for a worker that does."""

    counts_if = "the last decision of the run that counted is another"

    type: Literal["workflow-unknown"] = "workflow-unknown"


class InputCompleted(Decision):
    """The run's input from now on: the start's input as the workflow's model made it, if the model makes it anew each time."""

    is_result = True
    counts_if = "no decision of the run's code has counted"

    type: Literal["input-completed"] = "input-completed"
    input: Any

    def detail(self, beside: Beside) -> str:
        return short(self.input)


class CodeSuspected(Decision):
    """The run's code is about to run, and may be what killed the previous workers. Counts once under each claim."""

    tone = "trouble"
    counts_if = "none has counted under this claim since the last other decision"

    type: Literal["code-suspected"] = "code-suspected"

    def detail(self, beside: Beside) -> str:
        return "workers have died, perhaps because of this run's code; it runs alone next"


class CodeCleared(Decision):
    """The run's code ran, and its worker survived."""

    counts_if = "a `code-suspected` has counted since the last other decision"

    type: Literal["code-cleared"] = "code-cleared"

    def detail(self, beside: Beside) -> str:
        return "its code has run, and its worker survived"


class Quarantined(Decision):
    """The run is put aside until the cause that `error` names is fixed; nothing of the run is lost."""

    tone = "failure"
    counts_if = "the run is not quarantined"

    type: Literal["quarantined"] = "quarantined"
    error: ErrorModel

    def detail(self, beside: Beside) -> str:
        return str(self.error)


class Resumed(Decision):
    """A quarantined run goes on."""

    counts_if = "the run is quarantined"

    type: Literal["resumed"] = "resumed"


class Completed(Decision):
    is_result = True
    tone = "success"
    counts_if = "the run is not quarantined"

    type: Literal["completed"] = "completed"
    result: Any

    def detail(self, beside: Beside) -> str:
        return short(self.result)


class Failed(Decision):
    """`at_line`: the file and line of the workflow's code that raised the error."""

    tone = "failure"
    counts_if = "the run is not quarantined"

    type: Literal["failed"] = "failed"
    error: ErrorModel
    at_line: Words = None

    def detail(self, beside: Beside) -> str:
        return str(self.error)


class Cancelled(Decision):
    counts_if = "a `cancel-requested` has counted"

    type: Literal["cancelled"] = "cancelled"
    reason: str | None = None

    def detail(self, beside: Beside) -> str:
        return self.reason or ""


def _cancel_requested(run: RunState, event: dict[str, Any]) -> bool:
    if run.cancel_requested or not _may_cancel(run, event):
        return False
    run.cancel_requested = True
    run.reason = event.get("reason")
    deliver(run, "", "cancel", run.reason)
    for step_id, op in run.open.items():
        op.run_cancelled(run, step_id)
    return True


def _may_cancel(run: RunState, event: dict[str, Any]) -> bool:
    """Whether a cancellation that names a parent comes from the run's own."""
    if event.get("parent") is None:
        return True
    told: Parent | None = parent_of(event)
    return told is not None and told == run.parent


def _step_cancelled(run: RunState, event: dict[str, Any]) -> bool:
    step_id = event["step_id"]
    op = run.open.pop(step_id, None)
    if op is not None:
        run.done.add(step_id)
        op.dropped(run, step_id)
        return True
    delivery = next((one for one in reversed(run.journal) if one.step_id == step_id and one.outcome in GIVES_BACK), None)
    if delivery is None or step_id in run.returned:
        return False
    run.returned.add(step_id)
    GIVES_BACK[delivery.outcome](run, delivery.value)
    return True


def _workflow_unknown(run: RunState, event: dict[str, Any]) -> bool:
    if run.awaits_worker:
        return False
    run.awaits_worker = True
    run.held_at = run.now
    return True


def _input_completed(run: RunState, event: dict[str, Any]) -> bool:
    if run.decided:
        return False
    run.input = event["input"]
    return True


def _code_suspected(run: RunState, event: dict[str, Any]) -> bool:
    if run.suspected and event["claim"] == run.suspected_by:
        return False  # a repeated append: no worker has died in between
    if not run.suspected:
        run.held_at = run.now
    run.suspected += 1
    run.suspected_by = event["claim"]
    return True


def _code_cleared(run: RunState, event: dict[str, Any]) -> bool:
    if not run.suspected:
        return False
    run.suspected = 0
    return True


def _quarantined(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "quarantined"
    run.held_at = run.now
    run.error = event["error"]
    return True


def _resumed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "quarantined":
        return False
    run.phase = "open"
    run.error = None
    for op in run.open.values():
        op.resumed()
    return True


def _completed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "completed"
    run.result = event["result"]
    return True


def _failed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "failed"
    run.error = event["error"]
    return True


def _cancelled(run: RunState, event: dict[str, Any]) -> bool:
    if not run.cancel_requested:
        return False
    run.phase = "cancelled"
    return True


RULES: dict[str, Callable[[RunState, dict[str, Any]], bool]] = {
    "cancel-requested": _cancel_requested,
    "step-cancelled": _step_cancelled,
    "workflow-unknown": _workflow_unknown,
    "input-completed": _input_completed,
    "code-suspected": _code_suspected,
    "code-cleared": _code_cleared,
    "quarantined": _quarantined,
    "resumed": _resumed,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
}
ENDS = frozenset({"completed", "failed", "cancelled"})
"""The events that end a run."""
OF_THE_OWNER = frozenset({"workflow-unknown", "code-suspected", "code-cleared"})
"""The decisions about the run's code that do not come from the code: they do not set `decided`."""
