"""The events: what `decode` takes and what it refuses, and that the published models say the same."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import judged_events
import orjson
import pytest
from histories import START_MS
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

from stepfold import events
from stepfold.events import SHAPES, Request, Shape, decode, encode, json_schema, parse

ERROR = {"type": "ValueError", "message": "no", "traceback": "line 1", "step_id": "charge"}
REQUEST = {"v": 1, "at": START_MS, "run_id": "r", "request": "q", "by": "me"}
DECISION = {"v": 1, "at": START_MS, "run_id": "r", "claim": 0}
TIMES = {"queued_at": START_MS, "began_at": START_MS}
LINE = {"at_line": "orders/workflow.py:61"}

WHOLE: dict[str, dict[str, Any]] = {
    "claim": {"v": 2, "at": START_MS, "prev": -1, "owner": None, "nonce": "n", "memory_ms": 1},
    "started": REQUEST
    | {
        "workflow": "w",
        "version": None,
        "input": [1],
        "trigger": {"type": "cron"},
        "reply_to": "answers",
        "parent": {"run_id": "p", "start": "0" * 16, "step_id": "s", "detached": False},
        "why": "a test",
        "traceparent": "00-0-0-00",
        "tracestate": "a=b",
    },
    "signal-received": REQUEST | {"signal": "s", "data": None, "why": "a test"},
    "delivered": {"v": 2, "at": START_MS, "claim": 0, "through": {"7": 1287}},
    "cancel-requested": REQUEST | {"reason": None, "parent": None},
    "step-completed": DECISION | {"version": "1", "step_id": "a", "attempt": 1, "result": None, **TIMES},
    "step-failed": DECISION | {"step_id": "a", "attempt": 1, "error": ERROR, "next_at": None, "heartbeat": [3], **TIMES, **LINE},
    "attempt-started": DECISION | {"step_id": "a", "attempt": 1, "input": [1], "input_note": "cut", **LINE},
    "attempt-lost": DECISION | {"step_id": "a", "attempt": 1, **LINE},
    "step-heartbeat": DECISION | {"step_id": "a", "attempt": 1, "details": {}, **LINE},
    "step-cancelled": DECISION | {"step_id": "a"},
    "sleep-scheduled": DECISION | {"step_id": "a", "wake_at": START_MS, **LINE},
    "sleep-completed": DECISION | {"step_id": "a"},
    "wait-started": DECISION | {"step_id": "a", "signal": "s", "timeout_at": None, **LINE},
    "wait-timed-out": DECISION | {"step_id": "a"},
    "callback-created": DECISION | {"step_id": "a", "nonce": "n", "timeout_at": None, "heartbeat_ms": 1, **LINE},
    "callback-completed": REQUEST | {"step_id": "a", "nonce": "n", "data": None, "why": "a test"},
    "callback-failed": REQUEST | {"step_id": "a", "nonce": "n", "error": ERROR, "why": "a test"},
    "callback-heartbeat": REQUEST | {"step_id": "a", "nonce": "n", "why": "a test"},
    "callback-timed-out": DECISION | {"step_id": "a", "kind": "heartbeat"},
    "published": DECISION | {"v": 2, "key": "progress", "value": {"done": 1}, "seq": 1},
    "condition-started": DECISION | {"step_id": "a", "timeout_at": None, **LINE},
    "condition-polled": DECISION
    | {"step_id": "a", "attempt": 1, "poll": 1, "state": [], "next_at": START_MS, "timeout_at": None, **TIMES, **LINE},
    "condition-timed-out": DECISION | {"step_id": "a", "kind": "timeout", "attempt": None, "poll": 0, "state": None, **LINE},
    "child-scheduled": DECISION
    | {"step_id": "a", "child": "r/a~1", "workflow": "w", "child_version": None, "input": [1], **LINE}
    | {"on_parent_close": "cancel", "timeout_at": None, "detached": False, "shielded": True},
    "child-ended": REQUEST
    | {"step_id": "a", "child": "c", "start": "0" * 16, "state": "failed", "result": 1, "error": ERROR, "reason": None},
    "child-refused": REQUEST | {"step_id": "a", "child": "c", "start": "0" * 16},
    "child-timed-out": DECISION | {"step_id": "a"},
    "workflow-unknown": DECISION,
    "input-completed": DECISION | {"input": {"made": 1}},
    "code-suspected": DECISION,
    "code-cleared": DECISION,
    "quarantined": DECISION | {"error": ERROR},
    "resumed": DECISION,
    "completed": DECISION | {"result": 1.5},
    "failed": DECISION | {"error": {"type": "ValueError", "message": "no"}, **LINE},
    "cancelled": DECISION | {"reason": "why"},
}
DECIDE_NOTHING = {"by", "why", "at_line", "queued_at", "began_at", "traceparent", "tracestate"}
PASSED_OVER = {("claim", "memory_ms"), ("attempt-started", "input"), ("attempt-started", "input_note")} | {
    (kind, field) for kind, event in WHOLE.items() for field in event.keys() & DECIDE_NOTHING
}
OPTIONAL = {"version", "trigger", "reply_to", "parent", "reason", "heartbeat"}
OPTIONAL_HERE = {("child-ended", "result"), ("child-ended", "error")}
TYPES = sorted(WHOLE)


def test_every_type_has_an_example_here() -> None:
    assert set(TYPES) == set(SHAPES)
    assert {kind for kind, shape in SHAPES.items() if not shape.decision} == {
        "claim",
        "delivered",
        "started",
        "signal-received",
        "cancel-requested",
        "callback-completed",
        "callback-failed",
        "callback-heartbeat",
        "child-ended",
        "child-refused",
    }


@pytest.mark.parametrize("kind", TYPES)
def test_a_whole_event_is_decoded_as_it_is(kind: str) -> None:
    event = {"type": kind} | WHOLE[kind]
    assert decode(encode(event)) == event


@pytest.mark.parametrize("kind", TYPES)
def test_fields_of_tomorrow_are_kept(kind: str) -> None:
    event = {"type": kind, "of_tomorrow": [1]} | WHOLE[kind]
    assert decode(encode(event)) == event


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in TYPES for field in WHOLE[kind]])
def test_a_missing_field_or_one_of_another_type_makes_it_no_event(kind: str, field: str) -> None:
    event = {"type": kind} | WHOLE[kind]
    free = event.keys() & {"input", "data", "value", "result", "state", "details", "heartbeat"}
    if (kind, field) in PASSED_OVER:
        wrong: list[Any] = [1.5, {}]
        for other in (event | {field: value} for value in wrong):
            assert decode(encode(other)) == judged_events.parse(encode(other)) == other, "who does not know it would take it"
            assert getattr(parse(other), field) is None
    elif field not in free:
        assert decode(encode(event | {field: 1.5})) is None
        assert field in ("detached", "shielded") or decode(encode(event | {field: True})) is None
    without = {name: value for name, value in event.items() if name != field}
    assert (
        decode(encode(without))
        == judged_events.parse(encode(without))
        == (without if field in OPTIONAL or (kind, field) in PASSED_OVER | OPTIONAL_HERE else None)
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("started", "by me: a test"),
        ("signal-received", "by me: a test"),
        ("cancel-requested", "by me"),
        ("callback-failed", "by me: a test"),
    ],
)
def test_a_request_says_its_sender_in_words(kind: str, said: str) -> None:
    request = parse({"type": kind} | WHOLE[kind])
    assert isinstance(request, Request) and request.sender() == said
    nobody = parse({"type": kind} | {name: value for name, value in WHOLE[kind].items() if name not in ("by", "why")})
    assert isinstance(nobody, Request) and nobody.sender() == ""


@pytest.mark.parametrize("kind", ["step-failed", "callback-failed", "quarantined", "failed"])
@pytest.mark.parametrize("error", [{}, {"type": "T"}, {"type": 1, "message": ""}, {"type": "T", "message": "", "traceback": 7}])
def test_an_error_inside_an_event_has_a_form_too(kind: str, error: Any) -> None:
    assert decode(encode({"type": kind} | WHOLE[kind] | {"error": error})) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b"{}",
        b'{"type":5}',
        b'{"type":["claim"]}',
        b'{"type":"unheard-of"}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_what_is_no_event(value: bytes) -> None:
    assert decode(value) is None


@pytest.mark.parametrize("kind", TYPES)
def test_an_event_as_an_object(kind: str) -> None:
    found = parse({"type": kind} | WHOLE[kind], 7, START_MS + 1)
    version = WHOLE[kind]["v"]
    assert (found.type, found.v, found.at, found.offset, found.timestamp) == (kind, version, START_MS, 7, START_MS + 1)
    dumped = found.model_dump(exclude_unset=True)
    assert dumped == {"type": kind} | WHOLE[kind], "the record's place is no part of its value"


def test_the_schema_knows_every_type() -> None:
    schema = json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(TYPES)
    assert len(schema["oneOf"]) == len(get_args(events.Event))
    orjson.dumps(schema)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def variations(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    whole = {"type": kind} | WHOLE[kind]
    changes = st.dictionaries(st.sampled_from([*whole, "offset", "timestamp"]) | st.text(), JSON_VALUES, max_size=2)
    dropped = st.sets(st.sampled_from([*whole]), max_size=1)
    return st.tuples(changes, dropped).map(lambda v: {name: x for name, x in (whole | v[0]).items() if name not in v[1]})


EVENTS = st.sampled_from(TYPES).flatmap(variations)


@given(EVENTS)
@example({"type": "step-completed", "offset": "nowhere", "timestamp": []} | WHOLE["step-completed"])
@example({"type": "completed"} | WHOLE["completed"] | {"result": 2**64 - 1})
def test_what_decode_takes_the_models_take(event: dict[str, Any]) -> None:
    found = decode(orjson.dumps(event))
    if found is not None:
        assert parse(found, 1, 2).offset == 1
    assert judged_events.parse(orjson.dumps(event)) == found, "the judge of the simulator and of the fault tests sees the same"


@given(st.binary() | JSON_VALUES.map(orjson.dumps))
def test_any_bytes_are_an_event_or_none(value: bytes) -> None:
    found = decode(value)
    assert found is None or found["type"] in SHAPES
    assert judged_events.parse(value) == found


# What a shape checks, or refuses to be made of.


class Inside(BaseModel):
    of: str


class OneField(BaseModel):
    only: int


class NoField(BaseModel):
    maybe: str | None = None


class Kinds(BaseModel):
    named: list[str]
    nested: Inside
    maybe: Inside | None
    either: Inside | OneField | None = None
    several: list[Inside] = []
    by_name: dict[str, int] = {}
    anything: dict[str, Any] = {}
    mode: Literal["run", "name", 1] = "run"
    exact: Literal["x"]


KINDS: dict[str, Any] = {"named": ["a"], "nested": {"of": "b"}, "maybe": None, "exact": "x"}


@pytest.mark.parametrize(
    "good",
    [
        {"named": []},
        {"maybe": {"of": "c"}},
        {"either": {"only": 1}},
        {"either": {"of": "d"}},
        {"either": None},
        {"several": [{"of": "e"}, {"of": "f"}]},
        {"by_name": {"a": 1}},
        {"anything": {"a": [None]}},
        {"mode": 1},
        {"mode": "name"},
    ],
)
def test_a_shape_takes_what_its_model_says(good: dict[str, Any]) -> None:
    assert Shape(Kinds).fits(KINDS | good)
    Kinds.model_validate(KINDS | good)


@pytest.mark.parametrize(
    "wrong",
    [
        {"named": "a"},
        {"named": ["a", 1]},
        {"nested": {}},
        {"nested": {"of": 1}},
        {"nested": None},
        {"maybe": {"of": None}},
        {"either": {"only": "1"}},
        {"either": []},
        {"several": [{"of": "e"}, {}]},
        {"by_name": {"a": "1"}},
        {"by_name": {"a": True}},
        {"anything": []},
        {"mode": "other"},
        {"mode": True},
        {"exact": "y"},
    ],
)
def test_a_shape_refuses_what_its_model_does_not_say(wrong: dict[str, Any]) -> None:
    assert not Shape(Kinds).fits(KINDS | wrong)


@pytest.mark.parametrize("missing", KINDS)
def test_a_shape_misses_what_must_be_there(missing: str) -> None:
    assert not Shape(Kinds).fits({name: value for name, value in KINDS.items() if name != missing})


def test_models_of_one_field_and_of_none_that_must_be_there() -> None:
    one, none = Shape(OneField), Shape(NoField)
    assert one.fits({"only": 1}) and not one.fits({"only": "1"}) and not one.fits({})
    assert none.fits({}) and none.fits({"maybe": None}) and not none.fits({"maybe": 1})


@pytest.mark.parametrize(
    "annotation", [float, set[str], dict[int, str], tuple[int, ...], bytes, "Unheard", Annotated[int, Field(ge=0)], type]
)
def test_what_cannot_be_checked_is_said_when_the_module_is_imported(annotation: Any) -> None:
    model = create_model("Odd", odd=(annotation if annotation != "Unheard" else list[set[str]], ...))
    with pytest.raises(TypeError, match="decode cannot check"):
        Shape(model)


def test_a_field_of_another_name_in_the_record_cannot_be_checked() -> None:
    with pytest.raises(TypeError, match=r"decode cannot check Odd\.odd"):
        Shape(create_model("Odd", odd=(int, Field(alias="other"))))


@pytest.mark.parametrize(
    ("timestamp", "time"), [(None, None), (0, "1970-01-01"), (2**63 - 1, "9999-12-31"), (-(2**63), "0001-01-02")]
)
def test_the_time_of_an_event_is_a_datetime_whatever_its_record_says(timestamp: int | None, time: str | None) -> None:
    event = {"type": "resumed", "v": 1, "run_id": "r", "at": 2**63, "claim": 0, "time": "of another"}
    found = parse(event, 0, timestamp).time
    assert (found and found.isoformat()[:10]) == time
