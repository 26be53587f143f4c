"""Conditions: a check runs again and again, on the state that it returned, until it says `Done` or its time is up."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from itertools import pairwise
from random import Random
from typing import Any, cast

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome, virtual_outcome
from pydantic import BaseModel
from test_recovery import crashing
from virtually import virtually

from stepfold import (
    Backoff,
    Client,
    ConditionTimedOut,
    Context,
    Done,
    NonRetryable,
    Retry,
    Run,
    Step,
    StepFailed,
    ValueInvalid,
    WorkflowCancelled,
    current_step,
)


class Progress(BaseModel):
    percent: int
    left: timedelta = timedelta(0)


async def until_five(state: int) -> int | Done[str]:
    return Done("five") if state == 5 else state + 1


def never(state: int) -> int | Done[None]:
    return state + 1


async def hangs(state: int) -> int | Done[None]:
    await asyncio.sleep(10_000)
    return state


def waiting(check: Any, initial: Any = 0, every: Any = "10ms", **options: Any) -> Any:
    """A body that gives the value, or how the condition ended, and after how many seconds."""

    async def body(ctx: Context[Any], step: Step) -> list[Any]:
        before = ctx.now()
        end: list[Any]
        try:
            end = [await step.wait_for_condition("c", check, initial=initial, every=every, **options)]
        except ConditionTimedOut as error:
            end = [error.kind, error.polls, error.state]
        except StepFailed as error:
            end = ["failed", error.attempts, error.error.message]
        return [*end, (ctx.now() - before).total_seconds()]

    return body


async def events(client: Client, type: str) -> list[Any]:
    return [event for event in await history(client) if event.type == type]


async def test_the_state_goes_from_check_to_check_until_one_is_done(client: Client) -> None:
    assert (await outcome(client, waiting(until_five)))[0] == "five"
    polled = await events(client, "condition-polled")
    assert [(event.poll, event.attempt, event.state) for event in polled] == [(n, n, n) for n in range(1, 6)]
    [completed] = await events(client, "step-completed")
    assert (completed.attempt, completed.result) == (6, "five")


async def test_one_that_holds_at_once_is_one_record(client: Client) -> None:
    assert (await outcome(client, waiting(until_five, 5)))[0] == "five"
    assert [event.type for event in await history(client)][1:] == ["step-completed", "completed"]


def test_a_thousand_polls_are_a_thousand_records() -> None:
    async def thousandth(state: int) -> int | Done[int]:
        return Done(state) if state == 999 else state + 1

    async def main(client: Client) -> Any:
        value = await outcome(client, waiting(thousandth, every="1m"), "2d")
        async with client:
            return value, [event.type for event in await client.run("r").history()]

    value, types = virtually(main)
    assert value == [999, 999 * 60.0]
    assert types[1:-1] == ["condition-polled"] * 999 + ["step-completed"]


def test_a_plain_check_runs_in_a_thread() -> None:
    threads: set[int] = set()

    def check(state: None) -> Done[int] | None:
        threads.add(threading.get_ident())
        return Done(1)

    async def main() -> Any:
        return await outcome(Client("memory://"), waiting(check, None))

    assert asyncio.run(main())[0] == 1
    assert threads and threading.get_ident() not in threads


async def test_state_and_value_have_their_types(client: Client) -> None:
    seen: list[Any] = []

    async def check(state: Progress) -> Progress | Done[timedelta]:
        seen.append(state)
        if state.percent == 2:
            return Done(state.left)
        return Progress(percent=state.percent + 1, left=timedelta(seconds=3))

    value = await outcome(client, waiting_for_type(check))
    assert value == "0:00:03"
    assert seen[1:] == [Progress(percent=n, left=timedelta(seconds=3)) for n in (1, 2)]
    assert seen[0] == Progress(percent=0)


def waiting_for_type(check: Any) -> Any:
    async def body(ctx: Context[Any], step: Step) -> str:
        left = await step.wait_for_condition("c", check, initial=Progress(percent=0), every=0.001)
        assert isinstance(left, timedelta)
        return str(left)

    return body


async def test_an_attempt_may_change_its_state_and_no_other_sees_it(client: Client) -> None:
    async def check(state: list[int]) -> list[int] | Done[list[int]]:
        state.append(len(state))
        if current_step().attempt == 2:
            raise ValueError("after the change")
        return Done(state) if len(state) == 3 else state

    assert (await outcome(client, waiting(check, [], retry=Retry(2, backoff=0))))[0] == [0, 1, 2]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_state_or_value_that_json_cannot_hold_fails_the_check_at_once(client: Client, plain: bool) -> None:
    async def state(state: Any) -> Any:
        return object()

    def value(state: Any) -> Any:
        return Done({1, 2})

    failed = await outcome(client, waiting(value if plain else state))
    assert failed[:2] == ["failed", 1] and "cannot be recorded as JSON" in failed[2]


async def test_a_failed_check_is_tried_again_and_the_count_begins_anew_with_each_poll(client: Client) -> None:
    keys: list[str] = []

    async def check(state: int) -> int | Done[str]:
        keys.append(current_step().idempotency_key.partition("/")[2])
        if current_step().attempt % 3:
            raise ConnectionError("not now")
        return Done("there") if state == 2 else state + 1

    assert (await outcome(client, waiting(check, retry=Retry(3, backoff=0))))[0] == "there"
    assert keys == [f"c#poll{n}" for n in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
    types = [event.type for event in await history(client)][1:-1]
    once = ["step-failed", "step-failed"]
    assert types == ["condition-started", *once, "condition-polled", *once, "condition-polled", *once, "step-completed"]


async def test_a_check_that_fails_for_good_is_a_step_that_failed(client: Client) -> None:
    async def check(state: int) -> int:
        if state == 2:
            raise NonRetryable("gone")
        return state + 1

    assert (await outcome(client, waiting(check)))[:3] == ["failed", 3, "gone"]


def test_a_check_has_three_attempts_by_default() -> None:
    async def check(state: int) -> int:
        raise ValueError("no")

    assert virtual_outcome(waiting(check))[:2] == ["failed", 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"check": never, "max_attempts": 1}, ["attempts", 1, 1, 0.0]),
        ({"check": never, "max_attempts": 3, "every": "1m"}, ["attempts", 3, 3, 120.0]),
        ({"check": never, "timeout": "150s", "every": "1m"}, ["timeout", 3, 3, 150.0]),
        ({"check": never, "timeout": "1h", "every": "2h"}, ["timeout", 1, 1, 3_600.0]),
        ({"check": never, "timeout": "31s", "every": Backoff("1s")}, ["timeout", 5, 5, 31.0]),
        ({"check": hangs, "timeout": "1h"}, ["timeout", 0, 0, 3_600.001]),
        ({"check": hangs, "timeout": "1h", "retry": Retry(1)}, ["timeout", 0, 0, 3_600.001]),
    ],
)
def test_time_or_attempts_are_used_up(options: dict[str, Any], expected: list[Any]) -> None:
    assert virtual_outcome(waiting(**options)) == expected


def test_a_check_that_fails_until_its_time_is_up_has_timed_out() -> None:
    async def check(state: int) -> int:
        raise ValueError("no")

    retry = Retry(1_000, backoff="1m", factor=1, jitter=False)
    assert virtual_outcome(waiting(check, timeout="1h", retry=retry)) == ["timeout", 0, 0, 3_600.0]


@pytest.mark.parametrize("jitter", [False, True])
def test_pauses_grow_and_the_log_has_them(jitter: bool) -> None:
    async def main(client: Client) -> list[Any]:
        await outcome(client, waiting(never, every=Backoff("1s", factor=2, max="10s", jitter=jitter), max_attempts=8), "1d")
        async with client:
            return await client.run("r").history()

    polled = [event for event in virtually(main, random=Random(3)) if event.type.startswith("condition-")]
    pauses = [(event.next_at - event.timestamp) / 1000 for event in polled[:-1]]
    longest = [1, 2, 4, 8, 10, 10, 10]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert (pauses == longest) != jitter
    assert [after.timestamp for _, after in pairwise(polled)] == [event.next_at for event in polled[:-1]]


async def begun(client: Client, body: Any) -> Run[Any]:
    return await client.start_workflow(client.workflow(id="w")(body), run_id="r")


async def test_a_worker_that_dies_between_two_checks_leaves_the_next_one_to_another(new_log: NewLog) -> None:
    first, second = Client(driver=new_log()), Client(driver=new_log())
    body = waiting(until_five, every="200ms", timeout="1h")

    async def polled(run: Run[Any]) -> bool:
        return any(event.type == "condition-polled" and event.poll == 2 for event in await run.history())

    async with crashing(first):
        run = await begun(first, body)
        await eventually(lambda: polled(run))
    second.workflow(id="w")(body)
    async with second.worker():
        assert (await second.run("r").result(LIMIT_S))[0] == "five"
    polls = await events(second, "condition-polled")
    assert [event.state for event in polls] == [1, 2, 3, 4, 5]
    assert len({event.timeout_at for event in polls}) == 1, "the time-out is that of the first record"


async def test_a_check_that_ran_when_its_worker_died_runs_again(new_log: NewLog) -> None:
    first, second = Client(driver=new_log()), Client(driver=new_log())
    began = asyncio.Event()

    async def check(state: int) -> int | Done[str]:
        if state == 1 and not began.is_set():
            began.set()
            await asyncio.sleep(LIMIT_S)
        return Done("there") if state == 2 else state + 1

    async with crashing(first):
        await begun(first, waiting(check))
        await asyncio.wait_for(began.wait(), LIMIT_S)
    second.workflow(id="w")(waiting(check))
    async with second.worker():
        assert (await second.run("r").result(LIMIT_S))[0] == "there"
    types = [event.type for event in await history(second) if event.type not in ("started", "completed")]
    assert types == ["condition-polled", "attempt-lost", "condition-polled", "step-completed"]


async def test_a_first_check_that_ran_when_its_worker_died_is_a_condition_for_the_next(new_log: NewLog) -> None:
    first, second = Client(driver=new_log()), Client(driver=new_log())
    began = asyncio.Event()

    async def check(state: int) -> int | Done[str]:
        if not began.is_set():
            began.set()
            await asyncio.sleep(LIMIT_S)
        return Done("there")

    async with crashing(first):
        await begun(first, waiting(check))
        await asyncio.wait_for(began.wait(), LIMIT_S)
    second.workflow(id="w")(waiting(check))
    async with second.worker():
        assert (await second.run("r").result(LIMIT_S))[0] == "there"
    assert [event.type for event in await history(second)][1:4] == ["condition-started", "attempt-lost", "step-completed"]


async def test_time_that_was_up_while_no_worker_ran_ends_it(new_log: NewLog) -> None:
    first, second = Client(driver=new_log()), Client(driver=new_log())

    async def polled(run: Run[Any]) -> bool:
        return any(event.type == "condition-polled" for event in await run.history())

    async with crashing(first):
        run = await begun(first, waiting(never, every="300ms", timeout="200ms"))
        await eventually(lambda: polled(run))
    await asyncio.sleep(0.3)
    second.workflow(id="w")(waiting(never, every="300ms", timeout="200ms"))
    async with second.worker():
        assert (await second.run("r").result(LIMIT_S))[:2] == ["timeout", 1]


async def test_a_cancellation_lets_go_of_it(client: Client) -> None:
    async with client.worker():
        run = await begun(client, waiting(never, every="1h"))

        async def polled() -> bool:
            return (await run.status()).state == "waiting"

        await eventually(polled)
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
    assert [event.type for event in await history(client)][1:] == ["condition-polled", "cancel-requested", "cancelled"]


async def test_code_that_stops_waiting_cancels_the_check(client: Client) -> None:
    cancelled = asyncio.Event()

    async def check(state: int) -> int:
        try:
            await asyncio.sleep(LIMIT_S)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return state

    async def body(ctx: Context[Any], step: Step) -> str:
        try:
            async with asyncio.timeout(0.05):
                await step.wait_for_condition("c", check, initial=0, every=1)
        except TimeoutError:
            await asyncio.sleep(0.05)
            return "stopped"
        return "done"

    assert await outcome(client, body) == "stopped"
    assert cancelled.is_set()


async def test_heartbeats_of_a_check_open_its_condition(client: Client) -> None:
    async def check(state: int) -> int | Done[Any]:
        if current_step().attempt == 1:
            current_step().heartbeat({"half": True})
            raise ValueError("again")
        return Done(current_step().last_heartbeat)

    assert (await outcome(client, waiting(check, retry=Retry(2, backoff=0))))[0] == {"half": True}
    assert [event.type for event in await history(client)][1:3] == ["condition-started", "step-heartbeat"]


async def test_time_that_is_up_while_an_announced_check_runs_cuts_it_off(client: Client) -> None:
    async def check(state: int) -> int:
        current_step().heartbeat(1)
        await asyncio.sleep(LIMIT_S)
        return state

    assert (await outcome(client, waiting(check, timeout="100ms")))[:3] == ["timeout", 0, 0]


async def test_the_status_says_what_it_waits_for(client: Client) -> None:
    async with client.worker():
        run = await begun(client, waiting(never, every="1h", timeout="2h"))

        async def polled() -> bool:
            return (await run.status()).state == "waiting"

        await eventually(polled)
        status = await run.status()
        [wait] = status.waits
        assert (wait.on, wait.kind, wait.last) == ("check 2 of condition 'c'", "condition", "1 poll, the last gave 1")
        assert wait.until is not None and status.waiting_on[0].startswith("condition 'c': check 2 at ")


async def test_checks_without_annotations_and_of_every_sort() -> None:
    class Check:
        async def __call__(self, state: set[int]) -> set[int] | Done[set[int]]:
            return Done(state) if len(state) == 2 else {*state, len(state)}

    unannotated: Any = eval("lambda state: Done([state])", globals())

    async def body(ctx: Context[Any], step: Step) -> list[Any]:
        found = await step.wait_for_condition("a", Check(), initial=set[int](), every=0.001)
        anything = await step.wait_for_condition("c", unannotated, initial=None, every=0.001)
        builtin = await step.wait_for_condition("d", cast(Any, Done), initial={"n": 1}, every=0.001)
        return [sorted(found), anything, builtin]

    assert await outcome(Client("memory://"), body) == [[0, 1], [None], {"n": 1}]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"every": 0}, ValueError, "at least"),
        ({"every": "soon"}, ValueError, "not a duration"),
        ({"every": Backoff, "x": 1}, TypeError, "x"),
        ({"max_attempts": 0}, ValueError, "max_attempts=0: it must be at least 1"),
        ({"max_attempts": 1.5}, TypeError, "whole number"),
        ({"timeout": -1}, ValueError, "not a duration"),
        ({"retry": 3}, TypeError, r"step.wait_for_condition\('c', retry=3\): write"),
        ({"check": 7}, TypeError, r"step.wait_for_condition\('c'\) was given 7 \(int\), which"),
        ({"initial": "seven"}, ValueInvalid, "condition 'c': its initial state cannot be recorded as JSON"),
    ],
)
async def test_bad_arguments_are_refused_at_the_call(options: dict[str, Any], error: type[Exception], match: str) -> None:
    async def body(ctx: Context[Any], step: Step) -> str:
        arguments: dict[str, Any] = {"check": until_five, "initial": 0, "every": 1} | options
        with pytest.raises(error, match=match):
            await step.wait_for_condition("c", **arguments)
        return "refused"

    assert await outcome(Client("memory://"), body) == "refused"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"first": 0}, "1 ms at least"),
        ({"factor": 0.5}, "factor"),
        ({"factor": True}, "factor"),
        ({"first": "2m"}, "`max` must not be below"),
        ({"max": "x"}, "not a duration"),
    ],
)
def test_a_backoff_that_cannot_work_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Backoff(**arguments)


def test_a_backoff_never_overflows_and_never_vanishes() -> None:
    assert Backoff("1s", factor=1e300, max="1d").pause_ms(1_000, Random(1)) == 86_400_000
    assert Backoff("1ms", max="1ms", jitter=True).pause_ms(1, Random(1)) == 1
    with pytest.raises(TypeError, match="jitter"):
        Backoff(jitter=cast(Any, "no"))
