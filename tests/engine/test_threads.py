"""Plain step functions: in threads, which the loop does not wait for any longer than it can afford."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from eventually import eventually
from one_run import LIMIT_S, outcome

import stepfold.worker.threads
from stepfold import Client, Context, Retry, Step, StepFailed, WorkflowCancelled, current_step
from stepfold.values.pace import ON_LOOP, pace_of

ONCE = Retry(1)


async def test_a_function_that_blocks_does_not_keep_the_ones_behind_it(client: Client) -> None:
    over = threading.Event()

    def waits() -> bool:
        return over.wait(LIMIT_S)

    async def body(ctx: Context, step: Step) -> Any:
        for _ in range(5):
            await step.run("quick", len, "")
        waiting = [step.run(f"waits {number}", waits) for number in range(3)]
        return await asyncio.gather(*waiting, step.run("ends it", over.set))

    assert await outcome(client, body) == [True, True, True, None]


async def test_a_function_may_wait_for_the_loop(client: Client) -> None:
    loop = asyncio.get_running_loop()

    def asks() -> int:
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 5), loop).result(LIMIT_S)

    async def body(ctx: Context, step: Step) -> Any:
        return [await step.run("asks", asks) for _ in range(3)]

    assert await outcome(client, body) == [5, 5, 5]


async def test_no_thread_is_left_of_a_worker(client: Client) -> None:
    before = set(threading.enumerate())
    meeting = threading.Barrier(3, timeout=LIMIT_S)

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("quick", len, "")
        return await asyncio.gather(*(step.run(f"meet {number}", lambda: meeting.wait() >= 0) for number in range(3)))

    assert await outcome(client, body) == [True, True, True]
    await eventually(lambda: asyncio.sleep(0, not [one for one in set(threading.enumerate()) - before if "step" in one.name]))


async def test_where_the_system_gives_no_thread_it_is_asked_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("stepfold-step") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(stepfold.worker.threads, "AGAIN_S", 0.01)

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("plain", lambda: 1)

    assert await outcome(client, body) == 1
    assert len(refused) == 1


async def test_the_last_heartbeat_of_a_function_that_hangs_is_kept(client: Client) -> None:
    over = threading.Event()

    def hangs() -> Any:
        now = current_step()
        if now.attempt == 2:
            return now.last_heartbeat
        now.heartbeat("first")
        now.heartbeat("second")
        return over.wait(LIMIT_S)

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("hangs", hangs, timeout="500ms", retry=Retry(2, backoff="1ms", jitter=False))

    try:
        assert await outcome(client, body) == "second"
    finally:
        over.set()


async def test_async_and_plain_steps_share_the_places_of_a_worker_in_turn(client: Client) -> None:
    began: list[int] = []

    def plain(number: int) -> None:
        began.append(number)

    async def on_loop(number: int) -> None:
        began.append(number)
        await asyncio.sleep(0)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await asyncio.gather(*(step.run(f"s{number}", on_loop if number % 3 else plain, number) for number in range(12)))

    async with client.worker(concurrency=1):
        await (await client.start_workflow(w)).result(LIMIT_S)
    assert began == list(range(12))


# A plain function that gives something to await.


def giving(seen: list[str]) -> Callable[[], Awaitable[None]]:
    async def waits() -> None:
        seen.append(current_step().step_id)
        try:
            await asyncio.sleep(LIMIT_S)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    def gives() -> Awaitable[None]:
        return waits()

    return gives


async def test_what_it_gives_has_what_is_left_of_the_time(client: Client) -> None:
    seen: list[str] = []

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed, match=r"took longer than 0\.5 s"):
            await step.run("s", giving(seen), timeout="500ms", retry=ONCE)
        return seen

    assert await outcome(client, body) == ["s", "cancelled"]


async def test_what_it_gives_is_cancelled_with_its_run(client: Client) -> None:
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.run("s", giving(seen))

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: asyncio.sleep(0, seen == ["s"]))
        await run.cancel("enough")
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
        await eventually(lambda: asyncio.sleep(0, seen == ["s", "cancelled"]))


async def test_a_worker_waits_for_what_it_gives_before_it_leaves(client: Client) -> None:
    began, over = asyncio.Event(), asyncio.Event()

    async def waits() -> int:
        began.set()
        await over.wait()
        return 1

    def gives() -> Awaitable[int]:
        return waits()

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> int:
        return await step.run("s", gives)

    async with client:
        async with client.worker(grace=LIMIT_S) as worker:
            run = await client.start_workflow(w)
            await began.wait()
            leaving = asyncio.create_task(worker.stop(LIMIT_S))
            await asyncio.sleep(0.01)
            over.set()
            await leaving
            assert worker.abandoned == 0
        async with client.worker():
            assert await run.result(LIMIT_S) == 1


# How long it takes.


def test_functions_of_the_same_code_have_one_pace() -> None:
    def make() -> tuple[Callable[[], int], Callable[[], int]]:
        return lambda: 1, lambda: 2

    one, two = make()
    assert pace_of(one) is pace_of(make()[0])
    assert pace_of(one) is not pace_of(two)
    assert pace_of(time.sleep) is not pace_of(len)
    assert pace_of(asyncio.sleep) is ON_LOOP
