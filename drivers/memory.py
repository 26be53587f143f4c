"""The log in this process's memory: one partition, lost when the process ends, otherwise like every other log.

With `memory://` each driver has a log of its own. With `memory://name` all drivers of that name in the process share one log, as
long as the process lives. The first of their members owns the partition, the others wait. A log is open on one event loop at a
time. Drivers of a loop that has ended count as closed.

It uses no threads, only primitives of the event loop, and takes its clock as a parameter. So under a virtual-time loop it is as
deterministic as its users.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack, Entry, InboxRecord, Record, ack_of, record_of

from ._local import MAX_VALUE_BYTES, LocalReader, LocalTail, NoExtras, check_entries, clock_of, wall_clock_ms

APPENDS_PER_TURN = 64
"""One append in this many yields to other tasks; an append itself never waits."""


class _Store:
    """The log that drivers of one name share. The offset of a record is its index."""

    def __init__(self, log_id: str) -> None:
        self.id = log_id
        self.records: list[Record] = []
        self.timestamp = 0
        self.checkpoints: dict[str, bytes] = {}
        self.members: list[MemoryMembership] = []
        self.tails: list[LocalTail] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self._by_key: dict[str, list[Record]] = defaultdict(list)
        self._indexed = 0

    def of_key(self, key: str) -> Sequence[Record]:
        """The records of one key. Adds new records to the index first, so that appends need not."""
        for record in self.records[self._indexed :]:
            self._by_key[record.key].append(record)
        self._indexed = len(self.records)
        return self._by_key.get(key, ())


_stores: dict[str, _Store] = {}


class MemoryDriver:
    """`Log` in memory.

    `clock` returns ms since 1970. Without it the driver uses the clock of the event loop in which it is opened, if its time is
    virtual, else the machine's. Timestamps never go back, even if the clock does. `log_id` is the `id` of a new log; a random one
    by default.
    """

    partitions = 1
    max_value_bytes = MAX_VALUE_BYTES

    def __init__(self, name: str = "", *, clock: Callable[[], int] | None = None, log_id: str | None = None) -> None:
        self.name = self.url = f"memory://{name}"
        self._clock = clock or wall_clock_ms
        self._has_own_clock = clock is not None
        store = _stores.get(name) or _Store(log_id or uuid.uuid4().hex)
        self._store = _stores.setdefault(name, store) if name else store
        self._tail: LocalTail | None = None
        self._members: list[MemoryMembership] = []
        self._appends = 0

    @classmethod
    def from_url(cls, url: str) -> MemoryDriver:
        """Parses `memory://` or `memory://name`. Raises ConfigError."""
        name = url.removeprefix("memory://")
        if name == url or any(mark in name for mark in "/?#"):
            raise ConfigError(f"{url!r} is not a memory log: memory://, or memory://name for one that is shared in the process")
        return cls(name)

    @property
    def id(self) -> str:
        return self._store.id

    @property
    def needs_local_worker(self) -> bool:
        """Whether no worker has joined. Only workers in this process can."""
        return not self._store.members

    def now(self) -> int:
        return self._clock()

    async def open(self) -> None:
        store, loop = self._store, asyncio.get_running_loop()
        if store.loop is not None and store.loop.is_closed():  # its loop ended without closing it
            store.loop = None
            store.tails.clear()
            store.members.clear()
        if store.loop not in (None, loop):
            raise ConfigError(f"{self.name} is open on another event loop; use it on one, or use sqlite:///")
        if self._tail in store.tails:
            return
        store.loop = loop
        if not self._has_own_clock:
            self._clock = clock_of(loop)
        self._tail = LocalTail(loop, len(store.records))
        store.tails.append(self._tail)

    async def close(self) -> None:
        tail, self._tail = self._tail, None
        if tail is None or tail not in self._store.tails:
            return
        self._store.tails.remove(tail)
        if not self._store.tails:
            self._store.loop = None
        tail.close(f"{self.name} was closed")
        for member in self._members[:]:
            await member.leave()

    def _opened(self, partition: int) -> LocalTail:
        if self._tail is None:
            raise LogUnavailable(f"{self.name} is not open; open it, or enter its client, first")
        if partition != 0:
            raise ConfigError(f"{self.name} has one partition, 0; there is no partition {partition}")
        return self._tail

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        self._opened(partition)
        check_entries(self.name, entries)
        store = self._store
        records = store.records
        timestamp = store.timestamp = max(self._clock(), store.timestamp)
        acks: list[Ack] = []
        for key, value in entries:
            offset = len(records)
            records.append(record_of((offset, timestamp, key, value)))
            acks.append(ack_of((offset, timestamp)))
        for tail in store.tails:
            tail.advance(len(records))
        self._appends += 1
        if self._appends % APPENDS_PER_TURN == 0:
            await asyncio.sleep(0)
        return acks

    async def bounds(self, partition: int) -> tuple[int, int]:
        self._opened(partition)
        return 0, len(self._store.records)

    def reader(self, partition: int, offset: int) -> LocalReader:
        return LocalReader(self._read, partition, offset)

    async def _read(self, reader: LocalReader, limit: int, wait: float | None) -> Sequence[Record]:
        tail = self._opened(reader.partition)
        if wait == 0 or reader.position < tail.end:
            await asyncio.sleep(0)  # tasks that read in a loop must let others run
        else:
            await tail.beyond(reader, wait)
        records = self._store.records[reader.position : reader.position + limit]
        reader.position += len(records)
        return records

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        self._opened(partition)
        return sorted(record for key in set(keys) for record in self._store.of_key(key) if record.offset >= start)

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """Does nothing: without an inbox there is no producer to inform, and the fold's refusal is logged."""

    async def join(self, member: str) -> MemoryMembership:
        self._opened(0)
        return MemoryMembership(member, self._store.members, self._members)

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        self._opened(partition)
        for key, value in items.items():
            if value is None:
                self._store.checkpoints.pop(key, None)
            else:
                self._store.checkpoints[key] = value

    async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        self._opened(partition)
        yield dict(self._store.checkpoints)

    def step_ext(self, step: Any) -> NoExtras:
        return NoExtras("memory://", "step.ext")

    def ctx_ext(self, run_id: str) -> NoExtras:
        return NoExtras("memory://", "ctx.ext")


class MemoryMembership:
    """A `Membership` in the queue for the one partition: the first in `members` that has not retired owns it."""

    def __init__(self, member: str, members: list[MemoryMembership], of_driver: list[MemoryMembership]) -> None:
        self._member = member
        self._queues = (members, of_driver)
        self._answered: frozenset[int] | None = None
        self._retired = False
        self._changed = asyncio.Event()
        for queue in self._queues:
            queue.append(self)

    async def assigned(self) -> frozenset[int]:
        members, _ = self._queues
        while self in members:
            first = next((member for member in members if not member._retired), None)
            assignment = frozenset({0} if first is self else ())
            if assignment != self._answered:
                self._answered = assignment
                return assignment
            self._changed.clear()
            await self._changed.wait()
        raise LogUnavailable(f"member {self._member!r} has left; join again")

    async def is_live(self, member: str) -> bool:
        members, _ = self._queues
        return any(one._member == member for one in members)

    async def retire(self) -> None:
        self._retired = True
        self._tell_all()

    async def leave(self) -> None:
        members, of_driver = self._queues
        if self in members:
            members.remove(self)
            of_driver.remove(self)
            self._tell_all()

    def _tell_all(self) -> None:
        members, _ = self._queues
        for member in (self, *members):
            member._changed.set()
