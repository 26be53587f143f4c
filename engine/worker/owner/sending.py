"""Sends the messages of a partition's outbox: appends them to their target partitions, each target by itself.

For one target the messages go in the order of their causes, and nothing goes before what failed. A cause is folded, so durable,
before its messages are sent. A `delivered` says later what the targets hold; until it counts, the next owner sends the rest
again, which changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ...core.messages import OUTBOX_KEY, Owed, Position
from ...errors import LogUnavailable, PayloadTooLarge
from ...events import FORMAT, encode
from ...log import Entry, EntryTooLarge
from ...values.backoff import Pauses
from .ownership import Ownership

logger = logging.getLogger("stepfold.worker")

SENT_TOGETHER = 500
SETTLE_S = 1.0
"""How long after an append `delivered` says so, at most."""
RETRY_S = (0.2, 10.0)

Guard = Callable[..., Coroutine[Any, Any, None]]


class Sending:
    """The messages that one owner sends. `guard` runs a part of the owner: an error in it ends the owner. `append` puts an entry
    into the owner's append queue.
    """

    def __init__(self, ownership: Ownership, append: Callable[[Entry], None], guard: Guard) -> None:
        self._ownership = ownership
        self._log = ownership.log
        self._append = append
        self._guard = guard
        self._sent: dict[int, Position] = {}  # by target: the last message that it holds
        self._settled: dict[int, int] = {}  # by target: the offset that the last `delivered` named
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Send what is in the outbox and not yet sent."""
        state = self._ownership.state
        assert state is not None
        for target in state.outbox.targets:
            if target not in self._tasks and self._next(target, 1):
                name = f"stepfold-send-{self._ownership.partition}-{target}"
                self._tasks[target] = asyncio.create_task(self._guard(self._send, target), name=name)

    def settle(self) -> None:
        """Record what the targets hold, if that is news."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._ownership.active:
            return
        through: dict[int, int] = {}
        for target, (offset, _) in self._sent.items():
            following = self._next(target, 1)
            whole = offset - 1 if following and following[0].offset == offset else offset
            if whole > self._settled.get(target, -1):
                through[target] = whole
        if through:
            self._settled |= through
            event = {
                "type": "delivered",
                "v": FORMAT,
                "at": self._log.now(),
                "claim": self._ownership.claim,
                "through": {f"{target}": offset for target, offset in sorted(through.items())},
            }
            self._append(Entry(OUTBOX_KEY, encode(event)))

    def stop(self) -> list[asyncio.Task[None]]:
        """The ownership has ended: send nothing more. Returns the tasks, which are being cancelled."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._tasks.clear()
        self._sent.clear()
        self._settled.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return tasks

    def _next(self, target: int, limit: int = SENT_TOGETHER) -> list[Owed]:
        state = self._ownership.state
        assert state is not None
        return state.outbox.above(target, self._sent.get(target), limit)

    async def _send(self, target: int) -> None:
        """Send all that is owed to one target."""
        pause = Pauses(*RETRY_S)
        try:
            while messages := self._next(target):
                if await self._sent_all(target, messages):
                    pause.reset()
                else:
                    await asyncio.sleep(pause.next_s())
        finally:
            self._tasks.pop(target, None)

    async def _sent_all(self, target: int, messages: list[Owed]) -> bool:
        """Append messages in one go. Returns False if some must be sent again: all from the first that may not be there."""
        entries = [Entry(message.event["run_id"], encode(message.event)) for message in messages]
        try:
            await self._log.append(target, entries)
        except EntryTooLarge as error:
            held = len(error.appended)
            if held:
                self._note(target, messages[held - 1])
            self._tell(target, f"message to run {entries[held].key!r}: {error}")
        except (LogUnavailable, PayloadTooLarge) as error:
            self._tell(target, str(error))
        else:
            self._note(target, messages[-1])
            return True
        return False

    def _note(self, target: int, last: Owed) -> None:
        self._sent[target] = last.position
        if self._timer is None and self._ownership.active:
            self._timer = self._ownership.loop.call_later(SETTLE_S, self.settle)

    def _tell(self, target: int, why: str) -> None:
        name, source = self._log.name, self._ownership.partition
        logger.warning("%s partition %d: messages to partition %d wait: %s; trying again", name, source, target, why)
