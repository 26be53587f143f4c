"""The events: what one record of the history may say. This module is the published contract; JSON Schema comes from it.

Pure. An event is a JSON object with a kebab-case `type`. Three families:

- requests (`started`, `signal-received`, `cancel-requested`): from outside, under no claim, idempotent by `request`;
- decisions: the owner's, under its `claim`; each is valid alone, nothing needs two records to be atomic;
- `claim`: who owns the partition from its offset on.

Changes are additive. A record that needs more than a reader of format `FORMAT` knows carries a higher `v`; a claim's `v`
says up to which format its owner can judge, and a record above that is void for every reader.

The engine works on plain dicts, which `decode` has checked against the same models; the models serve people, other
languages and the documentation.
"""

from __future__ import annotations

import types
from itertools import product
from operator import itemgetter
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FORMAT = 1
"""The newest record format that this code writes and understands."""

MAX_DEPTH = 200
"""How deep a payload may be nested. orjson reads deeper JSON than it writes, and what is accepted must be writable again."""
_EVENT_DEPTH = MAX_DEPTH + 10


class ErrorModel(BaseModel):
    """An exception: `type` is the class's name for builtins, `module.Class` otherwise."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str
    traceback: str | None = None
    step_id: str | None = None


class Base(BaseModel):
    """What every event has. `at`: the writer's clock, milliseconds since 1970, UTC."""

    model_config = ConfigDict(extra="allow")

    v: int = FORMAT
    at: int
    offset: int | None = Field(default=None, exclude=True, description="Place in the partition; not part of the value.")
    timestamp: int | None = Field(
        default=None, exclude=True, description="The log's time of the record, in ms; not part of the value."
    )


class Request(Base):
    """From outside, under no claim. `request` makes a repeat harmless."""

    run_id: str
    request: str


class Decision(Base):
    """The owner's, under its claim. The first decision of a run that was started without a version carries `version`."""

    run_id: str
    claim: int
    version: str | None = None


class StepDecision(Decision):
    """`step_id`: the path of the step, sleep or wait through its scopes, numbered when repeated (`charge#2`)."""

    step_id: str


class Claim(Base):
    """`owner` owns the partition from this offset on, if `prev` is the offset of the claim that was current (-1: none).

    `owner` null: the previous owner left in good order and nobody owns the partition.
    """

    type: Literal["claim"] = "claim"
    prev: int
    owner: str | None
    nonce: str


class Started(Request):
    """A run begins, if its id is not known."""

    type: Literal["started"] = "started"
    workflow: str
    version: str | None = None
    input: Any
    trigger: dict[str, Any] | None = None
    reply_to: str | None = None


class SignalReceived(Request):
    """Data for whoever waits for `signal`, now or later; kept in order until taken."""

    type: Literal["signal-received"] = "signal-received"
    signal: str
    data: Any


class CancelRequested(Request):
    """The run shall end; its code sees CancelledError."""

    type: Literal["cancel-requested"] = "cancel-requested"
    reason: str | None = None


class StepCompleted(StepDecision):
    """An attempt succeeded. `attempt` counts from 1."""

    type: Literal["step-completed"] = "step-completed"
    attempt: int
    result: Any


class StepFailed(StepDecision):
    """An attempt failed; the next one is due at `next_at` (ms), or this was the last (null)."""

    type: Literal["step-failed"] = "step-failed"
    attempt: int
    error: ErrorModel
    next_at: int | None
    heartbeat: Any = None


class AttemptStarted(StepDecision):
    """An attempt is about to run: an at_most_once one, or one of a step that was lost before."""

    type: Literal["attempt-started"] = "attempt-started"
    attempt: int


class AttemptLost(StepDecision):
    """The attempt was under way, as far as anyone knows, when its worker died; or its worker left before an announced one ran."""

    type: Literal["attempt-lost"] = "attempt-lost"
    attempt: int


class StepHeartbeat(StepDecision):
    """A running attempt reports; the next attempt sees the last `details`."""

    type: Literal["step-heartbeat"] = "step-heartbeat"
    attempt: int
    details: Any


class StepCancelled(StepDecision):
    """The code no longer waits for this step, sleep or wait. A signal it had been given goes back to the front."""

    type: Literal["step-cancelled"] = "step-cancelled"


class SleepScheduled(StepDecision):
    """`wake_at`: absolute, ms."""

    type: Literal["sleep-scheduled"] = "sleep-scheduled"
    wake_at: int


class SleepCompleted(StepDecision):
    type: Literal["sleep-completed"] = "sleep-completed"


class WaitStarted(StepDecision):
    """The code waits for a signal, until `timeout_at` (ms) if given."""

    type: Literal["wait-started"] = "wait-started"
    signal: str
    timeout_at: int | None


class WaitTimedOut(StepDecision):
    type: Literal["wait-timed-out"] = "wait-timed-out"


class WorkflowUnknown(Decision):
    """The owner does not know the run's workflow or version; the run waits for a worker that does."""

    type: Literal["workflow-unknown"] = "workflow-unknown"


class Quarantined(Decision):
    """The run stands still until somebody mends what `error` names; nothing of it is lost."""

    type: Literal["quarantined"] = "quarantined"
    error: ErrorModel


class Resumed(Decision):
    """A quarantined run goes on."""

    type: Literal["resumed"] = "resumed"


class Completed(Decision):
    type: Literal["completed"] = "completed"
    result: Any


class Failed(Decision):
    type: Literal["failed"] = "failed"
    error: ErrorModel


class Cancelled(Decision):
    type: Literal["cancelled"] = "cancelled"
    reason: str | None = None


RunEvent = (
    Started
    | SignalReceived
    | CancelRequested
    | StepCompleted
    | StepFailed
    | AttemptStarted
    | AttemptLost
    | StepHeartbeat
    | StepCancelled
    | SleepScheduled
    | SleepCompleted
    | WaitStarted
    | WaitTimedOut
    | WorkflowUnknown
    | Quarantined
    | Resumed
    | Completed
    | Failed
    | Cancelled
)
"""One event of a run, told apart by `type`."""

Event = RunEvent | Claim
"""One event, told apart by `type`."""

_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])

ENDS = frozenset({"completed", "failed", "cancelled"})
"""The events after which a run is over."""


def _kinds(annotation: Any) -> frozenset[type] | None:
    """The exact Python types that JSON may give for an annotation; None: any."""
    if annotation is Any:
        return None
    if annotation is None or annotation is type(None):
        return frozenset({type(None)})
    if get_origin(annotation) in (Union, types.UnionType):
        parts: list[frozenset[type]] = [_kinds(part) or frozenset() for part in get_args(annotation)]
        return frozenset[type]().union(*parts)
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return frozenset({dict})
    return frozenset([cast(type, annotation)])


class Shape:
    """What `decode` checks of one event type: fields that must be there, those that may be, and objects inside."""

    __slots__ = ("_allowed", "_present", "_typed", "decision", "inner", "optional")

    def __init__(self, model: type[BaseModel]) -> None:
        self.decision = issubclass(model, Decision)
        self.optional: list[tuple[str, frozenset[type]]] = []
        self.inner: list[tuple[str, Shape]] = []
        typed: dict[str, frozenset[type]] = {}
        present: list[str] = []
        for name, field in model.model_fields.items():
            if field.exclude or get_origin(field.annotation) is Literal:
                continue
            kinds = _kinds(field.annotation)
            if field.is_required() or name == "v":
                if kinds is None:
                    present.append(name)
                else:
                    typed[name] = kinds
            elif kinds:
                self.optional.append((name, kinds))
            if field.annotation is ErrorModel:
                self.inner.append((name, Shape(ErrorModel)))
        self._present = tuple(present)
        self._typed = itemgetter(*typed)
        self._allowed = frozenset(product(*typed.values()))

    def fits(self, fields: dict[str, Any]) -> bool:
        """Whether these fields have the shape. On the hot path: one look-up for all that must be there and have a type."""
        try:
            if tuple(map(type, self._typed(fields))) not in self._allowed:
                return False
        except KeyError:
            return False
        for name in self._present:
            if name not in fields:
                return False
        for name, kinds in self.optional:
            if name in fields and type(fields[name]) not in kinds:
                return False
        return not self.inner or all(shape.fits(fields[name]) for name, shape in self.inner)


SHAPES: dict[str, Shape] = {model.model_fields["type"].default: Shape(model) for model in get_args(Event)}


def decode(value: bytes) -> dict[str, Any] | None:
    """The event in a record's value; None for whatever is not an event of a known type in its proper form. Total."""
    try:
        event: dict[str, Any] = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if type(event) is not dict:
        return None
    kind = event.get("type")
    shape = SHAPES.get(kind) if type(kind) is str else None
    if shape is None or not shape.fits(event):
        return None
    return None if is_deeper(value, event, _EVENT_DEPTH) else event


def is_deeper(value: bytes, parsed: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested more than `limit` deep; `parsed` is what the bytes say."""
    if value.count(b"[") + value.count(b"{") <= limit:
        return False
    level: list[Any] = [parsed]
    for _ in range(limit):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(cast(dict[str, Any], one).values())
            elif isinstance(one, list):
                inner.extend(cast(list[Any], one))
        level = inner
    return any(isinstance(one, dict | list) for one in level)


def encode(event: dict[str, Any]) -> bytes:
    """The bytes of an event. A copy: orjson leaves 4 KB behind what it gives, for as long as that is kept."""
    return bytes(memoryview(orjson.dumps(event)))


def parse(event: dict[str, Any], offset: int | None = None, timestamp: int | None = None) -> Event:
    """The event as an object with attributes; `event` has passed `decode`."""
    return _adapter.validate_python({**event, "offset": offset, "timestamp": timestamp})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one history record."""
    return _adapter.json_schema(ref_template="#/components/schemas/{model}")
