"""An order: reserve, charge, have large sums approved, ship. If it ends before that, what the log knows as done is undone first.

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


def reserve(order: Order) -> str:
    return warehouse.reserve(order.order_id, order.items)


async def charge(order: Order) -> str:
    # The key is the same on every attempt, so the bank takes the money once, also when its answer is lost.
    return await bank.charge(order.customer, order.total_cents, idempotency_key=current_step().idempotency_key)


def ship(order: Order) -> str:
    return carrier.pick_up(order.order_id)


@client.workflow(id="process-order")
async def process_order(ctx: Context[Order], step: Step) -> Outcome:
    order = ctx.input.data
    reservation = await step.run("reserve", reserve, order)
    payment: str | None = None
    try:
        payment = await step.run("charge", charge, order, retry=Retry(5, backoff="1s"), timeout="30s")
        if await approved(order, step):
            tracking = await step.run("ship", ship, order)
            return Outcome(status="shipped", total_cents=order.total_cents, tracking=tracking)
    except (Exception, asyncio.CancelledError):
        await undo(step, reservation, payment)
        raise
    await undo(step, reservation, payment)
    return Outcome(status="declined", total_cents=order.total_cents)


async def approved(order: Order, step: Step) -> bool:
    """Small orders are; a large one waits a week for somebody to say so."""
    if order.total_cents < APPROVAL_FROM_CENTS:
        return True
    answer = await step.wait_for_signal("approval", signal="approve", timeout="7d", schema=Approval)
    return answer is not None and answer.data.granted


async def undo(step: Step, reservation: str, payment: str | None) -> None:
    """Compensation. A cancellation of the run waits until it is through."""
    stubborn = Retry(max_attempts=1000, max_backoff="10m")
    with step.shield():
        if payment is not None:
            await step.run("refund", bank.refund, payment, retry=stubborn)
        await step.run("release", warehouse.release, reservation, retry=stubborn)
