"""The stored log: its partitions, what becomes durable in them, and transactions of foreign producers on the inbox."""

from __future__ import annotations

import contextvars
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Literal

from ...log import Ack, Entry, InboxRecord, Record
from ..processes import Process, ProcessLoop
from .driver import FaultyDriver
from .faults import KAFKA_ONLY, LogObserver
from .group import Group
from .reader import FaultyReader

Character = Literal["kafka", "sqlite"]
Checkpoints = list[tuple[int, str, bytes | None]]
"""A list of (offset, key, value)."""


class Partition:
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
    """The stored log. `observer` observes everything; `counts` counts the faults that happened."""

    def __init__(
        self,
        loop: ProcessLoop,
        random: Random,
        *,
        character: Character = "kafka",
        partitions: int = 2,
        rates: Mapping[str, float] | None = None,
        observer: LogObserver | None = None,
        name: str = "faulty",
    ) -> None:
        self.loop = loop
        self.random = random
        self.kafka = character == "kafka"
        self.name = f"{name}://{character}"
        self.id = f"{random.getrandbits(128):032x}"
        self.partitions = [Partition(number) for number in range(partitions)]
        self.rates: dict[str, float] = {}
        self.observer = observer or LogObserver()
        self.counts: Counter[str] = Counter()
        self.clock_ms = 0  # the error of the broker's clock
        self.times_put_back = 0
        self.down_until = 0.0  # until then kafka answers nobody (an outage), and sqlite refuses writes (a full disk)
        self.dead_letters: list[tuple[InboxRecord, str]] = []
        self.context = contextvars.Context()  # empty, because the broker belongs to no process
        self.group = Group(self)
        self.set_rates(rates or {})

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Use these probabilities of faults from now on."""
        self.rates = {fault: rate for fault, rate in rates.items() if self.kafka or fault not in KAFKA_ONLY}

    def driver(self, process: Process) -> FaultyDriver:
        """The driver of one process."""
        return FaultyDriver(self, process)

    def happens(self, fault: str) -> bool:
        """Decide whether a fault happens now, and count it."""
        rate = self.rates.get(fault)
        if rate and self.random.random() < rate:
            self.counts[fault] += 1
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
            self.observer.appended(partition, record, writer)
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
        self.observer.checkpoint(partition, items)

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
