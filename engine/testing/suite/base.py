"""The base of the tests of the suite: a log of the driver, and ways to fill, read and wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar
from unittest import SkipTest

from ...errors import StepfoldError
from ...log import Entry, Log, Reader, Record

T = TypeVar("T")

SILENCE_S = 0.05
"""How long the suite waits to see that nothing comes."""


def entry(key: str, **fields: object) -> Entry:
    return Entry(key, json.dumps(fields).encode())


def numbered(count: int, key: str = "run") -> list[Entry]:
    return [entry(key, n=number) for number in range(count)]


def entries_of(records: Iterable[Record]) -> list[Entry]:
    return [Entry(record.key, record.value) for record in records]


async def checkpoints_of(log: Log, partition: int) -> dict[str, bytes]:
    """All items that are stored beside a partition."""
    found: dict[str, bytes | None] = {}
    async for portion in log.checkpoint_load(partition):
        found.update(portion)
    return {key: value for key, value in found.items() if value is not None}


class LogTests:
    """The two factories of a driver, and helpers; a subclass has the tests of one subject."""

    deadline_s: float = 30.0
    """The time limit for everything that must happen, in seconds."""

    async def open_log(self) -> Log:
        """A fresh log, opened: empty, with an identity of its own, and with at least two partitions if the driver can."""
        raise NotImplementedError

    async def reopen(self, log: Log) -> Log | None:
        """A second, opened instance on the stored log of `log`, as another process would see it; None if that is impossible."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def fresh(self) -> AsyncGenerator[Log, None]:
        log = await self.open_log()
        try:
            yield log
        finally:
            await self.within(log.close())

    @contextlib.asynccontextmanager
    async def second(self, log: Log) -> AsyncGenerator[Log, None]:
        other = await self.reopen(log)
        if other is None:
            raise SkipTest(f"{log.name} cannot be opened twice")
        try:
            yield other
        finally:
            await self.within(other.close())

    async def within(self, awaitable: Awaitable[T]) -> T:
        timeout = asyncio.timeout(self.deadline_s)
        try:
            async with timeout:
                return await awaitable
        except TimeoutError:
            if not timeout.expired():
                raise
            raise AssertionError(f"nothing came within {self.deadline_s} s") from None

    async def eventually(self, what: str, holds: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.deadline_s
        while not holds():
            assert loop.time() < until, f"not within {self.deadline_s} s: {what}"
            await asyncio.sleep(0.01)

    async def take(self, reader: Reader, count: int, limit: int = 1000) -> list[Record]:
        """The next `count` records, read in portions of `limit`; fails if the reader returns more."""
        records: list[Record] = []

        async def collect() -> None:
            while len(records) < count:
                records.extend(await reader.read(limit, wait=1))

        await self.within(collect())
        assert len(records) == count, f"{len(records)} records where {count} were appended"
        return records

    async def contents(self, log: Log, partition: int = 0) -> list[Record]:
        """All records of the partition at the time of the call."""
        _, end = await log.bounds(partition)
        reader = log.reader(partition, 0)
        records: list[Record] = []

        async def collect() -> None:
            while reader.position < end:
                records.extend(await reader.read(wait=0.1))

        try:
            if end:
                await self.within(collect())
        finally:
            await reader.close()
        return [record for record in records if record.offset < end]

    async def refuses(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await self.within(call())
        except StepfoldError:
            return
        raise AssertionError(f"{what} succeeded where it should raise a StepfoldError")
