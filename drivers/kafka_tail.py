# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Reading: a tail that follows one partition from an offset, a scan of what is there, and where a partition begins and ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from stepfold.errors import LogUnavailable

from .kafka_cluster import Backoff, Cluster, copy_of, log, name_of, patiently

T = TypeVar("T")

_LONG_POLL_MS: Final = 1_000
_FETCH_BYTES: Final = 2_000_000
_AHEAD_BYTES: Final = 8_000_000


class Raw(NamedTuple):
    """What is fetched."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


async def _fetch(cluster: Cluster, place: TopicPartition, offset: int, lane: object, wait_ms: int) -> bytes:
    """Record batches from `offset` on. Raises KafkaError."""
    node = cluster.leader(place)
    if node is None:
        raise LeaderNotAvailableError
    request = FetchRequest(wait_ms, 1, _FETCH_BYTES, 0, [(place.topic, [(place.partition, offset, _FETCH_BYTES)])])
    answer = await cluster.ask(node, request, lane)
    for _topic, partitions in answer.topics:
        for _partition, code, *_, data in partitions:
            if code:
                raise for_code(code)
            return data or b""
    raise UnknownTopicOrPartitionError


def _decode(data: bytes, offset: int, make: Callable[[Any], T | None]) -> tuple[list[T], int]:
    """What `make` makes of each record from `offset` on, and the offset behind all of them."""
    found: list[T] = []
    batches = MemoryRecords(data)
    while batches.has_next():
        batch: Any = batches.next_batch()
        if not batch.validate_crc():
            raise KafkaError(f"a record batch near offset {offset} is damaged")
        if not batch.is_control_batch:
            for record in batch:
                if record.offset >= offset:
                    made = make(record)
                    if made is not None:
                        found.append(made)
        offset = max(offset, batch.next_offset)
    return found, offset


def raw(record: Any) -> Raw:
    return Raw(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))


class Tail(Generic[T]):
    """The records of one partition from `offset` on, fetched ahead of whoever takes them.

    `make` turns a record into what is taken (None: left out), `offset_of` gives the offset of such a thing. `news` is called
    whenever `ready` may have become true. Nothing is fetched before `start`.
    """

    def __init__(
        self,
        cluster: Cluster,
        place: TopicPartition,
        offset: int,
        make: Callable[[Any], T | None],
        offset_of: Callable[[T], int],
        news: Callable[[], None],
        patience_s: float,
    ) -> None:
        self.place = place
        self._cluster = cluster
        self._offset = offset  # of the next fetch; everything below is in the buffer, taken or unwanted
        self._make = make
        self._offset_of = offset_of
        self._news = news
        self._patience_s = patience_s
        self._buffer: deque[T] = deque()
        self._buffered_bytes = 0
        self._room = asyncio.Event()
        self._error: LogUnavailable | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        return self._offset_of(self._buffer[0]) if self._buffer else self._offset

    @property
    def ready(self) -> bool:
        return bool(self._buffer) or self._error is not None

    def start(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run())

    def take(self, limit: int) -> list[T]:
        """What is there, at most `limit`. Raises LogUnavailable once if the log has not answered for too long, and every time
        if it no longer has what comes next."""
        buffer = self._buffer
        if not buffer:
            error = self._error
            if error is not None:
                if not isinstance(error, _Gone):
                    self._error = None
                raise copy_of(error)
            return []
        if len(buffer) <= limit:
            taken = list(buffer)
            buffer.clear()
            self._buffered_bytes = 0
            self._room.set()
        else:
            taken = [buffer.popleft() for _ in range(limit)]
        return taken

    def seek(self, offset: int) -> None:
        """Leave out what is below `offset`."""
        buffer = self._buffer
        while buffer and self._offset_of(buffer[0]) < offset:
            buffer.popleft()
        if not buffer:
            self._buffered_bytes = 0
            self._room.set()
        self._offset = max(self._offset, offset)

    def close(self) -> None:
        """Fetch no more. A fetch that is waiting at the broker ends by itself; only then is its lane free again."""
        self._closed = True
        self._buffer.clear()
        self._room.set()

    async def stop(self, error: LogUnavailable) -> None:
        """As `close`, when the connections go as well; who still waits gets the error."""
        self.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(_Gone(str(error)))

    async def _run(self) -> None:
        lane = self._cluster.take_lane()
        backoff = Backoff()
        failing_since: float | None = None
        try:
            while not self._closed:
                if self._buffered_bytes >= _AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
                    continue
                try:
                    data = await _fetch(self._cluster, self.place, self._offset, ("fetch", lane), _LONG_POLL_MS)
                    if data:
                        found, self._offset = _decode(data, self._offset, self._make)
                        if found and not self._closed:
                            self._buffer.extend(found)
                            self._buffered_bytes += len(data)
                            self._error = None
                            self._news()
                    if failing_since is not None:
                        failing_since, self._error = None, None
                        backoff.reset()
                except OffsetOutOfRangeError:
                    where = f"{name_of(self.place)} has no offset {self._offset}"
                    self._fail(_Gone(f"{where}: records were deleted or the topic was made again; see `stepfold topics check`"))
                    return
                except KafkaError as error:
                    now = time.monotonic()
                    if failing_since is None:
                        failing_since = now
                    elif now - failing_since > self._patience_s:
                        waited = f"{now - failing_since:.0f} s"
                        self._fail(LogUnavailable(f"{name_of(self.place)} could not be read for {waited}: {error!r}"))
                        failing_since = now
                    await self._cluster.refresh()
                    await backoff.sleep()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a background task does not die silently
            log.exception("reading %s failed", name_of(self.place))
            self._fail(_Gone(f"reading {name_of(self.place)} failed: {error!r}"))
        finally:
            self._cluster.give_lane(lane)

    def _fail(self, error: LogUnavailable) -> None:
        self._error = error
        self._news()


class _Gone(LogUnavailable):
    """Reading on from here will never work."""


async def scan(
    cluster: Cluster, place: TopicPartition, start: int, end: int, make: Callable[[Any], T | None], patience_s: float
) -> AsyncGenerator[list[T], None]:
    """What `make` makes of the records from `start` to below `end`, portion by portion."""
    lane = cluster.take_lane()
    clean = False
    try:
        while start < end:
            data = await patiently(cluster, partial(_fetch, cluster, place, start, ("fetch", lane), 0), place, patience_s)
            found, start = _decode(data, start, lambda record: make(record) if record.offset < end else None)
            if found:
                clean = True
                yield found
                clean = False
        clean = True
    finally:
        if clean:
            cluster.give_lane(lane)


async def offsets(cluster: Cluster, place: TopicPartition, patience_s: float) -> tuple[int, int]:
    """The first offset kept and the one behind the last record."""

    async def ask(which: int) -> int:
        node = cluster.leader(place)
        if node is None:
            raise LeaderNotAvailableError
        answer = await cluster.ask(node, OffsetRequest(-1, 0, [(place.topic, [(place.partition, which)])]))
        for _topic, partitions in answer.topics:
            for _partition, code, _timestamp, offset in partitions:
                if code:
                    raise for_code(code)
                return offset
        raise UnknownTopicOrPartitionError

    earliest, latest = await asyncio.gather(
        patiently(cluster, lambda: ask(-2), place, patience_s), patiently(cluster, lambda: ask(-1), place, patience_s)
    )
    return earliest, latest
