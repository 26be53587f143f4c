"""A worker whose caller is cancelled once more while the worker stops, as by a time-out around a group that is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S

from stepfold import Client, Context, Step


async def test_a_worker_that_is_cancelled_while_it_stops_leaves_nothing_behind(new_log: NewLog) -> None:
    begun = asyncio.Event()
    go_on = asyncio.Event()

    def register(client: Client) -> Client:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> str:
            return await step.run("hang", hang)

        return client

    async def hang() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    first, second = register(Client(driver=new_log())), register(Client(driver=new_log()))
    before = set(asyncio.all_tasks())

    async def serve() -> None:
        async with first.worker(grace=LIMIT_S):
            await first.start_workflow("w", run_id="r")
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await begun.wait()
    serving.cancel()

    async def leaves() -> bool:
        return any(task.get_name().startswith("stepfold-leave") for task in asyncio.all_tasks())

    await eventually(leaves)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    async def nothing_is_left() -> bool:
        threads = {thread.name for thread in threading.enumerate()}
        return set(asyncio.all_tasks()) <= before and "stepfold-watchdog" not in threads

    await eventually(nothing_is_left)
    go_on.set()
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == "done"
