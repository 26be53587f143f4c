"""An order whose payment and delivery are runs of their own. If the delivery fails, the order undoes what it has done.

    python examples/order_saga.py            one order that is delivered, and one that is too heavy
    python examples/order_saga.py crash      the same, but the process dies before the refund; then run it again

The log is shop.db in the current folder.
"""

import asyncio
import os
import sys

from pydantic import BaseModel

from stepfold import Client, Context, NonRetryable, Step, WorkflowFailed

client = Client("sqlite:///shop.db")


class Order(BaseModel):
    order_id: str
    cents: int
    kg: int


def say(words: str) -> None:
    print(words, flush=True)


# A real one of these calls another service, with `current_step().idempotency_key`, so that a second attempt does nothing.
def reserve(order_id: str) -> None:
    say(f"{order_id}: stock reserved")


def release(order_id: str) -> None:
    say(f"{order_id}: stock released")


def charge(order: Order) -> str:
    say(f"{order.order_id}: charged {order.cents} cents")
    return f"payment-{order.order_id}"


def refund(payment: str) -> None:
    if "crash" in sys.argv:
        os._exit(1)
    say(f"{payment}: refunded")


def book_courier(order: Order) -> str:
    if order.kg > 30:
        raise NonRetryable(f"no courier carries {order.kg} kg")
    say(f"{order.order_id}: courier booked")
    return f"parcel-{order.order_id}"


@client.workflow(id="payment")
async def payment(ctx: Context[Order], step: Step) -> str:
    return await step.run("charge", charge, ctx.input.data)


@client.workflow(id="shipping")
async def shipping(ctx: Context[Order], step: Step) -> str:
    return await step.run("book-courier", book_courier, ctx.input.data)


@client.workflow(id="order")
async def order(ctx: Context[Order], step: Step) -> str:
    data = ctx.input.data
    async with step.compensations() as undo:
        await step.run("reserve", reserve, data.order_id)
        undo.push("release", release, data.order_id)
        paid = await step.invoke_workflow("payment", payment, data)
        undo.push("refund", refund, paid)
        return await step.invoke_workflow("shipping", shipping, data, timeout="2d")


async def main() -> None:
    async with client.worker():
        for data in (Order(order_id="lamp", cents=1900, kg=2), Order(order_id="piano", cents=250_000, kg=300)):
            run = await client.start_workflow(order, data, run_id=f"order-{data.order_id}")
            try:
                say(f"{run.id} completed: {await run.result()}")
            except WorkflowFailed as failed:
                say(f"{run.id} failed: {failed.error.message}")
            say(", ".join(f"{child.step_id} {child.state}" for child in await run.children()))


asyncio.run(main())
