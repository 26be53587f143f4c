"""Children: runs that the code of another run starts, and may await. Pure.

`child-scheduled` is in the log of the parent before anything is sent, so the end of the child always finds the operation open.
It owes `started` to the child. The end of the child owes `child-ended` to the parent, and a start under a taken id owes
`child-refused`. If the parent is cancelled, ends or lets go, it owes `cancel-requested` to the child, which counts only if it
names the child's own parent. A detached child is started in the same way, and nobody waits for its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple, cast

import orjson

from .. import errors
from ..core.messages import Parent, derived
from ..core.records import FORMAT, ErrorModel, FromCode, OperationDecision, OperationRequest
from ..core.state import Open, RunState, deliver, is_new
from ..errors import ErrorInfo
from ..values.names import valid_run_id
from ..values.times import due, until, utc, within
from ..values.wait import Wait, ending, showing
from ..values.words import Beside, end_beside, joined, short
from .call import Call, Differs, Raise
from .kind import Kind
from .line import Line

MAX_ID_CHARS = 200
KEPT_ID_CHARS = 160
"""How many characters of a derived id that would be too long stay."""

Policy = Literal["cancel", "abandon"]


def child_id(parent: RunState, step_id: str) -> str:
    """The id of a child that the code gave none: it begins with the parent's, and no two starts of runs have one in common."""
    made = f"{parent.id}/{step_id}~{derived(parent.id, parent.request or '', step_id)[:16]}"
    return made if len(made) <= MAX_ID_CHARS else f"{made[:KEPT_ID_CHARS]}~{derived(made)}"


class ChildScheduled(FromCode):
    """The code starts a run `child` of `workflow`, and waits for its end until `timeout_at` (ms), unless it is `detached`.

    `child_version` null: the highest version that the child's worker knows. `shielded`: the code asks within a shield, so a
    cancellation of the parent does not reach the child.
    """

    passes_on = True
    counts_if = "the `step_id` is new in the run, and `child` may be the id of a run"

    type: Literal["child-scheduled"] = "child-scheduled"
    child: str
    workflow: str
    child_version: str | None
    input: Any
    on_parent_close: Policy
    timeout_at: int | None
    detached: bool
    shielded: bool

    def detail(self, beside: Beside) -> str:
        end = "" if self.timeout_at is None else end_beside(self.timeout_at, self.at, beside)
        return joined(f"{self.workflow} {self.child}{' (detached)' * self.detached}", end)


class ChildRequest(OperationRequest):
    """A message to the parent of the run `child`. `start`: the digest of the request that started the parent."""

    never_ends = True
    counts_if = "the run is open and has this `start`, and so is a child of this `step_id` and id"

    child: str
    start: str


class ChildEnded(ChildRequest):
    """A child run has ended."""

    tone = "message"

    type: Literal["child-ended"] = "child-ended"
    state: Literal["completed", "failed", "cancelled"]
    result: Any = None
    error: ErrorModel | None = None
    reason: str | None = None

    def detail(self, beside: Beside) -> str:
        what = f"{self.error}" if self.error is not None else self.reason or ("" if self.result is None else short(self.result))
        return joined(f"{self.child} {self.state}", what)


class ChildRefused(ChildRequest):
    """No child began, because another start has its id."""

    tone = "trouble"

    type: Literal["child-refused"] = "child-refused"

    def detail(self, beside: Beside) -> str:
        return f"there is a run {self.child} already"


class ChildTimedOut(OperationDecision):
    tone = "trouble"
    counts_if = "the child is open, and `at` is not before its `timeout_at`"

    type: Literal["child-timed-out"] = "child-timed-out"


class OpenChild(Open):
    """A child whose end has not come."""

    __slots__ = ("child", "on_parent_close", "shielded", "stopped", "timeout_at", "workflow")
    kind = "child"

    def __init__(self, event: dict[str, Any], now: int) -> None:
        self.since = now
        self.child: str = event["child"]
        self.workflow: str = event["workflow"]
        self.on_parent_close: Policy = event["on_parent_close"]
        self.shielded: bool = event["shielded"]
        self.timeout_at: int | None = event["timeout_at"]
        self.stopped = False  # a cancellation is owed to it

    @property
    def when_due(self) -> str:
        return "child-timed-out"

    @property
    def due_at(self) -> int | None:
        return due(self.timeout_at)

    def words(self, step_id: str) -> str:
        limit = "" if self.timeout_at is None else f", {until(self.timeout_at)}"
        return f"child run {self.child!r} (step {step_id!r}{limit})"

    def wait(self, run_id: str, step_id: str) -> Wait:
        on = f"the end of child run {self.child!r}"
        end, who = ending(self.timeout_at), f"the child run, of workflow {self.workflow!r}"
        return Wait(on, self.kind, step_id, utc(self.since), end, who, command=showing(self.child))

    def dropped(self, run: RunState, step_id: str) -> None:
        self.stop(run, step_id, "its parent no longer waits for it")

    def run_cancelled(self, run: RunState, step_id: str) -> None:
        if not self.shielded:
            self.stop(run, step_id, "its parent is being cancelled")

    def stop(self, run: RunState, step_id: str, reason: str) -> None:
        """Owe the child a cancellation, once, if it shall not outlive the operation."""
        if self.stopped or self.on_parent_close != "cancel":
            return
        self.stopped = True
        parent = {"run_id": run.id, "start": run.start_digest, "step_id": step_id}
        run.owe("cancel-requested", self.child, request=run.derived("cancel", step_id), reason=reason, parent=parent)


def _scheduled(run: RunState, event: dict[str, Any]) -> bool:
    step_id, child = event["step_id"], event["child"]
    if not is_new(run, step_id) or not valid_run_id(child):
        return False
    parent: dict[str, Any] = {"run_id": run.id, "start": run.start_digest, "step_id": step_id}
    if event["detached"]:
        parent["detached"] = True
        deliver(run, step_id, "child-started", child)
    else:
        run.open[step_id] = OpenChild(event, run.now)
        deliver(run, step_id, "child-scheduled", child, over=False)
    named = {"workflow": event["workflow"], "version": event["child_version"]}
    run.owe("started", child, request=run.derived("start", step_id), **named, input=event["input"], parent=parent)
    return True


def _addressed(run: RunState, event: dict[str, Any]) -> OpenChild | None:
    """The open child that a message is about."""
    op = run.open.get(event["step_id"])
    if not isinstance(op, OpenChild) or op.child != event["child"] or event["start"] != run.start_digest:
        return None
    return op


def _ended(run: RunState, event: dict[str, Any]) -> bool:
    if _addressed(run, event) is None:
        return False
    _end(run, event, [event["state"], event.get(_TELLS_OF[event["state"]])])
    return True


_TELLS_OF = {"completed": "result", "failed": "error", "cancelled": "reason"}


def _refused(run: RunState, event: dict[str, Any]) -> bool:
    if _addressed(run, event) is None:
        return False
    _end(run, event, None)
    return True


def _timed_out(run: RunState, event: dict[str, Any]) -> bool:
    op = run.open.get(event["step_id"])
    if not isinstance(op, OpenChild) or op.timeout_at is None or event["at"] < op.timeout_at:
        return False
    op.stop(run, event["step_id"], "it did not end in time")
    _end(run, event, None)
    return True


def _end(run: RunState, event: dict[str, Any], value: Any) -> None:
    op = run.open.pop(event["step_id"])
    assert isinstance(op, OpenChild)
    deliver(run, event["step_id"], event["type"], [op.child, value])


def _at_end(run: RunState) -> None:
    """A run has ended: tell its parent, and cancel the children that shall not outlive it."""
    for step_id, op in run.open.items():
        if isinstance(op, OpenChild):
            op.stop(run, step_id, f"its parent has {'been cancelled' if run.phase == 'cancelled' else run.phase}")
    parent = run.parent
    if parent is None or parent.detached:
        return
    told = {"completed": {"result": run.result}, "failed": {"error": run.error}, "cancelled": {"reason": run.reason}}
    run.owe(
        "child-ended",
        parent.run_id,
        request=run.derived("end"),
        step_id=parent.step_id,
        child=run.id,
        start=parent.start,
        state=run.phase,
        **told[run.phase],
    )


def _start_refused(parent: Parent, child: str) -> dict[str, Any]:
    return {
        "type": "child-refused",
        "run_id": parent.run_id,
        "request": f"refused/{derived(*parent[:3], child)}",
        "step_id": parent.step_id,
        "child": child,
        "start": parent.start,
    }


def as_recorded(value: Any) -> Any:
    """The result of a child, if the code does not say of which type it is."""
    return value


def _started(call: ChildCall, step_id: str, value: Any) -> str:
    call.check_same(value, detached=True)
    return value


def _over(call: ChildCall, step_id: str, value: Any) -> Any:
    child, (state, told) = value
    call.check_same(child, detached=False)
    if state == "completed":
        return call.make(told)
    if state == "failed":
        return Raise(errors.ChildFailed(child, ErrorInfo.from_json(told)))
    return Raise(errors.ChildCancelled(child, told))


def _taken(call: ChildCall, step_id: str, value: Any) -> Raise:
    call.check_same(value[0], detached=False)
    error = ErrorInfo("RunAlreadyExists", f"there is a run {value[0]!r} already, which this one did not start")
    return Raise(errors.ChildFailed(value[0], error))


def _too_late(call: ChildCall, step_id: str, value: Any) -> Raise:
    call.check_same(value[0], detached=False)
    return Raise(errors.ChildTimedOut(value[0]))


class ChildCall(Call):
    """Start a run, and wait for its end unless `detached`. `make` makes the value that the code gets from the child's result."""

    __slots__ = (
        "child",
        "detached",
        "input",
        "make",
        "on_parent_close",
        "parent",
        "shielded",
        "timeout_ms",
        "version",
        "workflow",
    )
    kind = "child"
    words = "a child run"
    settles: ClassVar = {
        "child-started": _started,
        "child-ended": _over,
        "child-refused": _taken,
        "child-timed-out": _too_late,
    }
    begins = frozenset({"child-scheduled"})

    def __init__(
        self,
        parent: RunState,
        child: str | None,
        workflow: str,
        version: str | None,
        input: bytes,
        on_parent_close: Policy,
        timeout_ms: int | None,
        make: Callable[[Any], Any] | None,
    ) -> None:
        self.parent = parent
        self.child = child
        self.workflow = workflow
        self.version = version
        self.input = input
        self.on_parent_close = on_parent_close
        self.timeout_ms = timeout_ms
        self.shielded = False  # the caller sets it when the code asks
        self.detached = make is None
        self.make = make or as_recorded

    @property
    def lasts_ms(self) -> int | None:
        return self.timeout_ms

    @property
    def ends_first(self) -> bool:
        return self.on_parent_close == "cancel" and not self.shielded

    def begin(self, step_id: str, now: int, new_id: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        return "child-scheduled", {
            "v": FORMAT,
            "child": self.child or child_id(self.parent, step_id),
            "workflow": self.workflow,
            "child_version": self.version,
            "input": orjson.Fragment(self.input),
            "on_parent_close": self.on_parent_close,
            "timeout_at": None if self.timeout_ms is None else within(now + self.timeout_ms),
            "detached": self.detached,
            "shielded": self.shielded,
        }

    def check(self, known: Open) -> None:
        assert isinstance(known, OpenChild)
        if self.workflow != known.workflow:
            raise Differs(f"of workflow {known.workflow!r}", f"of workflow {self.workflow!r}")
        self.check_same(known.child, detached=False)

    def check_same(self, child: str, *, detached: bool) -> None:
        """Raise Differs unless this call starts such a child."""
        if self.detached is not detached:
            words = "awaited", "detached"
            raise Differs(f"that is {words[detached]}", f"that is {words[self.detached]}")
        if self.child not in (None, child):
            raise Differs(f"with the run id {child!r}", f"with the run id {self.child!r}")


def _tell_scheduled(line: Line, event: ChildScheduled, at: int) -> None:
    line.points.append((at, "began"))
    line.child, line.until = event.child, event.timeout_at
    line.workflow, line.detached = event.workflow, event.detached


def _tell_timed_out(line: Line, event: ChildTimedOut, at: int) -> None:
    line.points.append((at, "timed out"))


def _tell_request(line: Line, event: ChildRequest, at: int) -> None:
    line.request = event.request


def _tell_started(line: Line, value: Any, at: int) -> None:
    line.became = "done"
    line.result = value
    line.points.append((at, "ended"))


def _tell_over(line: Line, value: Any, at: int) -> None:
    _, (state, told) = value
    line.ended_as = state
    line.became = "done" if state == "completed" else "failed"
    line.points.append((at, "ended" if state == "completed" else "failed"))
    if state == "completed":
        line.result = told
    else:
        line.error = ErrorInfo.from_json(told) if state == "failed" else ErrorInfo("ChildCancelled", told or "")


def _tell_refused(line: Line, value: Any, at: int) -> None:
    line.became, line.ended_as = "failed", "refused"
    line.points.append((at, "failed"))
    line.error = ErrorInfo("RunAlreadyExists", "another start has this run id")


def _tell_timeout(line: Line, value: Any, at: int) -> None:
    line.became, line.ended_as = "timed out", "timed-out"


ChildState = Literal["open", "detached", "completed", "failed", "cancelled", "refused", "timed-out", "dropped"]


class Child(NamedTuple):
    """A child, as far as the log of its parent says. `workflow`, `step_id`: the workflow, and the operation that started it.

    `state`: "open" while the parent waits for the end; "completed", "failed" or "cancelled" after it; "detached" if nobody
    waits, so the end will not be known here; "timed-out" or "dropped" if the parent waits no longer; "refused" if no child
    began because another start has the id.
    """

    id: str
    workflow: str
    step_id: str
    state: ChildState
    detached: bool


def children_of(lines: Iterable[Line]) -> list[Child]:
    """The children among the operations of a run, in the order in which the code started them."""
    return [
        Child(line.child, line.workflow or "", line.step_id, _state(line), line.detached)
        for line in lines
        if line.child is not None
    ]


def _state(line: Line) -> ChildState:
    if line.detached:
        return "detached"
    return cast(ChildState, line.ended_as or ("open" if line.became == "open" else "dropped"))


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    run = f"run {line.child}"
    if line.became == "done":
        return joined(run, "" if line.result in (None, line.child) else short(line.result, 48))
    if line.became == "failed":
        return joined(run, f"{line.error}")
    end = "" if line.until is None else f" {end_beside(line.until, line.points[0][0], beside)}"
    return f"{run} did not end{end}" if line.became == "timed out" else f"{run}{end}"


KIND = Kind(
    "child",
    records=(ChildScheduled, ChildEnded, ChildRefused, ChildTimedOut),
    rules={
        "child-scheduled": _scheduled,
        "child-ended": _ended,
        "child-refused": _refused,
        "child-timed-out": _timed_out,
    },
    open=OpenChild,
    call=ChildCall,
    tells={
        "child-scheduled": _tell_scheduled,
        "child-timed-out": _tell_timed_out,
        "child-ended": _tell_request,
        "child-refused": _tell_request,
    },
    ends={
        "child-started": _tell_started,
        "child-ended": _tell_over,
        "child-refused": _tell_refused,
        "child-timed-out": _tell_timeout,
    },
    at_end=_at_end,
    start_refused=_start_refused,
    note=_note,
)
