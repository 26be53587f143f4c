"""The events, which the records of the history hold. This module is the published contract; JSON Schema comes from it.

Pure. `core/records.py` has the fields of each family, `core/lifecycle.py` and `operations/` those of each type. An event is a
JSON object with a kebab-case `type`. Three families:

- requests (`started`, `signal-received`, `cancel-requested`, `callback-completed`, …): from outside, under no claim, idempotent
  by `request`;
- decisions: written by the owner, under its `claim`; each is valid alone, so no two records must be appended atomically;
- `claim`: names the owner of the partition from its offset on; `delivered`: its owner has sent what its runs owed to others.

Changes are additive. A record carries the lowest `v` whose readers can judge it. A claim's `v` is the newest format that its
owner can judge; a record above it is void for every reader. Under a claim of 1 the fold judges as format 1 did: it remembers
requests for ever, ignores places in an inbox, and keeps no signal that comes before its run.

The engine works on plain dicts, which `decode` has checked against the same models. The models are for people, other
languages and the documentation.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from itertools import product
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import orjson
from pydantic import BaseModel, Field, TypeAdapter

from .core.lifecycle import (
    Cancelled,
    CancelRequested,
    Claim,
    CodeCleared,
    CodeSuspected,
    Completed,
    Delivered,
    Failed,
    InputCompleted,
    Quarantined,
    Resumed,
    Started,
    StepCancelled,
    WorkflowUnknown,
)
from .core.records import FORMAT, PASSED_OVER, PLAIN, Base, Cause, Decision, ErrorModel, OperationDecision, Place, Request
from .operations.callback import CallbackCompleted, CallbackCreated, CallbackFailed, CallbackHeartbeat, CallbackTimedOut
from .operations.child import ChildEnded, ChildRefused, ChildScheduled, ChildTimedOut
from .operations.condition import ConditionPolled, ConditionStarted, ConditionTimedOut
from .operations.publish import Published
from .operations.signal import SignalReceived, WaitStarted, WaitTimedOut
from .operations.sleep import SleepCompleted, SleepScheduled
from .operations.step import AttemptLost, AttemptStarted, StepCompleted, StepFailed, StepHeartbeat
from .values.nesting import MAX_DEPTH, is_deeper

__all__ = [
    "CAUSE",
    "FORMAT",
    "NEVER_ENDS",
    "PLACE",
    "PLAIN",
    "SHAPES",
    "TYPES",
    "AttemptLost",
    "AttemptStarted",
    "Base",
    "CallbackCompleted",
    "CallbackCreated",
    "CallbackFailed",
    "CallbackHeartbeat",
    "CallbackTimedOut",
    "CancelRequested",
    "Cancelled",
    "Cause",
    "ChildEnded",
    "ChildRefused",
    "ChildScheduled",
    "ChildTimedOut",
    "Claim",
    "CodeCleared",
    "CodeSuspected",
    "Completed",
    "ConditionPolled",
    "ConditionStarted",
    "ConditionTimedOut",
    "Decision",
    "Delivered",
    "ErrorModel",
    "Event",
    "Failed",
    "InputCompleted",
    "OperationDecision",
    "Place",
    "Published",
    "Quarantined",
    "Request",
    "Resumed",
    "RunEvent",
    "Shape",
    "SignalReceived",
    "SleepCompleted",
    "SleepScheduled",
    "Started",
    "StepCancelled",
    "StepCompleted",
    "StepFailed",
    "StepHeartbeat",
    "WaitStarted",
    "WaitTimedOut",
    "WorkflowUnknown",
    "decode",
    "encode",
    "json_schema",
    "parse",
]

_EVENT_DEPTH = MAX_DEPTH + 10


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
    | CallbackCreated
    | CallbackCompleted
    | CallbackFailed
    | CallbackHeartbeat
    | CallbackTimedOut
    | Published
    | ConditionStarted
    | ConditionPolled
    | ConditionTimedOut
    | ChildScheduled
    | ChildEnded
    | ChildRefused
    | ChildTimedOut
    | WorkflowUnknown
    | InputCompleted
    | CodeSuspected
    | CodeCleared
    | Quarantined
    | Resumed
    | Completed
    | Failed
    | Cancelled
)
"""One event of a run; `type` is the discriminator."""

Event = RunEvent | Claim | Delivered
"""One event; `type` is the discriminator."""

_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])

Check = Callable[[Any], bool]


class _Form(NamedTuple):
    """The JSON values that fit an annotation: their exact Python types (`kinds`; None: any) that pass `check` (None: all do)."""

    kinds: frozenset[Any] | None
    check: Check | None = None

    def takes(self, value: Any) -> bool:
        return (self.kinds is None or type(value) in self.kinds) and (self.check is None or self.check(value))


def _form(annotation: Any) -> _Form:
    """The form of an annotation. Raises TypeError if `decode` cannot check it: rules would fail on values that pass unchecked."""
    origin: Any = get_origin(annotation)
    parts: tuple[Any, ...] = get_args(annotation)
    if annotation is Any:
        return _Form(None)
    if annotation in (str, int, bool, type(None)):  # not float: some writers of JSON write 1.0 as 1
        return _Form(frozenset({annotation}))
    if origin is Literal:
        return _literal(parts)
    if origin in (Union, types.UnionType):
        return _either([_form(part) for part in parts])
    if origin is list:
        return _within(list, _form(parts[0]))
    if origin is dict and parts[0] is str:
        return _within(dict, _form(parts[1]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _Form(frozenset({dict}), Shape(annotation).fits)
    raise TypeError(f"decode cannot check {annotation!r}")


def _literal(values: tuple[Any, ...]) -> _Form:
    def check(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in values)

    return _Form(frozenset(map(type, values)), check)


def _either(forms: list[_Form]) -> _Form:
    def check(value: Any) -> bool:
        return any(form.takes(value) for form in forms)

    none: frozenset[type] = frozenset()
    kinds = None if any(form.kinds is None for form in forms) else none.union(*(form.kinds or none for form in forms))
    return _Form(kinds, check if any(form.check is not None for form in forms) else None)


def _within(kind: type[list[Any] | dict[str, Any]], inner: _Form) -> _Form:
    def check(value: Any) -> bool:
        return all(map(inner.takes, value.values() if kind is dict else value))

    return _Form(frozenset({kind}), None if inner == _Form(None) else check)


class Shape:
    """The checks that `decode` makes for a model: required fields, optional fields, and what they contain.

    Raises TypeError for an annotation that it cannot check.
    """

    __slots__ = ("_allowed", "_inner", "_least", "_optional", "_present", "_typed", "decision", "is_result", "passes_on")

    def __init__(self, model: type[BaseModel]) -> None:
        self.decision = issubclass(model, Decision)
        self.is_result = issubclass(model, Decision) and model.is_result
        self.passes_on = issubclass(model, Decision) and model.passes_on
        self._optional: list[tuple[str, frozenset[type]]] = []
        self._inner: list[tuple[str, Check]] = []
        typed: dict[str, frozenset[type]] = {}
        present: list[str] = []
        for name, field in model.model_fields.items():
            if field.exclude or PASSED_OVER in field.metadata:
                continue
            if name == "type" and issubclass(model, Base):
                continue  # `decode` has chosen the model by it
            if field.metadata or field.alias:
                raise TypeError(f"decode cannot check {model.__name__}.{name}: {field!r}")
            kinds, check = _form(field.annotation)
            if field.is_required() or (name == "v" and issubclass(model, Base)):
                if kinds is None:
                    present.append(name)
                else:
                    typed[name] = kinds
            elif kinds is not None:
                self._optional.append((name, kinds))
            if check is not None:
                self._inner.append((name, check))
        self._present = tuple(present)
        self._least = len(typed) + len(present) + issubclass(model, Base)  # fields that are always there, `type` among them
        names = [*typed, *typed] if len(typed) == 1 else [*typed]  # twice: for one name itemgetter would return no tuple
        self._typed: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*names) if names else lambda _: ()
        self._allowed = frozenset(product(*(typed[name] for name in names)))

    def fits(self, fields: dict[str, Any]) -> bool:
        """Whether these fields have the shape. On the hot path: one look-up checks the types of all required fields."""
        try:
            if tuple(map(type, self._typed(fields))) not in self._allowed:
                return False
        except KeyError:
            return False
        for name in self._present:
            if name not in fields:
                return False
        if len(fields) > self._least:
            for name, kinds in self._optional:
                if name in fields and type(fields[name]) not in kinds:
                    return False
        return not self._inner or all(check(fields[name]) for name, check in self._inner if name in fields)


PLACE = Shape(Place)
CAUSE = Shape(Cause)
TYPES: dict[str, type[Base]] = {model.model_fields["type"].default: model for model in get_args(Event)}
SHAPES: dict[str, Shape] = {model.model_fields["type"].default: Shape(model) for model in get_args(Event)}

NEVER_ENDS = tuple(
    f'{{"type":"{model.model_fields["type"].default}"'.encode() for model in get_args(RunEvent) if model.never_ends
)
"""The first bytes of records whose event has `never_ends`, as this code writes them."""


def decode(value: bytes) -> dict[str, Any] | None:
    """The event in a record's value; None if it does not hold an event of a known type in its proper form. Total."""
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
    return None if len(value) > _EVENT_DEPTH and is_deeper(value, event, _EVENT_DEPTH) else event


def encode(event: dict[str, Any]) -> bytes:
    """The bytes of an event, copied: the bytes that orjson returns hold on to a buffer of some 4 KB."""
    return bytes(memoryview(orjson.dumps(event)))


def parse(event: dict[str, Any], offset: int | None = None, timestamp: int | None = None) -> Event:
    """The model of an event that `decode` has returned."""
    return _adapter.validate_python({**event, "offset": offset, "timestamp": timestamp})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one history record."""
    return _adapter.json_schema(ref_template="#/components/schemas/{model}")
