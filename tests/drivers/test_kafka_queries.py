"""Queries on a real broker: a client without a worker answers them, and appends nothing."""

from __future__ import annotations

from typing import Any

import pytest
from eventually import eventually

from stepfold import Client, Context, QueryFailed, Run, Step

pytestmark = pytest.mark.kafka


def importing(client: Client) -> Any:
    @client.workflow(id="import")
    async def rows(ctx: Context[int], step: Step[Any]) -> int:
        ctx.state.done, ctx.state.step = 0, step
        ctx.state.partition = ctx.ext.partition
        for number in range(ctx.input.data):
            ctx.state.done += await step.run("load", lambda: 1)
            if number == 0:
                await step.wait_for_signal("go", signal="go")
        return ctx.state.done

    @rows.query
    async def done(ctx: Context[int]) -> list[int]:
        return [ctx.state.done, ctx.state.partition]

    @rows.query
    async def more(ctx: Context[int]) -> None:
        await ctx.state.step.run("load", int)

    return rows


async def waits(run: Run[Any]) -> bool:
    return any("signal" in words for words in (await run.status()).waiting_on)


async def test_a_client_without_a_worker_answers(kafka_namespace: str) -> None:
    client, elsewhere = Client(kafka_namespace), Client(kafka_namespace)
    rows = importing(client)
    importing(elsewhere)
    async with elsewhere, client:

        async def ends() -> list[int]:
            return [(await elsewhere.log.bounds(partition))[1] for partition in range(elsewhere.log.partitions)]

        async with client.worker():
            run = await client.start_workflow(rows, 3, run_id="r")
            await eventually(lambda: waits(run))
            assert (await elsewhere.inspect("r").query("done"))[0] == 1
            await run.signal("go")
            assert await run.result(60) == 3
        before = await ends()
        assert (await elsewhere.inspect("r").query("done"))[0] == 3
        with pytest.raises(QueryFailed, match="a query only reads"):
            await elsewhere.inspect("r").query("more")
        first = next(event for event in await elsewhere.run("r").history() if event.type == "step-completed")
        assert (await elsewhere.inspect("r", until=first.offset).query("done"))[0] == 1
        assert await ends() == before
