"""Callbacks: the code hands out an id, and somebody outside answers by it. Pure.

`callback-created` holds the nonce of the id and is in the log before the code has the id. The first of `callback-completed`,
`callback-failed` and `callback-timed-out` in the log ends the callback. Each `callback-heartbeat` puts the end for want of
heartbeats off.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import orjson

from .. import errors
from ..core.records import FORMAT, ErrorModel, FromCode, OperationDecision, OperationRequest, Words
from ..core.state import Open, RunState, deliver, is_new
from ..errors import CallbackIdInvalid, ErrorInfo
from ..values.names import valid_run_id
from ..values.times import NEVER_MS, due, said, until, utc, within
from ..values.wait import Wait, ending, sending
from ..values.words import Beside, end_beside, joined, short, span
from .call import Call, Raise
from .kind import Kind
from .line import Line


class CallbackCreated(FromCode):
    """The code asks for an answer from outside, and gets an id that holds `nonce`.

    `timeout_at`: the time-out, ms since 1970; `heartbeat_ms`: how long nobody may be silent, counted from the log's time of this
    record and of each heartbeat.
    """

    counts_if = "the `step_id` is new in the run"

    type: Literal["callback-created"] = "callback-created"
    nonce: str
    timeout_at: int | None
    heartbeat_ms: int | None

    def detail(self, beside: Beside) -> str:
        until = "" if self.timeout_at is None else end_beside(self.timeout_at, self.at, beside)
        silence = "" if self.heartbeat_ms is None else f"a heartbeat at least every {span(self.heartbeat_ms)}"
        return joined(until, silence)


class CallbackRequest(OperationRequest):
    """A request about an open callback with this `nonce`."""

    never_ends = True
    when_refused = "the callback is over, or it never had this id"
    tone = "message"
    counts_if = "the run is open, and so is a callback of this `step_id`, which was created with this `nonce`"

    nonce: str
    why: Words = None


class CallbackCompleted(CallbackRequest):
    """The answer to an open callback with this `nonce`."""

    type: Literal["callback-completed"] = "callback-completed"
    data: Any

    def detail(self, beside: Beside) -> str:
        return short(self.data)


class CallbackFailed(CallbackRequest):
    """The answer to an open callback with this `nonce`: it has failed."""

    tone = "trouble"

    type: Literal["callback-failed"] = "callback-failed"
    error: ErrorModel

    def detail(self, beside: Beside) -> str:
        return str(self.error)


class CallbackHeartbeat(CallbackRequest):
    """Somebody still works on the answer to an open callback with this `nonce`."""

    type: Literal["callback-heartbeat"] = "callback-heartbeat"


class CallbackTimedOut(OperationDecision):
    """Nobody has answered in time, or for `heartbeat_ms` there was no heartbeat."""

    tone = "trouble"
    counts_if = "the callback is open, and `at` is not before its `timeout_at`, or the end of its `heartbeat_ms`, as `kind` says"

    type: Literal["callback-timed-out"] = "callback-timed-out"
    kind: Literal["timeout", "heartbeat"]

    def detail(self, beside: Beside) -> str:
        return f"no {'heartbeat' if self.kind == 'heartbeat' else 'answer'} in time"


class CallbackId(NamedTuple):
    """The id of a callback: its address, and a nonce that nobody can guess."""

    run_id: str
    step_id: str
    nonce: str

    def __str__(self) -> str:
        """Base64url, without padding, of the JSON array [run id, step id, generation, nonce]. The generation is 0 for now."""
        parts = orjson.dumps([self.run_id, self.step_id, 0, self.nonce])
        return base64.urlsafe_b64encode(parts).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: object) -> CallbackId:
        """The reverse of `str`. Raises CallbackIdInvalid for everything that `str` does not return."""
        if type(text) is str:
            try:
                run_id, step_id, _, nonce = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
                parsed = cls(run_id, step_id, nonce)
                if all(type(part) is str and part for part in parsed) and valid_run_id(run_id) and str(parsed) == text:
                    return parsed
            except (ValueError, TypeError, binascii.Error):
                pass
        raise CallbackIdInvalid(text)


class OpenCallback(Open):
    """A callback that nobody has answered."""

    __slots__ = ("beat_at", "heartbeat_ms", "nonce", "timeout_at")
    kind = "callback"
    actions = frozenset({"complete", "fail", "heartbeat"})

    def __init__(self, nonce: str, timeout_at: int | None, heartbeat_ms: int | None, now: int) -> None:
        self.since = now
        self.nonce = nonce
        self.timeout_at = timeout_at
        self.heartbeat_ms = heartbeat_ms
        self.beat_at = now  # the log's time of the last heartbeat, or of the creation

    @property
    def heartbeat_by(self) -> int | None:
        """When it times out for want of a heartbeat, ms since 1970."""
        return None if self.heartbeat_ms is None else self.beat_at + self.heartbeat_ms

    @property
    def when_due(self) -> str:
        return "callback-timed-out"

    @property
    def due_at(self) -> int | None:
        return due(self.timeout_at)

    @property
    def due_by_log(self) -> int | None:
        return due(self.heartbeat_by)

    def due_fields(self, by_log: bool) -> dict[str, Any]:
        return {"v": FORMAT, "kind": "heartbeat" if by_log else "timeout"}

    def words(self, step_id: str) -> str:
        limit = "" if self.timeout_at is None else f" {until(self.timeout_at)}"
        by = self.heartbeat_by
        silence = "" if by is None or by >= NEVER_MS else f", the next heartbeat by {said(by)}"
        return f"callback {step_id!r}{limit}{silence}"

    def wait(self, run_id: str, step_id: str) -> Wait:
        ends = [at for at in (self.due_at, self.due_by_log) if at is not None]
        silent = self.due_by_log is not None and self.due_by_log == min(ends)
        on = f"the answer to{', or a heartbeat of,' if silent else ''} callback {step_id!r}"
        end, who = ending(min(ends, default=None)), "another service or a person, who has the id"
        last, last_at = (None, None) if self.beat_at == self.since else ("a heartbeat", utc(self.beat_at))
        command = sending("callback complete", str(CallbackId(run_id, step_id, self.nonce)))
        return Wait(on, self.kind, step_id, utc(self.since), end, who, last, last_at, command)


def _created(run: RunState, event: dict[str, Any]) -> bool:
    step_id = event["step_id"]
    if not is_new(run, step_id):
        return False
    run.open[step_id] = OpenCallback(event["nonce"], event["timeout_at"], event["heartbeat_ms"], run.now)
    deliver(run, step_id, "callback-created", event["nonce"], over=False)
    return True


def _addressed(run: RunState, event: dict[str, Any]) -> OpenCallback | None:
    """The open callback that a request is for."""
    op = run.open.get(event["step_id"])
    return op if isinstance(op, OpenCallback) and op.nonce == event["nonce"] else None


def _completed(run: RunState, event: dict[str, Any]) -> bool:
    if _addressed(run, event) is None:
        return False
    _end(run, event, event["data"])
    return True


def _failed(run: RunState, event: dict[str, Any]) -> bool:
    if _addressed(run, event) is None:
        return False
    _end(run, event, event["error"])
    return True


def _heartbeat(run: RunState, event: dict[str, Any]) -> bool:
    op = _addressed(run, event)
    if op is None:
        return False
    op.beat_at = run.now
    return True


def _timed_out(run: RunState, event: dict[str, Any]) -> bool:
    op = run.open.get(event["step_id"])
    if not isinstance(op, OpenCallback):
        return False
    at = op.timeout_at if event["kind"] == "timeout" else op.heartbeat_by
    if at is None or event["at"] < at:
        return False
    _end(run, event, event["kind"])
    return True


def _end(run: RunState, event: dict[str, Any], value: Any) -> None:
    del run.open[event["step_id"]]
    deliver(run, event["step_id"], event["type"], value)


def _made(call: CallbackCall, step_id: str, value: Any) -> str:
    return str(CallbackId(call.run_id, step_id, value))


def _answered(call: CallbackCall, step_id: str, value: Any) -> Any:
    return call.make(step_id, value)


def _refused(call: CallbackCall, step_id: str, value: Any) -> Raise:
    return Raise(errors.CallbackFailed(step_id, value["type"], value["message"]))


def _too_late(call: CallbackCall, step_id: str, value: Any) -> Raise:
    return Raise(errors.CallbackTimedOut(step_id, value))


class CallbackCall(Call):
    """Hand out an id of `run_id`, then wait for the answer. `make` makes what the code gets from step id and data."""

    __slots__ = ("heartbeat_ms", "make", "run_id", "timeout_ms")
    kind = "callback"
    words = "a callback"
    settles: ClassVar = {"callback-completed": _answered, "callback-failed": _refused, "callback-timed-out": _too_late}
    progress: ClassVar = {"callback-created": _made}

    def __init__(self, run_id: str, timeout_ms: int | None, heartbeat_ms: int | None, make: Callable[[str, Any], Any]) -> None:
        self.run_id = run_id
        self.timeout_ms = timeout_ms
        self.heartbeat_ms = heartbeat_ms
        self.make = make

    @property
    def lasts_ms(self) -> int | None:
        return self.timeout_ms

    def begin(self, step_id: str, now: int, new_id: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        timeout_at = None if self.timeout_ms is None else within(now + self.timeout_ms)
        fields = {"v": FORMAT, "nonce": new_id(), "timeout_at": timeout_at, "heartbeat_ms": self.heartbeat_ms}
        return "callback-created", fields


def _tell_created(line: Line, event: CallbackCreated, at: int) -> None:
    line.points.append((at, "began"))
    line.until = event.timeout_at


def _tell_heartbeat(line: Line, event: CallbackHeartbeat, at: int) -> None:
    line.heartbeat_at = at


def _tell_timed_out(line: Line, event: CallbackTimedOut, at: int) -> None:
    line.points.append((at, "timed out"))


def _tell_request(line: Line, event: CallbackRequest, at: int) -> None:
    line.request = event.request


def _tell_answer(line: Line, value: Any, at: int) -> None:
    line.became = "done"
    line.result = value
    line.points.append((at, "ended"))


def _tell_failure(line: Line, value: Any, at: int) -> None:
    line.became = "failed"
    line.error = ErrorInfo.from_json(value)
    line.points.append((at, "failed"))


def _tell_timeout(line: Line, value: Any, at: int) -> None:
    line.became = "timed out"
    line.result = value


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    if line.became == "done":
        return short(line.result, 48)
    if line.became == "failed":
        return f"{line.error}"
    began = line.points[0][0]
    if line.became == "timed out" and line.result == "heartbeat":
        return f"no heartbeat since {beside(began if line.heartbeat_at is None else line.heartbeat_at, began)}"
    until = "" if line.until is None else f" {end_beside(line.until, began, beside)}"
    if line.became == "timed out":
        return f"no answer{until}"
    return joined(f"for an answer{until}", _heartbeats(line, now_ms, beside))


def _heartbeats(line: Line, now_ms: int, beside: Beside) -> str:
    """When the last one came, and when the next must have come."""
    last = "no heartbeat yet" if line.heartbeat_at is None else f"heartbeat at {beside(line.heartbeat_at, now_ms)}"
    if line.heartbeat_by is None:
        return "" if line.heartbeat_at is None else last
    return f"{last}, the {'first' if line.heartbeat_at is None else 'next'} by {beside(line.heartbeat_by, now_ms)}"


KIND = Kind(
    "callback",
    records=(CallbackCreated, CallbackCompleted, CallbackFailed, CallbackHeartbeat, CallbackTimedOut),
    rules={
        "callback-created": _created,
        "callback-completed": _completed,
        "callback-failed": _failed,
        "callback-heartbeat": _heartbeat,
        "callback-timed-out": _timed_out,
    },
    open=OpenCallback,
    call=CallbackCall,
    tells={
        "callback-created": _tell_created,
        "callback-heartbeat": _tell_heartbeat,
        "callback-timed-out": _tell_timed_out,
        "callback-completed": _tell_request,
        "callback-failed": _tell_request,
    },
    ends={"callback-completed": _tell_answer, "callback-failed": _tell_failure, "callback-timed-out": _tell_timeout},
    note=_note,
)
