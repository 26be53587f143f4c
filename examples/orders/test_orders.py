"""How to test workflows: the real engine on a log in memory, in real time or, for the slow ones, in virtual time.

pytest test_orders.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import workflow
from projection import ShopProjection, revenue_by_day, statuses
from services import Bank, Carrier, Warehouse
from workflow import Approval, Order, Outcome, client, process_order

from stepfold import WorkflowCancelled, WorkflowFailed
from stepfold.drivers import MemoryDriver
from stepfold.projections import ProjectionRunner
from stepfold.testing import run_virtual, virtual_clock

SMALL = Order(order_id="1", customer="ada", items=["book"], total_cents=2_500)
LARGE = Order(order_id="2", customer="ada", items=["piano"], total_cents=900_000)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a log of its own, and other systems that remember nothing."""
    monkeypatch.setattr(client, "log", MemoryDriver())
    for name, system in {"bank": Bank(), "warehouse": Warehouse(), "carrier": Carrier()}.items():
        monkeypatch.setattr(workflow, name, system)


def virtually(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in virtual time: whenever nothing is left to do, the clock jumps to the next timer."""
    client.log = MemoryDriver(clock=virtual_clock)
    run_virtual(test)


async def outcome_of(order: Order) -> Outcome:
    async with client.worker():
        run = await client.start_workflow(process_order, order)
        return await run.result()


def test_a_small_order_is_shipped_without_approval() -> None:
    outcome = asyncio.run(outcome_of(SMALL))
    assert outcome == Outcome(status="shipped", total_cents=2_500, tracking="PX-1")
    assert list(workflow.bank.payments.values()) == [2_500]


def test_a_large_order_waits_for_its_approval() -> None:
    async def test() -> None:
        async with client.worker():
            run = await client.start_workflow(process_order, LARGE, run_id="order-2")
            await run.signal("approve", Approval(granted=True, by="grace"))  # kept, should it come before the wait
            assert (await run.result()).status == "shipped"
            assert [event.type for event in await run.history()][-1] == "completed"

    asyncio.run(test())


def test_a_declined_order_is_paid_back() -> None:
    async def test() -> None:
        async with client.worker():
            run = await client.start_workflow(process_order, LARGE)
            await run.signal("approve", Approval(granted=False, by="grace"))
            assert (await run.result()).status == "declined"

    asyncio.run(test())
    assert workflow.bank.payments == {} and workflow.warehouse.reserved == {} and workflow.carrier.parcels == {}


def test_money_is_taken_once_although_the_banks_answers_get_lost() -> None:
    async def test() -> None:
        workflow.bank.outages = 3
        began = asyncio.get_running_loop().time()
        assert (await outcome_of(SMALL)).status == "shipped"
        assert asyncio.get_running_loop().time() - began > 3  # three pauses: virtual seconds

    virtually(test())
    assert list(workflow.bank.payments.values()) == [2_500]


def test_nobody_answers_for_a_week() -> None:
    async def test() -> None:
        async with client.worker():
            run = await client.start_workflow(process_order, LARGE)
            assert (await run.result()).status == "declined"
            status = await run.status()
            assert status.ended_at is not None
            assert (status.ended_at - status.started_at).days == 7

    virtually(test())
    assert workflow.bank.payments == {}


def test_a_declined_card_fails_the_run_and_frees_what_was_reserved() -> None:
    order = SMALL.model_copy(update={"customer": "mallory"})
    with pytest.raises(WorkflowFailed) as failed:
        asyncio.run(outcome_of(order))
    assert failed.value.error.type == "services.CardDeclined"
    assert failed.value.error.step_id == "charge"
    assert workflow.warehouse.reserved == {}


def test_a_cancelled_order_is_undone_first() -> None:
    async def test() -> None:
        async with client.worker():
            run = await client.start_workflow(process_order, LARGE)
            while (await run.status()).state != "waiting":
                await asyncio.sleep(0.01)
            assert workflow.bank.payments
            await run.cancel("ordered by mistake")
            with pytest.raises(WorkflowCancelled, match="ordered by mistake"):
                await run.result()

    asyncio.run(test())
    assert workflow.bank.payments == {} and workflow.warehouse.reserved == {}


class SlowBank(Bank):
    """Takes the money some time after it was asked, whether or not anybody still waits for the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def charge(self, order_id: str, customer: str, cents: int, *, idempotency_key: str) -> str:
        charging = asyncio.create_task(self._charge_later(order_id, customer, cents, idempotency_key))
        self.asked.set()
        return await asyncio.shield(charging)

    async def _charge_later(self, order_id: str, customer: str, cents: int, idempotency_key: str) -> str:
        await asyncio.sleep(2)
        return await super().charge(order_id, customer, cents, idempotency_key=idempotency_key)


def test_a_payment_that_is_under_way_when_the_order_is_cancelled_is_paid_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        slow = SlowBank()
        monkeypatch.setattr(workflow, "bank", slow)
        async with client.worker():
            run = await client.start_workflow(process_order, SMALL)
            await slow.asked.wait()
            await run.cancel("ordered by mistake")
            with pytest.raises(WorkflowCancelled):
                await run.result()
            await asyncio.sleep(5)
            assert [event.step_id for event in await run.history() if event.type == "step-completed"][-2:] == [
                "refund",
                "release",
            ]

    virtually(test())
    assert workflow.bank.payments == {} and workflow.warehouse.reserved == {} and workflow.carrier.parcels == {}


def test_money_that_was_taken_is_paid_back_although_the_payment_has_failed() -> None:
    async def test() -> None:
        workflow.bank.outages = 5  # as many as there are attempts
        with pytest.raises(WorkflowFailed):
            await outcome_of(SMALL)

    virtually(test())
    assert workflow.bank.payments == {} and workflow.warehouse.reserved == {}


def test_a_worker_goes_on_where_another_one_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with client:
            async with client.worker():
                run = await client.start_workflow(process_order, LARGE)
                while not (await run.status()).waiting_on[0].startswith("signal 'approve'"):
                    await asyncio.sleep(0.01)
            monkeypatch.setattr(workflow, "bank", Bank())  # would know nothing of the payment; nobody asks it
            await run.signal("approve", Approval(granted=True, by="grace"))
            async with client.worker():
                assert (await run.result()).status == "shipped"

    asyncio.run(test())


def test_the_projection_counts_each_order_once() -> None:
    async def test() -> None:
        async with client, ProjectionRunner(client, [ShopProjection()], database="sqlite://") as runner:
            async with client.worker():
                for number in range(3):
                    order = SMALL.model_copy(update={"order_id": str(number)})
                    run = await client.start_workflow(process_order, order, run_id=f"order-{number}")
                    await run.result()
            await runner.catch_up()
            assert await runner.query(statuses) == {f"order-{number}": "shipped" for number in range(3)}
            assert [row[1:] for row in await runner.query(revenue_by_day)] == [(3, 7_500)]
            await runner.rebuild()
            assert [row[1:] for row in await runner.query(revenue_by_day)] == [(3, 7_500)]

    asyncio.run(test())
