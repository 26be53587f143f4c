"""The trace of a request: anything may come, and nothing of it hurts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepfold.client.requests import started
from stepfold.core.fold import PartitionState, fold
from stepfold.core.snapshot import pack, unpack
from stepfold.events import decode
from stepfold.log import CLAIM_KEY, InboxRecord, Record
from stepfold.values.trace import Trace
from stepfold.worker.inbox import as_found, parse

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HOSTILE = [
    "",
    "00",
    GOOD.upper(),
    f" {GOOD}",
    f"{GOOD}\n",
    f"{GOOD}-more",
    GOOD.replace("00-", "ff-", 1),
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    GOOD[:-1],
    GOOD.replace("4bf", "٤bf"),
    GOOD + "-" + "x" * 10_000,
    "00-" + "a" * 1_000_000,
    None,
    1,
    [GOOD],
    {"a": GOOD},
]


@pytest.mark.parametrize("parent", HOSTILE, ids=range(len(HOSTILE)))
def test_a_parent_that_is_not_valid_is_no_trace(parent: Any) -> None:
    assert Trace.of(parent, "a=b") is None


def test_a_later_version_counts_as_far_as_this_one_goes() -> None:
    assert Trace.of(GOOD.replace("00-", "cc-", 1) + "-what-comes") == (GOOD, None)


@pytest.mark.parametrize("state", ["", "a=b\n", "a=\N{SNOWMAN}", "a" * 513, None, 5, ["a=b"]])
def test_a_state_that_is_not_valid_is_left_out(state: Any) -> None:
    assert Trace.of(GOOD, state) == (GOOD, None)


@given(st.text() | st.binary() | st.integers() | st.none(), st.text() | st.none())
def test_any_value_is_taken_without_an_error(parent: Any, state: Any) -> None:
    assert Trace.of(parent, state) is None or Trace.of(GOOD, state) is not None


def run_of(fields: dict[str, Any]) -> Any:
    state = PartitionState(0, 1)
    claim = {"type": "claim", "v": 2, "at": 0, "prev": -1, "owner": "a", "nonce": "n"}
    fold(state, Record(0, 0, CLAIM_KEY, orjson.dumps(claim)))
    start = {"type": "started", "v": 1, "run_id": "r", "at": 0, "request": "q", "workflow": "w", "input": 1}
    change = fold(state, Record(1, 0, "r", orjson.dumps(start | fields)))
    assert change is not None
    return change.run


def test_a_run_keeps_the_trace_of_its_start() -> None:
    run = run_of({"traceparent": GOOD, "tracestate": "a=b"})
    assert run.trace == unpack(pack(run)).trace == Trace(GOOD, "a=b")
    assert run_of({"traceparent": GOOD}).trace == Trace(GOOD)


@pytest.mark.parametrize("parent", HOSTILE, ids=range(len(HOSTILE)))
def test_a_run_starts_whatever_its_trace_is(parent: Any) -> None:
    run = run_of({"traceparent": parent, "tracestate": [parent]})
    assert run.trace is None and unpack(pack(run)).trace is None


def test_a_start_without_a_trace_is_written_as_before() -> None:
    assert b"trace" not in started("r", "w", None, b"1", request="q", at=0).value
    with_one = decode(started("r", "w", None, b"1", request="q", at=0, trace=Trace(GOOD, "a=b")).value)
    assert with_one is not None and (with_one["traceparent"], with_one["tracestate"]) == (GOOD, "a=b")


# -- the inbox

START = {"type": "start", "workflow": "w", "run_id": "r", "data": 1}
EVENT = {"specversion": "1.0", "type": "stepfold.start", "source": "/shop", "id": "7"}
OTHER = GOOD.replace("4bf", "5bf")


def inbox(value: Any, *headers: tuple[str, str]) -> Trace | None:
    raw = tuple((name, text.encode()) for name, text in headers)
    return parse(InboxRecord("inbox/0/0", 0, None, orjson.dumps(value), raw)).trace


def test_the_trace_comes_from_the_cloud_event_or_the_object_or_the_headers() -> None:
    assert inbox(START) is None
    assert inbox(START, ("traceparent", GOOD), ("tracestate", "a=b")) == (GOOD, "a=b")
    assert inbox(START | {"traceparent": OTHER}, ("traceparent", GOOD)) == (OTHER, None)
    structured = EVENT | {"data": START, "traceparent": OTHER, "tracestate": "a=b"}
    assert inbox(structured, ("content-type", "application/cloudevents+json"), ("traceparent", GOOD)) == (OTHER, "a=b")
    binary = [(f"ce_{name}", text) for name, text in EVENT.items()]
    assert inbox(START, *binary, ("ce_traceparent", OTHER), ("traceparent", GOOD)) == (OTHER, None)


@pytest.mark.parametrize("parent", HOSTILE, ids=range(len(HOSTILE)))
def test_a_request_is_served_whatever_its_trace_is(parent: Any) -> None:
    assert inbox(START | {"traceparent": parent, "tracestate": parent}) is None


def test_a_dead_letter_keeps_the_trace() -> None:
    event = {"type": "started", "v": 1, "run_id": "r", "at": 0, "request": "q", "workflow": "w", "input": 1, "traceparent": GOOD}
    assert parse(as_found(event)).trace == (GOOD, None)
