"""Who follows a partition from outside a worker: what is judged when the tail lags behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from histories import Ledger, stored

from stepfold.drivers import MemoryDriver
from stepfold.drivers._local import LocalReader
from stepfold.log import Record
from stepfold.tail import Tail


class Lagging(MemoryDriver):
    """Its readers give nothing."""

    def reader(self, partition: int, offset: int) -> LocalReader:
        reader = super().reader(partition, offset)

        async def read(limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
            return await asyncio.get_running_loop().create_future()

        reader.read = read
        return reader


async def test_a_run_that_began_under_a_claim_which_the_tail_has_not_seen() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    ledger.start("earlier")
    log = await stored(ledger, Lagging())
    tail = Tail(log, 0)
    assert not (await tail.watch("earlier")).ended.done()

    ledger.claim("worker-b")
    ledger.start("r")
    start = ledger.records[-1].offset
    ledger.accepts("completed", "r", result=1)
    await stored(ledger, log)
    watch = await tail.watch("r", start)
    assert watch.ended.done() and watch.ended.result().result == 1
    await tail.close()
