"""Replay: the code run over its journal does what it did live, whenever it is done; or it says where it differs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator
from stage import Note, Program, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.errors import InputInvalid, NonDeterminism, StepFailed
from stepfold.replay.execution import MAX_SWALLOWED_CANCELS, Execution

HERE = Path(__file__)


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


# A zoo of workflows. What they note must be the same on every replay.


@dataclass(frozen=True)
class Money:
    amount: int
    at: datetime


def pay(amount: int = 1) -> Money:
    return Money(amount, datetime(2030, 1, 1, tzinfo=UTC))


def word() -> str:
    return "word"


async def in_sequence(step: Step, note: Note) -> Any:
    for number in range(4):
        try:
            note(await step.run("pay", pay, number))
        except StepFailed as failed:
            note(str(failed))
        await step.sleep("nap", 1)
    return "end"


async def gathered(step: Step, note: Note) -> Any:
    async def branch(name: str) -> str:
        async with step.scope(name) as scoped:
            for _ in range(2):
                note((name, await scoped.run("pay", pay)))
        return name

    note([str(each) for each in await asyncio.gather(*(branch(name) for name in "abc"), return_exceptions=True)])


async def grouped(step: Step, note: Note) -> Any:
    async def branch(name: str) -> None:
        try:
            note((name, await step.run(name, word)))
            note((name, await step.run(f"{name}-2", word)))
        except asyncio.CancelledError:
            note((name, "cancelled"))
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(branch(name))
    except* StepFailed as failed:
        note(sorted(str(error) for error in failed.exceptions))
    return await step.run("after", word)


async def waited(step: Step, note: Note) -> Any:
    tasks = {asyncio.create_task(step.run(name, word), name=name) for name in "abcdef"}
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        note([task.get_name() for task in done])
        if len(tasks) == 2:
            for task in tasks:
                task.cancel()
    return len(tasks)


async def as_they_complete(step: Step, note: Note) -> Any:
    tasks = [asyncio.create_task(step.run(name, word)) for name in "abcde"]
    for each in asyncio.as_completed(tasks):
        try:
            note(await each)
        except StepFailed as failed:
            note(failed.step_id)


async def waited_for(step: Step, note: Note) -> Any:
    for number in range(3):
        try:
            note(await asyncio.wait_for(step.run(f"slow-{number}", word), 10))
        except (TimeoutError, StepFailed) as error:
            note(type(error).__name__)


async def timed_out(step: Step, note: Note) -> Any:
    for number in range(3):
        try:
            async with asyncio.timeout(10):
                note(await step.run("first", word))
                note(await step.wait_for_signal("go", signal=f"go-{number}"))
        except (TimeoutError, StepFailed) as error:
            note(type(error).__name__)


async def queued(step: Step, note: Note) -> Any:
    queue: asyncio.Queue[int | None] = asyncio.Queue(2)
    lock, limit = asyncio.Lock(), asyncio.Semaphore(2)

    async def produce() -> None:
        for number in range(4):
            await queue.put(number)
            await step.sleep(f"pause-{number}", 1)
        await queue.put(None)

    async def consume() -> None:
        while (number := await queue.get()) is not None:
            async with limit, lock:
                try:
                    note(await step.run("pay", pay, number))
                except StepFailed:
                    note("failed")

    await asyncio.gather(produce(), consume())


async def signalled(step: Step, note: Note) -> Any:
    async def one(name: str) -> None:
        got = await step.wait_for_signal(name, signal="go", timeout="1h")
        note((name, got and got.data))

    await asyncio.gather(*(one(name) for name in "abc"))
    note((await step.wait_for_signal("typed", signal="number", schema=int)).data)


async def raced(step: Step, note: Note) -> Any:
    for number in range(3):
        waiting = asyncio.create_task(step.wait_for_signal(f"go-{number}", signal="go"))
        sleeping = asyncio.create_task(step.sleep(f"nap-{number}", 60))
        done, pending = await asyncio.wait([waiting, sleeping], return_when=asyncio.FIRST_COMPLETED)
        note([waiting in done, sleeping in done])
        for task in pending:
            task.cancel()


async def shielded(step: Step, note: Note) -> Any:
    try:
        await gathered(step, note)
        await step.wait_for_signal("never", signal="never")
    finally:
        with step.shield():
            try:
                note(await step.run("clean", word))
            except StepFailed:
                note("cannot clean")
            await step.sleep("settle", 1)
        note("cleaned")


async def stubborn(step: Step, note: Note) -> Any:
    for number in range(5):
        try:
            note(await step.run(f"try-{number}", word))
        except (asyncio.CancelledError, StepFailed) as error:
            note(type(error).__name__)
    return "done"


async def left_behind(step: Step, note: Note) -> Any:
    """Ends while others still wait."""
    background = asyncio.create_task(step.wait_for_signal("never", signal="never"))
    sleeping = asyncio.create_task(step.sleep("long", 10_000))
    sleeping.add_done_callback(lambda task: note("slept"))
    try:
        note(await step.run("work", word))
    except StepFailed:
        note("failed")
    return background.done()


ZOO: list[Program] = [
    in_sequence,
    gathered,
    grouped,
    waited,
    as_they_complete,
    waited_for,
    timed_out,
    queued,
    signalled,
    raced,
    shielded,
    stubborn,
    left_behind,
]


@pytest.mark.parametrize("program", ZOO, ids=lambda program: program.__name__)
@given(seed=st.integers(0, 2**32), cancel_after=st.none() | st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_a_replay_at_any_time_comes_to_the_same(program: Program, seed: int, cancel_after: int | None) -> None:
    Replay.close_all()
    random = Random(seed)
    stage = Stage(program)
    stage.check()
    for turn in range(60):
        if stage.live.outcome is not None or not stage.waits_for:
            break
        if turn == cancel_after:
            stage.cancel()
        else:
            stage.at_random(random)
        stage.check()
    assert stage.live.outcome is not None or stage.run.cancel_requested or stage.live.waits_for == []


def test_the_zoo_comes_to_its_ends() -> None:
    """Otherwise the property above would hold of beginnings only."""
    ends = set[str]()
    for program in ZOO:
        for seed in range(6):
            random, stage = Random(seed), Stage(program)
            for turn in range(200):
                if stage.live.outcome is not None:
                    break
                if turn == 7 and seed > 3:
                    stage.cancel()
                else:
                    stage.at_random(random)
            assert stage.live.outcome is not None, program.__name__
            ends.add(stage.live.outcome.phase)
    assert ends == {"completed", "failed", "cancelled"}


# What is delivered.


async def one_step(step: Step, note: Note) -> Any:
    note("asks")
    note(await step.run("pay", pay))
    return "end"


def test_the_code_runs_until_it_waits() -> None:
    stage = Stage(one_step)
    assert stage.live.notes == ["asks"] and stage.waits_for == ["step pay"]
    assert stage.live.outcome is None
    stage.step_gives("pay", {"amount": 3, "at": "2030-01-01T00:00:00Z"})
    assert stage.live.notes == ["asks", pay(3)]
    assert stage.live.ended == ["completed", "'end'", "None"] and stage.waits_for == []


def test_a_replay_that_has_the_result_does_not_copy_the_arguments() -> None:
    class Counted:
        copies = 0

        def __deepcopy__(self, memo: object) -> Counted:
            Counted.copies += 1
            return self

    async def program(step: Step, note: Note) -> Any:
        await step.run("a", type, Counted())
        await step.run("a", type, Counted())

    stage = Stage(program)
    copied = Counted.copies
    assert copied > 0
    stage.step_gives("a")
    assert Counted.copies == 2 * copied
    stage.step_gives("a#2")
    assert stage.replayed().ended == stage.live.ended
    assert Counted.copies == 2 * copied


def test_a_failure_is_raised_with_its_number_of_attempts() -> None:
    stage = Stage(in_sequence)
    stage.happens("step-failed", step_id="pay", attempt=1, error={"type": "E", "message": "1"}, next_at=5)
    assert stage.waits_for == ["step pay"]
    stage.happens("attempt-lost", step_id="pay", attempt=2)
    stage.happens("step-failed", step_id="pay", attempt=3, error={"type": "E", "message": "3"}, next_at=None)
    assert stage.live.notes == ["step 'pay' failed after 3 attempts: E: 3"]


def test_time_is_that_of_the_log() -> None:
    async def program(step: Step, note: Note) -> Any:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            await step.sleep("nap", 1)
            note(loop.time())

    stage = Stage(program)
    stage.ledger.now_ms += 5_000
    stage.wakes("nap")
    stage.ledger.now_ms -= 3_000
    stage.wakes("nap#2")
    first, second = stage.live.notes
    assert first == second == stage.run.now / 1000
    stage.check()


@pytest.mark.parametrize("number", [1, 2])
def test_a_result_for_who_has_let_go_is_not_heard(number: int) -> None:
    async def program(step: Step, note: Note) -> Any:
        task = asyncio.create_task(step.run("slow", word))
        await step.sleep("nap", 1)
        task.cancel()
        note(await step.wait_for_signal("go", signal="go"))

    stage = Stage(program)
    stage.wakes("nap")
    assert stage.waits_for == ["wait go"]
    if number == 1:
        stage.step_gives("slow", "late")
    else:
        stage.step_fails("slow")
    assert stage.waits_for == ["wait go"]
    stage.check()


def test_a_signal_for_who_has_let_go_goes_to_the_next() -> None:
    async def program(step: Step, note: Note) -> Any:
        first = asyncio.create_task(step.wait_for_signal("first", signal="go"))
        await step.sleep("nap", 1)
        first.cancel()
        await step.run("work", word)
        got = await step.wait_for_signal("second", signal="go")
        note(got.data)

    # The signal lands after the code has let go of its wait, but before that is in the log.
    stage = Stage(program)
    stage.ledger.now_ms += 1
    stage.ledger.accepts("sleep-completed", step_id="nap", at=2**60)
    stage.ledger.accepts("signal-received", signal="go", data=7)
    stage.advance()
    stage.check()
    stage.step_gives("work", "word")
    assert stage.live.notes == [7]
    stage.check()


def test_who_takes_over_lets_go_of_what_the_code_has_let_go_of() -> None:
    """The worker before died between running the code and recording it."""

    async def program(step: Step, note: Note) -> Any:
        first = asyncio.create_task(step.wait_for_signal("first", signal="go"))
        await step.sleep("nap", 1)
        first.cancel()
        await step.wait_for_signal("second", signal="go")

    stage = Stage(program)
    stage.ledger.accepts("sleep-completed", step_id="nap", at=2**60)
    again = stage.replayed()
    assert [(op.id, op.recorded) for op in again.execution.take_dropped()] == [("first", True)]
    assert [(op.id, op.recorded) for op in again.execution.take_requested()] == [("second", False)]


def test_what_is_open_in_the_log_is_not_asked_for_again() -> None:
    async def program(step: Step, note: Note) -> Any:
        await asyncio.gather(step.sleep("nap", 1), step.wait_for_signal("w", signal="go"), asyncio.sleep(5), step.run("s", word))

    stage = Stage(program)
    again = stage.replayed()
    recorded = {op.id: op.recorded for op in again.execution.take_requested()}
    assert recorded == {"nap": True, "w": True, "@timer": True, "s": False}


def test_an_execution_says_whether_it_does_what_was_done_before() -> None:
    stage = Stage(in_sequence)
    for number in range(2):
        stage.step_gives("pay" if number == 0 else f"pay#{number + 1}", {"amount": 1, "at": "2030-01-01T00:00:00Z"})
        stage.wakes("nap" if number == 0 else f"nap#{number + 1}")
    seen: list[tuple[int, bool]] = []

    def handler(execution: Execution) -> Any:
        def note(value: Any) -> None:
            seen.append((execution.position, execution.replaying))

        return in_sequence(Step(execution, None), note)  # pyright: ignore[reportArgumentType]  # no signals are sent

    run = stage.run
    execution = Execution(run, handler, executed=2)
    assert execution.replaying and execution.position == 0
    execution.advance()
    assert seen == [(1, True), (3, False)]
    assert not Execution(run, handler).replaying
    assert execution.has_news


def test_a_closed_execution_does_nothing_more() -> None:
    seen: list[str] = []

    async def program(step: Step, note: Note) -> Any:
        try:
            await step.run("a", word)
        finally:
            seen.append("closed")
            await step.run("b", word)
            seen.append("never")

    stage = Stage(program)
    stage.live.execution.close()
    assert seen == ["closed"] and stage.waits_for == []
    stage.live.execution.close()


def test_a_run_is_closed_with_a_timer_set() -> None:
    async def program(step: Step, note: Note) -> Any:
        async with asyncio.timeout(60):
            await step.run("a", word)

    stage = Stage(program)
    assert sorted(stage.waits_for) == ["sleep @timer", "step a"]
    stage.live.execution.close()
    assert stage.waits_for == [] and stage.live.execution.take_dropped() == []


def test_a_timer_that_the_cancelled_code_lets_go_of_after_its_end() -> None:
    async def program(step: Step, note: Note) -> Any:
        async def careful() -> None:
            async with asyncio.timeout(60):
                with step.shield():
                    await step.run("clean", word)

        await asyncio.gather(careful(), step.run("work", word))

    stage = Stage(program)
    stage.cancel()
    stage.step_gives("clean", "done")
    assert stage.live.ended[0] == "cancelled" and stage.waits_for == []
    stage.check()


def test_the_code_may_not_use_another_run_s_step() -> None:
    steps: list[Step] = []

    async def keeps(step: Step, note: Note) -> Any:
        steps.append(step)
        await step.run("a", word)

    async def borrows(step: Step, note: Note) -> Any:
        await steps[0].run("b", word)

    Stage(keeps)
    stage = Stage(borrows)
    outcome = stage.live.outcome
    assert outcome is not None and isinstance(outcome.error, RuntimeError) and "another run" in str(outcome.error)


# Cancellation.


def test_a_run_that_is_cancelled_before_it_runs_still_runs_its_code() -> None:
    async def program(step: Step, note: Note) -> Any:
        note("begins")
        try:
            await step.run("a", word)
        except asyncio.CancelledError:
            note("cancelled")
            raise

    stage = Stage(program)
    stage.cancel()
    assert stage.live.notes == ["begins", "cancelled"] and stage.live.ended[0] == "cancelled"
    stage.check()


def test_who_never_stops_is_stopped() -> None:
    async def program(step: Step, note: Note) -> Any:
        while True:
            try:
                await step.run("a", word)
            except asyncio.CancelledError:
                note("swallowed")

    stage = Stage(program)
    stage.cancel()
    assert stage.live.ended[0] == "cancelled" and stage.waits_for == []
    assert 90 < len(stage.live.notes) <= MAX_SWALLOWED_CANCELS
    stage.check()


def test_who_never_stops_waiting_is_stopped() -> None:
    async def program(step: Step, note: Note) -> Any:
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                note("swallowed")

    stage = Stage(program)
    stage.cancel()
    assert stage.live.ended[0] == "cancelled" and len(stage.live.notes) == MAX_SWALLOWED_CANCELS
    stage.check()
    stage.ledger.accepts("signal-received", signal="late", data=1)
    stage.ledger.accepts("step-completed", step_id="late", attempt=1, result=1)


@pytest.mark.parametrize("together", ["gather", "group"])
def test_who_is_in_a_shield_is_not_interrupted_through_the_others(together: str) -> None:
    async def program(step: Step, note: Note) -> Any:
        async def careful() -> None:
            with step.shield():
                note(await step.run("clean", word))

        async def exposed() -> None:
            try:
                await step.run("work", word)
            finally:
                note("interrupted")

        if together == "gather":
            await asyncio.gather(careful(), exposed())
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(careful())
                group.create_task(exposed())

    stage = Stage(program)
    stage.cancel()
    assert stage.live.notes == ["interrupted"] and stage.waits_for == ["step clean"]
    stage.check()
    stage.step_gives("clean", "done")
    assert stage.live.notes == ["interrupted", "done"] and stage.live.ended[0] == "cancelled"
    stage.check()


def test_a_workflow_that_cancels_itself_has_failed() -> None:
    async def program(step: Step, note: Note) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await step.run("a", word)

    stage = Stage(program)
    assert stage.live.ended[0] == "failed" and "cancelled itself" in stage.live.ended[2]


# What goes wrong is found, and said.


def test_an_id_in_use_cannot_be_used_again() -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("a", word)
        await asyncio.gather(step.run("a", word), step.run("a", word))

    stage = Stage(program)
    stage.step_gives("a", "word")
    outcome = stage.live.outcome
    assert outcome is not None and isinstance(outcome.error, ValueError) and "'a' is used twice" in str(outcome.error)
    assert stage.waits_for == []


def test_what_is_let_go_of_twice_is_let_go_of_once() -> None:
    stage = Stage(one_step)
    [op] = stage.live.execution.ops.values()
    stage.live.execution.drop(op)
    stage.live.execution.drop(op)
    assert stage.live.execution.take_dropped() == [op] and stage.waits_for == []


def test_a_workflow_that_finds_itself_out_is_believed() -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("a", word)
        raise NonDeterminism("the configuration has changed")

    stage = Stage(program)
    with pytest.raises(NonDeterminism, match="the configuration has changed"):
        stage.step_gives("a", "word")


def differs(stage: Stage, program: Program) -> NonDeterminism:
    with pytest.raises(NonDeterminism) as found:
        stage.replayed(program)
    return found.value


def lines_of(function: Callable[..., Any]) -> range:
    first = function.__code__.co_firstlineno
    return range(first, first + 20)


def at_line_of(error: NonDeterminism, function: Callable[..., Any]) -> bool:
    """Whether the error names a line of this function."""
    file, _, line = error.source[0].rpartition(":")
    return file == str(HERE) and int(line) in lines_of(function)


async def two_steps(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("b", word)
    await step.wait_for_signal("go", signal="go")


def after_two_steps() -> Stage:
    stage = Stage(two_steps)
    stage.step_gives("a", "word")
    stage.step_gives("b", "word")
    return stage


async def swapped(step: Step, note: Note) -> Any:
    await step.run("b", word)
    await step.run("a", word)
    await step.wait_for_signal("go", signal="go")


async def one_is_gone(step: Step, note: Note) -> Any:
    await step.run("b", word)
    await step.wait_for_signal("go", signal="go")


async def one_more(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("new", word)
    await step.run("b", word)


async def another_kind(step: Step, note: Note) -> Any:
    await step.sleep("a", 5)


async def returns_early(step: Step, note: Note) -> Any:
    await step.run("a", word)


async def fails_early(step: Step, note: Note) -> Any:
    await step.run("a", word)
    raise ValueError("early")


async def waits_for_nothing(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("program", "expected", "found"),
    [
        (swapped, "step.run 'a'", "step.run 'b' at "),
        (one_is_gone, "step.run 'a'", "step.run 'b' at "),
        (one_more, "step.run 'b'", "step.run 'new' at "),
        (another_kind, "step.run 'a'", "a sleep 'a' at "),
        (returns_early, "step.run 'b'", "the workflow had returned"),
        (fails_early, "step.run 'b'", "the workflow had failed"),
        (waits_for_nothing, "step.run 'b'", "the workflow waits for nothing that is durable"),
    ],
)
def test_changed_code_is_found_with_what_was_expected_what_was_found_and_where(
    program: Program, expected: str, found: str
) -> None:
    error = differs(after_two_steps(), program)
    assert error.expected == expected and error.found.startswith(found)
    assert at_line_of(error, program)
    for part in ("'order-42'", "process-order", expected, found.strip(), "has changed or is not deterministic"):
        assert part in str(error)


async def waits_for_another_step(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("b", word)
    await step.wait_for_signal("other", signal="go")


async def sleeps_instead(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("b", word)
    await step.sleep("go", 5)


async def waits_for_another_signal(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("b", word)
    await step.wait_for_signal("go", signal="another")


async def ended_already(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await step.run("b", word)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (waits_for_another_step, "a wait for a signal 'other'"),
        (sleeps_instead, "a sleep 'go'"),
        (waits_for_another_signal, "a wait for a signal 'go' at "),
        (ended_already, "the workflow had returned"),
    ],
)
def test_what_is_open_in_the_log_must_be_asked_for(program: Program, found: str) -> None:
    error = differs(after_two_steps(), program)
    assert error.expected.startswith("a wait for a signal 'go'") and error.found.startswith(found)
    assert at_line_of(error, program)


def test_a_signal_that_was_delivered_must_have_been_waited_for_by_that_name() -> None:
    stage = after_two_steps()
    stage.signal("go", 1)
    error = differs(stage, waits_for_another_signal)
    assert error.expected == "a wait for a signal 'go' named 'go'" and error.found.endswith(" named 'another'")
    assert at_line_of(error, waits_for_another_signal)


def test_what_the_log_says_was_let_go_of_must_be_let_go_of() -> None:
    async def lets_go(step: Step, note: Note) -> Any:
        first = asyncio.create_task(step.wait_for_signal("first", signal="go"))
        await step.run("a", word)
        first.cancel()
        await step.run("b", word)

    async def keeps(step: Step, note: Note) -> Any:
        first = asyncio.create_task(step.wait_for_signal("first", signal="go"))
        await step.run("a", word)
        await step.run("b", word)
        await first

    stage = Stage(lets_go)
    stage.step_gives("a", "word")
    error = differs(stage, keeps)
    assert error.expected == "that the code no longer waited for 'first'" and error.found.startswith(
        "a wait for a signal 'first'"
    )


def test_a_value_that_does_not_fit_its_type_today() -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("pay", pay)
        await step.run("next", word)

    stage = Stage(program)
    with pytest.raises(NonDeterminism, match="does not fit its type today: amount: Input should be a valid integer") as found:
        stage.step_gives("pay", {"amount": "many", "at": "2030-01-01T00:00:00Z"})
    assert at_line_of(found.value, program) and "'pay'" in found.value.expected


def test_a_type_that_fails_in_its_own_way() -> None:
    def broken(value: int) -> int:
        raise TypeError("a mistake in a validator")

    def give() -> Any:
        return 1

    give.__annotations__["return"] = Annotated[int, AfterValidator(broken)]

    async def program(step: Step, note: Note) -> Any:
        await step.run("give", give)

    stage = Stage(program)
    with pytest.raises(NonDeterminism, match="TypeError: a mistake in a validator"):
        stage.step_gives("give", 1)


def test_signal_data_that_does_not_fit_is_the_code_s_to_handle() -> None:
    async def program(step: Step, note: Note) -> Any:
        try:
            await step.wait_for_signal("n", signal="n", schema=int)
        except InputInvalid as invalid:
            note(str(invalid))

    stage = Stage(program)
    stage.signal("n", "x")
    assert stage.live.notes[0].startswith("signal 'n': Input should be a valid integer")
    stage.check()


@pytest.mark.parametrize("swallow", [False, True])
def test_real_waiting_outside_a_step_is_found(swallow: bool) -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("a", word)
        try:
            await asyncio.to_thread(word)
        except Exception:
            if not swallow:
                raise
        await step.run("b", word)

    stage = Stage(program)
    with pytest.raises(NonDeterminism, match=r"a thread.*step\.run") as found:
        stage.step_gives("a", "word")
    assert at_line_of(found.value, program)


def test_code_that_spins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("a", word)
        while True:
            await asyncio.sleep(0)

    stage = Stage(program)
    loop = stage.live.execution.loop
    loop.host = loop.host._replace(max_turns=1_000)
    with pytest.raises(NonDeterminism, match=r"it spins.*\(at .*test_execution.py:"):
        stage.step_gives("a", "word")


# The order of sets.


def test_the_order_of_a_set_of_strings_is_found_in_another_process() -> None:
    def run(seed: int, history: str = "") -> Any:
        command = [sys.executable, str(HERE.with_name("set_order.py"))]
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        return json.loads(
            subprocess.run(command, input=history, stdout=subprocess.PIPE, check=True, env=environment, text=True).stdout
        )

    written = {seed: run(seed) for seed in range(1, 4)}
    first = written[1]
    others = [seed for seed in written if written[seed]["order"] != first["order"]]
    assert others, "five names have 120 orders"
    assert run(1, json.dumps(first)) == {"same": True}
    error = run(others[0], json.dumps(first))
    assert error["expected"] == f"step.run {first['order'][0]!r}"
    assert error["found"].startswith(f"step.run {written[others[0]]['order'][0]!r}")
    assert "set_order.py:" in error["source"][0]
