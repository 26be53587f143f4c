"""An order: reserve, charge, have large sums approved, ship. If it ends before that, all is undone first.

A failed step may have had its effect: the bank took the money, and its answers were lost. So the order is undone by its id,
whatever its steps returned. A refund must not overtake its payment, so a cancellation waits for a payment that is under way. It
does not wait for the carrier: the parcel of an order that is cancelled at that moment may be on its way; the money is paid back.

stepfold worker workflow:client
"""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, PositiveInt
from services import bank, carrier, warehouse

from stepfold import Client, Context, Retry, Step, current_step

APPROVAL_FROM_CENTS = 100_000

client = Client()  # on the log that STEPFOLD_URL names, such as kafka://localhost:9092/shop; else on sqlite:///stepfold.db


class Order(BaseModel):
    order_id: str
    customer: str
    items: list[str]
    total_cents: PositiveInt


class Approval(BaseModel):
    granted: bool
    by: str


class Outcome(BaseModel):
    status: Literal["shipped", "declined"]
    total_cents: int
    tracking: str | None = None


def reserve(order: Order) -> None:
    warehouse.reserve(order.order_id, order.items)


async def charge(order: Order) -> str:
    # The key is the same on every attempt, so the bank takes the money once, also when its answer is lost.
    key = current_step().idempotency_key
    return await bank.charge(order.order_id, order.customer, order.total_cents, idempotency_key=key)


def ship(order: Order) -> str:
    return carrier.pick_up(order.order_id)


@client.workflow(id="process-order")
async def process_order(ctx: Context[Order], step: Step) -> Outcome:
    order = ctx.input.data
    try:
        with step.shield():
            await step.run("reserve", reserve, order)
            await step.run("charge", charge, order, retry=Retry(5, backoff="1s"), timeout="30s")
        if await approved(order, step):
            tracking = await step.run("ship", ship, order)
            return Outcome(status="shipped", total_cents=order.total_cents, tracking=tracking)
    except (Exception, asyncio.CancelledError):
        await undo(order, step)
        raise
    await undo(order, step)
    return Outcome(status="declined", total_cents=order.total_cents)


async def approved(order: Order, step: Step) -> bool:
    """Small orders are; a large one waits a week for somebody to say so."""
    if order.total_cents < APPROVAL_FROM_CENTS:
        return True
    answer = await step.wait_for_signal("approval", signal="approve", timeout="7d", schema=Approval)
    return answer is not None and answer.data.granted


async def undo(order: Order, step: Step) -> None:
    """Compensation. A cancellation of the run waits until it is through."""
    stubborn = Retry(max_attempts=1000, max_backoff="10m")
    with step.shield():
        await step.run("refund", bank.refund, order.order_id, retry=stubborn)
        await step.run("release", warehouse.release, order.order_id, retry=stubborn)
