"""When the owner writes a checkpoint: after so many records, or so long after the first of them, and as it leaves."""

from __future__ import annotations

import asyncio
import logging

from ...core.fold import PartitionState
from ...errors import PayloadTooLarge
from ..checkpoint import Checkpoint
from ..telling import Telling
from .ownership import Ownership

logger = logging.getLogger("stepfold.worker")


class Checkpointing:
    """Writes the checkpoints of one partition, one at a time, and none that covers a refusal which is not yet reported."""

    def __init__(self, ownership: Ownership, checkpoint: Checkpoint, told: Telling) -> None:
        self.changes = 0  # records and other changes since the last checkpoint began
        self.written_at: int | None = None  # when this worker wrote the last one, ms since 1970; None: it has not
        self._ownership = ownership
        self._checkpoint = checkpoint
        self._told = told
        self._settings = ownership.worker.settings
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._lock = asyncio.Lock()

    def schedule(self) -> bool:
        """Note that records were folded, and schedule the next checkpoint. Returns whether they are the first since the last
        one."""
        first = self._timer is None
        if first:
            self._timer = self._ownership.loop.call_later(self._settings.checkpoint_s, self._due.set)
        if self.changes >= self._settings.checkpoint_records:
            self._due.set()
        return first

    def stop(self) -> None:
        """Stop writing checkpoints by time, until the next `schedule`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def run(self, state: PartitionState, caught_up: asyncio.Event) -> None:
        """Write checkpoints when they are due, from the end of recovery on, until cancelled. Raises LogUnavailable."""
        await caught_up.wait()
        while True:
            await self._due.wait()
            self._due.clear()
            if self.changes:
                if self._checkpoint.foreign_writes_possible:
                    await self._checkpoint.look_again(state, self._ownership.claim)
                await self.write(state)

    async def write(self, state: PartitionState) -> None:
        """Write a checkpoint now, unless the last one may still arrive or a refusal cannot be reported."""
        async with self._lock:
            await self._write(state)

    async def _write(self, state: PartitionState) -> None:
        if self._checkpoint.in_doubt == self._ownership.claim or not await self._told.all():
            return
        self.changes = 0
        self.stop()
        self._checkpoint.begin(state, self._ownership.claim)
        while self._checkpoint.pack_some(state):
            await asyncio.sleep(0)
        try:
            await self._checkpoint.commit()
            self.written_at = self._ownership.log.now()
            if self._ownership.worker.observer is not None:
                self._ownership.worker.observer.noted("checkpoint")
        except PayloadTooLarge as error:
            log, partition = self._ownership.log, self._ownership.partition
            logger.warning("%s partition %d: no checkpoint was written: %s", log.name, partition, error)
