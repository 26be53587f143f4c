"""The port: what a log must be able to do for stepfold. A driver implements `Log`; the engine knows nothing else of it.

A log has a fixed number of partitions. A partition is an append-only sequence of records with rising, not necessarily
dense, offsets. The log gives ordering and durability per partition and says who should own what; it never judges a
record: fencing is the fold's work and the same for every driver.

The suite in `stepfold.testing.suite` is the executable form of this text; a fourth driver passes it and is done.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

CLAIM_KEY = "@claim"
"""The key of claim records; run ids never begin with "@"."""


def partition_of(run_id: str, partitions: int) -> int:
    """The history partition of a run: CRC-32 of its UTF-8 id, modulo the partition count (librdkafka's `consistent`)."""
    return zlib.crc32(run_id.encode("utf-8", "surrogatepass")) % partitions


class Entry(NamedTuple):
    """What is to be appended: `key` is a run id or `CLAIM_KEY`, `value` one JSON object in UTF-8."""

    key: str
    value: bytes


class Record(NamedTuple):
    """What is in a partition. `timestamp` is the log's own time of the append: milliseconds since 1970, UTC."""

    offset: int
    timestamp: int
    key: str
    value: bytes


class Ack(NamedTuple):
    """Where an appended entry landed; `offset` is -1 where the log cannot say (it will be read back)."""

    offset: int
    timestamp: int


_new: Any = cast("Any", tuple).__new__
record_of: Callable[[Iterable[Any]], Record] = partial(_new, Record)
"""`Record._make` for loops over records: it costs a third."""
ack_of: Callable[[Iterable[Any]], Ack] = partial(_new, Ack)


class Reader(Protocol):
    """A position in one partition. One task uses it at a time."""

    @property
    def position(self) -> int:
        """The lowest offset that the next `read` may return."""
        ...

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        """Up to `limit` records from `position` on, in order; moves the position behind the last one.

        With nothing there it waits up to `wait` seconds for news (None: as long as it takes) and then returns an empty
        sequence. A prefix of what exists is a valid answer. May be cancelled without losing records.

        Raises `LogUnavailable`, also when records at `position` are no longer in the log (never skips them silently) or what
        was read last is seen not to stand there any more (the log was put back to an older copy, or has lost its end), and
        `ConfigError` when it sees that this is another log now, made again under the same name.
        """
        ...

    def seek(self, offset: int) -> None:
        """Records below `offset` are not wanted (again). `offset` is never below the position."""
        ...

    async def close(self) -> None: ...


class Membership(Protocol):
    """One worker's place among those that share the partitions."""

    async def assigned(self) -> frozenset[int]:
        """The partitions this member should own. The first call returns the first assignment (which may be empty);
        each further call returns when the assignment has changed since the previous answer. Raises `LogUnavailable` when this
        membership has ended, and only a new one helps."""
        ...

    async def is_live(self, member: str) -> bool:
        """Whether a member of this id takes part, as far as is known; one that has died may still be said to for a while, but
        no longer than its partitions are kept for it."""
        ...

    async def retire(self) -> None:
        """Own nothing from now on: the others are assigned it all at once, and `assigned` answers with nothing. The member
        stays live until it leaves. Idempotent; nothing for one that has left."""
        ...

    async def leave(self) -> None:
        """Take part no longer; the others have everything at once. Idempotent."""
        ...


class InboxRecord(NamedTuple):
    """One raw record of the inbox, from anyone. `place` names it uniquely and for ever, such as "shop.inbox/3/1742".

    `inbox` is the identity of the inbox: another one after it was deleted and made again.

    Bytes of a header's name that are no UTF-8 are kept as surrogates (PEP 383). `damage`: why the log cannot read the record,
    which is to be refused for it; `value` is then the bytes that there are.
    """

    place: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    damage: str = ""
    inbox: str = ""


class Inbox(Protocol):
    """Where requests from outside arrive, on logs that have such a place (Kafka). Shared out among the members."""

    async def receive(self) -> Sequence[InboxRecord]:
        """The next records of the inbox partitions this member was given; waits until there are some."""
        ...

    async def done(self, records: Sequence[InboxRecord]) -> None:
        """These, as received and in full, are dealt with: their requests are in the history or in the dead letters."""
        ...

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        """Put the record, byte for byte, into the dead letters with the reason. Durable on return."""
        ...


class Log(Protocol):
    """One namespace on one log. Every method may raise `LogUnavailable`."""

    @property
    def name(self) -> str:
        """What a person would recognise it by, such as "sqlite:///orders.db"."""
        ...

    @property
    def id(self) -> str:
        """Identity of the stored log: another one after it was deleted and made again. Known once open."""
        ...

    @property
    def partitions(self) -> int:
        """Fixed when the log was created. Known once open."""
        ...

    @property
    def max_value_bytes(self) -> int:
        """The largest value that `append` takes."""
        ...

    def now(self) -> int:
        """The clock of this log's users: milliseconds since 1970, UTC."""
        ...

    async def open(self) -> None:
        """Connect. Raises `ConfigError` where the log is missing or not as it should be, and says how to mend it."""
        ...

    async def close(self) -> None:
        """Finish what is under way and disconnect. Idempotent; `open` may follow."""
        ...

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        """Append in order; durable on return. Concurrent calls may be committed together and keep their order of call.

        Raises `PayloadTooLarge` (nothing was appended) and `LogUnavailable` (any prefix may be, or come to be, in the log).
        """
        ...

    async def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset still kept and the offset the next append would get at least."""
        ...

    def reader(self, partition: int, offset: int) -> Reader: ...

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        """All present records of the partition from `start` on with one of these keys, in order (by an index, else a scan)."""
        ...

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """Somebody asked in vain, as the history shows: put the request, as it would stand in the inbox now, into the dead
        letters. Durable on return. A log without an inbox has nobody to tell.
        """
        ...

    async def join(self, member: str) -> Membership:
        """Become a member under this id, unique per call."""
        ...

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Store (None: delete) values by key beside the partition. Durable on return; items land in order."""
        ...

    def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        """What is stored beside the partition, in portions. What a key says later replaces what it said before (None: gone)."""
        ...

    def inbox(self) -> Inbox | None:
        """The inbox, for a member that has joined; None where requests are appended to the history directly."""
        ...

    def step_ext(self, step: Any) -> object:
        """What `step.ext` is on this driver."""
        ...

    def ctx_ext(self, run_id: str) -> object:
        """What `ctx.ext` is on this driver."""
        ...
