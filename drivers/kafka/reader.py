"""A reader of one partition of the history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepfold.errors import LogUnavailable
from stepfold.log import Record
from stepfold.marks import mark_of, moved

if TYPE_CHECKING:
    from .driver import KafkaDriver


class KafkaReader:
    """The port's `Reader`, over one tail."""

    def __init__(self, driver: KafkaDriver, partition: int, offset: int) -> None:
        self._driver = driver
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._last: Record | None = None  # the last record that was read
        self._tail = driver.tail(partition, offset, self._wake)

    @property
    def position(self) -> int:
        return self._tail.position

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        if self._closed:
            raise LogUnavailable(f"{self._driver.name}: this reader was closed")
        tail = self._tail
        tail.start()
        if not tail.ready:
            if wait == 0:
                await asyncio.sleep(0)  # gives the fetch a turn, even if the caller reads in a loop
            else:
                await self._news(wait)
        if tail.was_cut_off:
            await self._driver.check_identity()
            await self._check_last()
            tail.was_cut_off = False
        taken = tail.take(limit)
        if taken:
            self._last = taken[-1]
        return taken

    async def _check_last(self) -> None:
        """Raises LogUnavailable, from now on, if the offset of the last record read holds another record, or none."""
        last = self._last
        if last is None:
            return
        partition = self._tail.topic_partition.partition
        start, end = await self._driver.bounds(partition)
        if await moved(self._driver, partition, [mark_of(last)], start, end) is not None:
            lost = self._driver.lost_end(partition, last.offset)
            self._tail.end(lost)
            raise lost

    async def _news(self, wait: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if wait is None else loop.call_later(wait, self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def seek(self, offset: int) -> None:
        self._tail.seek(offset)

    async def close(self) -> None:
        self._closed = True
        self._tail.close()
        self._driver.forget(self._tail)
