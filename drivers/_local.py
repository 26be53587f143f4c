"""Parts that the drivers for one machine share: readers that wait for records, the check of entries, and an `ext` without
methods.

This module does not know how records are stored. It runs on the event loop only and waits by the loop's clock, so it works under
virtual time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from stepfold.errors import ConfigError, LogUnavailable, PayloadTooLarge, StepfoldError
from stepfold.log import Entry, Record

MAX_VALUE_BYTES = 1_000_000
"""Room for a payload of 900 kB and the record around it."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """A clock in ms since 1970: the loop's if its time is virtual, else the machine's."""
    return getattr(loop, "clock", wall_clock_ms)


def check_real_time(loop: asyncio.AbstractEventLoop, log_name: str) -> None:
    """Raises ConfigError if the loop's time is virtual: other threads and processes need real time."""
    if hasattr(loop, "clock"):
        raise ConfigError(f"{log_name} needs real time, and this event loop's is virtual: use memory:// in run_virtual")


def check_entries(log_name: str, entries: Sequence[Entry]) -> None:
    """Raises PayloadTooLarge for a value above MAX_VALUE_BYTES, ValueError for a key that is not valid UTF-8."""
    for key, value in entries:
        if len(value) > MAX_VALUE_BYTES:
            raise PayloadTooLarge(
                f"a record of {key!r} has {len(value):,} bytes and {log_name} takes {MAX_VALUE_BYTES:,}; "
                "store the payload elsewhere and pass a reference to it"
            )
        if not key.isascii():
            key.encode()


class NoExtras:
    """`step.ext` and `ctx.ext` of a driver that adds nothing: every attribute raises ConfigError."""

    def __init__(self, scheme: str, place: str) -> None:
        self._says = f"{scheme} adds nothing to {place}"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(f"{self._says}, so there is no {name!r}; it belongs to another driver (kafka:// adds publish)")


class LocalReader:
    """The port's `Reader`. It holds a position; the driver gives the function that reads there."""

    def __init__(
        self, read: Callable[[LocalReader, int, float | None], Awaitable[Sequence[Record]]], partition: int, offset: int
    ) -> None:
        self.partition = partition
        self.position = offset
        # which copy of the log it reads (an older copy may replace a file); None: not known yet
        self.copy: int | None = None
        self._read = read

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        return await self._read(self, limit, wait)

    def seek(self, offset: int) -> None:
        """Skip records below `offset`. May be called while a read waits."""
        self.position = max(self.position, offset)

    async def close(self) -> None:
        pass


class LocalTail:
    """The end of one partition that this process knows, and the reads that wait for records there.

    A waiting read wakes in the turn of the loop after the news, and only if its position is still below the end: by then the
    appending task has its acknowledgement and may have moved its reader past its own records.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, end: int) -> None:
        self.end = end
        self._loop = loop
        self._waiting: dict[asyncio.Future[StepfoldError | None], LocalReader] = {}
        self._waking = False
        self._closed: LogUnavailable | None = None

    def advance(self, end: int) -> None:
        if end > self.end:
            self.end = end
            if self._waiting and not self._waking:
                self._waking = True
                self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        for future, reader in self._waiting.items():
            if reader.position < self.end:
                _settle(future)

    def fail(self, error: StepfoldError) -> None:
        """Raise the error in all waiting reads."""
        for future in self._waiting:
            _settle(future, error)

    def close(self, reason: str) -> None:
        """Raise LogUnavailable in all waiting and later reads."""
        self._closed = LogUnavailable(reason)
        self.fail(self._closed)

    async def beyond(self, reader: LocalReader, wait: float | None) -> None:
        """Wait until the end is beyond the reader's position, at most `wait` seconds (None: without limit)."""
        until = None if wait is None else self._loop.time() + wait
        failure = self._closed
        while failure is None and self.end <= reader.position and (until is None or self._loop.time() < until):
            future: asyncio.Future[StepfoldError | None] = self._loop.create_future()
            alarm = None if until is None else self._loop.call_at(until, _settle, future)
            self._waiting[future] = reader
            try:
                failure = await future
            finally:
                del self._waiting[future]
                if alarm is not None:
                    alarm.cancel()
        if failure is not None:
            raise copy_of(failure)


def _settle(future: asyncio.Future[StepfoldError | None], failure: StepfoldError | None = None) -> None:
    if not future.done():
        future.set_result(failure)


def copy_of(error: StepfoldError) -> StepfoldError:
    """A copy of the error: an exception that several tasks raise would collect all their tracebacks."""
    return type(error)(*error.args)
