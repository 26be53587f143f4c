"""Callbacks: which answers the fold accepts, when they time out, what the code gets, and what an id may be."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from histories import RUN, START_MS, Ledger, begun
from stage import Note, Replay, Stage

from stepfold.authoring.callback import Callback
from stepfold.authoring.step import Step
from stepfold.client.story import line_json, story
from stepfold.client.story import note as line_note
from stepfold.core.snapshot import pack, unpack
from stepfold.errors import CallbackFailed, CallbackIdInvalid, CallbackTimedOut, NonDeterminism, StepFailed
from stepfold.events import parse
from stepfold.operations.callback import CallbackCall, CallbackId, OpenCallback
from stepfold.operations.line import Line

ERROR = {"type": "Refused", "message": "no"}
OURS: dict[str, Any] = {"step_id": "c", "nonce": "n"}


def place(offset: int) -> dict[str, Any]:
    return {"from": {"inbox": "i", "partition": 0, "offset": offset}}


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


def created(*, timeout_at: int | None = None, heartbeat_ms: int | None = None, ledger: Ledger | None = None) -> Ledger:
    ledger = ledger or begun()
    ledger.accepts("callback-created", v=2, **OURS, timeout_at=timeout_at, heartbeat_ms=heartbeat_ms)
    return ledger


def delivered(ledger: Ledger) -> list[tuple[str, Any]]:
    return [(kind, value) for _, kind, _, value in ledger.run.journal]


# The fold.


def test_a_callback_is_created_once() -> None:
    ledger = created()
    ledger.rejects("callback-created", **{**OURS, "nonce": "another"}, timeout_at=None, heartbeat_ms=None)
    ledger.rejects("callback-created", **{**OURS, "step_id": ""}, timeout_at=None, heartbeat_ms=None)
    assert delivered(ledger) == [("callback-created", "n")]
    assert "c" in ledger.run.open and "c" not in ledger.run.done


def test_an_open_callback_comes_back_from_a_snapshot() -> None:
    ledger = created(timeout_at=START_MS + 10, heartbeat_ms=3)
    again = unpack(pack(ledger.run))
    assert pack(again) == pack(ledger.run)
    assert "c" not in again.done
    found = again.open["c"]
    assert isinstance(found, OpenCallback) and found.heartbeat_by == START_MS + 3
    assert found.when_due == "callback-timed-out"


def test_an_answer_ends_the_callback() -> None:
    ledger = created()
    ledger.accepts("callback-completed", **OURS, data={"stars": 5})
    assert delivered(ledger)[1:] == [("callback-completed", {"stars": 5})]
    assert not ledger.run.open and ledger.run.done == {"c"}


@pytest.mark.parametrize("good_first", [True, False])
def test_the_first_answer_counts(good_first: bool) -> None:
    ledger = created()
    answers: list[tuple[str, dict[str, Any]]] = [("callback-completed", {"data": 1}), ("callback-failed", {"error": ERROR})]
    (first, has), (second, hasnt) = answers if good_first else reversed(answers)
    ledger.accepts(first, **OURS, **has)
    ledger.rejects(second, **OURS, **hasnt)
    ledger.rejects("callback-heartbeat", **OURS)
    assert delivered(ledger)[1:] == [(first, next(iter(has.values())))]


@pytest.mark.parametrize("wrong", [{"nonce": "another"}, {"step_id": "another"}])
def test_an_answer_with_another_address_is_void(wrong: dict[str, str]) -> None:
    ledger = created()
    ledger.accepts("wait-started", step_id="another", signal="s", timeout_at=None)
    fields: dict[str, Any]
    for kind, fields in (("completed", {"data": 1}), ("failed", {"error": ERROR}), ("heartbeat", {})):
        ledger.rejects(f"callback-{kind}", **{**OURS, **wrong}, **fields)
    assert "c" in ledger.run.open


def test_a_request_counts_once() -> None:
    ledger = created(heartbeat_ms=10)
    ledger.accepts("callback-heartbeat", **OURS, request="same")
    ledger.now_ms += 5
    ledger.rejects("callback-heartbeat", **OURS, request="same")
    ledger.rejects("callback-completed", **OURS, data=1, request="same")
    ledger.accepts("callback-completed", **OURS, data=1, request="another")


def test_an_answer_for_a_run_that_has_not_begun_is_void() -> None:
    ledger = begun()
    ledger.rejects("callback-completed", "another-run", **OURS, data=1)


def test_the_inbox_hears_of_an_answer_that_is_void() -> None:
    ledger = created()
    ledger.accepts("callback-completed", **OURS, data=1, request="r", **place(7))
    ledger.write(ledger.event("callback-completed", **OURS, data=2), key=RUN)
    assert not ledger.state.refused, "its sender reads back"
    ledger.write(ledger.event("callback-completed", **OURS, data=1, request="r", **place(8)), key=RUN)
    assert not ledger.state.refused, "a repeat"
    ledger.write(ledger.event("callback-failed", **OURS, error=ERROR, **place(9)), key=RUN)
    [refusal] = ledger.state.refused
    assert refusal.event["type"] == "callback-failed" and "over" in refusal.reason


@pytest.mark.parametrize("answer_first", [True, False])
def test_an_answer_at_the_deadline_races_the_time_out(answer_first: bool) -> None:
    """Its time does not matter: the first in the log counts."""
    ledger = created(timeout_at=START_MS + 10)
    ledger.now_ms += 10
    if answer_first:
        ledger.accepts("callback-completed", **OURS, data=1)
        ledger.rejects("callback-timed-out", step_id="c", kind="timeout")
        assert delivered(ledger)[1:] == [("callback-completed", 1)]
    else:
        ledger.accepts("callback-timed-out", step_id="c", kind="timeout")
        ledger.rejects("callback-completed", **OURS, data=1)
        assert delivered(ledger)[1:] == [("callback-timed-out", "timeout")]


def test_no_time_out_comes_early_or_without_a_limit() -> None:
    ledger = created(timeout_at=START_MS + 10)
    for kind, at in (("timeout", START_MS + 9), ("heartbeat", START_MS + 100)):
        ledger.rejects("callback-timed-out", step_id="c", kind=kind, at=at)
    ledger.rejects("callback-timed-out", step_id="c", kind="odd", at=START_MS + 10)
    ledger.rejects("callback-timed-out", step_id="another", kind="timeout", at=START_MS + 10)
    ledger.accepts("callback-timed-out", step_id="c", kind="timeout", at=START_MS + 10)


def test_a_heartbeat_puts_the_end_off_by_the_time_of_the_log() -> None:
    ledger = created(heartbeat_ms=10)
    ledger.now_ms += 9
    ledger.accepts("callback-heartbeat", **OURS, at=0)
    ledger.rejects("callback-timed-out", step_id="c", kind="heartbeat", at=START_MS + 18)
    ledger.accepts("callback-timed-out", step_id="c", kind="heartbeat", at=START_MS + 19)
    assert delivered(ledger)[1:] == [("callback-timed-out", "heartbeat")]


def test_the_time_out_is_due_by_the_owners_clock_and_silence_by_the_logs() -> None:
    found = OpenCallback("n", 100, 10, 0)
    assert (found.due_at, found.due_fields(by_log=False)["kind"]) == (100, "timeout")
    assert (found.due_by_log, found.due_fields(by_log=True)["kind"]) == (10, "heartbeat")
    found.beat_at = 90
    assert (found.due_at, found.due_by_log) == (100, 100)
    assert OpenCallback("n", None, None, 0).due_at is None
    assert OpenCallback("n", None, None, 0).due_by_log is None
    assert OpenCallback("n", None, 2**63, 2**63).due_by_log is None, "never"


def test_an_open_callback_in_words() -> None:
    assert OpenCallback("n", None, None, 0).words("c") == "callback 'c'"
    assert OpenCallback("n", 1_000, None, 0).words("c") == "callback 'c' until 1970-01-01 00:00:01 UTC"
    by = "the next heartbeat by 1970-01-01 00:00:01 UTC"
    assert OpenCallback("n", None, 1_000, 0).words("c") == f"callback 'c', {by}"
    assert OpenCallback("n", 9_000, 1_000, 0).words("c") == f"callback 'c' until 1970-01-01 00:00:09 UTC, {by}"
    assert OpenCallback("n", None, 2**63, 2**63).words("c") == "callback 'c'", "never"


# Replay.


async def asks(step: Step, note: Note) -> None:
    callback = await step.callback("c")
    note(CallbackId.parse(callback.id))
    note(str(callback))
    await step.wait_for_signal("go", signal="go")
    note(await callback)
    note(await callback)


def test_the_code_goes_on_with_the_id_and_awaits_the_answer_later() -> None:
    stage = Stage(asks)
    assert stage.live.notes == [CallbackId(RUN, "c", "nonce"), "<Callback 'c'>"]
    stage.check()
    stage.answers("c", 1)
    stage.check()
    stage.signal("go")
    assert stage.live.notes[2:] == [1, 1]
    stage.check()


async def asks_twice_at_once(step: Step, note: Note) -> None:
    first, second = await step.callback("a"), await step.callback("b")
    note(await second)
    note(await first)


async def asks_under_one_id(step: Step, note: Note) -> None:
    first = await step.callback("c")
    second = await step.callback("c")
    note(await first)
    note(await second)


def test_an_id_may_be_used_again_while_its_callback_is_open() -> None:
    stage = Stage(asks_under_one_id)
    assert stage.waits_for == ["callback c", "callback c#2"]
    stage.check()
    stage.answers("c#2", 2)
    stage.answers("c", 1)
    assert stage.live.notes == [1, 2]
    stage.check()


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_answers_in_any_order(order: str) -> None:
    stage = Stage(asks_twice_at_once)
    for step_id in order:
        stage.answers(step_id, step_id)
        stage.check()
    assert stage.live.notes == ["b", "a"]


async def catches(step: Step, note: Note) -> None:
    callback = await step.callback("c")
    for _ in range(2):
        try:
            await callback
        except CallbackFailed as error:
            note((error.type, error.message))
        except CallbackTimedOut as error:
            note(error.kind)


def test_a_failure_is_raised_at_each_await() -> None:
    stage = Stage(catches)
    stage.happens("callback-failed", step_id="c", nonce="nonce", error=ERROR)
    assert stage.live.notes == [("Refused", "no")] * 2
    stage.check()


def test_a_time_out_is_raised_at_each_await() -> None:
    stage = Stage(catches)
    stage.run.open["c"] = OpenCallback("nonce", START_MS, None, START_MS)
    stage.happens("callback-timed-out", step_id="c", kind="timeout")
    assert stage.live.notes == ["timeout"] * 2
    stage.check()


def test_it_lasts_as_long_as_its_time_out_says_with_heartbeats_and_without() -> None:
    assert CallbackCall("r", 5, None, lambda step_id, data: data).lasts_ms == 5
    assert CallbackCall("r", 5, 3, lambda step_id, data: data).lasts_ms == 5
    assert CallbackCall("r", None, 3, lambda step_id, data: data).lasts_ms is None


async def sleeps(step: Step, note: Note) -> None:
    await step.sleep("c", 60)


async def holds(step: Step, note: Note) -> None:
    note(await step.callback("c"))
    await step.sleep("s", 1)


def test_code_that_asks_for_something_else_does_not_fit() -> None:
    stage = Stage(asks)
    with pytest.raises(NonDeterminism, match="a callback 'c'"):
        stage.replayed(sleeps)
    slept = Stage(sleeps)
    slept.run.journal.append(created().run.journal[0])
    with pytest.raises(NonDeterminism, match="a callback 'c'"):
        slept.advance()


def test_a_callback_is_handed_out_once() -> None:
    """The fold never delivers it twice; a journal from elsewhere might."""
    stage = Stage(holds)
    stage.run.journal.append(stage.run.journal[0])
    with pytest.raises(NonDeterminism, match="a callback 'c'"):
        stage.advance()


async def drops(step: Step, note: Note) -> None:
    async def submit(callback_id: str) -> None: ...

    try:
        await step.wait_for_callback("c", submit)
    except StepFailed as error:
        note(error.step_id)
    await step.sleep("s", 1)


def test_a_failed_submitter_ends_its_callback() -> None:
    stage = Stage(drops)
    stage.step_fails("c/submit")
    assert stage.live.notes == ["c/submit"] and list(stage.run.open) == ["s"]
    stage.check()


def test_a_callback_is_awaited_in_its_workflow() -> None:
    stage = Stage(holds)
    callback: Callback[Any] = stage.live.notes[0]
    with pytest.raises(RuntimeError, match="outside its workflow"):
        callback.__await__().send(None)


# Its line in the story.


def beside(ms: int, other_ms: int) -> str:
    return f"{ms - START_MS} ms"


ENDS: list[tuple[str | None, dict[str, Any], str, str, str]] = [
    (None, {}, "open", "for an answer until 0 ms", "until 0 ms"),
    ("callback-heartbeat", {"nonce": "n"}, "open", "for an answer until 0 ms; heartbeat at 0 ms", ""),
    ("callback-completed", {"nonce": "n", "data": 7}, "done", "7", "7"),
    ("callback-failed", {"nonce": "n", "error": ERROR}, "failed", "Refused: no", "Refused: no"),
    ("callback-timed-out", {"kind": "timeout"}, "timed out", "no answer until 0 ms", "no answer in time"),
    ("step-cancelled", {}, "dropped", "the code no longer waits for it", ""),
]


@pytest.mark.parametrize(("end", "fields", "became", "noted", "detail"), ENDS)
def test_the_line_of_a_callback(end: str | None, fields: dict[str, Any], became: str, noted: str, detail: str) -> None:
    ledger = created(timeout_at=START_MS)
    if end is not None:
        ledger.accepts(end, step_id="c", **fields)
    events = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[1:]]
    [line] = story(ledger.run, events)
    assert (line.kind, line.became, line.until) == ("callback", became, START_MS)
    assert (line_note(line, START_MS, beside), events[-1].detail(beside)) == (noted, detail)
    assert str(line.error) == ("Refused: no" if became == "failed" else "None")
    assert line.result == {"done": 7, "timed out": "timeout"}.get(became)


def test_a_callback_without_a_limit_in_words() -> None:
    ledger = created()
    events = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[1:]]
    [line] = story(ledger.run, events)
    assert (line_note(line, START_MS, beside), events[-1].detail(beside)) == ("for an answer", "")


def test_the_heartbeats_of_a_callback_in_words() -> None:
    ledger = created(heartbeat_ms=10)

    def told() -> tuple[str, str, Line]:
        events = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[1:]]
        [line] = story(ledger.run, events)
        return line_note(line, START_MS, beside), events[-1].detail(beside), line

    noted, detail, line = told()
    assert (noted, detail) == ("for an answer; no heartbeat yet, the first by 10 ms", "a heartbeat at least every 10 ms")
    assert (line.heartbeat_at, line.heartbeat_by) == (None, START_MS + 10)
    ledger.now_ms += 9
    ledger.accepts("callback-heartbeat", **OURS)
    noted, _, line = told()
    assert noted == "for an answer; heartbeat at 9 ms, the next by 19 ms"
    shown = line_json(line)
    assert [shown[name] and shown[name][-4:-1] for name in ("heartbeat_at", "heartbeat_by", "until")] == ["009", "019", None]
    ledger.accepts("callback-timed-out", step_id="c", kind="heartbeat", at=START_MS + 19)
    noted, _, line = told()
    assert (noted, line.heartbeat_by) == ("no heartbeat since 9 ms", None)


def test_a_callback_that_nobody_worked_on_in_words() -> None:
    ledger = created(heartbeat_ms=10)
    ledger.now_ms += 10
    ledger.accepts("callback-timed-out", step_id="c", kind="heartbeat")
    events = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[1:]]
    [line] = story(ledger.run, events)
    assert line_note(line, START_MS, beside) == "no heartbeat since 0 ms"


def test_a_heartbeat_alone_makes_no_line() -> None:
    ledger = created(heartbeat_ms=10)
    ledger.accepts("callback-heartbeat", **OURS)
    [heartbeat] = [parse(json.loads(one.value), one.offset, one.timestamp) for one in ledger.records[-1:]]
    assert story(ledger.run, [heartbeat]) == []


# Ids.


@pytest.mark.parametrize("callback", [CallbackId("r", "s", "n"), CallbackId("run/ü 1", "scope/step#2", "0" * 32)])
def test_an_id_comes_back(callback: CallbackId) -> None:
    assert CallbackId.parse(str(callback)) == callback


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


GOOD = encoded(["r", "s", 0, "n"])


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        b"bytes",
        "",
        "=",
        "a",
        "ü",
        "\ud800",
        "no id",
        GOOD + "=",
        GOOD[:-1],
        GOOD + "A",
        f" {GOOD}",
        encoded([]),
        encoded({"r": 1, "s": 2, "0": 3, "n": 4}),
        encoded(["r", "s", "n"]),
        encoded(["r", "s", 1, "n"]),
        encoded(["r", "s", False, "n"]),
        encoded(["r", "", 0, "n"]),
        encoded(["r", "s", 0, ""]),
        encoded(["@r", "s", 0, "n"]),
        encoded([1, "s", 0, "n"]),
        encoded(["r", ["s"], 0, "n"]),
        encoded(["ü", "s", 0, "n"]),
        base64.urlsafe_b64encode(b'["r", "s", 0, "n"]').decode(),
    ],
)
def test_everything_else_is_not_an_id(bad: Any) -> None:
    assert str(CallbackId.parse(GOOD)) == GOOD
    with pytest.raises(CallbackIdInvalid, match="is not the id of a callback"):
        CallbackId.parse(bad)
