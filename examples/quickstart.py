import asyncio

from pydantic import BaseModel

from stepfold import Client, Context, Retry, Step

client = Client("sqlite:///orders.db")  # or "kafka://localhost:9092/shop", or "memory://"


class Order(BaseModel):
    order_id: str
    amount: int


async def charge(order: Order) -> str:  # a step: runs on a worker, its result is recorded once
    return f"payment-{order.order_id}"


@client.workflow(id="process-order")
async def process_order(ctx: Context[Order], step: Step) -> str:
    payment = await step.run("charge", charge, ctx.input.data, retry=Retry(max_attempts=5))
    await step.sleep("cool-off", "1s")  # durable: survives the process; could be "30d"
    return f"{payment} done"


async def main() -> None:
    async with client.worker():
        run = await client.start_workflow(process_order, Order(order_id="42", amount=10), run_id="order-42")
        print(await run.result())  # start it twice: the same run, the same result, charged once


asyncio.run(main())
