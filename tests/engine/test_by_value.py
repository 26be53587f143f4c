"""What was given is taken by value: arguments, heartbeats, signals, results are as they were, at each attempt and on replay."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from eventually import eventually
from one_run import LIMIT_S, outcome
from pydantic import BaseModel

from stepfold import Client, Context, InputInvalid, Retry, Step, WorkflowFailed, current_step

QUICK = Retry(3, backoff="1ms", jitter=False)


class Order(BaseModel):
    total: int = 0
    lines: list[int] = []


def drain(items: list[int]) -> list[int]:
    got = list[int]()
    while items:
        got.append(items.pop())
        if current_step().attempt == 1 and len(got) == 2:
            raise ConnectionError
    return got


async def price(order: Order, by: dict[str, list[int]]) -> None:
    order.total = 42
    order.lines.append(1)
    by["n"].append(1)


async def test_each_attempt_gets_the_arguments_as_they_were_at_the_call(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        items = [1, 2, 3]
        asked = asyncio.create_task(step.run("drain", drain, items, retry=QUICK))
        later = step.run("later", partial(drain, items), retry=QUICK)
        items.append(4)
        return [await asked, await later, items]

    assert await outcome(client, body) == [[3, 2, 1], [3, 2, 1], [1, 2, 3, 4]]


async def test_what_a_step_does_to_its_arguments_is_not_seen_live_nor_on_replay(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context[Order], step: Step) -> Any:
        by: dict[str, list[int]] = {"n": []}
        await step.run("price", price, ctx.input.data, by)
        await step.wait_for_signal("go", signal="go")
        return [ctx.input.data.total, ctx.input.data.lines, by]

    async with client.worker():
        live, replayed = [await client.start_workflow(w, Order()) for _ in "ab"]
        for run in (live, replayed):
            await eventually(lambda run=run: _waits(run))
        await live.signal("go")
        assert await live.result(LIMIT_S) == [0, [], {"n": []}]
    async with client.worker():
        await replayed.signal("go")
        assert await replayed.result(LIMIT_S) == [0, [], {"n": []}]


async def _waits(run: Any) -> bool:
    return (await run.status()).state == "waiting"


async def test_who_changes_a_result_changes_nothing_that_is_recorded(client: Client) -> None:
    """Of steps, signals and inputs, live and where the run comes from a checkpoint."""

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        result: dict[str, list[int]] = await step.run("give", lambda: {"a": [1]})
        sent = await step.wait_for_signal("first", signal="s")
        seen = [list(result["a"]), list(sent.data["b"]), list(ctx.input.data["c"])]
        result["a"].append(2)
        sent.data["b"].append(2)
        ctx.input.data["c"].append(2)
        await step.wait_for_signal("go", signal="go")
        return seen

    for number in range(3):
        async with client.worker(live_runs=1):
            run = await client.start_workflow(w, {"c": [1]}, run_id="r")
            if number == 0:
                await run.signal("s", {"b": [1]})
            await eventually(lambda run=run: _waits_for(run, "go"))
    async with client.worker():
        await client.run("r").signal("go")
        assert await client.run("r").result(LIMIT_S) == [[1], [1], [1]]
        history = await client.run("r").history()
    assert [event.result for event in history if event.type == "step-completed"] == [{"a": [1]}]


async def _waits_for(run: Any, signal: str) -> bool:
    return any(repr(signal) in words for words in (await run.status()).waiting_on)


async def test_a_heartbeat_is_taken_at_the_call_and_given_to_each_attempt_anew(client: Client) -> None:
    def beat() -> Any:
        step = current_step()
        if step.attempt == 1:
            done = {"done": [1]}
            step.heartbeat(done)
            done["done"].append(2)
            raise ConnectionError
        if step.attempt == 2:
            step.last_heartbeat["done"].append(3)
            raise ConnectionError
        return step.last_heartbeat

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("beat", beat, retry=QUICK)

    assert await outcome(client, body) == {"done": [1]}


async def test_what_a_step_sends_is_taken_at_the_call(client: Client) -> None:
    @client.workflow(id="receiver")
    async def receiver(ctx: Context, step: Step) -> Any:
        return (await step.wait_for_signal("s", signal="s")).data

    @client.workflow(id="sender")
    async def sender(ctx: Context, step: Step) -> None:
        data = [1]
        sending = step.send_signal("tell", signal="s", data=data, run_id="receiver")
        data.append(2)
        await sending
        with pytest.raises(InputInvalid, match=r"signal 's'.*JSON has no tuple"):
            await step.send_signal("wrong", signal="s", data=(1, 2), run_id="receiver")

    async with client.worker():
        run = await client.start_workflow(receiver, run_id="receiver")
        await (await client.start_workflow(sender)).result(LIMIT_S)
        assert await run.result(LIMIT_S) == [1]


def charge(amount: int, *, currency: str = "EUR") -> str:
    return f"{amount} {currency}"


async def charge_later(amount: int) -> None: ...


@pytest.mark.parametrize(
    ("args", "named", "told"),
    [
        ((charge, 5), {"currency": "USD"}, r"TypeError.*step.run\('x'\).*functools.partial\(charge, currency=…\)"),
        ((5,), {}, r"TypeError.*given 5 \(int\), which is not a function.*not its call"),
        ((None,), {}, r"TypeError.*given None"),
        ((charge, (n for n in [1])), {}, r"TypeError.*step 'x'.*a generator can be iterated once.*pass a list"),
    ],
)
async def test_a_call_that_cannot_work_fails_at_once_and_says_how_to_write_it(
    client: Client, args: Any, named: dict[str, Any], told: str
) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.run("x", *args, **named)

    with pytest.raises(WorkflowFailed, match=told):
        await outcome(client, body)


async def test_a_call_where_a_function_belongs_is_named(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.run("x", charge_later(5))  # pyright: ignore[reportArgumentType, reportCallIssue]  # that is what is refused

    with pytest.raises(WorkflowFailed, match=r"TypeError.*pass the function, step.run\('x', charge_later, …\)"):
        await outcome(client, body)
