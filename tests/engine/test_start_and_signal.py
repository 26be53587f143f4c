"""A start that brings a signal: one append, and the signal counts once, whether the call begins the run or finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepfold import Client, Context, LogUnavailable, PayloadTooLarge, RunAlreadyExists, RunEnded, RunNotFound, Step, Workflow
from stepfold.drivers import MemoryDriver
from stepfold.errors import InputInvalid
from stepfold.log import CLAIM_KEY

LIMIT_S = 30


def cart_on(client: Client) -> Workflow[Any, list[Any]]:
    @client.workflow(id="cart")
    async def cart(ctx: Context, step: Step) -> list[Any]:
        """What it is told, up to "pay"."""
        items = list[Any]()
        while (item := await step.wait_for_signal("item", signal="add")).data != "pay":
            items.append(item.data)
        return items

    return cart


async def test_the_signal_is_the_first_thing_that_the_run_is_told(client: Client) -> None:
    cart = cart_on(client)
    async with client.worker():
        run = await client.start_workflow(cart, signal=("add", {"book": 1}), by="Ada", why="a gift")
        await run.signal("add", "pay")
        assert await run.result(LIMIT_S) == [{"book": 1}]
        began, told = (event.model_dump() for event in (await run.history())[:2])
        assert (began["type"], told["type"]) == ("started", "signal-received")
        assert [(one["by"], one["why"]) for one in (began, told)] == [("Ada", "a gift")] * 2


async def test_a_run_that_exists_is_told_and_not_begun_again(client: Client) -> None:
    cart = cart_on(client)
    async with client.worker():
        for item in ("book", "pen", "book", "pay"):
            run = await client.start_workflow(cart, run_id="cart-7", signal=("add", item))
        assert await run.result(LIMIT_S) == ["book", "pen", "book"]


async def test_without_a_worker_start_and_signal_are_durable_when_the_call_returns(tmp_path: Path) -> None:
    async with Client(f"sqlite:///{tmp_path}/log.db") as client:
        run = await client.start_workflow("cart", run_id="cart-7", signal=("add", 1))
        assert [event.type for event in await run.history()] == ["started", "signal-received"]


async def test_a_run_that_has_ended_is_not_told(client: Client) -> None:
    cart = cart_on(client)
    async with client.worker():
        await (await client.start_workflow(cart, run_id="cart-7", signal=("add", "pay"))).result(LIMIT_S)
        with pytest.raises(RunEnded, match="cart-7"):
            await client.start_workflow(cart, run_id="cart-7", signal=("add", "late"))
        assert await (await client.start_workflow(cart, run_id="cart-7")).result(LIMIT_S) == []


async def test_another_input_or_reject_tells_the_existing_run_nothing(client: Client) -> None:
    cart = cart_on(client)
    async with client.worker():
        run = await client.start_workflow(cart, run_id="cart-7")
        with pytest.raises(RunAlreadyExists, match="another input"):
            await client.start_workflow(cart, {"other": 1}, run_id="cart-7", signal=("add", 1))
        with pytest.raises(RunAlreadyExists, match="has existed"):
            await client.start_workflow(cart, run_id="cart-7", if_exists="reject", signal=("add", 1))
        await run.signal("add", "pay")
        assert await run.result(LIMIT_S) == []


@pytest.mark.parametrize(
    ("signal", "error"),
    [
        ("approve", TypeError),
        (("approve",), TypeError),
        (("", 1), ValueError),
        (("approve", {1, object()}), InputInvalid),
        (("approve", "x" * 1_000_000), PayloadTooLarge),
    ],
)
async def test_a_signal_that_cannot_be_sent_begins_nothing(client: Client, signal: Any, error: type[Exception]) -> None:
    cart = cart_on(client)
    async with client.worker():
        starting = client.start_workflow(cart, run_id="cart-7", signal=signal)
        with pytest.raises(error):
            await starting
        with pytest.raises(RunNotFound):
            await client.run("cart-7").status()


async def test_data_are_taken_at_the_call(client: Client) -> None:
    cart = cart_on(client)
    async with client.worker():
        item = ["book"]
        starting = client.start_workflow(cart, signal=("add", item))
        item.append("pen")
        run = await starting
        await run.signal("add", "pay")
        assert await run.result(LIMIT_S) == [["book"]]


class Losing(MemoryDriver):
    """Of two starts at the same time, the other one's comes first."""

    rival: Any = None

    async def append(self, partition: int, entries: Any) -> Any:
        if self.rival is not None and entries[0].key != CLAIM_KEY and b'"started"' in entries[0].value:
            rival, self.rival = self.rival, None
            await rival()
        return await super().append(partition, entries)


async def test_the_signal_of_a_start_that_comes_second_counts_once() -> None:
    log = Losing()
    client = Client(driver=log)
    cart = cart_on(client)
    async with client.worker():

        async def rival() -> None:
            await client.start_workflow(cart, run_id="cart-7")

        log.rival = rival
        run = await client.start_workflow(cart, run_id="cart-7", signal=("add", "book"))
        assert not run.new
        await run.signal("add", "pay")
        assert await run.result(LIMIT_S) == ["book"]


async def test_the_signal_of_a_start_that_comes_after_the_end_is_refused() -> None:
    log = Losing()
    client = Client(driver=log)
    cart = cart_on(client)
    async with client.worker():

        async def rival() -> None:
            await (await client.start_workflow(cart, run_id="cart-7", signal=("add", "pay"))).result(LIMIT_S)

        log.rival = rival
        with pytest.raises(RunEnded):
            await client.start_workflow(cart, run_id="cart-7", signal=("add", "book"))


async def test_a_log_that_holds_the_start_alone_holds_a_run() -> None:
    class Torn(MemoryDriver):
        async def append(self, partition: int, entries: Any) -> Any:
            if len(entries) > 1 and b'"started"' in entries[0].value:
                await super().append(partition, entries[:1])
                raise LogUnavailable("the machine has died in the middle")
            return await super().append(partition, entries)

    client = Client(driver=Torn())
    cart = cart_on(client)
    async with client.worker():
        with pytest.raises(LogUnavailable):
            await client.start_workflow(cart, run_id="cart-7", signal=("add", "book"))
        run = await client.start_workflow(cart, run_id="cart-7", signal=("add", "book"))
        await run.signal("add", "pay")
        assert await run.result(LIMIT_S) == ["book"]
