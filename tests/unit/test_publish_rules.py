"""Published values: which records count, what a snapshot keeps, and what the code of a run tells at each replay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from histories import RUN, START_MS, Ledger, begun
from judge import Judge
from judged import differences
from pydantic import BaseModel
from stage import PORTS, Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.client.story import story
from stepfold.core.snapshot import copied, pack, unpack
from stepfold.core.state import RunState
from stepfold.errors import NonDeterminism, PayloadTooLarge, ValueInvalid
from stepfold.events import parse
from stepfold.operations.publish import MAX_KEYS, MAX_VALUE_BYTES, LastPublished, Publication, published_by, value_of
from stepfold.replay.execution import Execution
from stepfold.replay.loop import HOST


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


def put(ledger: Ledger, seq: int, value: Any = None, key: str = "k") -> RunState:
    return ledger.accepts("published", v=2, key=key, value=value, seq=seq)


# The fold.


def test_only_the_next_number_of_a_key_counts() -> None:
    ledger = begun()
    for seq in (0, 2, -1):
        ledger.rejects("published", v=2, key="k", value=1, seq=seq)
    put(ledger, 1, "a")
    for seq in (1, 3, 0):
        ledger.rejects("published", v=2, key="k", value="b", seq=seq)
    ledger.now_ms += 5
    run = put(ledger, 2, {"n": 1})
    put(ledger, 1, None, key="other")
    assert published_by(run) == {"k": LastPublished({"n": 1}, 2, START_MS + 5), "other": LastPublished(None, 1, START_MS + 5)}
    assert not run.journal and run.decided


def test_a_run_has_so_many_keys_and_no_more() -> None:
    ledger = begun()
    for number in range(MAX_KEYS):
        put(ledger, 1, number, f"key-{number}")
    ledger.rejects("published", v=2, key="one-more", value=1, seq=1)
    put(ledger, 2, "again", "key-0")


def test_under_a_claim_of_format_1_nothing_is_published() -> None:
    ledger = Ledger()
    ledger.claim(v=1)
    ledger.start()
    ledger.rejects("published", v=2, key="k", value=1, seq=1)


def test_the_first_record_names_the_version() -> None:
    ledger = Ledger()
    ledger.claim()
    ledger.start(version=None)
    assert ledger.accepts("published", v=2, key="k", value=1, seq=1, version="7").version == "7"


@pytest.mark.parametrize("traced", [False, True])
def test_a_snapshot_keeps_the_last_values(traced: bool) -> None:
    ledger = begun()
    run = ledger.run
    if traced:
        run.traced(f"00-{'1' * 32}-{'2' * 16}-01", None)
    before = unpack(pack(run))
    assert before.kept == {} and (before.trace is not None) == traced
    put(ledger, 1, [1])
    again = unpack(pack(run))
    assert again.kept == run.kept and again.trace == run.trace and pack(again) == pack(run)
    twin = copied(run, [])
    put(ledger, 2, [2])
    assert published_by(twin)["k"].value == [1] and published_by(run)["k"].value == [2]


def test_the_judge_sees_what_is_lost() -> None:
    ledger = begun()
    put(ledger, 1, "a")
    judge = Judge(1)
    for record in ledger.records:
        judge.judge(0, *record)
    assert not differences(judge.partitions[0], ledger.state)
    ledger.run.kept = {}
    assert "published is {}" in differences(judge.partitions[0], ledger.state)


def test_it_is_no_operation_of_the_story() -> None:
    ledger = begun()
    event = ledger.event("published", v=2, key="k", value={"n": 1}, seq=1)
    run = put(ledger, 1)
    assert story(run, [parse(event, 1, START_MS)]) == []
    assert parse(event).detail(lambda at, to: "") == 'k: {"n":1}'
    assert value_of(event) == ("k", {"n": 1}) and value_of(ledger.event("completed", result=1)) is None


# The code.


def recorded(stage: Stage, since: int = 0) -> list[tuple[str, int, Any]]:
    """Records what the code has told, as an owner does; gives all values from one record on."""
    for notice, number in stage.live.execution.notices.take():
        kind, fields = notice.record(number)
        stage.ledger.accepts(kind, **fields)
    events = [parse_value(record.value) for record in stage.ledger.records]
    return [(event["key"], event["seq"], event["value"]) for event in events if event["type"] == "published"][since:]


def parse_value(value: bytes) -> dict[str, Any]:
    from stepfold.events import decode

    event = decode(value)
    assert event is not None
    return event


async def in_steps(step: Step, note: Note) -> Any:
    await step.publish("done", 0)
    for number in range(3):
        await step.run("s", int)
        await step.publish("done", number + 1)
        note(number)
    await step.publish("last", {"of": 3})


def test_a_value_is_published_once_however_often_the_code_runs() -> None:
    stage = Stage(in_steps)
    assert recorded(stage) == [("done", 1, 0)]
    stage.step_gives("s", 0)
    assert stage.live.execution.has_news, "the log lacks a value"
    again = stage.replayed().execution.notices
    assert [number for _, number in again.take()] == [2] and again.missing and again.take() == []
    assert recorded(stage, 1) == [("done", 2, 1)] and not stage.live.execution.has_news
    stage.step_gives("s#2", 0)
    stage.step_gives("s#3", 0)
    assert recorded(stage, 2) == [("done", 3, 2), ("done", 4, 3), ("last", 1, {"of": 3})]
    assert not stage.replayed().execution.notices.take()
    stage.check()


def test_code_may_gain_and_lose_calls_while_its_runs_are_open() -> None:
    async def fewer(step: Step, note: Note) -> Any:
        await step.run("s", int)
        await step.run("s", int)
        await step.publish("done", "two")
        await step.run("s", int)
        await step.publish("done", "three")

    stage = Stage(in_steps)
    recorded(stage)
    stage.step_gives("s", 0)
    stage.step_gives("s#2", 0)
    assert len(recorded(stage)) == 3
    stage.live = stage.replayed(fewer)
    assert not stage.live.execution.notices.take()
    stage.run = stage.live.execution.run
    stage.ledger.state.runs.unpacked[RUN] = stage.run
    stage.step_gives("s#3", 0)
    assert recorded(stage, 3) == [("done", 4, "three")]


NO_VALUE = object()  # one for all, as its address is in the words of the refusal


async def broken(step: Step, note: Note) -> Any:
    for value in (NO_VALUE, 2**70, {"deep": {1}}, float("nan"), "x" * MAX_VALUE_BYTES):
        try:
            await step.publish("k", value)
        except (ValueInvalid, PayloadTooLarge) as error:
            note(str(error))
    for key in ("", "a\nb", 7):
        try:
            await step.publish(key, 1)  # type: ignore[arg-type]  # callers without types
        except ValueError as error:
            note(str(error))
    await step.publish("k", "good")
    await step.sleep("nap", 1)


def test_a_bad_key_or_value_is_refused_by_name_and_not_counted() -> None:
    stage = Stage(broken)
    notes = stage.live.notes
    assert len(notes) == 8
    assert all(note.startswith("step.publish('k'): ") for note in notes[:5])
    assert "deep" in notes[2] and "100,002 bytes; the limit is 100,000" in notes[4]
    assert all("is not a key to publish under" in note for note in notes[5:])
    assert recorded(stage) == [("k", 1, "good")]
    stage.check()


async def too_many(step: Step, note: Note) -> Any:
    for number in range(MAX_KEYS + 1):
        try:
            await step.publish(f"key-{number}", number)
        except ValueError as error:
            note(str(error))
    await step.publish("key-0", "again")
    await step.sleep("nap", 1)


def test_one_key_too_many_is_refused() -> None:
    stage = Stage(too_many)
    assert ["step.publish('key-100'): a run publishes under at most 100 keys" in note for note in stage.live.notes] == [True]
    assert recorded(stage)[-1] == ("key-0", 2, "again")
    stage.check()


class Progress(BaseModel):
    done: int


def test_the_value_is_that_of_the_call() -> None:
    async def body(step: Step, note: Note) -> Any:
        values = [1]
        told = step.publish("k", values)
        values.append(2)
        await told
        await step.publish("k", Progress(done=3))

    assert recorded(Stage(body)) == [("k", 1, [1]), ("k", 2, {"done": 3})]


async def cancelled(step: Step, note: Note) -> Any:
    async def other() -> None:
        try:
            await step.sleep("other", 1)
        finally:
            await step.publish("k", "never, of another task")

    task = asyncio.create_task(other())
    try:
        await step.sleep("nap", 1)
    except asyncio.CancelledError:
        try:
            await step.publish("k", "outside a shield")
        except asyncio.CancelledError:
            note("cancelled")
        with step.shield():
            await step.publish("k", "in a shield")
        raise
    finally:
        note(task.done())


def test_a_cancelled_run_publishes_in_a_shield_only() -> None:
    stage = Stage(cancelled)
    stage.cancel()
    assert "cancelled" in stage.live.notes and stage.live.outcome is not None and stage.live.outcome.phase == "cancelled"
    assert recorded(stage) == [("k", 1, "in a shield")]
    stage.check()


def test_code_that_is_dropped_publishes_nothing() -> None:
    async def body(step: Step, note: Note) -> Any:
        try:
            await step.sleep("nap", 1)
        finally:
            await step.publish("k", 1)

    stage = Stage(body)
    stage.live.execution.close()
    assert not stage.live.execution.notices.take()


def test_outside_its_workflow_nothing_is_published() -> None:
    steps: list[Step] = []

    async def body(step: Step, note: Note) -> Any:
        steps.append(step)
        await step.sleep("nap", 1)

    Stage(body)
    with pytest.raises(RuntimeError, match="published 'k' of run 'order-42' was called outside its workflow"):
        steps[0].publish("k", 1).send(None)


# Pauses.


def paused(program: Any, ledger: Ledger, max_told: int | None, max_turns: int = 10_000) -> tuple[list[Any], Execution, int]:
    """What the code notes in an execution that pauses, and how often it does."""
    notes: list[Any] = []
    host = HOST._replace(max_told=max_told, max_turns=max_turns)
    execution = Execution(ledger.run, lambda execution: program(Step(execution, PORTS), notes.append), host=host)
    execution.advance()
    pauses = 0
    while execution.paused:
        assert execution.has_news and not execution.take_requested()
        pauses += 1
        execution.advance()
    return notes, execution, pauses


async def beside_another(step: Step, note: Note) -> Any:
    async def branch(name: str) -> None:
        for number in range(7):
            await step.publish("k", [name, number])
            note([name, number])
        await step.sleep(name, 1)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(branch(name))
    return "end"


@pytest.mark.parametrize("max_told", [1, 2, 5, 20, 21])
def test_pauses_change_no_order(max_told: int) -> None:
    straight, first, none = paused(beside_another, begun(), None)
    notes, execution, pauses = paused(beside_another, begun(), max_told)
    assert (none, pauses) == (0, 21 // max_told)
    assert notes == straight and len(notes) == 21
    both = [[(number, notice.record(number)[1]["key"]) for notice, number in one.notices.take()] for one in (first, execution)]
    assert both[0] == both[1] and len(both[0]) == 21
    assert sorted(op.id for op in execution.take_requested()) == ["a", "b", "c"]
    first.close()
    execution.close()


@pytest.mark.parametrize("max_told", [1, 3, None])
def test_a_pause_may_be_in_a_clean_up(max_told: int | None) -> None:
    async def body(step: Step, note: Note) -> Any:
        try:
            await step.sleep("nap", 1)
        finally:
            with step.shield():
                for number in range(7):
                    await step.publish("k", number)
                note("clean")

    ledger = begun()
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=2**60)
    ledger.accepts("cancel-requested", reason="enough")
    notes, execution, pauses = paused(body, ledger, max_told)
    assert notes == ["clean"] and pauses == (0 if max_told is None else 7 // max_told)
    assert execution.outcome is not None and execution.outcome.phase == "cancelled"
    execution.close()


def test_code_that_publishes_for_ever_spins_with_pauses_too() -> None:
    async def body(step: Step, note: Note) -> Any:
        while True:
            await step.publish("k", 1)

    for max_told in (None, 10):
        with pytest.raises(NonDeterminism, match="1000 callbacks"):
            paused(body, begun(), max_told, max_turns=1_000)


def test_a_paused_run_can_be_dropped() -> None:
    async def body(step: Step, note: Note) -> Any:
        try:
            for _ in range(10):
                await step.publish("k", 1)
        finally:
            note("dropped")

    notes: list[Any] = []
    host = HOST._replace(max_told=3)
    execution = Execution(begun().run, lambda execution: body(Step(execution, PORTS), notes.append), host=host)
    execution.advance()
    assert execution.paused and not notes
    execution.close()
    assert notes == ["dropped"] and not execution.paused


def test_a_publication_says_its_record() -> None:
    kind, fields = Publication("k", b"[1]").record(4)
    assert (kind, fields["v"], fields["key"], fields["seq"]) == ("published", 2, "k", 4)
