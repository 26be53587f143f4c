"""What a type checker knows about a user's code. Read by pyright in strict mode (`make lint`), never run.

`assert_type` fails the check when a type is another one. A line that must be an error carries an ignore with its rule; pyright
reports an ignore that nothing needs.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, assert_type

from pydantic import BaseModel

from stepfold import (
    Backoff,
    BatchResult,
    Callback,
    ChildRun,
    Client,
    Completion,
    Context,
    Done,
    Inspection,
    Published,
    RaceResult,
    Run,
    Signal,
    StateChanged,
    Step,
    Workflow,
)

client = Client("memory://")


class Order(BaseModel):
    order_id: str


class Receipt(BaseModel):
    total: int


async def polled(state: int) -> int | Done[bytes]:
    return Done(b"") if state else 1


def counted(state: Order) -> Order | Done[int]:
    return Done(1)


class Extras:
    def publish(self, topic: str) -> int:
        raise NotImplementedError


async def fetch(url: str, tries: int) -> bytes:
    raise NotImplementedError


def total(prices: list[int]) -> int:
    return sum(prices)


async def halved(step: Step, item: int) -> float:
    return item / 2


async def fetched(step: Step) -> bytes:
    return await step.run("fetch", fetch, "http://x", 3)


@client.workflow(id="typed")
async def typed(ctx: Context[Order], step: Step) -> Receipt:
    assert_type(ctx.input.data, Order)
    assert_type(ctx.input.data.order_id, str)

    assert_type(await step.run("async", fetch, "http://x", 3), bytes)
    assert_type(await step.run("plain", total, [1, 2]), int)
    assert_type(await step.run("lambda", lambda: 1.5), float)
    assert_type(await step.run("tuned", total, [1], timeout="30s", at_most_once=True), int)
    assert_type(await step.run("shown", fetch, "http://x", 3, record_input=True), bytes)
    await step.run("too few", fetch, "http://x")  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error
    await step.run("wrong", total, "prices")  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error

    assert_type(await step.sleep("nap", timedelta(days=3)), None)
    assert_type(await step.wait_for_signal("a", signal="go"), Signal[Any])
    assert_type(await step.wait_for_signal("b", signal="go", timeout="1d"), Signal[Any] | None)
    assert_type(await step.wait_for_signal("c", signal="go", schema=Order), Signal[Order])
    assert_type(await step.wait_for_signal("d", signal="go", timeout=5, schema=Order), Signal[Order] | None)
    assert_type((await step.wait_for_signal("e", signal="go", schema=Order)).data, Order)

    assert_type(await step.callback("f"), Callback[Any])
    assert_type(await (await step.callback("g", timeout="1d", schema=Order)), Order)
    assert_type(await step.wait_for_callback("h", print, schema=Order), Order)
    assert_type(await step.wait_for_callback("i", print, heartbeat=5), Any)
    assert_type(await step.invoke_workflow("j", bare), None)
    assert_type(await step.invoke_workflow("k", explicit, Order(order_id="1"), timeout="1d", on_parent_close="abandon"), int)
    assert_type(await step.invoke_workflow("l", "by-name", 1, run_id="r"), Any)
    assert_type(await step.start_workflow("m", extended, 5), str)
    await step.invoke_workflow("n", explicit, 5)  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error

    assert_type(await step.wait_for_condition("j", polled, initial=0, every=Backoff("1s", max="1m"), timeout="1h"), bytes)
    assert_type(await step.wait_for_condition("k", counted, initial=Order(order_id="1"), every=5, max_attempts=3), int)
    await step.wait_for_condition("wrong", polled, initial="none", every=5)  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error

    first, second = await asyncio.gather(step.run("x", total, [1]), step.run("y", fetch, "u", 1))
    assert_type(first, int)
    assert_type(second, bytes)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step.run("z", total, [1]))
    assert_type(task.result(), int)
    async with step.scope("inner") as inner:
        assert_type(await inner.run("a", total, [1]), int)

    batch = await step.map("all", [1, 2], halved, key=str, concurrency=2, complete=Completion(min_successful=1))
    assert_type(batch, BatchResult[float])
    assert_type(batch.results(), list[float])
    assert_type((await step.parallel("both", {"a": fetched})).successes(), list[bytes])
    assert_type(await step.race("first", {"a": fetched}), RaceResult[bytes])
    await step.map("wrong", ["a"], halved)  # pyright: ignore[reportArgumentType]  # must be an error
    assert_type(await step.publish("progress", {"done": 1}), None)
    await step.publish(7, 1)  # pyright: ignore[reportArgumentType]  # must be an error
    async with step.compensations() as undo:
        undo.push("undo", total, [1], timeout="30s")
        undo.push("wrong", total, "prices")  # pyright: ignore[reportArgumentType]  # must be an error
    return Receipt(total=1)


class Cart:
    items: int = 0


@client.workflow(id="stateful", state=Cart)
async def stateful(ctx: Context[Order, Cart], step: Step) -> None:
    assert_type(ctx.state, Cart)


@client.workflow(id="stateful-explicit", state=Cart, input_schema=Order)
async def stateful_explicit(ctx: Context[Any, Cart], step: Step) -> int:
    return ctx.state.items


@stateful.query
async def in_cart(ctx: Context[Order, Cart], limit: int, *, above: int = 0) -> list[Order]:
    return [ctx.input.data][:limit]


@stateful.query
def is_empty(ctx: Context[Order, Cart]) -> bool:
    return not ctx.state.items


@typed.query
async def loose(ctx: Context[Order]) -> Any:
    assert_type(ctx.state, SimpleNamespace)
    return ctx.state.anything


@typed.query  # pyright: ignore[reportArgumentType]  # must be an error
async def of_another_input(ctx: Context[int]) -> None:
    pass


@client.workflow(id="no-class")  # pyright: ignore[reportArgumentType]  # must be an error
async def no_class(ctx: Context[Order, Cart], step: Step) -> None:
    pass


@client.workflow(id="bare")
async def bare(ctx: Context, step: Step) -> None:
    assert_type(ctx.input.data, Any)


@client.workflow(id="extended")
async def extended(ctx: Context[int | None], step: Step[Extras]) -> list[str]:
    assert_type(ctx.input.data, int | None)
    assert_type(step.ext.publish("topic"), int)
    return []


@client.workflow(id="explicit", input_schema=Order)
async def explicit(ctx: Context[Any], step: Step) -> int:
    return 1


async def use() -> None:
    assert_type(typed, Workflow[Order, Receipt])
    run = await client.start_workflow(typed, Order(order_id="1"))
    assert_type(run, Run[Receipt])
    assert_type(await run.result(timeout=30), Receipt)
    assert_type(await (await client.start_workflow(typed, {"order_id": "1"}, run_id="r")).result(), Receipt)
    assert_type(await (await client.start_workflow(bare)).result(), None)
    assert_type(await (await client.start_workflow(extended, 1)).result(), list[str])
    assert_type(explicit, Workflow[Order, int])
    assert_type(await client.start_workflow("by-name", {"any": 1}), Run[Any])
    assert_type(await client.complete_callback("id", Order(order_id="1")), bool)
    assert_type(await client.fail_callback("id", "no", "Refused", timeout=5), bool)
    assert_type(await client.heartbeat_callback("id"), bool)
    assert_type(await client.start_workflow(typed, Order(order_id="1"), timeout="5s"), Run[Receipt])
    assert_type(client.run("r"), Run[Any])
    assert_type((await run.status(timeout=5)).ended_at, datetime | None)
    assert_type((await run.history(timeout=5))[0].time, datetime | None)
    inspection = client.inspect("r", until=7)
    assert_type(stateful, Workflow[Order, None])
    assert_type(stateful_explicit, Workflow[Order, int])
    assert_type(inspection, Inspection)
    assert_type(await inspection.query("in_cart", 1, above=2), Any)
    assert_type(await inspection.query(in_cart, 1, above=2), list[Order])
    assert_type(await inspection.query(is_empty), bool)
    await inspection.query(in_cart)  # pyright: ignore[reportCallIssue]  # must be an error
    await inspection.query(in_cart, "one")  # pyright: ignore[reportCallIssue, reportArgumentType]  # must be an error
    assert_type(await run.published("progress"), Any)
    assert_type(await run.published(timeout=5), dict[str, Any])
    assert_type(await run.children(timeout=5), list[ChildRun])
    assert_type((await run.status()).parent, str | None)
    async for change in run.watch(after=7):
        assert_type(change, Published | StateChanged)
        assert_type(change.position, int)
    assert_type(await run.signal("go", timeout=5), None)
    assert_type(await run.cancel("enough", timeout=5), None)
    assert_type(await run.cancel(why="enough", by="ada"), None)
    assert_type(await run.cancel(reason="enough"), None)
    assert_type(Client("memory://", timeout=timedelta(seconds=5)), Client)
    await client.start_workflow(typed, 5)  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error
    await client.start_workflow(typed, Order(order_id="1"), if_exists="maybe")  # pyright: ignore[reportArgumentType, reportCallIssue]  # must be an error
