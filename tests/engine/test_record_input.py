"""`record_input`: each attempt is in the log before it runs, with its arguments, and nothing else is different for it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome
from pydantic import BaseModel, model_serializer

from stepfold import Client, Context, Retry, Run, Step, current_step
from stepfold.events import AttemptStarted


async def types(run: Run[Any]) -> list[str]:
    return [event.type for event in await run.history()]


async def given(client: Client) -> list[tuple[int, Any, str | None]]:
    return [(e.attempt, e.input, e.input_note) for e in await history(client) if isinstance(e, AttemptStarted)]


async def test_each_attempt_is_announced_with_the_arguments_of_the_call(client: Client) -> None:
    def charge(order: list[int], currency: str) -> int:
        order.append(current_step().attempt)
        if current_step().attempt == 1:
            raise ConnectionError("no answer")
        return sum(order)

    async def body(ctx: Context, step: Step) -> Any:
        order = [10]
        charged = step.run("charge", charge, order, "EUR", retry=Retry(2, backoff="1ms"), record_input=True)
        order.append(20)
        return [await charged, await step.run("other", sum, order)]

    assert await outcome(client, body) == [12, 30]
    assert [event.type for event in await history(client)] == [
        "started",
        "attempt-started",
        "step-failed",
        "attempt-started",
        "step-completed",
        "step-completed",
        "completed",
    ]
    assert await given(client) == [(1, [[10], "EUR"], None), (2, [[10], "EUR"], None)]


@pytest.mark.parametrize("odd", [RuntimeError, SystemExit, KeyboardInterrupt])
async def test_arguments_that_cannot_be_written_fail_no_step(client: Client, odd: type[BaseException]) -> None:
    class Odd(BaseModel):
        @model_serializer
        def write(self) -> Any:
            raise odd("a secret")

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("take", lambda one: type(one).__name__, Odd(), record_input=True)

    assert await outcome(client, body) == "Odd"
    [(_, _, note)] = await given(client)
    assert note is not None and "cannot be written" in note and "secret" not in note


async def test_at_most_once_attempts_tell_their_input_too(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("add", sum, [1, 2], at_most_once=True, record_input=True)

    assert await outcome(client, body) == 3
    assert await given(client) == [(1, [[1, 2]], None)]


@pytest.mark.parametrize("end", ["crash", "good order"])
async def test_one_whose_worker_is_gone_runs_again(new_log: NewLog, end: Literal["crash", "good order"]) -> None:
    """After a crash it was lost, and the next attempt is announced; in good order it was not, and it is announced already."""
    running = asyncio.Event()
    calls: list[int] = []

    async def work(number: int) -> int:
        calls.append(current_step().attempt)
        if len(calls) == 1:
            running.set()
            await asyncio.Event().wait()
        return number

    async def body(ctx: Context, step: Step) -> int:
        return await step.run("work", work, 7, record_input=True)

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with first.worker(grace=0):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)
        if end == "crash":
            await first.log.close()
    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        run = second.run("r")
        assert await run.result(LIMIT_S) == 7
        lost = ["attempt-lost", "attempt-started"] if end == "crash" else []
        assert await types(run) == ["started", "attempt-started", *lost, "step-completed", "completed"]
    assert calls == ([1, 2] if end == "crash" else [1, 1])


async def test_one_that_its_worker_did_not_come_to_is_not_lost(new_log: NewLog) -> None:
    running = asyncio.Event()

    async def hang() -> None:
        running.set()
        await asyncio.Event().wait()

    async def hanging(ctx: Context, step: Step) -> None:
        await step.run("hang", hang)

    async def adding(ctx: Context, step: Step) -> int:
        return await step.run("add", sum, [1, 2], record_input=True)

    async def announced(run: Run[Any]) -> bool:
        return "attempt-started" in await types(run)

    first = Client(driver=new_log())
    hangs, adds = first.workflow(id="hangs")(hanging), first.workflow(id="adds")(adding)
    async with first.worker(concurrency=1, grace=0):
        await first.start_workflow(hangs)
        await asyncio.wait_for(running.wait(), LIMIT_S)
        run = await first.start_workflow(adds, run_id="r")
        await eventually(lambda: announced(run))
    second = Client(driver=new_log())
    second.workflow(id="adds")(adding)
    async with second.worker():
        again = second.run("r")
        assert await again.result(LIMIT_S) == 3
        assert await types(again) == ["started", "attempt-started", "step-completed", "completed"]
