# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Reading: tails that follow partitions, a scan of existing records, and the bounds of a partition.

A `KafkaTail` is a position in one partition, with records fetched ahead. The `Fetcher` asks for all tails that have no request
under way, in as few requests to each node as their number allows. So a busy process with several partitions spends one request on
all of them, and a tail that starts while another waits at the broker does not wait with it. Tails at the same position share a
fetch and its decoding. A tail that nobody reads fetches nothing more once it is far enough ahead.

The fetcher does not fetch what this process appends. An acknowledgement tells the offsets of the records, so the driver hands
them to a tail that stands right before them. While an append is under way, nothing else is fetched from its partition either: if
others have appended too, the offset of the acknowledgement shows it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.api import Request
from aiokafka.protocol.fetch import FetchRequest_v11
from aiokafka.protocol.offset import OffsetRequest

from stepfold.errors import LogUnavailable

from .cluster import BACKOFF_S, Cluster, copy_of, log, name_of, new_backoff, patiently
from .records import Damaged, decode

_LONG_POLL_MS: Final = 1_000
_PARTITION_BYTES: Final = 1_000_000
_SCAN_BYTES: Final = 4_000_000
_REQUEST_BYTES: Final = 8_000_000
_REQUEST_PARTITIONS: Final = 16
"""The most partitions of one request: each costs something, even without new records."""
_AHEAD_BYTES: Final = 4_000_000
_SETTLE_S: Final = 0.002
"""How long to wait, after an append, for the next one before asking the partition for appends of others."""
_LONGEST_APPEND_S: Final = 0.1
"""If an append takes longer, fetch without waiting for it."""
_DAMAGED_TRIES: Final = 5
"""How often to fetch a damaged batch of a read-committed partition before skipping it."""


class Placed(Protocol):
    """The items of a tail. Each has an offset."""

    @property
    def offset(self) -> int: ...


T = TypeVar("T")
P = TypeVar("P", bound=Placed)


class _Fetch(Request[FetchRequest_v11]):
    """Version 11, the newest that aiokafka knows: the layout of the answer depends on it."""

    API_KEY = 1

    def __init__(self, wait_ms: int, most_bytes: int, topics: list[Any], *, committed: bool = False) -> None:
        self._fields = (-1, wait_ms, 1, most_bytes, int(committed), 0, -1, topics, [], "")

    def build(self, request_struct_class: type[FetchRequest_v11]) -> FetchRequest_v11:
        return request_struct_class(*self._fields)


def _wanted(partition: int, offset: int, most_bytes: int) -> tuple[int, int, int, int, int]:
    return partition, -1, offset, -1, most_bytes


class KafkaTail(Generic[P]):
    """The records of one partition from `offset` on.

    `make` turns a fetched record into the item that `take` returns. `news` is called when `ready` may have become true. A tail
    fetches nothing before `start`. `committed`: read records of transactions when these are committed, and nothing after an open
    one; otherwise read them at once, as damaged records.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        topic_partition: TopicPartition,
        offset: int,
        make: Callable[[Any], P],
        news: Callable[[], None],
        *,
        committed: bool = False,
    ) -> None:
        self.topic_partition = topic_partition
        self.make = make
        self.committed = committed
        self.offset = offset
        """The start of the next fetch: records below are in the buffer, were taken, or are not wanted."""
        self.closed = False
        self.backoff = new_backoff()
        self.failing_since: float | None = None
        self.held_since: float | None = None
        """Since when an open transaction has held up a read-committed tail, by the monotonic clock; None: it is not held up."""
        self.stable = -1
        """The beginning of the partition's oldest open transaction, or the end of what is committed."""
        self.was_cut_off = False
        """A fetch has failed since the reader last reset this flag: the topic may be another one by now."""
        self._fetcher = fetcher
        self._news = news
        self._buffer: deque[P] = deque()
        self._buffered_bytes = 0
        self._waits_for_room = False
        self._error: LogUnavailable | None = None
        self._damaged_tries = 0
        self._started = False

    @property
    def position(self) -> int:
        return self._buffer[0].offset if self._buffer else self.offset

    @property
    def ready(self) -> bool:
        return bool(self._buffer) or self._error is not None

    def start(self) -> None:
        if not self._started:
            self._started = True
            self._fetcher.want([self])

    def take(self, limit: int) -> list[P]:
        """At most `limit` buffered items. Raises LogUnavailable: once if the log has not answered for too long, always if the
        next records are gone.
        """
        buffer = self._buffer
        if not buffer:
            error = self._error
            if error is not None:
                if not isinstance(error, _Gone):
                    self._error = None
                raise copy_of(error)
            return []
        if len(buffer) > limit:
            return [buffer.popleft() for _ in range(limit)]
        taken = list(buffer)
        buffer.clear()
        self._make_room()
        return taken

    def seek(self, offset: int) -> None:
        """Skip records below `offset`."""
        buffer = self._buffer
        while buffer and buffer[0].offset < offset:
            buffer.popleft()
        self.offset = max(self.offset, offset)
        if not buffer:
            self._make_room()

    def close(self) -> None:
        """Fetch no more. A request that waits at the broker ends by itself."""
        self.closed = True
        self._buffer.clear()

    def end(self, error: LogUnavailable) -> None:
        """Close the tail and raise the error in its reader."""
        self.close()
        self._fail(_Gone(str(error)))

    def _make_room(self) -> None:
        self._buffered_bytes = 0
        if self._waits_for_room:
            self._waits_for_room = False
            self._fetcher.want([self])

    # For the fetcher.

    def wants_more(self) -> bool:
        if self.closed or isinstance(self._error, _Gone):
            return False
        self._waits_for_room = self._buffered_bytes >= _AHEAD_BYTES
        return not self._waits_for_room

    def receive(self, items: Sequence[P], next_offset: int, size_bytes: int) -> None:
        if self.failing_since is not None:
            self.failing_since, self._error = None, None
            self.backoff.reset()
        if items and items[0].offset < self.offset:
            items = [item for item in items if item.offset >= self.offset]
        self.offset = max(self.offset, next_offset)
        if items and not self.closed:
            self._buffer.extend(items)
            self._buffered_bytes += size_bytes
            self._news()

    def stands(self, stable: int, end: int) -> None:
        """Note the answer of a broker for a read-committed partition: the offset up to which it can be read, and its end."""
        if stable >= end:
            self.held_since = None
        elif self.held_since is None or stable != self.stable:
            self.held_since = time.monotonic()
        self.stable = stable

    def echo(self, items: Sequence[P], size_bytes: int) -> None:
        """Take our own append, which was acknowledged at `offset`."""
        if self._started and not self._waits_for_room:
            self.receive(items, items[-1].offset + 1, size_bytes)

    def fail(self, error: KafkaError, patience_s: float) -> bool:
        """Note a failed fetch. Returns whether to try again."""
        self.was_cut_off = True
        if isinstance(error, OffsetOutOfRangeError):
            where = f"{name_of(self.topic_partition)} has no offset {self.offset}"
            self._fail(_Gone(f"{where}: records were deleted or the topic was recreated; see `stepfold topics check`"))
            return False
        if isinstance(error, Damaged) and self.committed:
            self._damaged_tries += 1
            if self._damaged_tries >= _DAMAGED_TRIES:
                self._damaged_tries = 0
                self.receive([self.make(error.raw)], error.raw.offset + 1, len(error.raw.value or b""))
                return True
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        elif now - self.failing_since > patience_s:
            self.failing_since = now
            why = str(error) if isinstance(error, Damaged) else repr(error)
            self._fail(LogUnavailable(f"{name_of(self.topic_partition)} could not be read for {patience_s:g} s: {why}"))
        return True

    def _fail(self, error: LogUnavailable) -> None:
        self._error = error
        self._news()


class _Gone(LogUnavailable):
    """The error that the tail raises from now on: reading further can never succeed."""


class _Flight(NamedTuple):
    """A partition's part of a fetch request; it serves all tails that want exactly this."""

    topic_partition: TopicPartition
    offset: int
    make: Callable[[Any], Placed]


class _Own:
    """The appends of this process to one partition."""

    __slots__ = ("end", "since", "tails", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.since = 0.0  # when the last append ended, or the first of those under way began
        self.end = -1  # the end offset of the last append
        self.tails: list[KafkaTail[Any]] = []  # tails that wait for the next append


class Fetcher:
    """Keeps every tail that wants more in exactly one request."""

    def __init__(self, cluster: Cluster, patience_s: float) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._wanting: list[KafkaTail[Any]] = []
        self._scheduled = False
        self._flights: dict[_Flight, list[KafkaTail[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._own: dict[TopicPartition, _Own] = {}
        self._timer: asyncio.TimerHandle | None = None

    def want(self, tails: Iterable[KafkaTail[Any]]) -> None:
        """Fetch for tails without a request under way. Those of one turn of the loop travel together."""
        self._wanting += tails
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def append_begins(self, topic_partition: TopicPartition) -> None:
        own = self._own.get(topic_partition)
        if own is None:
            own = self._own[topic_partition] = _Own()
        if not own.under_way:
            own.since = self._loop.time()
        own.under_way += 1

    def append_ends(self, topic_partition: TopicPartition) -> None:
        own = self._own[topic_partition]
        own.under_way -= 1
        own.since = self._loop.time()

    def appended(self, topic_partition: TopicPartition, end: int) -> None:
        """`end`: the offset after our append. The tails right before the append have got its records."""
        own = self._own[topic_partition]
        own.end = max(own.end, end)
        if any(tail.offset < end for tail in own.tails):
            self._release(own)

    def _release(self, own: _Own) -> None:
        tails, own.tails = own.tails, []
        self.want(tails)

    def _awaits_append(self, tail: KafkaTail[Any]) -> bool:
        own = self._own.get(tail.topic_partition)
        if own is None or tail.offset < own.end or not self._is_appending(own):
            return False
        own.tails.append(tail)
        if self._timer is None:
            self._timer = self._loop.call_later(_SETTLE_S, self._settle)
        return True

    def _is_appending(self, own: _Own) -> bool:
        return self._loop.time() - own.since < (_LONGEST_APPEND_S if own.under_way else _SETTLE_S)

    def _settle(self) -> None:
        self._timer = None
        for own in self._own.values():
            if not own.tails:
                continue
            if not self._is_appending(own):
                self._release(own)
            elif self._timer is None:
                self._timer = self._loop.call_later(_SETTLE_S, self._settle)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flights.clear()

    def _dispatch(self) -> None:
        self._scheduled = False
        tails, self._wanting = self._wanting, []
        requests: dict[tuple[int, bool], list[dict[TopicPartition, _Flight]]] = {}
        leaderless: list[KafkaTail[Any]] = []
        for tail in tails:
            if not tail.wants_more() or self._awaits_append(tail):
                continue
            flight = _Flight(tail.topic_partition, tail.offset, tail.make)
            shared = self._flights.get(flight)
            if shared is not None:
                shared.append(tail)
                continue
            node = self._cluster.leader(tail.topic_partition)
            if node is None:
                leaderless.append(tail)
                continue
            self._flights[flight] = [tail]
            of_node = requests.setdefault((node, tail.committed), [])
            for request in of_node:
                if len(request) < _REQUEST_PARTITIONS and tail.topic_partition not in request:
                    request[tail.topic_partition] = flight
                    break
            else:
                of_node.append({tail.topic_partition: flight})
        for (node, committed), of_node in requests.items():
            for request in of_node:
                self._run(self._fetch(node, request, committed))
        if leaderless:
            self._run(self._retry([(tail, LeaderNotAvailableError()) for tail in leaderless]))

    def _run(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, node: int, request: dict[TopicPartition, _Flight], committed: bool) -> None:
        lane = self._cluster.take_lane()
        by_topic: dict[str, list[tuple[int, int, int, int, int]]] = {}
        for topic_partition, flight in request.items():
            by_topic.setdefault(topic_partition.topic, []).append(
                _wanted(topic_partition.partition, flight.offset, _PARTITION_BYTES)
            )
        failed: KafkaError = UnknownTopicOrPartitionError()  # the error for partitions that the answer leaves out
        again: list[KafkaTail[Any]] = []
        retry: list[tuple[KafkaTail[Any], KafkaError]] = []
        try:
            question = _Fetch(_LONG_POLL_MS, _REQUEST_BYTES, list(by_topic.items()), committed=committed)
            answer = await self._cluster.ask(node, question, lane)
            for topic, partitions in answer.topics:
                for partition, code, end, stable, _start, aborted, _replica, data in partitions:
                    flight = request.pop(TopicPartition(topic, partition))
                    tails = self._flights.pop(flight)
                    try:
                        if code:
                            raise for_code(code)
                        self._deliver(flight, tails, data, (aborted or ()) if committed else None)
                        if committed:
                            for tail in tails:
                                tail.stands(stable, end)
                        again += tails
                    except KafkaError as error:
                        retry += ((tail, error) for tail in tails)
        except KafkaError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - a background task must not die silently
            log.exception("reading failed")
            failed = KafkaError(repr(error))
        for flight in request.values():
            retry += ((tail, failed) for tail in self._flights.pop(flight))
        self._cluster.give_lane(lane)
        if again:
            self.want(again)
        if retry:
            await self._retry(retry)

    def _deliver(
        self, flight: _Flight, tails: list[KafkaTail[Any]], data: bytes | None, aborted: Sequence[tuple[int, int]] | None
    ) -> None:
        items: list[Any] = []
        next_offset = flight.offset
        if data:
            report = partial(self._cluster.report, flight.topic_partition)
            items, next_offset = decode(data, min(tail.offset for tail in tails), flight.make, aborted, report)
        for tail in tails:
            tail.receive(items, next_offset, len(data or b""))

    async def _retry(self, failed: list[tuple[KafkaTail[Any], KafkaError]]) -> None:
        tails = [tail for tail, error in failed if tail.fail(error, self._patience_s)]
        if tails:
            await self._cluster.refresh()
            await asyncio.sleep(max(tail.backoff.next_s() for tail in tails))
            self.want(tails)


async def scan(
    cluster: Cluster, topic_partition: TopicPartition, start: int, end: int, make: Callable[[Any], T | None], patience_s: float
) -> AsyncGenerator[list[T], None]:
    """Yield, in portions, what `make` returns for records from `start` to below `end`, except None. Raises LogUnavailable."""
    lane = cluster.take_lane()

    async def fetch() -> tuple[list[T | None], int]:
        node = cluster.leader(topic_partition)
        if node is None:
            raise LeaderNotAvailableError
        question = _Fetch(0, _SCAN_BYTES, [(topic_partition.topic, [_wanted(topic_partition.partition, start, _SCAN_BYTES)])])
        answer = await cluster.ask(node, question, lane)
        for _topic, partitions in answer.topics:
            for _partition, code, *_, data in partitions:
                if code:
                    raise for_code(code)
                return decode(data or b"", start, wanted, None, partial(cluster.report, topic_partition), end)
        raise UnknownTopicOrPartitionError

    def wanted(record: Any) -> T | None:
        return make(record) if record.offset < end else None

    since = time.monotonic()
    while start < end:
        before = start
        found, start = await patiently(cluster, fetch, topic_partition, patience_s)
        if start > before:
            since = time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise LogUnavailable(
                f"{name_of(topic_partition)} has nothing at {start}, but reported its end as {end}: was it truncated?"
            )
        else:
            await asyncio.sleep(BACKOFF_S)
        yield [one for one in found if one is not None]
    cluster.give_lane(lane)


async def offsets(cluster: Cluster, topic_partition: TopicPartition, patience_s: float) -> tuple[int, int]:
    """The first offset kept, and the offset after the last record. Raises LogUnavailable."""

    async def ask(which: int) -> int:
        node = cluster.leader(topic_partition)
        if node is None:
            raise LeaderNotAvailableError
        answer = await cluster.ask(node, OffsetRequest(-1, 0, [(topic_partition.topic, [(topic_partition.partition, which)])]))
        for _topic, partitions in answer.topics:
            for _partition, code, _timestamp, offset in partitions:
                if code:
                    raise for_code(code)
                return offset
        raise UnknownTopicOrPartitionError

    earliest, latest = await asyncio.gather(
        patiently(cluster, lambda: ask(-2), topic_partition, patience_s),
        patiently(cluster, lambda: ask(-1), topic_partition, patience_s),
    )
    return earliest, latest
