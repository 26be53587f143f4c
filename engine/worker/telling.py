"""Reports refusals: requests that the fold finds void, except repeats, go to the dead letters with the reason.

Only requests from an inbox are reported: their producers cannot read the outcome. Delivery is at least once: a checkpoint
covers a refusal only after it was reported, so the next owner finds the others again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from ..core.fold import PartitionState
from ..errors import LogUnavailable
from ..log import Log
from ..values.backoff import Pauses
from .inbox import as_found
from .observer import Observer

logger = logging.getLogger("stepfold.worker")

RETRY_S = (0.5, 30.0)


class Telling:
    """The refusals of one partition that are not yet reported."""

    def __init__(self, log: Log, observer: Observer | None = None) -> None:
        self._log = log
        self._observer = observer
        self._told = 0
        self._waiting: deque[tuple[dict[str, Any], str]] = deque()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()

    def begin(self, told: int) -> None:
        """Begin with a loaded state. Refusals of records below `told` were reported before."""
        self._waiting.clear()
        self._told = told

    def note(self, state: PartitionState, offset: int) -> None:
        """Keep the refusals of the record at `offset` until they are reported."""
        for event, reason in state.refused if offset >= self._told else ():
            where = {"run_id": event["run_id"], "request": event["request"]}
            logger.warning("%s: %s is refused: %s", self._log.name, event["type"], reason, extra=where)
            if "from" in event:
                self._waiting.append((event, reason))
                self._news.set()
        state.refused.clear()

    async def run(self) -> None:
        """Report refusals until cancelled."""
        pause = Pauses(*RETRY_S)
        while True:
            await self._news.wait()
            self._news.clear()
            if await self.all():
                pause.reset()
                continue
            self._news.set()
            await asyncio.sleep(pause.next_s())

    async def all(self) -> bool:
        """Report all waiting refusals. Returns False if the log is unavailable; the rest then waits."""
        async with self._lock:
            while self._waiting:
                event, reason = self._waiting[0]
                try:
                    await self._log.dead_letter(as_found(event), reason)
                except LogUnavailable as error:
                    logger.warning("%s: refused requests could not be written to the dead letters: %s", self._log.name, error)
                    return False
                self._waiting.popleft()
                if self._observer is not None:
                    self._observer.noted("dead-letter")
        return True
