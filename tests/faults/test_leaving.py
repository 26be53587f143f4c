"""A worker that stops in good order: what it gives up it does not take back, and the next one finds nothing lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rawlog import Audit, SQLiteHistory

from stepfold import Client, Context, Step


async def test_a_partition_given_up_stays_given_up_while_others_are_finished(tmp_path: Path) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db?partitions=2")
    running, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        running.set()
        await go_on.wait()
        return "done"

    @client.workflow(id="slow")
    async def run_slow(ctx: Context[None], step: Step) -> str:
        return await step.run("slow", slow)

    async with client:
        async with client.worker(grace=60):
            run = await client.start_workflow(run_slow)
            await running.wait()
            asyncio.get_running_loop().call_later(1.5, go_on.set)  # as long as a slow step takes; the worker leaves meanwhile
        assert await run.result() == "done"

    history, audit = SQLiteHistory(tmp_path / "log.db"), Audit()
    audit.follow(await history.news(), history.partitions)
    assert audit.conclude().void == {}
    for partition in audit.partitions.values():
        owner, nobody = partition.claims
        assert owner.owner is not None and nobody.owner is None
