"""Parsing of inbox records: formats, refusals, and that nothing else can come of any bytes."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepfold.client.requests import (
    callback_completed,
    callback_failed,
    callback_heartbeat,
    cancel_requested,
    signal_received,
    started,
)
from stepfold.events import decode
from stepfold.log import Entry, InboxRecord
from stepfold.operations.callback import CallbackId
from stepfold.values.digits import raw
from stepfold.values.names import valid_run_id
from stepfold.worker.inbox import InboxRequest, Refused, as_found, parse, place_of

PLACE = "shop.inbox/3/1742"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def record(value: Any, headers: dict[str, str] | None = None, place: str = PLACE) -> InboxRecord:
    data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return InboxRecord(place, 1, None, data, tuple((name, text.encode()) for name, text in (headers or {}).items()))


def structured(type: str, data: Any, **attributes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "type": type, "source": "/orders", "id": "evt-1", "data": data} | attributes


def binary(type: str, **headers: str) -> dict[str, str]:
    return {"ce_specversion": "1.0", "ce_type": type, "ce_source": "/orders", "ce_id": "evt-1"} | headers


CLOUD = {"content-type": "application/cloudevents+json; charset=UTF-8"}

CALLBACK = str(CallbackId("r", "s", "n"))


# Plain JSON.


def test_a_start() -> None:
    request = parse(record({"type": "start", "workflow": "process-order", "run_id": "order-42", "data": {"a": 1}}))
    assert request == InboxRequest("start", PLACE, "order-42", "process-order", data={"a": 1})


def test_a_start_with_everything_and_fields_of_tomorrow() -> None:
    fields = {"type": "start", "workflow": "w", "run_id": "r", "version": "2", "reply_to": None, "data": None, "priority": 9}
    assert parse(record(fields)) == InboxRequest("start", PLACE, "r", "w", version="2")


def test_a_start_without_a_run_id_gets_one_from_its_place() -> None:
    assert parse(record({"type": "start", "workflow": "w"})).run_id == PLACE
    long = parse(record({"type": "start", "workflow": "w"}, place="n" * 200 + ".inbox/0/1")).run_id
    other = parse(record({"type": "start", "workflow": "w"}, place="n" * 200 + ".inbox/0/2")).run_id
    assert long is not None and other is not None
    assert valid_run_id(long) and valid_run_id(other) and long != other


def test_ids_from_places_differ_in_an_inbox_that_was_made_again() -> None:
    first, again = (
        parse(InboxRecord(PLACE, 1, None, b'{"type":"start","workflow":"w"}', (), inbox=inbox)) for inbox in ("4fe1", "9ab2")
    )
    assert (first.run_id, again.run_id) == (f"{PLACE}-4fe1", f"{PLACE}-9ab2")
    assert first.id != again.id, "a signal in the new inbox would be taken for a repeat"


def test_an_answer_to_a_callback() -> None:
    callback = {"type": "callback", "id": CALLBACK}
    asked = InboxRequest("callback", PLACE, callback=CallbackId("r", "s", "n"))
    assert parse(record(callback | {"data": {"stars": 5}, "run_id": "of no use"})) == replace(asked, data={"stars": 5})
    assert parse(record(callback | {"error": {"message": ""}})) == replace(asked, error=("CallbackFailed", ""))
    assert parse(record(callback | {"error": {"type": "T", "message": "m"}})) == replace(asked, error=("T", "m"))
    assert parse(record(callback | {"heartbeat": True})) == replace(asked, heartbeat=True)


def test_signal_event_cancel() -> None:
    assert parse(record({"type": "signal", "run_id": "r", "signal": "ok", "data": [1]})) == InboxRequest(
        "signal", PLACE, "r", signal="ok", data=[1]
    )
    assert parse(record({"type": "signal", "signal": "ok"})) == InboxRequest("signal", PLACE, signal="ok")
    assert parse(record({"type": "event", "event": "paid", "data": 1, "id": "e"})) == InboxRequest(
        "event", "e", event="paid", data=1
    )
    assert parse(record({"type": "event", "event": "paid"})) == InboxRequest("event", PLACE, event="paid")
    assert parse(record({"type": "cancel", "run_id": "r", "reason": "late"})) == InboxRequest("cancel", PLACE, "r", reason="late")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "has no value"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"type": "start"', "is not JSON"),
        (b'{"type": "start", "workflow": "w", "data": NaN}', "is not JSON"),
        (b'{"type":"event","event":"e","data":' + b"[" * 200 + b"]" * 200 + b"}", "nested more than 200 deep"),
        ([], "must be a JSON object"),
        ("start", "must be a JSON object"),
        ({}, "`type` must be one of start, signal, event, cancel, callback; it is missing"),
        ({"type": "stop"}, '`type` must be one of start, signal, event, cancel, callback; it is "stop"'),
        ({"type": ["start"]}, "`type` must be one of"),
        ({"type": "start"}, "the start's `workflow` must be a text; it is missing"),
        ({"type": "start", "workflow": 3}, "the start's `workflow` must be a text; it is 3"),
        ({"type": "start", "workflow": ""}, "the start's `workflow`"),
        ({"type": "start", "workflow": "w", "run_id": 42}, "the start's `run_id` must be a text; it is 42"),
        ({"type": "start", "workflow": "w", "run_id": "@claim"}, "`run_id` must be 1 to 200 printable characters, not beginning"),
        ({"type": "start", "workflow": "w", "run_id": "a\nb"}, "`run_id` must be 1 to 200"),
        ({"type": "start", "workflow": "w", "run_id": "x" * 201}, "`run_id` must be 1 to 200"),
        ({"type": "start", "workflow": "w", "version": 2}, "the start's `version`"),
        ({"type": "start", "workflow": "w", "reply_to": "answers"}, "`reply_to` is not served yet: leave it out"),
        ({"type": "start", "workflow": "w", "reply_to": {}}, "`reply_to` is not served yet"),
        ({"type": "signal", "run_id": "r"}, "the signal's `signal` must be a text; it is missing"),
        ({"type": "event"}, "the event's `event`"),
        ({"type": "event", "event": "e", "id": 7}, "the event's `id`"),
        ({"type": "cancel"}, "the cancel's `run_id` must be a text; it is missing"),
        ({"type": "cancel", "run_id": "r", "reason": 1}, "the cancel's `reason`"),
        ({"type": "callback", "data": 1}, "the callback's `id`: None is not the id of a callback"),
        ({"type": "callback", "id": "r", "data": 1}, "the callback's `id`: 'r' is not the id of a callback"),
        ({"type": "callback", "id": CALLBACK}, "a callback has one of `data`, `error` and `heartbeat`; this one has none"),
        ({"type": "callback", "id": CALLBACK, "data": None, "heartbeat": True}, "this one has data and heartbeat"),
        ({"type": "callback", "id": CALLBACK, "heartbeat": 1}, "the callback's `heartbeat` must be true; it is 1"),
        ({"type": "callback", "id": CALLBACK, "error": "no"}, "the callback's `error` must be a JSON object"),
        ({"type": "callback", "id": CALLBACK, "error": {"type": "T"}}, "the `message` of the callback's `error` must be a text"),
        ({"type": "callback", "id": CALLBACK, "error": {"type": 1, "message": ""}}, "the callback's `type` must be a text"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(value: Any, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse(record(value))
    assert reason in str(refusal.value)


# CloudEvents.


def test_structured_and_binary_say_the_same() -> None:
    data = {"workflow": "w", "data": {"a": 1}}
    first = parse(record(structured("stepfold.start", data), CLOUD))
    second = parse(record(data, binary("stepfold.start", **{"content-type": "application/json"})))
    without_headers = parse(record(structured("stepfold.start", data)))
    assert first == second == without_headers
    assert (first.type, first.workflow, first.data) == ("start", "w", {"a": 1})
    assert first.run_id is not None and first.run_id.startswith("evt-1-") and valid_run_id(first.run_id)


def test_the_same_event_at_another_place_is_the_same_request() -> None:
    value = structured("stepfold.start", {"workflow": "w"})
    assert parse(record(value, CLOUD)) == parse(record(value, CLOUD, place="shop.inbox/0/9"))


def test_source_and_id_only_together_are_an_identity() -> None:
    attributes = [("/a/b", "c"), ("/a", "b/c"), ("/a/b", "d")]
    requests = [parse(record(structured("stepfold.start", {"workflow": "w"}, source=s, id=i), CLOUD)) for s, i in attributes]
    assert len({request.id for request in requests}) == 3
    assert len({request.run_id for request in requests}) == 3


def test_the_data_of_our_types_is_the_request() -> None:
    signal = parse(record(structured("stepfold.signal", {"run_id": "r", "signal": "ok"}), CLOUD))
    assert (signal.type, signal.run_id, signal.signal) == ("signal", "r", "ok")
    cancel = parse(record({"run_id": "r"}, binary("stepfold.cancel")))
    assert (cancel.type, cancel.run_id) == ("cancel", "r")
    event = parse(record(structured("stepfold.event", {"event": "paid", "id": "e"}), CLOUD))
    assert (event.type, event.event, event.id) == ("event", "paid", "e")


def test_any_other_type_is_an_event_by_that_name() -> None:
    for request in (
        parse(record(structured("com.example.paid", {"amount": 3}), CLOUD)),
        parse(record({"amount": 3}, binary("com.example.paid"))),
    ):
        assert (request.type, request.event, request.data) == ("event", "com.example.paid", {"amount": 3})
    assert parse(record(None, binary("com.example.paid"))).data is None


def test_data_may_be_base64() -> None:
    event = structured("stepfold.cancel", None) | {"data_base64": base64.b64encode(b'{"run_id": "r"}').decode()}
    assert parse(record(event, CLOUD)).run_id == "r"


def test_an_id_that_is_no_run_id_still_makes_one() -> None:
    for awkward in ("@" * 300, "\n\x00", "ключ" * 100):
        request = parse(record(structured("stepfold.start", {"workflow": "w"}, id=awkward), CLOUD))
        assert request.run_id is not None and valid_run_id(request.run_id)


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"<xml/>", CLOUD, "is not JSON"),
        ([], CLOUD, "a structured CloudEvent must be a JSON object"),
        ({"type": "stepfold.start"}, CLOUD, "attribute `specversion` must be a text; it is missing"),
        (structured("t", 1, id=""), CLOUD, "attribute `id`"),
        (structured("t", 1, source=7), CLOUD, "attribute `source` must be a text; it is 7"),
        (structured("t", 1, specversion="0.3"), CLOUD, "of version 1"),
        (structured("t", "<a/>", datacontenttype="application/xml"), CLOUD, "datacontenttype must be JSON"),
        (structured("t", None, data_base64="?"), CLOUD, "not Base64"),
        (structured("t", None, data_base64=5), CLOUD, "not Base64"),
        (structured("t", None, data_base64="é"), CLOUD, "not Base64"),
        (structured("stepfold.start", [1]), CLOUD, "the data of stepfold.start must be a JSON object"),
        (b"\x00\x01", {"content-type": "application/cloudevents+avro"}, "is not JSON"),
        ([], {"content-type": "application/cloudevents-batch+json"}, "only application/cloudevents+json"),
        ({}, {"ce_type": "t"}, "attribute `specversion`"),
        ({}, {"ce_specversion": "1.0", "ce_type": "t", "ce_source": "/s"}, "attribute `id`"),
        (b"x", binary("t", **{"content-type": "text/plain"}), "content-type must be JSON; it is 'text/plain'"),
        (b"x", binary("t"), "the CloudEvent's data is not JSON"),
        (None, binary("stepfold.start"), "the data of stepfold.start must be a JSON object; it is missing"),
    ],
)
def test_what_is_refused_of_cloud_events_says_why(value: Any, headers: dict[str, str], reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse(record(value, headers))
    assert reason in str(refusal.value)


@pytest.mark.parametrize("attribute", ["ce_id", "CE_Source", "ce_type", "ce_subject"])
def test_an_attribute_that_is_not_utf8_is_refused(attribute: str) -> None:
    """Two ids of such bytes were the same id, with replacement characters, and so were their requests."""
    headers = {name: text.encode() for name, text in binary("stepfold.start").items()} | {attribute: b"caf\xe9"}
    given_record = InboxRecord(PLACE, 1, None, b'{"workflow":"w"}', tuple(headers.items()))
    with pytest.raises(Refused, match=f"header '{attribute.lower()}' is not UTF-8: b'caf"):
        parse(given_record)


def test_other_headers_may_be_any_bytes() -> None:
    headers = (("trace", b"\xff"), *((name, text.encode()) for name, text in binary("stepfold.start").items()))
    assert parse(InboxRecord(PLACE, 1, None, b'{"workflow":"w"}', headers)).workflow == "w"


# Total.

HEADER_NAMES = st.sampled_from(["content-type", "Content-Type", "ce_specversion", "ce_type", "ce_source", "ce_id"]) | st.text()
HEADER_VALUES = (
    st.sampled_from([b"application/cloudevents+json", b"application/json", b"1.0", b"stepfold.start", b"stepfold.cancel"])
    | st.binary()
)
FIELD_NAMES = st.sampled_from(
    ["type", "workflow", "run_id", "data", "signal", "event", "id", "version", "reason", "reply_to", "specversion", "source",
     "datacontenttype", "data_base64"]
)  # fmt: skip
FIELD_VALUES = st.sampled_from(["start", "signal", "event", "cancel", "1.0", "stepfold.start", "application/json"]) | JSON_VALUES
OBJECTS = st.dictionaries(FIELD_NAMES, FIELD_VALUES | st.dictionaries(FIELD_NAMES, FIELD_VALUES))


def test_what_the_log_could_not_read_is_refused_for_that() -> None:
    damaged = InboxRecord(PLACE, 1, None, b'{"type":"cancel","run_id":"r"}', (), "its batch cannot be unpacked")
    with pytest.raises(Refused, match="its batch cannot be unpacked"):
        parse(damaged)


@given(
    st.none() | st.binary() | JSON_VALUES.map(orjson.dumps) | OBJECTS.map(orjson.dumps),
    st.lists(st.tuples(HEADER_NAMES, st.none() | HEADER_VALUES), max_size=6),
)
@example(b"{}", [("\udcff\udcfe", b"1"), ("ce_type", None)])
@example(b"[" * 100_000, [])
@example(b'{"type":"event","event":"e","data":' + b"[" * 199 + b"]" * 199 + b"}", [])
@example(b'{"type":"start","workflow":"\\ud800"}', [])
@example(b'{"type":"start","workflow":"w","data":123456789012345678901234567890}', [])
def test_any_record_is_a_request_or_refused(value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    given_record = InboxRecord(PLACE, 1, None, value, tuple(headers))
    try:
        request = parse(given_record)
    except Refused:
        return
    assert request == parse(given_record), "reading it again asks for the same"
    raw(request.data)
    assert request.id
    assert request.run_id is None or valid_run_id(request.run_id)
    assert {"start": request.workflow, "signal": request.signal, "event": request.event, "cancel": request.run_id}[request.type]
    if request.type == "start":
        assert request.run_id is not None


# What was routed, and what it was.


def test_the_place_of_a_record_is_that_of_its_inbox_which_may_have_a_name_used_before() -> None:
    assert place_of(InboxRecord("shop.inbox/3/1742", 1, None, b"", (), inbox="4fe1")) == {
        "inbox": "4fe1",
        "partition": 3,
        "offset": 1742,
    }
    assert place_of(InboxRecord("shop.inbox/3/1742", 1, None, b"", ())) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "start", "run_id": "r", "workflow": "w", "version": "2", "data": {"n": 1}},
        {"type": "start", "run_id": "r", "workflow": "w", "data": None},
        {"type": "signal", "run_id": "r", "signal": "s", "data": [1]},
        {"type": "cancel", "run_id": "r", "reason": "why"},
        {"type": "cancel", "run_id": "r"},
        {"type": "cancel", "run_id": "r", "by": "ann"},
        {"type": "callback", "id": CALLBACK, "data": None},
        {"type": "callback", "id": CALLBACK, "error": {"type": "T", "message": ""}},
        {"type": "callback", "id": CALLBACK, "heartbeat": True},
    ],
)
def test_what_was_found_in_the_inbox_can_be_put_there_again(asked: dict[str, Any]) -> None:
    at: dict[str, Any] = {"request": PLACE, "at": 1, "place": {"inbox": "4fe1", "partition": 3, "offset": 1742}}
    data = orjson.dumps(asked.get("data"))
    entry = {
        "start": lambda: started("r", "w", asked.get("version"), data, **at),
        "signal": lambda: signal_received("r", "s", data, **at),
        "cancel": lambda: cancel_requested("r", asked.get("reason"), by=asked.get("by"), **at),
        "callback": lambda: answer(parse(record(asked)), at),
    }[asked["type"]]()
    event = decode(entry.value)
    assert event is not None
    found = as_found(event)
    assert found.place == "4fe1/3/1742"
    assert parse(found._replace(place=PLACE)) == parse(record(asked))


def answer(request: InboxRequest, at: dict[str, Any]) -> Entry:
    """As a router does."""
    assert request.callback is not None
    if request.error is not None:
        return callback_failed(request.callback, *request.error, **at)
    if request.heartbeat:
        return callback_heartbeat(request.callback, **at)
    return callback_completed(request.callback, orjson.dumps(request.data), **at)


@pytest.mark.parametrize("place", [None, 7, {}, {"inbox": "i", "partition": "0", "offset": 0}])
def test_where_nobodys_router_found_it_is_unknown(place: Any) -> None:
    event = decode(cancel_requested("r", None, request="q", at=1).value)
    assert event is not None
    assert as_found(event | {"from": place}).place == "unknown/0/0"


def test_who_asks_and_why_decide_nothing() -> None:
    found = parse(record({"type": "cancel", "run_id": "r", "by": "ann", "why": "enough"}))
    assert (found.by, found.why) == ("ann", "enough")
    for by, why in [("", "x" * 10_001), ({"id": 7}, 7), ("a\nb", None)]:
        found = parse(record({"type": "start", "workflow": "w", "by": by, "why": why}))
        assert (found.by, found.why) == (None, None)
    event = {"specversion": "1.0", "type": "stepfold.start", "source": "/shop", "id": "7", "data": {"workflow": "w"}}
    assert parse(record(event)).by == "/shop"
    assert parse(record(event | {"data": {"workflow": "w", "by": "ann"}})).by == "ann"
