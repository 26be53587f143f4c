"""A log in memory that fails as real logs do, within the promises of `stepfold.log`.

`FaultyLog` is the stored log with its broker or file; `driver(process)` connects one process to it. The log has one of two
characters: "kafka" (an inbox, gaps in offsets, timestamps that step back, writes that land long after they were given up, a
group that takes partitions from a silent member) or "sqlite" (dense offsets, all or nothing, nothing late). All delays are
virtual and all chance comes from `random`, so a seed repeats a run. `rates` gives the probability of each fault of `FAULTS`;
without rates it is a plain log.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, Literal, NoReturn

from ..errors import ConfigError, LogUnavailable, PayloadTooLarge
from ..log import Ack, Entry, InboxRecord, Record
from .processes import Process, ProcessLoop

FAULTS = {
    "ack-lost": "a write is durable, but its writer is told that the log is unavailable",
    "refused": "a write fails and leaves nothing behind: no leader, or a busy file",
    "torn": "a write fails after a part of it became durable (kafka)",
    "late": "a write that was given up becomes durable long afterwards (kafka)",
    "slow": "a write takes seconds",
    "crash": "the process dies during a write",
    "unknown-offset": "an acknowledgement does not give the record's offset (kafka)",
    "gap": "the log skips offsets (kafka)",
    "unavailable": "a read request is not answered",
    "prefix": "a read returns fewer records than there are",
    "compacted": "the topic of the checkpoints is compacted (kafka)",
}
MAX_VALUE_BYTES = 1_000_000
PATIENCE_S = 10.0
SESSION_S = 10.0
LATE_S = 120.0
COORDINATE_S = 1.0
_KAFKA_ONLY = frozenset({"torn", "late", "unknown-offset", "gap", "compacted"})
_WRITES = ("ack-lost", "refused", "late", "slow", "crash")

Character = Literal["kafka", "sqlite"]
Checkpoints = list[tuple[int, str, bytes | None]]
"""A list of (offset, key, value)."""


class Watch:
    """An observer of a log. Override the methods of interest."""

    def appended(self, partition: int, record: Record, writer: str) -> None:
        """A record became durable."""

    def acknowledged(self, partition: int, offset: int, writer: str) -> None:
        """The writer got the acknowledgement of a record."""

    def read(self, partition: int, record: Record, reader: str) -> None:
        """A reader got a record."""

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Items became durable beside the partition."""

    def crash(self, process: Process) -> None:
        """The fault "crash" has happened: kill the process."""
        process.kill()


class _Partition:
    """The stored data of one partition."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: list[Record] = []
        self.offsets: list[int] = []
        self.by_key: dict[str, list[Record]] = {}
        self.end = 0
        self.put_back_to = 0  # the end after the last `put_back`
        self.timestamp = 0
        self.checkpoints: Checkpoints = []  # a topic
        self.checkpoints_end = 0
        self.readers: list[FaultyReader] = []  # readers that wait for records
        self.inbox: list[InboxRecord] = []
        self.inbox_end = 0  # the offset of the next record; ends of transactions take offsets, too
        self.routed = 0  # the committed position in `inbox`, an index
        self.given_up: set[int] = set()  # indices of records whose transactions were aborted
        self.open: list[Transaction] = []


class Transaction:
    """A foreign producer's transaction on the inbox. Its records count when it commits; nobody reads past an open transaction."""

    def __init__(self, log: FaultyLog) -> None:
        self._log = log
        self._places: dict[int, list[int]] = {}  # by partition: indices

    def put(self, partition: int, key: bytes | None, value: bytes | None) -> str:
        """Put a record into the inbox; returns its place."""
        part = self._log.partitions[partition]
        if partition not in self._places:
            part.open.append(self)
        self._places.setdefault(partition, []).append(len(part.inbox))
        return self._log.put_inbox(partition, key, value)

    def end(self, commit: bool) -> None:
        """Commit or abort the transaction."""
        for partition, places in self._places.items():
            part = self._log.partitions[partition]
            part.open.remove(self)
            part.inbox_end += 1
            if not commit:
                part.given_up.update(places)
        self._log.group.inbox_news()

    def begins(self, partition: int) -> int:
        """The index of its first record in the partition's inbox."""
        return self._places[partition][0]


class FaultyLog:
    """The stored log. `watch` observes everything; `counts` counts the faults that happened."""

    def __init__(
        self,
        loop: ProcessLoop,
        random: Random,
        *,
        character: Character = "kafka",
        partitions: int = 2,
        rates: Mapping[str, float] | None = None,
        watch: Watch | None = None,
        name: str = "faulty",
    ) -> None:
        self.loop = loop
        self.random = random
        self.kafka = character == "kafka"
        self.name = f"{name}://{character}"
        self.id = f"{random.getrandbits(128):032x}"
        self.partitions = [_Partition(number) for number in range(partitions)]
        self.rates: dict[str, float] = {}
        self.watch = watch or Watch()
        self.counts: Counter[str] = Counter()
        self.clock_ms = 0  # the error of the broker's clock
        self.times_put_back = 0
        self.down_until = 0.0  # until then kafka answers nobody (an outage), and sqlite refuses writes (a full disk)
        self.dead_letters: list[tuple[InboxRecord, str]] = []
        self.context = contextvars.Context()  # empty, because the broker belongs to no process
        self.group = _Group(self)
        self.set_rates(rates or {})

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these probabilities of faults from now on."""
        self.rates = {kind: rate for kind, rate in rates.items() if self.kafka or kind not in _KAFKA_ONLY}

    def driver(self, process: Process) -> FaultyDriver:
        """The driver of one process."""
        return FaultyDriver(self, process)

    def happens(self, kind: str) -> bool:
        """Decide whether a fault happens now, and count it."""
        rate = self.rates.get(kind)
        if rate and self.random.random() < rate:
            self.counts[kind] += 1
            return True
        return False

    def delay_s(self) -> float:
        """A random travel time of a message, in seconds."""
        return (0.0005 if self.kafka else 0.0001) * (1 + self.random.randrange(4))

    def later(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        """Call something later, on the broker's side."""
        self.loop.call_later(delay_s, call, *args, context=self.context)

    def put(self, partition: int, entries: Sequence[Entry], writer: str, clock_ms: int) -> list[Ack]:
        """Make entries durable. `clock_ms`: the writer's clock, which a file uses for timestamps."""
        part = self.partitions[partition]
        if self.kafka:
            timestamp = self.loop.clock() + self.clock_ms
            if self.happens("gap"):
                part.end += 1 + self.random.randrange(3)
        else:
            timestamp = max(clock_ms, part.timestamp)
        part.timestamp = timestamp
        acks: list[Ack] = []
        for key, value in entries:
            offset = part.end
            record = Record._make((offset, timestamp, key, value))
            part.end = offset + 1
            part.records.append(record)
            part.offsets.append(offset)
            of_key = part.by_key.get(key)
            if of_key is None:
                part.by_key[key] = [record]
            else:
                of_key.append(record)
            acks.append(Ack._make((offset, timestamp)))
            self.watch.appended(partition, record, writer)
        for reader in part.readers:
            reader.news()
        return acks

    def put_checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Make items durable beside the partition."""
        part = self.partitions[partition]
        for key, value in items.items():
            part.checkpoints.append((part.checkpoints_end, key, value))
            part.checkpoints_end += 1
        if not self.kafka or self.happens("compacted"):
            last = {key: (offset, key, value) for offset, key, value in part.checkpoints}
            part.checkpoints = sorted(entry for entry in last.values() if entry[2] is not None)
        self.watch.checkpoint(partition, items)

    def put_inbox(
        self, partition: int, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...] = ()
    ) -> str:
        """Put a record of a foreign producer into the inbox; returns its place."""
        part = self.partitions[partition]
        place = f"{self.name}.inbox/{partition}/{part.inbox_end}"
        part.inbox_end += 1
        part.inbox.append(InboxRecord(place, self.loop.clock() + self.clock_ms, key, value, headers, inbox=f"inbox-of-{self.id}"))
        self.group.inbox_news()
        return place

    def put_back(self, ends: Sequence[int], checkpoints: Sequence[Checkpoints] | None = None) -> None:
        """Cut each partition at its offset in `ends`, as a restore from an older copy does, or the loss of a log's end.

        `checkpoints`: the new items beside each partition; None keeps the present ones. Writes under way are lost.
        """
        self.times_put_back += 1
        for part, end in zip(self.partitions, ends, strict=True):
            part.end = part.put_back_to = end
            left = bisect_left(part.offsets, end)
            del part.records[left:], part.offsets[left:]
            part.by_key.clear()
            for record in part.records:
                part.by_key.setdefault(record.key, []).append(record)
            part.timestamp = part.records[-1].timestamp if part.records else 0
            if checkpoints is not None:
                part.checkpoints = list(checkpoints[part.number])
                part.checkpoints_end = part.checkpoints[-1][0] + 1 if part.checkpoints else 0
            for reader in part.readers:
                reader.news()


class _Call:
    """One append or one checkpoint under way. `write(n)` makes the first `n` of its `count` entries durable."""

    __slots__ = ("count", "done", "write")

    def __init__(self, count: int, write: Callable[[int], Any], done: asyncio.Future[Any]) -> None:
        self.count = count
        self.write = write
        self.done = done


class _Lane:
    """The writes of one process to one place: a partition, or the checkpoints. While a batch is under way, the next one
    gathers; a failure fails both."""

    def __init__(self, driver: FaultyDriver) -> None:
        self._driver = driver
        self._waiting: list[_Call] = []
        self._sent: list[_Call] | None = None
        self._held = False

    @property
    def idle(self) -> bool:
        return not self._waiting and self._sent is None

    def add(self, call: _Call) -> None:
        self._waiting.append(call)
        if self._sent is None:
            self._send()

    def _send(self) -> None:
        if self._driver.process.stopped:  # stopped in the middle of its turn: send nothing before it goes on, if ever
            if not self._held:
                self._held = True
                self._driver.later(0, self._go_on)
            return
        log = self._driver.log
        batch = self._sent = self._waiting
        self._waiting = []
        delay_s = log.delay_s()
        down_s = log.down_until - log.loop.time()
        fault = "refused" if down_s > 0 else next((kind for kind in _WRITES if log.happens(kind)), None)
        if fault is None:
            log.later(delay_s, self._land, batch, True, log.times_put_back)
        elif fault == "slow":
            log.later(delay_s + log.random.random() * PATIENCE_S * 0.9, self._land, batch, True, log.times_put_back)
        elif fault == "crash":
            log.later(delay_s, self._crash, batch)
        else:
            if fault == "ack-lost":
                log.later(delay_s, self._land, batch, False, log.times_put_back)
            elif fault == "late":
                log.later(PATIENCE_S + log.random.random() * LATE_S, self._land, batch, False, log.times_put_back)
            self._driver.later(PATIENCE_S if log.kafka else delay_s, self._fail, batch)

    def _go_on(self) -> None:
        self._held = False
        if self._waiting and self._sent is None:
            self._send()

    def _crash(self, batch: list[_Call]) -> None:
        log = self._driver.log
        if log.random.random() < 0.5:
            self._land(batch, False, log.times_put_back)
        log.watch.crash(self._driver.process)

    def _land(self, batch: list[_Call], acknowledged: bool, sent_to: int) -> None:
        """The batch arrives. `sent_to`: `times_put_back` when it was sent."""
        driver = self._driver
        log = driver.log
        if log.times_put_back != sent_to:
            driver.later(0, self._fail, batch)
            return
        if driver.process.state == "dead" and log.random.random() < 0.3:  # the process died before it sent the batch
            return
        torn = not acknowledged and log.happens("torn")
        answers: list[Any] = []
        for call in batch:
            if torn:
                count = log.random.randrange(call.count + 1)
                call.write(count)
                if count < call.count:
                    return
            else:
                answers.append(call.write(call.count))
        if acknowledged:
            driver.later(log.delay_s(), self._acknowledge, batch, answers)

    def _acknowledge(self, batch: list[_Call], answers: list[Any]) -> None:
        if self._sent is not batch:  # the process has given it up
            return
        self._sent = None
        for call, answer in zip(batch, answers, strict=True):
            if not call.done.done():
                call.done.set_result(answer)
        if self._waiting:
            self._send()

    def _fail(self, batch: list[_Call]) -> None:
        if self._sent is batch:
            self._driver.session_failed(self)

    def fail(self, reason: str) -> None:
        """Fail all calls that wait for an acknowledgement."""
        calls = [*(self._sent or ()), *self._waiting]
        self._sent, self._waiting = None, []
        for call in calls:
            if not call.done.done():
                call.done.set_exception(LogUnavailable(reason))
                call.done.exception()  # marks it as retrieved: a caller that was cancelled never reads it


class FaultyReader:
    """A `Reader`."""

    def __init__(self, driver: FaultyDriver, partition: int, offset: int) -> None:
        self.position = offset
        self._driver = driver
        self._part = driver.log.partitions[partition]
        self._waiter: asyncio.Future[None] | None = None
        self._waking = False
        self._times_put_back: int = driver.log.times_put_back

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        """As the port says."""
        driver, part = self._driver, self._part
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
            watch, reader = log.watch, driver.process.name
            for record in records:
                watch.read(part.number, record, reader)
        elif self.position < part.end:
            self.position = part.end
        return records

    async def _news(self, wait: float | None) -> None:
        waiter = self._waiter = self._driver.log.loop.create_future()
        timer = None if wait is None else self._driver.log.loop.call_later(wait, _settle, waiter)
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
            self._driver.later(self._driver.log.delay_s() * 2, self._wake)

    def _wake(self) -> None:
        self._waking = False
        put_back = self._driver.log.times_put_back != self._times_put_back
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


class FaultyDriver:
    """A `Log`: the driver of one process on a faulty log."""

    max_value_bytes = MAX_VALUE_BYTES

    def __init__(self, log: FaultyLog, process: Process) -> None:
        self.log = log
        self.process = process
        self.name = log.name
        self.now = process.clock
        self._open = False
        self._lanes: dict[str | int, _Lane] = {}
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
                if reader._driver is self:  # pyright: ignore[reportPrivateUsage]  # a class of this module
                    reader.end()

    def check_open(self) -> None:
        """Raise LogUnavailable if the driver is not open."""
        if not self._open:
            raise LogUnavailable(f"{self.name} is not open")

    def _part(self, partition: int) -> _Partition:
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

    def _lane(self, purpose: str | int) -> _Lane:
        lane = self._lanes.get(purpose)
        if lane is None:
            lane = self._lanes[purpose] = _Lane(self)
        return lane

    def session_failed(self, lane: _Lane) -> None:
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
        self._lane(partition).add(_Call(len(entries), write, done))
        acks = await done
        for ack in acks:
            log.watch.acknowledged(partition, ack.offset, process.name)
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
            self.log.watch.read(partition, record, self.process.name)
        await asyncio.sleep(self.log.delay_s())
        return found

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """As the port says."""
        await self.ask()
        self.log.dead_letters.append((record, reason))

    async def join(self, member: str) -> FaultyMembership:
        """As the port says."""
        await self.ask()
        joined = FaultyMembership(self.log.group, self, member)
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
        self._lane("other").add(_Call(len(pairs), write, done))
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

    def inbox(self) -> FaultyInbox | None:
        """As the port says."""
        return FaultyInbox(self._members[-1]) if self.log.kafka else None

    def step_ext(self, step: Any) -> NoReturn:
        """Raises ConfigError: this driver adds nothing."""
        raise ConfigError(f"{self.name} adds nothing to step.ext")

    def ctx_ext(self, run_id: str) -> None:
        """None: this driver adds nothing."""


class _Group:
    """The group of members: assigns the partitions to them, and notifies each member some time later."""

    def __init__(self, log: FaultyLog) -> None:
        self._log = log
        self._ticking = False
        self.generation = 0
        self.members: list[FaultyMembership] = []
        self.owners: list[FaultyMembership | None] = [None for _ in log.partitions]

    def enter(self, member: FaultyMembership) -> None:
        if member not in self.members:
            self.members.append(member)
            self.rebalance()
        if not self._ticking:
            self._ticking = True
            self._log.later(COORDINATE_S, self._tick)

    def retire(self, member: FaultyMembership) -> None:
        if not member.retired:
            member.retired = True
            if member in self.members:
                self.rebalance()

    def leave(self, member: FaultyMembership) -> None:
        if member in self.members:
            self.members.remove(member)
            self.rebalance()

    def rebalance(self, shuffle: bool = False) -> None:
        """Spread the partitions evenly, with as few moves as possible; `shuffle`: at random."""
        if shuffle:
            self._log.random.shuffle(self.members)
            self.owners[:] = [None] * len(self.owners)
        members, owners = [member for member in self.members if not member.retired], self.owners
        most = -(-len(owners) // len(members)) if members else 0
        held = dict.fromkeys(members, 0)
        for partition, owner in enumerate(owners):
            if owner is None or owner not in held or held[owner] >= most:
                owners[partition] = None
            else:
                held[owner] += 1
        for partition, owner in enumerate(owners):
            if owner is None and members:
                chosen = min(members, key=lambda member: held[member])
                owners[partition] = chosen
                held[chosen] += 1
        self.generation += 1
        for member in self.members:
            target = frozenset(partition for partition, owner in enumerate(owners) if owner is member)
            delay_s = self._log.delay_s() * 4 + self._log.random.random() * 0.2
            member.driver.later(delay_s, member.told, self.generation, target)

    def _tick(self) -> None:
        """Remove members that are silent for longer than a session; on sqlite a dead process loses its lock at once."""
        now = self._log.loop.time()
        kafka = self._log.kafka
        for member in self.members[:]:
            process = member.driver.process
            if not process.stopped:
                member.seen = now
            elif now - member.seen > SESSION_S or (not kafka and process.state == "dead"):
                self.members.remove(member)
                if process.state == "paused":
                    member.driver.later(0, self.enter, member)  # happens when the process goes on
                self.rebalance()
        if self.members or self._log.loop.time() < SESSION_S:
            self._log.later(COORDINATE_S, self._tick)
        else:
            self._ticking = False

    def inbox_news(self) -> None:
        for member in self.members:
            member.driver.later(self._log.delay_s(), member.news.set)


class FaultyMembership:
    """A `Membership`."""

    def __init__(self, group: _Group, driver: FaultyDriver, member: str) -> None:
        self.driver = driver
        self.name = member
        self.seen = driver.log.loop.time()
        self.retired = False
        self.assignment: frozenset[int] | None = None
        self.news = asyncio.Event()  # for the inbox
        self._group = group
        self._answered: frozenset[int] | None = None
        self._generation = 0
        self._changed = asyncio.Event()
        self._left = False
        group.enter(self)

    def told(self, generation: int, assignment: frozenset[int]) -> None:
        """Take an assignment from the group; ignore one that is older than the last."""
        if generation < self._generation:
            return
        self._generation = generation
        self.assignment = assignment
        self._changed.set()
        self.news.set()

    async def assigned(self) -> frozenset[int]:
        """As the port says."""
        while not self._left:
            if self.assignment is not None and self.assignment != self._answered:
                self._answered = self.assignment
                return self.assignment
            self._changed.clear()
            await self._changed.wait()
        raise LogUnavailable(f"member {self.name!r} has left; join again")

    async def is_live(self, member: str) -> bool:
        """As the port says."""
        await self.driver.ask()
        return any(one.name == member for one in self._group.members)

    async def retire(self) -> None:
        """As the port says."""
        await self.driver.ask()
        if not self._left:
            self._group.retire(self)

    async def leave(self) -> None:
        """As the port says."""
        if not self._left:
            self._left = True
            self._group.leave(self)
            self.driver.left(self)
            self._changed.set()
            self.news.set()

    @property
    def has_left(self) -> bool:
        """Whether `leave` was called."""
        return self._left


class FaultyInbox:
    """An `Inbox`. The member that a partition is assigned to reads the inbox partition of the same number."""

    def __init__(self, member: FaultyMembership) -> None:
        self._member = member
        self._log = member.driver.log
        self._positions: dict[int, int] = {}
        self._received: list[InboxRecord] = []
        self._behind: dict[int, int] = {}  # by partition: the position behind the received records

    async def receive(self) -> Sequence[InboxRecord]:
        """As the port says."""
        member, log = self._member, self._log
        while not member.has_left:
            member.driver.check_open()
            member.news.clear()
            mine = member.assignment or frozenset()
            for partition in self._positions.keys() - mine:
                del self._positions[partition]
            if log.happens("unavailable"):
                await member.driver.question()
            for partition in sorted(mine):
                self._positions.setdefault(partition, log.partitions[partition].routed)
            if self._received:
                return self._received
            for partition, position in self._positions.items():
                part = log.partitions[partition]
                stable = min((one.begins(partition) for one in part.open), default=len(part.inbox))
                counting = [at for at in range(position, stable) if at not in part.given_up][:5]
                self._received += (part.inbox[at] for at in counting)
                end = counting[-1] + 1 if len(counting) == 5 else max(position, stable)
                self._positions[partition] = self._behind[partition] = end
            if self._received:
                return self._received
            self._commit()
            await member.news.wait()
        raise LogUnavailable(f"{log.name}: this member has left")

    async def done(self, records: Sequence[InboxRecord]) -> None:
        """As the port says. If the commit fails, some member receives the records again."""
        self._received = []
        await asyncio.sleep(self._log.delay_s())
        if not self._log.happens("unavailable"):
            self._commit()

    def _commit(self) -> None:
        for partition, behind in self._behind.items():
            if partition in self._positions:
                part = self._log.partitions[partition]
                part.routed = max(part.routed, behind)
        self._behind.clear()

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        """As the port says."""
        await self._member.driver.ask()
        self._log.dead_letters.append((record, reason))
