"""Steps: a worker runs a function, attempt by attempt, until one succeeds or the last has failed. Pure.

The records of a step tell of attempts. A step that succeeds at once has one record, its result. The worker runs the attempts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ..core.records import PASSED_OVER, Clock, ErrorModel, FromCode, OperationDecision
from ..core.state import Delivery, RunState, deliver
from ..errors import ErrorInfo
from ..values.times import said, utc
from ..values.tuples import maker_of
from ..values.wait import Wait, ending
from ..values.words import Beside, joined, short, span
from .attempted import AttemptsCall, OpenAttempts, tell_times
from .kind import Kind
from .line import Line

_delivery = maker_of(Delivery)


_NEXT = "the step is not over, and `attempt` is the next one: 1, or 1 more than its failed and lost attempts"


class StepCompleted(OperationDecision):
    """An attempt succeeded. `attempt` counts from 1. By the worker's clock (ms) it ran from `began_at` to `at`, and
    waited for a slot before, from `queued_at` on. Without `queued_at` there was a slot; without `began_at` it took less than
    1 ms, or an older worker wrote the record.
    """

    is_result = True
    counted_as = "steps_completed"
    counts_if = _NEXT

    type: Literal["step-completed"] = "step-completed"
    attempt: int
    result: Any
    queued_at: Clock = None
    began_at: Clock = None

    def detail(self, beside: Beside) -> str:
        attempt = f"attempt {self.attempt} " if self.attempt > 1 else ""
        return attempt + ("" if self.result is None else short(self.result))


class StepFailed(FromCode):
    """An attempt failed. The next one is due at `next_at` (ms); null: this was the last one. `queued_at`, `began_at`: as in
    `step-completed`.
    """

    tone = "trouble"
    counted_as = "attempts_failed"
    counts_if = _NEXT

    type: Literal["step-failed"] = "step-failed"
    attempt: int
    error: ErrorModel
    next_at: int | None
    heartbeat: Any = None
    queued_at: Clock = None
    began_at: Clock = None

    def detail(self, beside: Beside) -> str:
        again = "the last attempt" if self.next_at is None else f"again in {span(max(self.next_at - self.at, 0))}"
        return f"attempt {self.attempt}: {self.error}; {again}"


class AttemptStarted(FromCode):
    """An attempt is about to run. Recorded if the step is at_most_once, lost an attempt before, or records its input.

    `input`: the arguments, for people; `input_note`: which of them are cut or cannot be written.
    """

    counts_if = _NEXT + "; once for each attempt"

    type: Literal["attempt-started"] = "attempt-started"
    attempt: int
    input: Annotated[list[Any] | None, PASSED_OVER] = None
    input_note: Annotated[str | None, PASSED_OVER] = None

    def detail(self, beside: Beside) -> str:
        return joined(f"attempt {self.attempt}", _input(self.input, self.input_note))


class AttemptLost(FromCode):
    """The attempt may have been running when its worker died; or its worker left before the announced attempt ran."""

    tone = "trouble"
    counted_as = "attempts_lost"
    counts_if = _NEXT

    type: Literal["attempt-lost"] = "attempt-lost"
    attempt: int

    def detail(self, beside: Beside) -> str:
        return f"attempt {self.attempt} may have been running when its worker died"


class StepHeartbeat(FromCode):
    """A running attempt reports its progress; the next attempt gets the last `details`."""

    counts_if = _NEXT + "; `at` is above that of its last heartbeat"

    type: Literal["step-heartbeat"] = "step-heartbeat"
    attempt: int
    details: Any

    def detail(self, beside: Beside) -> str:
        return f"attempt {self.attempt} {short(self.details)}"


class OpenStep(OpenAttempts):
    """A step without a result."""

    __slots__ = ()
    kind = "step"

    def wait(self, run_id: str, step_id: str) -> Wait:
        attempt = f"attempt {self.attempts + 1}"
        on, who = f"{attempt} of step {step_id!r}", "the clock"
        failed = "" if self.error is None else f"{ErrorInfo.from_json(self.error)}"
        if self.next_at is not None:
            last = f"attempt {self.attempts} failed: {failed}"
        elif self.lost and not self.started and self.last_at == self.since:
            who = "a worker that runs it"
            last = joined(f"attempt {self.attempts} was lost with its worker", failed and f"one before failed: {failed}")
        else:
            on, who = f"the result of {on}", "the worker that runs it"
            did = "began" if self.started and self.last_at == self.since else "sent a heartbeat"
            last = joined(f"{attempt} {did}", failed and f"one before failed: {failed}")
        return Wait(on, self.kind, step_id, utc(self.since), ending(self.next_at), who, last, utc(self.last_at))

    def words(self, step_id: str) -> str:
        number = self.attempts + 1
        if self.next_at is None:
            return f"step {step_id!r}: the result of attempt {number}"
        return f"step {step_id!r}: attempt {number} at {said(self.next_at)}, after {ErrorInfo.from_json(self.error)}"


def _attempt(run: RunState, event: dict[str, Any]) -> OpenAttempts | None:
    """The open operation, if the event is about its next attempt; else None. Opens a step that has no record yet."""
    step_id = event["step_id"]
    op = run.open.get(step_id)
    if op is None:
        if step_id in run.done or not step_id or event["attempt"] != 1:
            return None
        op = run.open[step_id] = OpenStep(run.now)
        return op
    if not isinstance(op, OpenAttempts) or event["attempt"] != op.attempts + 1:
        return None
    return op


def _completed(run: RunState, event: dict[str, Any]) -> bool:
    step_id = event["step_id"]
    if step_id not in run.open:
        if step_id in run.done or not step_id or event["attempt"] != 1:
            return False
    elif _attempt(run, event) is None:
        return False
    else:
        del run.open[step_id]
    run.journal.append(_delivery((step_id, "result", run.now, event["result"])))
    run.done.add(step_id)
    return True


def _failed(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None:
        return False
    step.attempts += 1
    step.failures += 1
    step.lost = 0
    step.started = False
    step.since = step.last_at = run.now
    step.error = event["error"]
    step.next_at = event["next_at"]
    if event.get("heartbeat") is not None:
        step.heartbeat = event["heartbeat"]
    if step.next_at is None:
        del run.open[event["step_id"]]
        deliver(run, event["step_id"], "error", [step.attempts, step.error])
    return True


def _started(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None or step.started:
        return False
    step.started = True
    step.since = step.last_at = run.now
    step.next_at = None
    return True


def _lost(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None:
        return False
    step.attempts += 1
    step.lost += 1
    step.started = False
    step.since = step.last_at = run.now
    step.next_at = None
    return True


def _heartbeat(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None or event["at"] <= step.heartbeat_at:
        return False
    step.heartbeat = event["details"]
    step.heartbeat_at = event["at"]
    step.last_at = run.now
    if step.next_at is not None:
        step.since = run.now
    step.next_at = None
    return True


class StepCall(AttemptsCall):
    """Run a function, and give its result to the code."""

    __slots__ = ()
    kind = "step"
    words = "step.run"


def _tell_completed(line: Line, event: StepCompleted, at: int) -> None:
    tell_times(line, event, at)
    line.points.append((at, "ended"))
    line.attempts = event.attempt


def _tell_failed(line: Line, event: StepFailed, at: int) -> None:
    tell_times(line, event, at)
    line.points.append((at, "failed"))
    line.attempts, line.error = event.attempt, ErrorInfo.from_json(event.error.model_dump(exclude_none=True))
    line.next_at, line.running_since = event.next_at, None


def _tell_running(line: Line, event: AttemptStarted | StepHeartbeat, at: int) -> None:
    line.next_at = None
    if line.running_since is None:
        line.running_since = at


def _tell_started(line: Line, event: AttemptStarted, at: int) -> None:
    _tell_running(line, event, at)
    line.points.append((at, "began"))
    line.input, line.input_note = event.input, event.input_note


def _tell_lost(line: Line, event: AttemptLost, at: int) -> None:
    line.points.append((at, "lost"))
    line.attempts, line.lost = event.attempt, line.lost + 1
    line.next_at = line.running_since = None


def _tell_heartbeat(line: Line, event: StepHeartbeat, at: int) -> None:
    _tell_running(line, event, at)
    line.heartbeat, line.heartbeat_at = event.details, at


def _tell_result(line: Line, value: Any, at: int) -> None:
    line.became = "done"
    line.result = value


def _tell_error(line: Line, value: Any, at: int) -> None:
    line.became = "failed"


def completed(run: RunState) -> int:
    """The number of steps that have a result."""
    return sum(delivery.outcome == "result" for delivery in run.journal)


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    recorded = _input(line.input, line.input_note)
    if line.became == "done":
        return joined("" if line.result is None else short(line.result, 48), recorded)
    failed = "" if line.error is None else f"{line.error}"
    if line.became == "failed":
        return joined(failed, recorded)
    return joined(_next_attempt(line, now_ms, beside), _last_heartbeat(line, now_ms, beside), failed, recorded)


def _input(arguments: list[Any] | None, note: str | None) -> str:
    """The recorded arguments; "" if the step does not record them."""
    recorded = "" if arguments is None else f"input {short(arguments)}"
    return recorded if note is None else f"{recorded} ({note})".lstrip()


def _next_attempt(line: Line, now_ms: int, beside: Beside) -> str:
    """The attempt that runs or comes next: since when and on which worker, as far as the log knows."""
    attempt = f"attempt {line.attempts + 1}"
    if line.next_at is not None:
        return f"{attempt} {'at' if line.next_at > now_ms else 'was due at'} {beside(line.next_at, now_ms)}"
    on = f" on {line.worker}" if line.worker is not None else ""
    if line.running_since is not None:
        left = ", which no longer owns its partition" if line.left else ""
        return f"{attempt} began at {beside(line.running_since, now_ms)}{on}{left}"
    return f"{attempt} follows one that was lost with its worker" if line.lost else attempt


def _last_heartbeat(line: Line, now_ms: int, beside: Beside) -> str:
    if line.heartbeat_at is None:
        return ""
    details = "" if line.heartbeat is None else f" {short(line.heartbeat, 40)}"
    return f"heartbeat at {beside(line.heartbeat_at, now_ms)}{details}"


KIND = Kind(
    "step",
    records=(StepCompleted, StepFailed, AttemptStarted, AttemptLost, StepHeartbeat),
    rules={
        "step-completed": _completed,
        "step-failed": _failed,
        "attempt-started": _started,
        "attempt-lost": _lost,
        "step-heartbeat": _heartbeat,
    },
    open=OpenStep,
    call=StepCall,
    tells={
        "step-completed": _tell_completed,
        "step-failed": _tell_failed,
        "attempt-started": _tell_started,
        "attempt-lost": _tell_lost,
        "step-heartbeat": _tell_heartbeat,
    },
    ends={"result": _tell_result, "error": _tell_error},
    note=_note,
    attempts=True,
)
