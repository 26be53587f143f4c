"""Queries that do more than to read, or never return: each ends with an error, the caller goes on, and the log is as it was."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from local_logs import NewLog
from neighbours import swallows_all
from one_run import LIMIT_S
from pydantic import BaseModel, field_serializer, field_validator

import stepfold.worker.watchdog
from stepfold import Client, Context, InputInvalid, NonDeterminism, QueryFailed, Step, ValueInvalid

# What is raised into code may arrive while somebody's callback of the garbage collector runs in it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOOK_S": 0.02, "WARN_S": 0.1, "STOP_S": 0.4, "INSIST_S": 0.1, "GIVE_UP_S": 0.3}.items():
        monkeypatch.setattr(stepfold.worker.watchdog, name, value)


ran: list[str] = []
released = threading.Event()


async def asked(client: Client, query: Callable[..., Any]) -> Any:
    """The answer of a query about a run that waits in a branch and has ended in another; the log is as it was."""

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> None:
        ctx.state.step = step
        ctx.state.woken = asyncio.Event()

        async def branch() -> None:
            await ctx.state.woken.wait()
            await step.run("woken", lambda: ran.append("woken"))

        async with asyncio.TaskGroup() as group:
            group.create_task(branch())
            await step.wait_for_signal("go", signal="go")
            ctx.state.woken.set()

    query.__name__ = "asked"
    workflow.query(query)
    ran.clear()
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        while not (await run.status()).waiting_on:
            await asyncio.sleep(0.01)
    async with client:
        before = [await client.log.bounds(partition) for partition in range(client.log.partitions)]
        try:
            return await client.inspect("r").query(query)
        finally:
            assert [await client.log.bounds(partition) for partition in range(client.log.partitions)] == before
            assert ran == []


async def calls_a_step(ctx: Context) -> None:
    await ctx.state.step.run("more", lambda: ran.append("more"))


async def swallows_that(ctx: Context) -> int:
    with contextlib.suppress(BaseException):
        await ctx.state.step.sleep("nap", 0.01)
    return 1


async def publishes(ctx: Context) -> None:
    await ctx.state.step.publish("progress", 1)


async def starts_a_child(ctx: Context) -> None:
    await ctx.state.step.start_workflow("child", "w")


async def asks_in_a_task(ctx: Context) -> None:
    asyncio.create_task(ctx.state.step.run("more", lambda: ran.append("more")))  # noqa: RUF006  # that is what is tried


def wakes_the_code(ctx: Context) -> None:
    ctx.state.woken.set()


async def sleeps(ctx: Context) -> None:
    await asyncio.sleep(0.01)


async def waits_for_the_code(ctx: Context) -> None:
    await ctx.state.woken.wait()


async def opens_a_connection(ctx: Context) -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def raises(ctx: Context) -> None:
    raise ValueError("boom")


async def raises_an_exit(ctx: Context) -> None:
    raise SystemExit(3)


async def raises_an_interrupt(ctx: Context) -> None:
    raise KeyboardInterrupt


async def raises_disagreement(ctx: Context) -> None:
    raise NonDeterminism("its own")


async def cancels_itself(ctx: Context) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def spins_politely(ctx: Context) -> None:
    while True:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (calls_a_step, "step 'more'.*a query only reads"),
        (swallows_that, "step 'nap'.*a query only reads"),
        (publishes, "published 'progress'.*a query only reads"),
        (starts_a_child, "step 'child'.*a query only reads"),
        (asks_in_a_task, "step 'more'.*a query only reads"),
        (wakes_the_code, "step 'woken', or made the code of the workflow go on"),
        (sleeps, "it waits for something.*test_hostile_queries.py"),
        (waits_for_the_code, "it waits for something"),
        (opens_a_connection, "outside a step"),
        (raises, "ValueError: boom"),
        (raises_an_exit, "SystemExit: 3"),
        (raises_an_interrupt, "KeyboardInterrupt"),
        (raises_disagreement, "its own"),
        (cancels_itself, "CancelledError"),
        (spins_politely, "it spins"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
async def test_a_query_that_does_more_than_to_read(new_log: NewLog, query: Any, words: str) -> None:
    with pytest.raises(QueryFailed, match=words) as raised:
        await asked(Client(driver=new_log()), query)
    assert (raised.value.run_id, raised.value.query) == ("r", "asked") and raised.value.error.message is not None


async def gives_a_lock(ctx: Context) -> Any:
    return asyncio.Lock()


async def gives_a_generator(ctx: Context) -> Any:
    return (number for number in range(3))


async def gives_another_type(ctx: Context) -> int:
    return ctx.state.woken


@pytest.mark.parametrize("query", [gives_a_lock, gives_a_generator, gives_another_type], ids=lambda one: one.__name__)
async def test_an_answer_that_json_cannot_hold(client: Client, query: Any) -> None:
    with pytest.raises(ValueInvalid, match="the answer of query 'asked' of workflow 'w' cannot be written as JSON"):
        await asked(client, query)


async def spins(ctx: Context) -> None:
    while True:
        pass


async def swallows(ctx: Context) -> None:
    await swallows_all(ctx, ctx.state.step)


class Endless(BaseModel):
    number: int = 1

    @field_serializer("number")
    def endless(self, number: int) -> int:
        while True:
            pass


async def gives_what_cannot_be_written(ctx: Context) -> Endless:
    return Endless()


class Silent(Exception):
    def __str__(self) -> str:
        number = 1
        while number:
            number += 1
        return ""


async def raises_what_cannot_be_said(ctx: Context) -> None:
    raise Silent


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "query", [spins, swallows, gives_what_cannot_be_written, raises_what_cannot_be_said], ids=lambda one: one.__name__
)
async def test_a_query_that_does_not_return(client: Client, query: Any) -> None:
    turns = 0

    async def go_on() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    beside = asyncio.create_task(go_on())
    with pytest.raises(QueryFailed, match=r"did not return within 0\.4 s.*\.py:"):
        await asked(client, query)
    assert turns > 5  # the caller's loop went on
    beside.cancel()


async def blocks(ctx: Context) -> None:
    released.wait(LIMIT_S)


def sleeps_for_real(ctx: Context) -> None:
    time.sleep(3)


@pytest.mark.usefixtures("impatient")
async def test_a_call_that_nobody_can_interrupt_is_left_behind(client: Client) -> None:
    with pytest.raises(NonDeterminism, match=r"did not return within 0\.4 s.*test_hostile_queries\.py:"):
        await asked(client, sleeps_for_real)


class Unread(BaseModel):
    number: int = 1

    @field_validator("number")
    @classmethod
    def unread(cls, number: int) -> int:
        raise OSError("no disk")


async def test_an_argument_whose_type_raises(client: Client) -> None:
    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> None:
        pass

    @workflow.query
    async def far(ctx: Context, value: Unread) -> None:
        raise NotImplementedError

    async with client.worker():
        await (await client.start_workflow(workflow, run_id="r")).result(LIMIT_S)
        with pytest.raises(InputInvalid, match="argument 'value' of query 'far' of workflow 'w' is not valid: OSError: no disk"):
            await client.inspect("r").query("far", {"number": 2})


@pytest.mark.usefixtures("impatient")
async def test_a_workflow_that_does_not_return(new_log: NewLog) -> None:
    before, today = Client(driver=new_log()), Client(driver=new_log())

    @before.workflow(id="w")
    async def short(ctx: Context, step: Step) -> None:
        pass

    @today.workflow(id="w")
    async def endless(ctx: Context, step: Step) -> None:
        while True:
            pass

    @endless.query
    async def far(ctx: Context) -> None:
        raise NotImplementedError

    async with before.worker():
        await (await before.start_workflow(short, run_id="r")).result(LIMIT_S)
    async with today:
        with pytest.raises(NonDeterminism, match=r"did not return within 0\.4 s.*test_hostile_queries\.py:"):
            await today.inspect("r").query(far)


async def test_a_caller_that_stops_waiting(client: Client) -> None:
    released.clear()
    asking = asyncio.create_task(asked(client, blocks))
    asyncio.get_running_loop().call_later(1, asking.cancel)
    try:
        with pytest.raises(asyncio.CancelledError):
            await asking
    finally:
        released.set()
