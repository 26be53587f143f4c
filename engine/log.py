"""The port: the protocols that a driver implements. The engine knows only `Log` of a driver.

A log has a fixed number of partitions. A partition is an append-only sequence of records with rising, not necessarily
dense, offsets. The log gives order and durability per partition and assigns partitions to members. It never judges a
record: the fold fences stale owners, in the same way for every driver.

The suite in `stepfold.testing.suite` is the executable form of this text. A new driver is complete when it passes the suite. To
be opened by URL it also has a class method `from_url(url)`, which raises ValueError, and its name in `_HOMES` and `_SCHEMES` of
`drivers/__init__.py`. An inbox and dead letters are protocols of their own, which a driver may leave out.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

from .errors import PayloadTooLarge
from .values.tuples import maker_of

MAX_PAYLOAD_BYTES = 900_000
"""The limit for one payload: an input, a result, the data of a signal or callback."""
CLAIM_KEY = "@claim"
"""The key of claim records; run ids never begin with "@"."""


def partition_of(run_id: str, partitions: int) -> int:
    """The history partition of a run: CRC-32 of its UTF-8 id, modulo the partition count (librdkafka's `consistent`)."""
    return zlib.crc32(run_id.encode("utf-8", "surrogatepass")) % partitions


class Entry(NamedTuple):
    """An entry to append. `key`: a run id or `CLAIM_KEY`; `value`: one JSON object in UTF-8."""

    key: str
    value: bytes


class Record(NamedTuple):
    """An entry of a partition. `timestamp`: the log's own time of the append, milliseconds since 1970, UTC."""

    offset: int
    timestamp: int
    key: str
    value: bytes


class Ack(NamedTuple):
    """The offset and time of an appended entry. `offset` is -1 if the log cannot tell; the owner then reads the entry back."""

    offset: int
    timestamp: int


entry_of = maker_of(Entry)
record_of = maker_of(Record)
ack_of = maker_of(Ack)


class EntryTooLarge(PayloadTooLarge):
    """The log refused an entry of an append. It has appended those before it, with these acks, and nothing from it on."""

    def __init__(self, message: str, appended: Sequence[Ack]) -> None:
        super().__init__(message)
        self.appended = appended


class Reader(Protocol):
    """A position in one partition. One task uses it at a time."""

    @property
    def position(self) -> int:
        """The lowest offset that the next `read` may return."""
        ...

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        """Up to `limit` records from `position` on, in order; moves the position behind the last one.

        If there are none, waits up to `wait` seconds for one (None: without limit), then returns an empty sequence. A prefix
        of the existing records is a valid answer. Cancellation loses no records.

        Raises `LogUnavailable`, also if the log no longer holds the records at `position` (never skips them silently), or if
        the reader sees that the last record it read is no longer there (the log was restored from an older copy, or has lost
        its end). Raises `ConfigError` if the reader sees that the log was made again under the same name.
        """
        ...

    def seek(self, offset: int) -> None:
        """Move the position to `offset`, which is never below it: the caller does not want the records in between."""
        ...

    async def close(self) -> None: ...


class Membership(Protocol):
    """One worker's membership among the workers that share the partitions."""

    async def assigned(self) -> frozenset[int]:
        """The partitions that this member should own. The first call returns the first assignment (which may be empty); each
        further call returns when the assignment has changed since the last answer. Raises `LogUnavailable` when the membership
        has ended; the worker must then join anew."""
        ...

    async def is_live(self, member: str) -> bool:
        """Whether a member with this id takes part. A dead member may be reported live until its session expires and the others
        get its partitions."""
        ...

    async def retire(self) -> None:
        """Own nothing from now on: the log assigns this member's partitions to the others at once, and `assigned` returns an
        empty set. The member stays live until it leaves. Idempotent; does nothing after `leave`."""
        ...

    async def leave(self) -> None:
        """End the membership; the others get its partitions at once. Idempotent."""
        ...


class InboxRecord(NamedTuple):
    """One raw record of the inbox, from anyone. `place` names it, such as "shop.inbox/3/1742".

    `inbox` is the identity of the inbox. One that was deleted and made again has another identity, and the same places.

    Bytes of a header's name that are not UTF-8 are kept as surrogates (PEP 383). `damage`: why the log cannot read the record;
    the router refuses it for this reason, and `value` holds the raw bytes.
    """

    place: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    damage: str = ""
    inbox: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record of the inbox: its original key, value and headers, the reason, and its original place.

    `place` names it among the dead letters. `omitted` says that `value` is None because the record was too large to be copied.
    `redriven`: it was sent to the inbox again; `dropped`: somebody has said that it never will be; `by`, `why`: who, and why.
    """

    place: str
    timestamp: int
    reason: str
    origin: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    omitted: bool
    redriven: bool
    dropped: bool = False
    by: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Redriven:
    """How many dead letters were sent again, and the places of those that Kafka refused, each with the reason."""

    sent: int
    refused: Mapping[str, str]


class Redriving(TypedDict, total=False):
    """Options of sending again. `value`: of the only record, instead of its own; `by`, `why`: kept beside the letter."""

    value: bytes | None
    by: str | None
    why: str | None


@runtime_checkable
class KeepsDeadLetters(Protocol):
    """A log with an inbox, as operators see it."""

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The last `limit` refused records, the oldest first. Raises LogUnavailable."""
        ...

    async def redrive(self, places: Sequence[str] | None = None, **options: Unpack[Redriving]) -> Redriven:
        """Send refused records to the inbox again: those at `places`, or all that were neither sent again nor dropped yet.

        Marks each record after it was sent, so a crash in between may send it twice. Raises ConfigError for unknown places and
        for records whose bytes were not kept, and LogUnavailable.
        """
        ...

    async def drop_letters(self, places: Sequence[str], *, by: str | None = None, why: str | None = None) -> None:
        """Mark refused records as not to be sent again; they stay readable. Raises ConfigError for unknown places."""
        ...


class Inbox(Protocol):
    """The inbox, which receives requests from outside, on logs that have one (Kafka). The members share its partitions."""

    async def receive(self) -> Sequence[InboxRecord]:
        """The next records of the inbox partitions that are assigned to this member; waits until there are some."""
        ...

    async def done(self, records: Sequence[InboxRecord]) -> None:
        """Commit these records, all of one `receive`: their requests are in the history or in the dead letters."""
        ...

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        """Write the record, byte for byte, to the dead letters with the reason. Durable on return."""
        ...


@runtime_checkable
class InboxMembership(Membership, Protocol):
    """A membership on a log that has an inbox. On other logs clients append requests to the history directly."""

    def inbox(self) -> Inbox:
        """The inbox partitions of this member."""
        ...


class Log(Protocol):
    """One namespace on one log. Every method may raise `LogUnavailable`."""

    @property
    def name(self) -> str:
        """A name that people recognise, such as "sqlite:///orders.db". Texts may hold it; no code reads it back."""
        ...

    @property
    def url(self) -> str:
        """The URL by which another process opens this log, with all options that the URL of such a log can have."""
        ...

    @property
    def id(self) -> str:
        """The identity of the stored log; a log that was deleted and made again has another identity. Known once open."""
        ...

    @property
    def partitions(self) -> int:
        """The number of partitions, fixed when the log was created. Known once open."""
        ...

    @property
    def max_value_bytes(self) -> int:
        """The largest value that `append` takes."""
        ...

    def now(self) -> int:
        """The time by the clock that workers and clients of this log use: milliseconds since 1970, UTC."""
        ...

    async def open(self) -> None:
        """Connect. Raises `ConfigError`, with a fix in its message, if the log is missing or has wrong settings."""
        ...

    async def close(self) -> None:
        """Finish the calls that are under way and disconnect. Idempotent; `open` may follow."""
        ...

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        """Append in order; durable on return. The log may commit concurrent calls together; it keeps the order of the calls.

        Raises `PayloadTooLarge` for a value above `max_value_bytes` (the log has appended nothing), `EntryTooLarge` for a smaller
        one that the log does not take today (it holds the entries before it), and `LogUnavailable` (it may hold any prefix, now
        or later).
        """
        ...

    async def bounds(self, partition: int) -> tuple[int, int]:
        """The lowest offset that the log still keeps, and a lower bound of the offset of the next append."""
        ...

    def reader(self, partition: int, offset: int) -> Reader: ...

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        """All records of the partition from `start` on that have one of these keys, in order (by an index, else by a scan)."""
        ...

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """Write a request that the fold found void to the dead letters, as the record that it would be in the inbox now. Durable
        on return. A log without an inbox does nothing.
        """
        ...

    async def join(self, member: str) -> Membership:
        """Become a member with this id. Each call needs an id of its own. An `InboxMembership` if the log has an inbox."""
        ...

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Store values by key beside the partition; None deletes a key. Durable on return; items land in order."""
        ...

    def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        """The items stored beside the partition, in portions. A later value of a key replaces an earlier one (None: deleted)."""
        ...

    def step_ext(self, step: Any) -> object:
        """The value of `step.ext` on this driver."""
        ...

    def ctx_ext(self, run_id: str) -> object:
        """The value of `ctx.ext` on this driver."""
        ...


async def time_at(log: Log, partition: int, offset: int) -> int | None:
    """The log's time of the first record from `offset` on, ms since 1970; None: there is none. Raises LogUnavailable."""
    reader = log.reader(partition, offset)
    try:
        records = await reader.read(1, 1.0)
    finally:
        await reader.close()
    return records[0].timestamp if records else None
