"""Whoever asked in vain is told: what the fold finds void, and no repeat, goes to the dead letters with the reason.

Only what came from an inbox: its producer cannot read back what became of it. The owner tells, at least once: its checkpoints
cover nothing that was not told, so whoever comes next finds it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from ..core.fold import PartitionState
from ..errors import LogUnavailable
from ..log import Log
from ..values.backoff import Backoff
from .inbox import as_found

logger = logging.getLogger("stepfold.worker")

RETRY_S = (0.5, 30.0)


class Telling:
    """What one partition has refused and nobody has been told of yet."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._told = 0
        self._waiting: deque[tuple[dict[str, Any], str]] = deque()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()

    def begin(self, told: int) -> None:
        """The state was loaded; of all below `told` somebody was told before."""
        self._waiting.clear()
        self._told = told

    def note(self, state: PartitionState, offset: int) -> None:
        """Take over what the record at an offset has led to."""
        for event, reason in state.refused if offset >= self._told else ():
            where = {"run_id": event["run_id"], "request": event["request"]}
            logger.warning("%s: %s is refused: %s", self._log.name, event["type"], reason, extra=where)
            if "from" in event:
                self._waiting.append((event, reason))
                self._news.set()
        state.refused.clear()

    async def run(self) -> None:
        """Tell, for ever."""
        pause = Backoff(*RETRY_S)
        while True:
            await self._news.wait()
            self._news.clear()
            if await self.all():
                pause.reset()
                continue
            self._news.set()
            await asyncio.sleep(pause.next_s())

    async def all(self) -> bool:
        """Tell whoever has not been told; whether that went well."""
        async with self._lock:
            while self._waiting:
                event, reason = self._waiting[0]
                try:
                    await self._log.dead_letter(as_found(event), reason)
                except LogUnavailable as error:
                    logger.warning("%s: what was refused could not be put into the dead letters: %s", self._log.name, error)
                    return False
                self._waiting.popleft()
        return True
