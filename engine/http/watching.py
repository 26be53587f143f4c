"""Wakes those who wait for news of runs: all waiters of a partition share one reader. A waiter has a flag, not a queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from ..errors import StepfoldError
from ..log import CLAIM_KEY, Log

logger = logging.getLogger("stepfold.http")

READ_RECORDS = 1000
RETRY_S = 1.0


class Watcher:
    """Tells whether there were records of one run, or claims of its partition, since the last `wait`."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._news = asyncio.Event()

    def mark(self) -> None:
        self._news.set()

    async def wait(self, limit_s: float) -> bool:
        """Wait for news, and clear it; False if there was none within `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        came = self._news.is_set()
        self._news.clear()
        return came


class Watching:
    """The watchers of one log. A partition has a reader while it has watchers."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._watchers: dict[int, dict[Watcher, None]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def watch(self, run_id: str, partition: int) -> AsyncGenerator[Watcher]:
        """A block with a watcher of a run, which notices every record that is appended after the block has begun."""
        watcher = Watcher(run_id)
        try:
            self._watchers.setdefault(partition, {})[watcher] = None
            if partition not in self._tasks:
                _, end = await self._log.bounds(partition)
                if partition not in self._tasks:
                    self._tasks[partition] = asyncio.create_task(self._read(partition, end))
            yield watcher
        finally:
            watchers = self._watchers.get(partition, {})
            watchers.pop(watcher, None)
            if not watchers and partition in self._tasks:
                self._tasks.pop(partition).cancel()

    async def _read(self, partition: int, position: int) -> None:
        while True:
            try:
                reader = self._log.reader(partition, position)
                try:
                    while True:
                        for record in await reader.read(READ_RECORDS, None):
                            self._tell(partition, record.key)
                finally:
                    await reader.close()
            except StepfoldError as error:
                logger.warning("partition %s: %s; trying again", partition, error)
                await asyncio.sleep(RETRY_S)
            with contextlib.suppress(StepfoldError):
                _, position = await self._log.bounds(partition)
            self._tell(partition, CLAIM_KEY)

    def _tell(self, partition: int, key: str) -> None:
        for watcher in self._watchers.get(partition, ()):
            if key in (watcher.run_id, CLAIM_KEY):
                watcher.mark()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
