"""The workflow of `stepfold demo`, as a user would write it: an order that is paid, approved, packed and shipped.

Each step writes to a file when it begins and when its work is done, so that the demo can count the effects.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stepfold import Client, Context, Retry, Step, current_step

client = Client()  # the demo names the log: stepfold worker stepfold.cli.demo_app:client --url ...


class Order(BaseModel):
    order_id: str
    items: list[str]


class Approval(BaseModel):
    by: str


class Receipt(BaseModel):
    number: str
    payment: str
    approved_by: str
    tracking: str


@contextmanager
def effect() -> Generator[None]:
    """Write that a step begins and, unless it fails or its process dies, that its work is done."""
    write("began")
    yield
    write("done")


def write(what: str) -> None:
    step = current_step()
    line: dict[str, Any] = {"step": step.step_id, "attempt": step.attempt, "what": what, "pid": os.getpid()}
    with Path(os.environ["STEPFOLD_DEMO_EFFECTS"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


async def reserve(order: Order) -> str:
    with effect():
        await asyncio.sleep(0.3)
        return f"{len(order.items)} items on shelf 7"


async def charge(order: Order) -> str:
    with effect():
        await asyncio.sleep(0.2)
        if current_step().attempt == 1:
            raise ConnectionError("the bank did not answer")
        return f"paid, key {current_step().idempotency_key}"


async def pack(order: Order) -> str:
    with effect():
        await asyncio.sleep(60 if current_step().attempt == 1 else 1.2)  # the demo kills the first attempt long before its end
        return "one parcel"


async def label(order: Order) -> str:
    with effect():
        await asyncio.sleep(0.2)
        return "PX-42"


async def invoice(order: Order) -> str:
    with effect():
        await asyncio.sleep(0.3)
        return "sent"


async def ship(order: Order, tracking: str) -> str:
    with effect():
        await asyncio.sleep(0.2)
        return f"{tracking} is on its way"


@client.workflow(id="order")
async def process_order(ctx: Context[Order], step: Step) -> Receipt:
    order = ctx.input.data
    await step.run("reserve", reserve, order)
    payment = await step.run("charge", charge, order, retry=Retry(5, backoff="600ms", jitter=False))
    await step.sleep("cool-off", "1s")
    approval = await step.wait_for_signal("approval", signal="approve", timeout="1h", schema=Approval)
    if approval is None:
        raise TimeoutError(f"nobody approved order {order.order_id}")
    async with step.scope("parcel") as parcel:
        _, tracking, _ = await asyncio.gather(
            parcel.run("pack", pack, order),
            parcel.run("label", label, order),
            parcel.run("invoice", invoice, order),
        )
    await step.run("ship", ship, order, tracking)
    return Receipt(number=str(ctx.uuid4()), payment=payment, approved_by=approval.data.by, tracking=tracking)
