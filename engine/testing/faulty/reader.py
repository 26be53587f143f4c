"""The reader of one partition."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import LogUnavailable
from ...log import Record

if TYPE_CHECKING:
    from .driver import FaultyDriver


class FaultyReader:
    """A `Reader`."""

    def __init__(self, driver: FaultyDriver, partition: int, offset: int) -> None:
        self.position = offset
        self.driver = driver
        self._part = driver.log.partitions[partition]
        self._waiter: asyncio.Future[None] | None = None
        self._waking = False
        self._times_put_back: int = driver.log.times_put_back

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        """As the port says."""
        driver, part = self.driver, self._part
        driver.check_open()
        log = driver.log
        if log.happens("unavailable"):
            await driver.question()
        if self.position >= part.end and wait != 0:
            await self._news(wait)
            driver.check_open()
        else:
            await asyncio.sleep(0)  # so that a loop of reads lets other tasks run
        if log.times_put_back != self._times_put_back:
            self._times_put_back = log.times_put_back
            if self.position > part.put_back_to:
                raise LogUnavailable(
                    f"{log.name} was restored from an older copy: the last record read from partition {part.number} is gone"
                )
        if log.happens("prefix"):
            limit = 1 + log.random.randrange(3)
        first = bisect_left(part.offsets, self.position)
        records = part.records[first : first + limit]
        if records:
            self.position = records[-1].offset + 1
            observer, reader = log.observer, driver.process.name
            for record in records:
                observer.read(part.number, record, reader)
        elif self.position < part.end:
            self.position = part.end
        return records

    async def _news(self, wait: float | None) -> None:
        waiter = self._waiter = self.driver.log.loop.create_future()
        timer = None if wait is None else self.driver.log.loop.call_later(wait, _settle, waiter)
        self._part.readers.append(self)
        try:
            await waiter
        finally:
            self._waiter = None
            self._part.readers.remove(self)
            if timer is not None:
                timer.cancel()

    def news(self) -> None:
        """Wake this reader soon: the partition has changed."""
        if not self._waking:
            self._waking = True
            self.driver.later(self.driver.log.delay_s() * 2, self._wake)

    def _wake(self) -> None:
        self._waking = False
        put_back = self.driver.log.times_put_back != self._times_put_back
        if self._waiter is not None and (self.position < self._part.end or put_back):
            _settle(self._waiter)

    def end(self) -> None:
        """Wake the reader because the log was closed."""
        if self._waiter is not None:
            _settle(self._waiter)

    def seek(self, offset: int) -> None:
        """As the port says."""
        self.position = max(self.position, offset)

    async def close(self) -> None:
        """As the port says."""


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
