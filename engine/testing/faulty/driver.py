"""The driver of one process: the port, on a faulty log."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import ConfigError, LogUnavailable, PayloadTooLarge
from ...log import Ack, Entry, InboxRecord, Record
from ..processes import Process
from .faults import PATIENCE_S
from .group import FaultyMembership
from .inbox import FaultyInboxMembership
from .lanes import Lane, Write
from .reader import FaultyReader

if TYPE_CHECKING:
    from .log import FaultyLog, Partition

MAX_VALUE_BYTES = 1_000_000


class FaultyDriver:
    """A `Log`: the driver of one process on a faulty log."""

    max_value_bytes = MAX_VALUE_BYTES

    def __init__(self, log: FaultyLog, process: Process) -> None:
        self.log = log
        self.process = process
        self.name = self.url = log.name
        self.now = process.clock
        self._open = False
        self._lanes: dict[str | int, Lane] = {}
        self._members: list[FaultyMembership] = []

    @property
    def id(self) -> str:
        """As the port says."""
        return self.log.id

    @property
    def partitions(self) -> int:
        """As the port says."""
        return len(self.log.partitions)

    def later(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        """Call something later, as part of this process: a pause delays it."""
        self.log.loop.call_later(delay_s, call, *args, context=self.process.context)

    async def open(self) -> None:
        """As the port says."""
        self._open = True

    async def close(self) -> None:
        """As the port says."""
        if not self._open:
            return
        while not all(lane.idle for lane in self._lanes.values()):
            await asyncio.sleep(0.01)
        self._open = False
        for member in self._members[:]:
            await member.leave()
        for part in self.log.partitions:
            for reader in part.readers[:]:
                if reader.driver is self:
                    reader.end()

    def check_open(self) -> None:
        """Raise LogUnavailable if the driver is not open."""
        if not self._open:
            raise LogUnavailable(f"{self.name} is not open")

    def _part(self, partition: int) -> Partition:
        self.check_open()
        if not 0 <= partition < len(self.log.partitions):
            raise ConfigError(f"{self.name} has no partition {partition}")
        return self.log.partitions[partition]

    async def question(self) -> None:
        """Ask the broker and get no answer. Raises LogUnavailable."""
        await asyncio.sleep(self.log.random.random() * PATIENCE_S)
        raise LogUnavailable(f"{self.name} did not answer")

    async def ask(self) -> None:
        """Ask the broker and, unless a fault happens, get the answer. Raises LogUnavailable."""
        log = self.log
        self.check_open()
        if log.happens("unavailable") or (log.kafka and log.down_until > log.loop.time()):
            await self.question()
        await asyncio.sleep(log.delay_s())
        self.check_open()

    def _lane(self, purpose: str | int) -> Lane:
        lane = self._lanes.get(purpose)
        if lane is None:
            lane = self._lanes[purpose] = Lane(self)
        return lane

    def session_failed(self, lane: Lane) -> None:
        """Fail a lane, as a file fails one transaction. On kafka also fail the lanes of all partitions: an idempotent producer
        that gives up one batch gives up all that are under way."""
        reason = f"{self.name} did not acknowledge a write: it may or may not be durable"
        for purpose, other in self._lanes.items():
            if other is lane or (self.log.kafka and purpose != "other"):
                other.fail(reason)

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        """As the port says."""
        self._part(partition)
        for key, value in entries:
            if len(value) > MAX_VALUE_BYTES:
                raise PayloadTooLarge(f"a record of {key!r} has {len(value):,} bytes; the limit is {MAX_VALUE_BYTES:,}")
            if not key.isascii():
                key.encode()
        if not entries:
            return []
        log, process = self.log, self.process
        entries = list(entries)

        def write(count: int) -> list[Ack]:
            return log.put(partition, entries[:count], process.name, process.clock())

        done: asyncio.Future[list[Ack]] = log.loop.create_future()
        self._lane(partition).add(Write(len(entries), write, done))
        acks = await done
        for ack in acks:
            log.observer.acknowledged(partition, ack.offset, process.name)
        if log.happens("unknown-offset"):
            return [Ack(-1, ack.timestamp) for ack in acks]
        return acks

    async def bounds(self, partition: int) -> tuple[int, int]:
        """As the port says."""
        part = self._part(partition)
        await self.ask()
        return 0, part.end

    def reader(self, partition: int, offset: int) -> FaultyReader:
        """As the port says."""
        return FaultyReader(self, partition, offset)

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        """As the port says."""
        part = self._part(partition)
        wanted = dict.fromkeys(keys)
        await self.ask()
        found = sorted(record for key in wanted for record in part.by_key.get(key, ()) if record.offset >= start)
        for record in found:
            self.log.observer.read(partition, record, self.process.name)
        await asyncio.sleep(self.log.delay_s())
        return found

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """As the port says."""
        await self.ask()
        self.log.dead_letters.append((record, reason))

    async def join(self, member: str) -> FaultyMembership:
        """As the port says."""
        await self.ask()
        kind = FaultyInboxMembership if self.log.kafka else FaultyMembership
        joined = kind(self.log.group, self, member)
        self._members.append(joined)
        return joined

    def left(self, member: FaultyMembership) -> None:
        """Forget a member that has left."""
        if member in self._members:
            self._members.remove(member)

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """As the port says."""
        self._part(partition)
        if not items:
            return
        log = self.log
        pairs = list(items.items())
        if not any(items.values()):
            pairs.sort()  # the caller may take the keys to delete from a set, whose order differs between processes

        def write(count: int) -> None:
            log.put_checkpoint(partition, dict(pairs[:count]))

        done: asyncio.Future[None] = log.loop.create_future()
        self._lane("other").add(Write(len(pairs), write, done))
        await done

    async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        """As the port says. Does not read items that are written meanwhile; an item that they replace may be missing."""
        part = self._part(partition)
        await self.ask()
        position, end = 0, part.checkpoints_end
        snapshot = None if self.log.kafka else part.checkpoints
        while position < end:
            stored = part.checkpoints if snapshot is None else snapshot
            first = bisect_left(stored, (position,))
            entries = [entry for entry in stored[first : first + self.log.random.choice((3, 50))] if entry[0] < end]
            if not entries:
                return
            position = entries[-1][0] + 1
            yield {key: value for _, key, value in entries}
            await self.ask()

    def step_ext(self, step: Any) -> NoReturn:
        """Raises ConfigError: this driver adds nothing."""
        raise ConfigError(f"{self.name} adds nothing to step.ext")

    def ctx_ext(self, run_id: str) -> None:
        """None: this driver adds nothing."""
