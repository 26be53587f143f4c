"""Children: what the parent's records owe, what ends a child, whose cancellation counts, and what the code gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from histories import RUN, START_MS, Ledger, begun, owned
from stage import Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.client.story import line_json, story
from stepfold.client.story import note as line_note
from stepfold.core.messages import digest_of_start
from stepfold.core.snapshot import pack, unpack
from stepfold.errors import ChildCancelled, ChildFailed, ChildTimedOut, ConfigError, NonDeterminism, PayloadTooLarge
from stepfold.events import parse
from stepfold.operations.child import Child, ChildCall, ChildState, OpenChild, child_id, children_of
from stepfold.operations.line import Line

ERROR = {"type": "ValueError", "message": "no"}
CHILD: dict[str, Any] = {
    "v": 2,
    "step_id": "ship",
    "child": "kid",
    "workflow": "w",
    "child_version": "1",
    "input": [1],
    "on_parent_close": "cancel",
    "timeout_at": None,
    "detached": False,
    "shielded": False,
}
PARENT = {"run_id": "p", "start": "0" * 16, "step_id": "s"}


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


def scheduled(ledger: Ledger | None = None, **fields: Any) -> Ledger:
    ledger = ledger or begun()
    ledger.accepts("child-scheduled", **(CHILD | fields))
    return ledger


def owed(ledger: Ledger) -> list[tuple[str, str]]:
    """The messages in the outbox, in order."""
    return [(message.event["type"], message.event["run_id"]) for _, message in ledger.state.outbox]


def told(ledger: Ledger, **fields: Any) -> dict[str, Any]:
    return {"v": 2, "step_id": "ship", "child": "kid", "start": ledger.run.start_digest, **fields}


def cause(offset: int, n: int = 0, partition: int = 7) -> dict[str, Any]:
    return {"cause": {"partition": partition, "offset": offset, "n": n}}


# What a parent owes.


def test_a_child_is_in_the_log_before_anything_is_sent() -> None:
    ledger = scheduled()
    [(target, message)] = ledger.state.outbox
    parent = {"run_id": RUN, "start": digest_of_start(ledger.run.request or ""), "step_id": "ship"}
    fields = {"workflow": "w", "version": "1", "input": [1], "parent": parent}
    assert target == 0 and message.event["type"] == "started"
    assert fields.items() <= message.event.items()
    assert message.event["cause"] == {"partition": 0, "offset": ledger.records[-1].offset, "n": 0}
    again = unpack(pack(ledger.run))
    assert pack(again) == pack(ledger.run) and isinstance(again.open["ship"], OpenChild)
    ledger.rejects("child-scheduled", **CHILD)
    ledger.rejects("child-scheduled", **CHILD | {"step_id": "b", "child": "@claim"})


@pytest.mark.parametrize("policy", ["cancel", "abandon"])
@pytest.mark.parametrize("how", ["step-cancelled", "child-timed-out", "cancel-requested", "failed"])
def test_a_child_that_shall_not_outlive_its_operation_is_cancelled_once(how: str, policy: str) -> None:
    ledger = scheduled(on_parent_close=policy, timeout_at=START_MS)
    ledger.state.outbox.deliver({"0": 2**40})
    fields: dict[str, Any] = (
        {"reason": "enough"} if how == "cancel-requested" else {"error": ERROR} if how == "failed" else {"step_id": "ship"}
    )
    ledger.accepts(how, **fields)
    assert owed(ledger) == [("cancel-requested", "kid")] * (policy == "cancel")
    if how != "failed":
        if how != "cancel-requested":
            ledger.accepts("cancel-requested")
        ledger.accepts("cancelled")
    assert owed(ledger) == [("cancel-requested", "kid")] * (policy == "cancel")


def test_a_cancellation_does_not_reach_a_shielded_child_until_the_parent_ends() -> None:
    ledger = scheduled(shielded=True)
    ledger.accepts("cancel-requested")
    assert owed(ledger) == [("started", "kid")]
    ledger.accepts("cancelled")
    assert owed(ledger) == [("started", "kid"), ("cancel-requested", "kid")]


def test_a_detached_child_is_over_at_once_and_never_cancelled() -> None:
    ledger = scheduled(detached=True, on_parent_close="abandon")
    ledger.rejects("child-ended", **told(ledger, state="completed", result=1))
    ledger.accepts("completed", result=1)
    assert owed(ledger) == [("started", "kid")]
    assert [message.event["parent"]["detached"] for _, message in ledger.state.outbox] == [True]


def test_an_abandoned_child_starts_though_its_parent_has_ended() -> None:
    ledger = scheduled(on_parent_close="abandon")
    ledger.accepts("completed", result=1)
    assert owed(ledger) == [("started", "kid")]


# What ends a child.


def test_the_end_of_a_run_is_owed_to_its_parent() -> None:
    ends: dict[str, dict[str, Any]] = {"completed": {"result": 1}, "failed": {"error": ERROR}, "cancelled": {"reason": None}}
    for end, said in ends.items():
        ledger = owned()
        ledger.start(v=2, parent=PARENT)
        if end == "cancelled":
            ledger.accepts("cancel-requested")
        ledger.accepts(end, **said)
        [(_, message)] = ledger.state.outbox
        address = {"type": "child-ended", "run_id": "p", "step_id": "s", "child": RUN, "start": "0" * 16, "state": end}
        assert (address | said).items() <= message.event.items()


def test_the_end_of_a_detached_run_is_owed_to_nobody() -> None:
    ledger = owned()
    run = ledger.start(v=2, parent=PARENT | {"detached": True})
    assert run.parent is not None and unpack(pack(run)).parent == run.parent
    ledger.accepts("completed", result=1)
    assert not owed(ledger)


@pytest.mark.parametrize(
    "parent",
    [
        PARENT | {"run_id": "@claim"},
        PARENT | {"start": "0" * 17},
        PARENT | {"step_id": ""},
        PARENT | {"step_id": "s" * 1_101},
        None,
    ],
)
def test_a_parent_that_no_message_could_reach_is_none(parent: Any) -> None:
    ledger = owned()
    assert ledger.start(v=2, parent=parent).parent is None


def test_only_the_open_child_of_this_start_of_the_parent_ends() -> None:
    ledger = scheduled()
    for wrong in ({"child": "another"}, {"start": "0" * 16}, {"step_id": "another"}):
        ledger.rejects("child-ended", **told(ledger, state="completed", result=1) | wrong)
        ledger.rejects("child-refused", **told(ledger) | wrong)
    ledger.accepts("child-ended", **told(ledger, state="completed", result=1))
    ledger.rejects("child-ended", **told(ledger, state="completed", result=1))
    assert [(one.outcome, one.value) for one in ledger.run.journal] == [
        ("child-scheduled", "kid"),
        ("child-ended", ["kid", ["completed", 1]]),
    ]


def test_a_child_times_out_at_its_time() -> None:
    ledger = scheduled(timeout_at=START_MS + 10)
    ledger.rejects("child-timed-out", step_id="ship")
    ledger.rejects("child-timed-out", step_id="another")
    ledger.accepts("child-timed-out", step_id="ship", at=START_MS + 10)
    assert not ledger.run.open
    ledger = scheduled()
    ledger.rejects("child-timed-out", step_id="ship", at=2**60)


def test_a_start_under_a_taken_id_is_refused_to_the_parent_that_sent_it() -> None:
    ledger = begun()
    start: dict[str, Any] = {"v": 2, "workflow": "w", "input": 1, "parent": PARENT}
    ledger.rejects("started", **start)
    ledger.write(ledger.event("started", **start, **cause(1)), key=RUN)
    assert owed(ledger) == [("child-refused", "p")] and not ledger.state.refused
    ledger.write(ledger.event("started", **start, **cause(1)), key=RUN)
    assert owed(ledger) == [("child-refused", "p")], "a repeat"
    ledger.write(ledger.event("started", **start | {"parent": PARENT | {"detached": True}}, **cause(2)), key=RUN)
    ledger.write(ledger.event("started", **start, **cause(3), request=ledger.run.request), key=RUN)
    assert owed(ledger) == [("child-refused", "p")]
    ledger.accepts("completed", result=1)
    ledger.write(ledger.event("started", **start, **cause(4)), key=RUN)
    assert owed(ledger) == [("child-refused", "p")] * 2, "its id is remembered"


def test_a_cancellation_by_a_parent_counts_only_if_it_is_the_runs_own() -> None:
    ledger = begun()
    ledger.rejects("cancel-requested", parent=PARENT)
    ledger = owned()
    ledger.start(v=2, parent=PARENT)
    for name in PARENT:
        ledger.rejects("cancel-requested", parent=PARENT | {name: "1" * 16})
    ledger.rejects("cancel-requested", parent=PARENT | {"run_id": "@"})
    ledger.accepts("cancel-requested", parent=PARENT)


def test_the_id_of_a_child_begins_with_its_parents_and_is_a_run_id() -> None:
    run = begun().run
    made = child_id(run, "ship")
    assert made.startswith(f"{RUN}/ship~") and len(made) == len(f"{RUN}/ship~") + 16
    long = child_id(run, "s" * 300)
    assert len(long) <= 200 and long.startswith(RUN) and long != child_id(run, "s" * 301)
    run.request = "another start"
    assert child_id(run, "ship") != made


# What the code gets.


async def invoking(step: Step, note: Note) -> Any:
    return await step.invoke_workflow("ship", "w", [1], run_id="kid")


def ends(stage: Stage, **fields: Any) -> list[str]:
    stage.happens("child-ended", **told(stage.ledger, **fields))
    assert stage.replayed().ended == stage.live.ended
    return stage.live.ended


def test_the_code_gets_the_result() -> None:
    stage = Stage(invoking)
    assert stage.live.waits_for == ["child ship"] and owed(stage.ledger) == [("started", "kid")]
    assert ends(stage, state="completed", result={"n": 1}) == ["completed", "{'n': 1}", "None"]


def test_failure_cancellation_and_time_out_are_three_errors() -> None:
    outcomes: list[BaseException | None] = []
    for fields in ({"state": "failed", "error": ERROR}, {"state": "cancelled", "reason": "enough"}):
        stage = Stage(invoking)
        ends(stage, **fields)
        outcomes.append(stage.live.outcome.error if stage.live.outcome else None)

    async def briefly(step: Step, note: Note) -> Any:
        await step.invoke_workflow("ship", "w", timeout=1, run_id="kid")

    stage = Stage(briefly)
    stage.happens("child-timed-out", step_id="ship", at=2**60)
    assert owed(stage.ledger) == [("started", "kid"), ("cancel-requested", "kid")]
    outcomes.append(stage.live.outcome.error if stage.live.outcome else None)
    stage = Stage(invoking)
    stage.happens("child-refused", **told(stage.ledger))
    outcomes.append(stage.live.outcome.error if stage.live.outcome else None)
    failed, cancelled, late, taken = outcomes
    assert isinstance(failed, ChildFailed) and (failed.run_id, str(failed.error)) == ("kid", "ValueError: no")
    assert isinstance(cancelled, ChildCancelled) and cancelled.reason == "enough" and "enough" in str(cancelled)
    assert isinstance(late, ChildTimedOut) and isinstance(late, TimeoutError) and late.run_id == "kid"
    assert isinstance(taken, ChildFailed) and taken.error.type == "RunAlreadyExists"
    assert str(ChildCancelled("kid", None)) == "child run 'kid' was cancelled"


def test_a_detached_start_gives_the_run_id() -> None:
    async def starting(step: Step, note: Note) -> Any:
        return await step.start_workflow("mail", "w")

    stage = Stage(starting)
    assert stage.live.ended == ["completed", repr(child_id(stage.run, "mail")), "None"]
    assert stage.replayed().ended == stage.live.ended


def test_a_cancelled_parent_hears_of_it_after_its_child_has_ended() -> None:
    async def parent(step: Step, note: Note) -> Any:
        async def other() -> None:
            note(await step.run("other", len, "ab"))
            await step.run("never", len, "ab")

        task = asyncio.create_task(other())
        try:
            await step.invoke_workflow("ship", "w", run_id="kid")
        except asyncio.CancelledError:
            note("cancelled")
            with step.shield():
                note(await step.invoke_workflow("undo", "w", run_id="undo"))
            raise
        finally:
            task.cancel()

    stage = Stage(parent)
    stage.cancel()
    assert stage.live.notes == [] and owed(stage.ledger)[1:] == [("cancel-requested", "kid")]
    stage.step_gives("other", 2)
    assert stage.live.notes == [2] and "step never" not in stage.live.waits_for
    stage.happens("child-ended", **told(stage.ledger, state="completed", result="too late"))
    assert stage.live.notes == [2, "cancelled"] == stage.replayed().notes
    stage.happens("child-ended", **told(stage.ledger, state="completed", result=3) | {"step_id": "undo", "child": "undo"})
    assert stage.live.notes == [2, "cancelled", 3] and stage.live.ended[0] == "cancelled"
    assert ("cancel-requested", "undo") not in owed(stage.ledger)


def test_the_main_task_waits_for_the_leaves_too() -> None:
    async def parent(step: Step, note: Note) -> Any:
        task = asyncio.create_task(step.invoke_workflow("ship", "w", run_id="kid"))
        await step.run("first", len, "ab")
        try:
            await step.run("second", len, "ab")
        finally:
            note(task.done())

    stage = Stage(parent)
    stage.cancel()
    stage.step_gives("first", 2)
    assert stage.live.notes == []
    stage.happens("child-ended", **told(stage.ledger, state="cancelled"))
    assert stage.live.ended[0] == "cancelled" and stage.replayed().ended == stage.live.ended


def test_code_that_stops_waiting_lets_the_child_go() -> None:
    async def hasty(step: Step, note: Note) -> Any:
        try:
            async with asyncio.timeout(1):
                await step.invoke_workflow("ship", "w", run_id="kid")
        except TimeoutError:
            return "too late"

    stage = Stage(hasty)
    stage.cancel()
    [timer] = [one.removeprefix("sleep ") for one in stage.live.waits_for if one.startswith("sleep")]
    stage.wakes(timer)
    assert owed(stage.ledger) == [("started", "kid"), ("cancel-requested", "kid")]
    assert stage.live.ended[0] == "completed"


OTHERS: list[Callable[[Step], Any]] = [
    lambda step: step.invoke_workflow("ship", "another", [1], run_id="kid"),
    lambda step: step.invoke_workflow("ship", "w", [1], run_id="another"),
    lambda step: step.start_workflow("ship", "w", [1], run_id="kid"),
    lambda step: step.run("ship", len, ""),
]


@pytest.mark.parametrize(
    "other",
    OTHERS,
    ids=["workflow", "run id", "detached", "step"],
)
def test_another_child_than_the_log_holds_is_found(other: Any) -> None:
    async def changed(step: Step, note: Note) -> Any:
        return await other(step)

    stage = Stage(invoking)
    with pytest.raises(NonDeterminism):
        stage.replayed(changed)


def test_an_end_that_is_another_childs_is_found() -> None:
    async def changed(step: Step, note: Note) -> Any:
        return await step.invoke_workflow("ship", "w", [1], run_id="another")

    async def detached(step: Step, note: Note) -> Any:
        return await step.start_workflow("ship", "w", [1], run_id="kid")

    for happens in (
        "child-ended",
        "child-refused",
    ):
        stage = Stage(invoking)
        stage.happens(happens, **told(stage.ledger, state="completed", result=1))
        for program in (changed, detached):
            with pytest.raises(NonDeterminism):
                stage.replayed(program)
    with pytest.raises(NonDeterminism):
        Stage(detached).replayed(invoking)


WRONG: list[tuple[Callable[[Any], Any], type[Exception]]] = [
    (lambda step: step.invoke_workflow("a", 5), ConfigError),
    (lambda step: step.invoke_workflow("a", ""), ConfigError),
    (lambda step: step.start_workflow("a", "@stepfold.bulk"), ConfigError),
    (lambda step: step.invoke_workflow("a", "w", "x" * 1_000_000), PayloadTooLarge),
    (lambda step: step.invoke_workflow("a", "w", run_id="@"), ValueError),
    (lambda step: step.invoke_workflow("a", "w", timeout=-1), ValueError),
    (lambda step: step.invoke_workflow("a", "w", on_parent_close="keep"), ValueError),
    (lambda step: step.invoke_workflow("#", "w"), ValueError),
]


@pytest.mark.parametrize(
    ("call", "error"),
    WRONG,
    ids=["type", "name", "built in", "size", "run id", "time-out", "policy", "step id"],
)
def test_bad_arguments_are_refused_at_the_call(call: Any, error: type[Exception]) -> None:
    async def wrong(step: Step, note: Note) -> Any:
        with pytest.raises(error):
            call(step)
        return "refused"

    assert Stage(wrong).live.ended[0] == "completed"


# Words.


def test_what_is_waited_for_is_named() -> None:
    ledger = scheduled(timeout_at=START_MS + 60_000)
    op = ledger.run.open["ship"]
    assert "child run 'kid'" in op.words("ship") and (op.due_at, op.when_due) == (START_MS + 60_000, "child-timed-out")
    wait = op.wait(RUN, "ship")
    assert (wait.kind, wait.command) == ("child", "stepfold run show kid") and "workflow 'w'" in wait.who
    scheduled_for_ever = scheduled().run.open["ship"]
    assert scheduled_for_ever.due_at is None and "until" not in scheduled_for_ever.words("ship")
    dashed = scheduled(child="-kid").run.open["ship"]
    assert dashed.wait(RUN, "ship").command == "stepfold run show -- -kid"


ENDS: list[tuple[Any, str, str]] = [
    (("child-ended", {"state": "completed", "result": 3}), "done", "run kid; 3"),
    (("child-ended", {"state": "completed", "result": None}), "done", "run kid"),
    (("child-ended", {"state": "failed", "error": ERROR}), "failed", "run kid; ValueError: no"),
    (("child-ended", {"state": "cancelled", "reason": "enough"}), "failed", "run kid; ChildCancelled: enough"),
    (("child-refused", {}), "failed", "run kid; RunAlreadyExists: another start has this run id"),
    (("child-timed-out", {}), "timed out", "run kid did not end"),
    (None, "open", "run kid"),
]


@pytest.mark.parametrize(("end", "state", "words"), ENDS)
def test_a_line_says_what_became_of_it(end: Any, state: str, words: str) -> None:
    ledger = scheduled(timeout_at=START_MS + 60_000)
    if end is not None:
        kind, fields = end
        all_fields: dict[str, Any] = {"at": START_MS + 60_000, "step_id": "ship"}
        ledger.accepts(kind, **(all_fields | ({} if kind == "child-timed-out" else told(ledger)) | fields))
    events = [parse(event, record.offset, record.timestamp) for record, event in decoded(ledger)]
    [line] = story(ledger.run, events)
    assert line.became == state and line_note(line, START_MS, lambda at, _: f"{at}").startswith(words)
    assert line_json(line)["kind"] == "child"
    assert all(event.detail(lambda at, _: f"{at}") is not None for event in events)


def test_a_detached_start_is_done() -> None:
    ledger = scheduled(detached=True)
    events = [parse(event, record.offset, record.timestamp) for record, event in decoded(ledger)]
    [line] = story(ledger.run, events)
    assert (line.became, line_note(line, START_MS, lambda at, _: f"{at}")) == ("done", "run kid")
    assert children_of([line]) == [Child("kid", "w", "ship", "detached", True)]


KNOWN: list[tuple[Any, ChildState]] = [
    (None, "open"),
    (("child-ended", {"state": "completed", "result": 3}), "completed"),
    (("child-ended", {"state": "failed", "error": ERROR}), "failed"),
    (("child-ended", {"state": "cancelled", "reason": "enough"}), "cancelled"),
    (("child-refused", {}), "refused"),
    (("child-timed-out", {}), "timed-out"),
    (("failed", {"error": ERROR}), "dropped"),
]


@pytest.mark.parametrize(("end", "state"), KNOWN)
def test_a_parent_lists_its_child_with_the_state_that_its_log_knows(end: Any, state: ChildState) -> None:
    ledger = scheduled(timeout_at=START_MS + 60_000)
    run = ledger.run
    if end is not None:
        kind, fields = end
        all_fields: dict[str, Any] = {"at": START_MS + 60_000} | fields
        if kind != "failed":
            all_fields["step_id"] = "ship"
        if kind in ("child-ended", "child-refused"):
            all_fields |= told(ledger)
        ledger.accepts(kind, **all_fields)
    events = [parse(event, record.offset, record.timestamp) for record, event in decoded(ledger)]
    assert children_of(story(run, events)) == [Child("kid", "w", "ship", state, False)]
    assert children_of([Line("other", "step")]) == []


def decoded(ledger: Ledger) -> list[tuple[Any, dict[str, Any]]]:
    found = [(record, orjson.loads(record.value)) for record in ledger.records]
    return [(record, event) for record, event in found if event.get("run_id") == RUN]


def test_a_call_lasts_as_long_as_its_time_out() -> None:
    call = ChildCall(begun().run, None, "w", None, b"1", "cancel", 5, None)
    assert call.lasts_ms == 5 and call.ends_first and call.detached and call.make(1) == 1
