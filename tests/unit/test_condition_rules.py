"""Conditions: which polls the fold accepts, when they time out, what the code gets, and how they are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from histories import START_MS, Ledger, begun
from stage import Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.client.story import note as line_note
from stepfold.client.story import story
from stepfold.client.waiting import waits
from stepfold.core.snapshot import pack, unpack
from stepfold.errors import ConditionTimedOut, NonDeterminism, StepFailed
from stepfold.events import parse
from stepfold.operations.condition import POINTS, CheckCodec, ConditionCall, Done, Final, OpenCondition
from stepfold.operations.line import Line
from stepfold.values.backoff import Backoff
from stepfold.values.codec import ANY, Codec
from stepfold.values.times import utc

ERROR = {"type": "ValueError", "message": "no"}


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


def poll(number: int, attempt: int | None = None, **fields: Any) -> dict[str, Any]:
    """The fields of the poll of this number, of condition `c`."""
    base = {"step_id": "c", "attempt": attempt or number, "poll": number, "state": number, "next_at": START_MS + 10 * number}
    return base | {"timeout_at": None} | fields


def end(number: int, **fields: Any) -> dict[str, Any]:
    return {"step_id": "c", "kind": "timeout", "attempt": None, "poll": number, "state": None, **fields}


def polled(ledger: Ledger | None = None, **fields: Any) -> Ledger:
    ledger = ledger or begun()
    ledger.accepts("condition-polled", v=2, **poll(1, **fields))
    return ledger


def opened(ledger: Ledger) -> OpenCondition:
    op = ledger.run.open["c"]
    assert isinstance(op, OpenCondition)
    return op


# The fold.


def test_polls_are_counted_and_only_the_last_state_is_kept() -> None:
    ledger = polled()
    for number in range(2, 1_000):
        ledger.accepts("condition-polled", **poll(number))
    op = opened(ledger)
    assert (op.polls, op.attempts, op.state, op.next_at) == (999, 999, 999, START_MS + 9_990)
    assert not ledger.run.journal and len(pack(ledger.run)) < 400
    ledger.accepts("step-completed", step_id="c", attempt=1_000, result="there")
    assert [delivery[1] for delivery in ledger.run.journal] == ["result"] and ledger.run.done == {"c"} and not ledger.run.open


@pytest.mark.parametrize(("number", "attempt"), [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2)])
def test_a_poll_that_is_not_the_next_one_is_void(number: int, attempt: int) -> None:
    polled().rejects("condition-polled", **poll(number, attempt))


def test_the_first_poll_may_be_the_first_record_and_no_other() -> None:
    ledger = begun()
    ledger.rejects("condition-polled", **poll(2))
    ledger.rejects("condition-polled", **poll(1, step_id=""))
    ledger.rejects("condition-timed-out", **end(0, at=2**62))
    ledger.accepts("condition-started", step_id="c", timeout_at=START_MS + 5)
    ledger.rejects("condition-started", step_id="c", timeout_at=None)
    ledger.accepts("condition-polled", **poll(1))
    assert opened(ledger).timeout_at == START_MS + 5, "as the first record has it"


def test_a_condition_is_not_another_operation() -> None:
    ledger = begun()
    ledger.accepts("step-failed", step_id="c", attempt=1, error=ERROR, next_at=START_MS)
    ledger.rejects("condition-polled", **poll(1, 2))
    ledger.rejects("condition-started", step_id="c", timeout_at=None)
    ledger.rejects("condition-timed-out", **end(1, at=2**62))
    ledger.accepts("step-completed", step_id="c", attempt=2, result=None)
    ledger.rejects("condition-polled", **poll(1))


def test_an_attempt_of_a_check_counts_as_one_of_a_step_and_the_next_poll_begins_anew() -> None:
    ledger = polled()
    ledger.accepts("step-failed", step_id="c", attempt=2, error=ERROR, next_at=START_MS, heartbeat=[1])
    ledger.accepts("attempt-lost", step_id="c", attempt=3)
    ledger.accepts("attempt-started", step_id="c", attempt=4)
    op = opened(ledger)
    assert (op.failures, op.lost, op.started, op.heartbeat, op.state, op.told) == (1, 1, True, [1], 1, False)
    ledger.accepts("condition-polled", **poll(2, 4))
    assert (op.failures, op.lost, op.started, op.heartbeat, op.error, op.told) == (0, 0, False, None, None, True)
    ledger.accepts("step-failed", step_id="c", attempt=5, error=ERROR, next_at=None)
    assert ledger.run.journal[-1][1:2] == ("error",) and not ledger.run.open


def test_time_is_up_when_it_is() -> None:
    ledger = polled(timeout_at=START_MS + 5)
    ledger.rejects("condition-timed-out", **end(1, at=START_MS + 4))
    ledger.accepts("condition-timed-out", **end(1, at=START_MS + 5))
    assert ledger.run.journal[-1][1:] == ("condition-timed-out", ledger.run.now, ["timeout", 1, 1])
    polled().rejects("condition-timed-out", **end(1, at=2**62))


def test_the_last_poll_that_it_may_have_ends_it() -> None:
    ledger = begun()
    last = {"kind": "attempts", "state": "s"}
    ledger.rejects("condition-timed-out", **end(2, attempt=1, **last))
    ledger.rejects("condition-timed-out", **end(1, **last))
    ledger.accepts("condition-timed-out", **end(1, attempt=1, **last))
    assert ledger.run.journal[-1].value == ["attempts", 1, "s"] and ledger.run.done == {"c"}


@pytest.mark.parametrize(
    ("next_at", "timeout_at", "due", "ends"),
    [(1, None, 1, False), (1, 2, 1, False), (2, 1, 1, True), (None, 1, 1, True), (None, None, None, False), (2, 2, 2, True)],
)
def test_it_is_due_at_the_next_check_or_at_its_time_out(
    next_at: int | None, timeout_at: int | None, due: int | None, ends: bool
) -> None:
    op = OpenCondition(timeout_at, 0)
    op.next_at = next_at
    assert op.due_at == due
    assert (due is not None and op.when_due == "condition-timed-out") == ends
    assert op.ends_at == timeout_at
    assert op.due_fields(by_log=False) == {"v": 2, "kind": "timeout", "attempt": None, "poll": 0, "state": None}


def test_an_open_condition_comes_back_from_a_snapshot() -> None:
    ledger = polled(timeout_at=START_MS + 5, state={"n": [1]})
    again = unpack(pack(ledger.run))
    assert pack(again) == pack(ledger.run)
    found = again.open["c"]
    assert isinstance(found, OpenCondition)
    assert (found.polls, found.state, found.timeout_at, found.attempts) == (1, {"n": [1]}, START_MS + 5, 1)


# What the code gets.


def check(state: int) -> int | Done[str]:
    return Done("there") if state > 2 else state + 1


async def waiting(step: Step, note: Note) -> None:
    try:
        note(await step.wait_for_condition("c", check, initial=7, every="1s", timeout="1h"))
    except (ConditionTimedOut, StepFailed) as error:
        note(error)


def call_of(stage: Stage) -> ConditionCall:
    call = stage.live.execution.ops["c"].call
    assert isinstance(call, ConditionCall)
    return call


def test_the_code_gets_the_value_and_hears_of_no_poll() -> None:
    stage = Stage(waiting)
    stage.happens("condition-polled", **poll(1))
    assert stage.live.waits_for == ["condition c"] and not stage.live.notes
    stage.check()
    stage.happens("step-completed", step_id="c", attempt=2, result="there")
    assert stage.live.notes == ["there"]
    stage.check()


@pytest.mark.parametrize(("polls", "state"), [(0, 7), (1, 1)])
def test_a_time_out_is_raised_with_the_last_state(polls: int, state: int) -> None:
    stage = Stage(waiting)
    stage.happens("condition-started", step_id="c", timeout_at=START_MS)
    for number in range(polls):
        stage.happens("condition-polled", **poll(number + 1))
    stage.happens("condition-timed-out", **end(polls, at=2**62))
    [error] = stage.live.notes
    assert isinstance(error, TimeoutError) and isinstance(error, ConditionTimedOut)
    assert (error.step_id, error.kind, error.polls, error.state) == ("c", "timeout", polls, state)
    assert str(error).endswith(", and its time is up")
    again = stage.replayed()
    assert [(one.polls, one.state) for one in again.notes] == [(polls, state)]
    assert "a state: a check whose condition holds returns Done(value)" in str(ConditionTimedOut("c", "attempts", 2, True))
    assert str(ConditionTimedOut("c", "attempts", 2, None)) == "condition 'c' does not hold after 2 polls"


def test_a_check_that_failed_for_good_is_raised_as_a_step_that_failed() -> None:
    stage = Stage(waiting)
    stage.happens("condition-started", step_id="c", timeout_at=None)
    stage.step_fails("c")
    [error] = stage.live.notes
    assert isinstance(error, StepFailed) and error.error.message == "no"


def test_a_state_that_the_check_does_not_take_today_quarantines_the_run() -> None:
    stage = Stage(waiting)
    stage.happens("condition-polled", **poll(1, state="seven"))
    with pytest.raises(NonDeterminism, match='with the state "seven"'):
        stage.replayed()


def test_another_operation_in_its_place_is_found() -> None:
    async def sleeping(step: Step, note: Note) -> None:
        await step.sleep("c", 1)

    stage = Stage(waiting)
    stage.happens("condition-polled", **poll(1))
    with pytest.raises(NonDeterminism, match="a condition 'c'"):
        stage.replayed(sleeping)


def test_a_call_of_each_attempt_has_the_state_the_key_and_the_time_left() -> None:
    call = call_of(Stage(waiting))
    first = call.attempt(None, None)
    assert first.copies is not None and first.copies() == (check, (7,))
    assert (first.poll, first.key, first.timeout_ms) == (1, "#poll1", None)
    op = OpenCondition(None, 0)
    op.polls, op.state = 4, 5
    later = call.attempt(op, 9)
    assert later.copies is not None and later.copies() == (check, (5,))
    assert (later.poll, later.key, later.timeout_ms) == (5, "#poll5", 10)
    assert (call.poll, call.lasts_ms) == (0, 3_600_000)
    assert call.begin("s", 0, str) is None and call.first(3) == ("condition-started", {"v": 2, "timeout_at": 3})


def test_a_poll_decides_when_the_next_one_is_due() -> None:
    call = call_of(Stage(waiting)).attempt(None, None)
    call.every, call.max_polls = Backoff("1s", jitter=True), 2
    kind, fields, pause = call.polled(b"5", 1_000, Random(1), 99)
    assert pause is not None and 500 <= pause < 1_000
    assert (kind, fields["next_at"], fields["timeout_at"], fields["poll"]) == ("condition-polled", 1_000 + pause, 99, 1)
    call.poll = 2
    kind, fields, pause = call.polled(b"5", 1_000, Random(1), None)
    assert (kind, fields["kind"], fields["poll"], pause) == ("condition-timed-out", "attempts", 2, None)


def test_states_and_values_have_codecs_of_their_own() -> None:
    codec = CheckCodec(Codec(timedelta, "state"), Codec(tuple[timedelta, ...], "value"))
    state, value = timedelta(seconds=1), (timedelta(days=1),)
    for written, expected in ((codec.prove(state), bytes), (codec.prove(Done(value)), Final)):
        assert type(written) is expected
    assert codec.decode(json.loads(codec.prove(Done(value)))) == value
    plain = CheckCodec(ANY, ANY)
    assert plain.at_sight(1) == b"1" and type(plain.at_sight(Done(1))) is Final
    assert CheckCodec(ANY, Codec(timedelta, "value")).at_sight(Done("no timedelta")) is None


# How it is told.


def beside(ms: int, other_ms: int) -> str:
    return f"{ms - START_MS} ms"


def told(ledger: Ledger) -> tuple[str, str, Line]:
    events = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[1:]]
    [line] = story(ledger.run, events)
    return line_note(line, START_MS, beside), events[-1].detail(beside), line


def test_the_line_of_a_condition() -> None:
    ledger = begun()
    ledger.accepts("condition-started", step_id="c", timeout_at=START_MS + 90)
    assert told(ledger)[:2] == ("until 90 ms", "until 90 ms")
    ledger.accepts("condition-polled", **poll(1, timeout_at=START_MS + 90))
    assert told(ledger)[:2] == ("1 poll; the last gave 1; next at 10 ms; until 90 ms", "poll 1: 1; again at 10 ms")
    ledger.accepts("step-failed", step_id="c", attempt=2, error=ERROR, next_at=START_MS + 12)
    assert told(ledger)[0] == "1 poll; the last gave 1; next at 12 ms; until 90 ms; ValueError: no"
    ledger.accepts("condition-polled", **poll(2, 3))
    noted, _, line = told(ledger)
    assert noted == "2 polls; the last gave 2; next at 20 ms; until 90 ms"
    assert (line.kind, line.became, line.attempts, line.until) == ("condition", "open", 3, START_MS + 90)
    ledger.accepts("condition-timed-out", **end(2, at=START_MS + 90))
    noted, detail, line = told(ledger)
    assert (noted, detail) == ("it does not hold; 2 polls; the last gave 2", "no more time, after 2 polls")
    assert (line.became, line.attempts) == ("timed out", 3)


def test_the_line_of_one_that_has_no_more_polls() -> None:
    ledger = begun()
    assert "c" not in ledger.run.open
    ledger.accepts("condition-started", step_id="c", timeout_at=None)
    assert told(ledger)[:2] == ("", "")
    ledger.accepts("condition-timed-out", **end(1, kind="attempts", attempt=1, state=8))
    noted, detail, line = told(ledger)
    assert (noted, detail) == ("it does not hold; 1 poll; the last gave 8", "no more polls, after 1 poll")
    assert line.attempts == 1


@pytest.mark.parametrize(("result", "noted"), [("there", '"there"; 1 poll'), (None, "1 poll")])
def test_the_line_of_one_that_holds(result: Any, noted: str) -> None:
    ledger = polled()
    ledger.accepts("step-completed", step_id="c", attempt=2, result=result)
    assert told(ledger)[0] == noted
    assert told(ledger)[2].became == "done"


def test_the_line_of_one_whose_check_failed_for_good() -> None:
    ledger = polled()
    ledger.accepts("step-failed", step_id="c", attempt=2, error=ERROR, next_at=None)
    assert told(ledger)[0] == "ValueError: no; 1 poll"


def test_the_line_has_a_bounded_number_of_points() -> None:
    ledger = polled(began_at=START_MS)
    for number in range(2, POINTS):
        ledger.now_ms += 10
        ledger.accepts("condition-polled", **poll(number, began_at=ledger.now_ms - 1))
    points = told(ledger)[2].points
    assert len(points) <= POINTS and points[0] == (START_MS, "began") and points[-1] == (ledger.now_ms, "ended")


def test_why_a_run_waits_for_a_condition() -> None:
    ledger = begun()
    ledger.accepts("condition-started", step_id="c", timeout_at=START_MS + 90_000)
    [wait] = waits(ledger.run, True)
    assert (wait.on, wait.kind, wait.who) == ("check 1 of condition 'c'", "condition", "the worker that runs it")
    assert (wait.until, wait.last) == (utc(START_MS + 90_000), None)
    assert ledger.run.open["c"].words("c") == "condition 'c': check 1, the first; until 2030-03-17 17:48:10 UTC"
    ledger.accepts("condition-polled", **poll(1))
    [wait] = waits(ledger.run, True)
    assert (wait.on, wait.who, wait.until) == ("check 2 of condition 'c'", "the clock", utc(START_MS + 10))
    assert wait.last == "1 poll, the last gave 1"
    ledger.accepts("step-failed", step_id="c", attempt=2, error=ERROR, next_at=START_MS + 1_000)
    ledger.accepts("attempt-lost", step_id="c", attempt=3)
    [wait] = waits(ledger.run, True)
    lost = "an attempt was lost with its worker, 1 in a row"
    assert wait.last == f"an attempt failed: ValueError: no; {lost}; 1 poll, the last gave 1"
    ledger.accepts("condition-polled", **poll(2, 4, next_at=START_MS + 2_000))
    words = ledger.run.open["c"].words("c")
    assert words.startswith("condition 'c': check 3 at 2030-03-17 17:46:42 UTC, 2 polls, the last gave 2; until")
