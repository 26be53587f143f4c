"""Steps: run on the worker, remembered, typed, retried, timed out, and known to themselves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import math
import re
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import partial
from random import Random
from typing import Any, NoReturn
from unittest.mock import AsyncMock, MagicMock

import pytest
from eventually import eventually
from one_run import LIMIT_S, history, outcome, virtual_outcome
from virtually import virtually

from stepfold import (
    Client,
    Context,
    NonRetryable,
    Retry,
    RetryAfter,
    Step,
    StepFailed,
    StepfoldError,
    WorkflowFailed,
    current_step,
    events,
)
from stepfold.authoring.step import RunningStep
from stepfold.drivers import MemoryDriver
from stepfold.events import StepCompleted, StepHeartbeat
from stepfold.testing import run_virtual, virtual_clock

QUICK = Retry(3, backoff="1ms", jitter=False)


class Custom(Exception):
    pass


# Functions of all kinds.


async def test_a_mock_is_a_step_function_as_in_tests_of_users(client: Client) -> None:
    charge, ship = AsyncMock(side_effect=[ConnectionError, {"paid": 5}]), MagicMock(return_value="shipped")

    async def body(ctx: Context, step: Step) -> Any:
        paid = await step.run("charge", charge, 5, retry=QUICK)
        return [paid, await step.run("ship", ship, paid, record_input=True)]

    assert await outcome(client, body) == [{"paid": 5}, "shipped"]
    assert charge.await_count == 2
    ship.assert_called_once_with({"paid": 5})


async def test_async_and_plain_functions_lambdas_methods_and_partials(client: Client) -> None:
    async def add(x: int, y: int) -> int:
        return x + y

    def subtract(x: int, y: int) -> int:
        return x - y

    class Shop:
        price = 3

        def total(self, count: int) -> int:
            return self.price * count

        async def slow_total(self, count: int) -> int:
            return self.price * count

        async def __call__(self, count: int) -> int:
            return -count

    def awaitable() -> Awaitable[int]:
        return add(20, 1)

    async def body(ctx: Context, step: Step) -> Any:
        return [
            await step.run("async", add, 1, 2),
            await step.run("plain", subtract, 5, 2),
            await step.run("lambda", lambda: 7),
            await step.run("method", Shop().total, 2),
            await step.run("async method", Shop().slow_total, 3),
            await step.run("partial", partial(add, 10, y=1)),
            await step.run("plain partial", partial(subtract, 10), 1),
            await step.run("object", Shop(), 4),
            await step.run("builtin", max, 1, 9),
            await step.run("class", int, "12"),
            await step.run("gives an awaitable", awaitable),
            await step.run("lambda of a coroutine", lambda: add(1, 1)),
        ]

    assert await outcome(client, body) == [3, 3, 7, 6, 9, 11, 9, -4, 9, 12, 21, 2]


async def test_a_callable_without_a_hash_is_a_step_function_too(client: Client) -> None:
    @dataclass
    class Price:
        cents: int

        async def __call__(self, count: int) -> Decimal:
            return Decimal(self.cents * count) / 100

    async def body(ctx: Context, step: Step) -> Any:
        price = await step.run("price", Price(150), 3)
        return [type(price).__name__, str(price)]

    assert await outcome(client, body) == ["Decimal", "4.5"]


async def test_plain_functions_run_in_threads_side_by_side(client: Client) -> None:
    meeting = threading.Barrier(3, timeout=LIMIT_S)
    here = threading.get_ident()

    def meet() -> bool:
        meeting.wait()
        return threading.get_ident() != here

    async def body(ctx: Context, step: Step) -> Any:
        return await asyncio.gather(*(step.run(f"meet {number}", meet) for number in range(3)))

    assert await outcome(client, body) == [True, True, True]


async def test_a_step_has_the_worker_s_loop_and_not_the_workflow_s(client: Client) -> None:
    loop = asyncio.get_running_loop()

    async def check() -> bool:
        await asyncio.sleep(0.001)
        return asyncio.get_running_loop() is loop

    async def body(ctx: Context, step: Step) -> Any:
        return [await step.run("loop", check), asyncio.get_running_loop() is loop]

    assert await outcome(client, body) == [True, False]


async def test_one_step_does_not_see_another_s_context_variables(client: Client) -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    async def mark(text: str) -> str:
        before = seen.get()
        seen.set(text)
        return before

    async def body(ctx: Context, step: Step) -> Any:
        return [await step.run("a", mark, "a"), await step.run("b", mark, "b"), await step.run("c", seen.get)]

    assert await outcome(client, body) == ["nothing", "nothing", "nothing"]


# Failing and trying again.


def pauses(times: list[int]) -> list[int]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_scores_of_steps_wait_side_by_side_each_in_a_task_of_its_own(client: Client) -> None:
    tasks: set[object] = set()
    ended = asyncio.Event()

    async def wait(number: int) -> int:
        tasks.add(asyncio.current_task())
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            group.create_task(ended.wait())
            if len(tasks) == 90:
                ended.set()
        return number

    async def at_once(number: int) -> int:
        return number

    async def body(ctx: Context, step: Step) -> int:
        steps = [step.run(f"{fn.__name__}-{number}", fn, number) for number in range(90) for fn in (wait, at_once)]
        return sum(await asyncio.gather(*steps))

    assert await outcome(client, body) == 2 * sum(range(90))
    assert len(tasks) == 90


def test_backoff_grows_and_is_bounded() -> None:
    times: dict[str, list[int]] = {}

    async def fail(step_id: str) -> None:
        times.setdefault(step_id, []).append(virtual_clock())
        raise ValueError

    async def body(ctx: Context, step: Step) -> Any:
        for step_id, retry in (
            ("default", None),
            ("grows", Retry(6, backoff="10s", factor=3, max_backoff="5m", jitter=False)),
            ("flat", Retry(3, backoff=2, factor=1, jitter=False)),
            ("once", Retry(1)),
        ):
            with pytest.raises(StepFailed):
                await step.run(step_id, fail, step_id, retry=retry)

    virtual_outcome(body, Random(5))
    first, second = pauses(times["default"])
    assert 500 <= first <= 1_000 and 1_000 <= second <= 2_000
    assert pauses(times["grows"]) == [10_000, 30_000, 90_000, 270_000, 300_000]
    assert pauses(times["flat"]) == [2_000, 2_000] and len(times["once"]) == 1


async def test_a_failure_is_raised_in_the_workflow_and_says_everything(client: Client) -> None:
    attempts: list[int] = []

    def fail() -> NoReturn:
        attempts.append(current_step().attempt)
        raise Custom(f"number {len(attempts)}")

    async def body(ctx: Context, step: Step) -> Any:
        try:
            await step.run("fail", fail, retry=QUICK)
        except StepFailed as failed:
            error = failed.error
            return [failed.step_id, failed.attempts, error.type, error.message, error.step_id, error.traceback, str(failed)]

    step_id, tries, kind, message, error_step, trace, text = await outcome(client, body)
    assert attempts == [1, 2, 3]
    assert (step_id, tries, kind, message, error_step) == ("fail", 3, f"{__name__}.Custom", "number 3", "fail")
    assert "raise Custom" in trace and "'fail' failed after 3 attempts" in text
    failed = [event for event in await history(client) if isinstance(event, events.StepFailed)]
    assert [(event.attempt, event.next_at is None) for event in failed] == [(1, False), (2, False), (3, True)]


async def test_a_run_fails_with_the_root_error(client: Client) -> None:
    def fail() -> None:
        raise ValueError("no such order")

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("look", fail, retry=Retry(1))

    with pytest.raises(WorkflowFailed, match="ValueError: no such order") as failed:
        await outcome(client, body)
    assert (failed.value.run_id, failed.value.error.type, failed.value.error.step_id) == ("r", "ValueError", "look")


async def test_an_exception_of_the_workflow_itself_fails_the_run_at_once(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        raise Custom("in the workflow")

    with pytest.raises(WorkflowFailed) as failed:
        await outcome(client, body)
    assert failed.value.error.type == f"{__name__}.Custom" and failed.value.error.step_id is None
    assert isinstance(failed.value, StepfoldError)


async def test_a_caught_failure_is_no_failure(client: Client) -> None:
    def fail() -> int:
        raise ValueError

    async def body(ctx: Context, step: Step) -> Any:
        try:
            return await step.run("try", fail, retry=Retry(1))
        except StepFailed:
            return await step.run("instead", lambda: "all the same")

    assert await outcome(client, body) == "all the same"


async def test_non_retryable_ends_it_at_once(client: Client) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise NonRetryable("the card is stolen")

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("charge", fail, retry=QUICK)

    with pytest.raises(WorkflowFailed, match="NonRetryable: the card is stolen"):
        await outcome(client, body)
    assert len(calls) == 1


async def test_only_what_retry_on_names_is_tried_again(client: Client) -> None:
    calls: dict[str, int] = {"listed": 0, "other": 0}

    def fail(which: str) -> None:
        calls[which] += 1
        raise (ConnectionError if which == "listed" else ValueError)("no")

    async def body(ctx: Context, step: Step) -> Any:
        for which in calls:
            with pytest.raises(StepFailed):
                await step.run(which, fail, which, retry=Retry(3, backoff="1ms", retry_on=(OSError, KeyError)))

    await outcome(client, body)
    assert calls == {"listed": 3, "other": 1}


def test_retry_after_sets_the_next_time() -> None:
    times: list[int] = []

    async def limited() -> str:
        times.append(virtual_clock())
        if len(times) < 3:
            raise RetryAfter("90s")
        return "done"

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("limited", limited)

    assert virtual_outcome(body) == "done"
    assert pauses(times) == [90_000, 90_000]


async def test_retry_after_is_bounded_by_the_attempts_too(client: Client) -> None:
    def limited() -> None:
        raise RetryAfter(0, "busy")

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("limited", limited, retry=Retry(2))

    with pytest.raises(WorkflowFailed, match="RetryAfter: busy"):
        await outcome(client, body)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class OfItsOwnKind(BaseException):
    pass


RAISED: dict[str, tuple[BaseException, str]] = {
    "unspeakable": (Unspeakable(), f"{__name__}.Unspeakable"),
    "half a character": (ValueError("\ud800 in a file name"), "ValueError"),
    "long": (ValueError("x" * 1_000_000), "ValueError"),
    "stop": (StopIteration(), "RuntimeError"),
    "async stop": (StopAsyncIteration(), "StopAsyncIteration"),
    "exit": (SystemExit(3), "SystemExit"),
    "cancelled": (asyncio.CancelledError(), "RuntimeError"),
    "of its own kind": (OfItsOwnKind(), f"{__name__}.OfItsOwnKind"),
    "group": (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ExceptionGroup"),
    "timeout": (TimeoutError(), "TimeoutError"),
}


@pytest.mark.parametrize(("error", "kind"), RAISED.values(), ids=RAISED)
@pytest.mark.parametrize("where", ["async step", "plain step", "workflow"])
async def test_whatever_is_raised_is_reported(client: Client, error: BaseException, kind: str, where: str) -> None:
    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    async def body(ctx: Context, step: Step) -> Any:
        if where == "workflow":
            fail()
        await step.run("fail", fail if where == "plain step" else fail_async, retry=Retry(1))

    if isinstance(error, asyncio.CancelledError) and where == "workflow":
        kind = "asyncio.exceptions.CancelledError"
    with pytest.raises(WorkflowFailed) as failed:
        await outcome(client, body)
    assert failed.value.error.type == kind


@pytest.mark.parametrize("delay", ["soon", -1, None])
async def test_a_retry_after_without_a_time_is_a_failure_like_any_other(client: Client, delay: Any) -> None:
    def fail() -> None:
        raise RetryAfter(delay)

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("fail", fail, retry=Retry(1))

    with pytest.raises(WorkflowFailed, match=r"ValueError.*is not a duration"):
        await outcome(client, body)


# Time-outs.


def test_a_timeout_is_for_each_attempt() -> None:
    started: list[int] = []

    async def hang() -> None:
        started.append(virtual_clock())
        await asyncio.sleep(3_600)

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed) as failed:
            await step.run("hang", hang, timeout="30s", retry=Retry(2, backoff="10s", jitter=False))
        return str(failed.value.error)

    assert virtual_outcome(body) == "TimeoutError: attempt 2 of step 'hang' took longer than 30 s"
    assert pauses(started) == [40_000]


async def test_a_step_is_over_its_time_though_the_loop_was_held_up_for_longer_than_the_grace(client: Client) -> None:
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait()

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.run("stuck", hang, timeout="50ms", retry=Retry(1))

    async with client.worker(grace=0.01):
        run = await client.start_workflow(w)
        await eventually(lambda: asyncio.sleep(0, begun.is_set()))
        time.sleep(0.1)  # noqa: ASYNC251  # it holds the loop up
        with pytest.raises(WorkflowFailed, match="took longer than"):
            await run.result(LIMIT_S)
        over.set()


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_step_that_cancels_its_own_task_fails_alone(client: Client, goes_on: bool) -> None:
    async def cancels_itself() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if goes_on:
            await asyncio.sleep(0)
        return 1

    async def waits() -> int:
        await asyncio.sleep(0)
        return 2

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> list[Any]:
        own = step.run("own", cancels_itself, retry=Retry(1))
        return [
            str(one) if isinstance(one, StepFailed) else one
            for one in await asyncio.gather(own, step.run("next", waits), return_exceptions=True)
        ]

    async with client.worker():
        own, other = await (await client.start_workflow(w)).result(LIMIT_S)
        assert other == 2
        assert "step 'own' cancelled itself" in own if goes_on else own == 1


async def test_a_plain_function_times_out_though_its_thread_goes_on(client: Client) -> None:
    release = threading.Event()

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed, match="TimeoutError"):
            await step.run("hang", lambda: release.wait(LIMIT_S), timeout="20ms", retry=Retry(1))
        return "gave up"

    try:
        assert await outcome(client, body) == "gave up"
    finally:
        release.set()


async def test_a_time_out_of_the_step_s_own_is_not_ours(client: Client) -> None:
    async def fail() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed) as failed:
            await step.run("own", fail, timeout="1h", retry=Retry(1))
        return [failed.value.error.type, failed.value.error.message]

    assert await outcome(client, body) == ["TimeoutError", ""]


# What a step knows.


async def test_what_a_step_knows_about_itself(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def look() -> None:
        step = current_step()
        seen.append((step.run_id, step.step_id, step.attempt, step.idempotency_key))
        step.log.warning("attempt of %s", step.step_id)
        if step.attempt < 3:
            raise ValueError

    async def look_async() -> None:
        look()

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("a", look, retry=QUICK)
        async with step.scope("inner") as inner:
            await inner.run("b", look_async, retry=QUICK)

    await outcome(client, body)
    of_the_run = seen[0][3].removesuffix("/a")
    assert re.fullmatch(r"r\.[0-9a-f]{8}", of_the_run)
    expected = [("r", step_id, n, f"{of_the_run}/{step_id}") for step_id in ("a", "inner/b") for n in (1, 2, 3)]
    assert seen == expected
    lines = [line for line in caplog.records if line.name == "stepfold.run" and line.levelname == "WARNING"]
    assert [(line.run_id, line.step_id, line.attempt) for line in lines] == [each[:3] for each in expected]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # extra fields


def test_a_run_that_has_the_id_of_an_earlier_one_has_keys_of_its_own() -> None:
    """A day after its end an id may be used again; a service that knows the key would answer from the past."""
    keys: list[str] = []

    async def main() -> None:
        client = Client(driver=MemoryDriver(clock=virtual_clock))

        @client.workflow(id="w")
        async def w(ctx: Context[None], step: Step) -> None:
            await step.run("charge", lambda: keys.append(current_step().idempotency_key), retry=QUICK)

        async with client, client.worker():
            for _ in range(2):
                await (await client.start_workflow(w, run_id="r")).result()
                await asyncio.sleep(25 * 3600)

    run_virtual(main())
    assert len(set(keys)) == 2 and all(key.endswith("/charge") for key in keys)


def test_current_step_is_for_step_functions() -> None:
    with pytest.raises(RuntimeError, match="outside a step function"):
        current_step()


async def test_current_step_is_not_for_workflows(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        current_step()

    with pytest.raises(WorkflowFailed, match="outside a step function"):
        await outcome(client, body)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_the_last_heartbeat_is_there_for_the_next_attempt(client: Client, kind: str) -> None:
    seen: list[Any] = []

    def work() -> str:
        step = current_step()
        seen.append(step.last_heartbeat)
        if step.attempt == 3:
            return "done"
        for number in range(10):
            step.heartbeat({"attempt": step.attempt, "done": number})
        raise ValueError

    async def work_async() -> str:
        return work()

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("work", work if kind == "plain" else work_async, retry=QUICK)

    assert await outcome(client, body) == "done"
    assert seen == [None, {"attempt": 1, "done": 9}, {"attempt": 2, "done": 9}]


def test_heartbeats_are_recorded_about_once_a_second() -> None:
    async def work() -> None:
        for number in range(100):
            current_step().heartbeat(number)
            await asyncio.sleep(0.1)

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("work", work)

    async def main(client: Client) -> list[Any]:
        await outcome(client, body)
        return [event.details for event in await history(client) if isinstance(event, StepHeartbeat)]

    recorded = virtually(main)
    assert 9 <= len(recorded) <= 11 and recorded == sorted(recorded) and recorded[0] == 0


@pytest.mark.parametrize("details", [object(), "x" * 200_000])
async def test_a_heartbeat_that_cannot_be_recorded_fails_the_attempt(client: Client, details: Any) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.run("beat", lambda: current_step().heartbeat(details), retry=Retry(1))

    with pytest.raises(WorkflowFailed, match=r"ValueInvalid: the heartbeat of step 'beat'|PayloadTooLarge"):
        await outcome(client, body)


# Names.


async def test_an_id_used_again_is_numbered(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        for number in range(3):
            await step.run("same", lambda number=number: number)
        async with step.scope("a") as a, a.scope("b") as b:
            await b.run("same", lambda: None)
        await step.sleep("same", 0)

    await outcome(client, body)
    ids = [event.step_id for event in await history(client) if hasattr(event, "step_id")]
    assert ids == ["same", "same#2", "same#3", "a/b/same", "same#4", "same#4"]


async def test_an_id_used_twice_at_the_same_time_is_an_error_that_names_scopes(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await asyncio.gather(step.run("same", lambda: 1), step.run("same", lambda: 2))

    with pytest.raises(
        WorkflowFailed, match=r"ValueError.*'same' is used twice at the same time.*test_steps\.py:\d+.*step\.scope"
    ):
        await outcome(client, body)


async def test_scopes_keep_branches_apart(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        async def branch(name: str) -> str:
            async with step.scope(name) as scoped:
                await scoped.run("work", lambda: name)
                return await scoped.run("work", lambda: name * 2)

        return await asyncio.gather(branch("a"), branch("b"))

    assert await outcome(client, body) == ["aa", "bb"]
    ids = [event.step_id for event in await history(client) if isinstance(event, StepCompleted)]
    assert sorted(ids) == ["a/work", "a/work#2", "b/work", "b/work#2"]


class Named(StrEnum):
    A = "a"


@pytest.mark.parametrize("step_id", ["", "x" * 201, "@timer", "a#2", "a\nb", 5, None, ["a"], Named.A])
async def test_what_is_no_id(client: Client, step_id: Any) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(ValueError, match="is not a step id"):
            await step.run(step_id, lambda: 1)
        with pytest.raises(ValueError, match="is not a step id"):
            async with step.scope(step_id):
                pass

    await outcome(client, body)


async def test_an_id_with_its_scopes_has_a_limit(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(8):
                step = await stack.enter_async_context(step.scope("x" * 99))
            async with step.scope("y" * 199) as full:
                with pytest.raises(ValueError, match=r"at most 1,000 characters.*x… \([0-9,]+ characters\)"):
                    await full.sleep("a", 1)
            with pytest.raises(ValueError, match="at most 1,000 characters"):
                async with step.scope("y" * 200):
                    pass
            with pytest.raises(ValueError, match="at most 1,000 characters"):
                async with step.scope("y" * 198) as scoped:
                    await scoped.run("ab", lambda: 1)
            async with step.scope("y" * 198) as scoped:
                return await scoped.run("a", lambda: 1)

    assert await outcome(client, body) == 1


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_step_inside_a_step_is_an_error_that_names_both(client: Client, kind: str) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        def nest() -> Any:
            return step.run("inner", lambda: 1)

        async def nest_async() -> Any:
            return await nest()

        await step.run("outer", nest if kind == "plain" else nest_async, retry=Retry(1))

    with pytest.raises(WorkflowFailed, match="'inner' was called inside step 'outer'"):
        await outcome(client, body)


async def test_a_step_object_does_not_work_outside_its_run(client: Client) -> None:
    kept: list[Step] = []

    async def body(ctx: Context, step: Step) -> Any:
        kept.append(step)

    await outcome(client, body)
    with pytest.raises(RuntimeError, match="outside its workflow"):
        await kept[0].run("late", lambda: 1)


@pytest.mark.parametrize("duration", ["soon", -1, math.nan, True, "1x", [], "1001y", 10**15])
async def test_what_is_no_duration(client: Client, duration: Any) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        for ask in (
            lambda: step.sleep("nap", duration),
            lambda: step.run("work", lambda: 1, timeout=duration),
            lambda: step.wait_for_signal("wait", signal="go", timeout=duration),
        ):
            with pytest.raises(ValueError, match="is not a duration"):
                await ask()

    await outcome(client, body)


async def test_arguments_that_are_nested_too_deep_are_refused_by_the_name_of_the_step(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ValueError, match="step 'a': its arguments are nested too deep"):
            await step.run("a", len, deep)

    await outcome(client, body)


# Options of another type.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry": 5}, r"retry=5.*: write retry=Retry\(5\)"),
        ({"retry": Retry}, r"write retry=Retry\(\)"),
        ({"retry": "x"}, r"retry='x'.*: write retry=Retry\(5\)"),
        ({"retry": {}}, r"write retry=Retry\(5\)"),
        ({"retry": False}, r"write retry=Retry\(5\)"),
        ({"at_most_once": "no"}, "at_most_once='no': it must be True or False"),
        ({"record_input": 1}, "record_input=1: it must be True or False"),
    ],
)
async def test_an_option_of_another_type_is_refused_at_the_call(client: Client, options: dict[str, Any], says: str) -> None:
    async def body(ctx: Context, step: Step) -> None:
        with pytest.raises(TypeError, match=says):
            await step.run("a", str, **options)

    assert await outcome(client, body) is None


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_heartbeat_after_the_end_is_refused(client: Client, kind: str) -> None:
    """The thread or task that sends it learns that nobody waits for it."""
    running: list[RunningStep] = []

    def plain() -> None:
        running.append(current_step())
        current_step().heartbeat(1)

    async def as_task() -> None:
        plain()

    async def body(ctx: Context, step: Step) -> None:
        await step.run("a", plain if kind == "plain" else as_task)
        await step.run("b", str)
        with pytest.raises(RuntimeError, match="attempt 1 of step 'a' of run 'r' has ended"):
            running[0].heartbeat(2)

    assert await outcome(client, body) is None
    assert all(event.step_id == "a" and event.details == 1 for event in await history(client) if isinstance(event, StepHeartbeat))
