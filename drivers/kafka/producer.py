# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Producing: one idempotent session at a time sends each batch once and in order, and sends nothing after a failure."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any, Final, NamedTuple, Self

from aiokafka import TopicPartition
from aiokafka.errors import DuplicateSequenceNumber, KafkaError, LeaderNotAvailableError, NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.protocol.types import Schema
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack, EntryTooLarge

from .cluster import BACKOFF_S, Cluster, copy_of, in_words, log, name_of, new_backoff
from .records import encode, is_plain

MAX_BATCH_BYTES: Final = 1_040_000
"""Below the brokers' default `max.message.bytes` (1,048,588), which limits a batch, not a record."""
REQUESTS_PER_NODE: Final = 2
"""The most requests to a node at the same time, each for other partitions; later messages wait and travel together."""
_REPLICATION_TIMEOUT_MS: Final = 10_000
_NOT_TRANSACTIONAL: Final[Any] = None  # aiokafka's annotations do not allow None
_NO_HEADERS: Final[list[tuple[str, bytes | None]]] = []
_TOO_LARGE: Final = frozenset({10, 18})
"""MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE: the batch is above the topic's limit."""
_REFUSALS: Final = {
    17: "Kafka lets nobody write to a topic of this name",
    29: "this user lacks the right to write to the topic",
    32: "the topic refuses the time of the record",
    43: "the topic's format of messages is too old",
    44: "a policy of the brokers refuses the record",
    87: "the topic refuses the record: a compacted topic takes only records with a key",
}
"""Errors of one topic that a repeat does not mend. The broker has appended nothing of the batch."""
_UNKNOWN_TOPIC: Final = 3


class TopicRefused(LogUnavailable):
    """A topic refuses all records, however often they are sent. The message says why."""


class Message(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class _Call:
    """One `send`: its messages, and the acks so far."""

    __slots__ = ("acks", "done", "messages", "sent")

    def __init__(self, messages: Sequence[Message], done: asyncio.Future[list[Ack]]) -> None:
        self.messages = messages
        self.done = done
        self.sent = 0
        self.acks: list[Ack] = []

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks the error as retrieved: a cancelled caller does not


class _Unwritable(Exception):
    """A message that no batch can hold, such as one with a value of another type."""

    def __init__(self, call: _Call, error: Exception) -> None:
        super().__init__(error)
        self.call = call
        self.error = error


class _Batch(NamedTuple):
    data: bytes
    sequence: int
    parts: list[tuple[_Call, int]]  # the calls with messages in it, and how many of each
    timestamp: int  # of its records, unless the topic uses the broker's time
    since: float


class _Queue:
    """The calls that wait for one partition. At most one batch is under way, so order and sequence cannot break."""

    __slots__ = ("batch", "calls", "in_doubt", "most_bytes", "sending", "sequence", "topic_partition", "waiting_since")

    def __init__(self, topic_partition: TopicPartition) -> None:
        self.topic_partition = topic_partition
        self.calls: deque[_Call] = deque()
        self.batch: _Batch | None = None
        self.sending = False
        self.sequence = 0
        self.in_doubt = False  # an answer was lost, so the log may hold the batch
        self.most_bytes = MAX_BATCH_BYTES
        self.waiting_since = 0.0

    def take_back(self) -> None:
        """Called when the log holds nothing of the batch: its messages wait again, before all others, for the same sequence
        numbers."""
        batch, self.batch = self.batch, None
        assert batch is not None
        self.sequence = batch.sequence
        for call, count in reversed(batch.parts):
            if call.sent == len(call.messages):
                self.calls.appendleft(call)
            call.sent -= count


class Producer:
    """One idempotent session: it sends every message once and in the order of `send`, or fails as a whole.

    While requests to a node are under way, new messages for it wait and then travel together. The session fails if it cannot know
    whether the log holds a message, for example because no acknowledgement comes within `patience_s`. `failed` is then true, and
    the driver makes another session. If the log certainly holds nothing of a batch, only the calls in it fail: a broker checks a
    batch before it counts its sequence numbers, so the next batch takes the same ones. (The Java client does the same.)
    """

    def __init__(self, cluster: Cluster, patience_s: Callable[[], float]) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._lane = cluster.take_lane()
        self._queues: dict[TopicPartition, _Queue] = {}
        self._active: dict[TopicPartition, _Queue] = {}
        self._under_way: Counter[int] = Counter()  # node -> requests under way
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: LogUnavailable | None = None
        self._id, self._epoch = -1, -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._run(self._introduce)

    def give_up(self, why: str) -> None:
        """Fail the session: waiting callers get LogUnavailable."""
        self._fail(LogUnavailable(why))

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def send(self, topic_partition: TopicPartition, messages: Sequence[Message]) -> asyncio.Future[list[Ack]]:
        """Queue messages. The future gives one Ack each (offset -1 if the broker does not know it), or raises LogUnavailable.

        Raises EntryTooLarge for the first message that is above the topic's limit, with the acks of those before it; sends
        nothing after it. Raises TopicRefused if the topic takes none of them, and any error for a message that no batch can hold.
        Other calls go on.
        """
        done: asyncio.Future[list[Ack]] = self._loop.create_future()
        if self._failure is not None:
            done.set_exception(copy_of(self._failure))
        elif not messages:
            done.set_result([])
        else:
            queue = self._active.get(topic_partition)
            if queue is None:
                queue = self._queues.get(topic_partition)
                if queue is None:
                    queue = self._queues[topic_partition] = _Queue(topic_partition)
                self._active[topic_partition] = queue
                queue.waiting_since = time.monotonic()
                self._idle.clear()
            queue.calls.append(_Call(messages, done))
            self._schedule()
        return done

    async def close(self, timeout_s: float = 0) -> None:
        """Finish work under way within `timeout_s`. Unfinished calls raise LogUnavailable; their messages are not sent again."""
        if timeout_s and not self.failed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        self._fail(LogUnavailable("the log was closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._cluster.give_lane(self._lane)

    def _schedule(self) -> None:
        """Send at the end of the loop's turn, so that the messages of one turn travel together."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._id < 0 or self._failure is not None:
            return
        try:
            for node, queues in self._next_requests().items():
                self._under_way[node] += 1
                self._run(self._request, node, queues)
        except LogUnavailable as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a session that dies here in silence would hang all its callers
            self._broke(error)

    def _run(self, part: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        task = self._loop.create_task(self._guard(part, *args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, part: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a task of the session; its error fails the session."""
        try:
            await part(*args)
        except LogUnavailable as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a background task must not die silently
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        log.exception("the producer failed")
        self._fail(LogUnavailable(f"the producer failed: {error!r}"))

    async def _introduce(self) -> None:
        """Get a producer id, for at most `patience_s`."""
        backoff = new_backoff()
        started = time.monotonic()
        while True:
            try:
                answer = await self._cluster.ask(None, InitProducerIdRequest(_NOT_TRANSACTIONAL, 2**31 - 1), self._lane)
                error = for_code(answer.error_code)
                if error is NoError:
                    self._id, self._epoch = answer.producer_id, answer.producer_epoch
                    self._schedule()
                    return
                raise error()
            except KafkaError as error:
                if not error.retriable or time.monotonic() - started > self._patience_s():
                    raise LogUnavailable(f"Kafka gave no producer id: {in_words(error)}") from None
                await self._cluster.refresh()
                await asyncio.sleep(backoff.next_s())

    def _next_requests(self) -> dict[int, list[_Queue]]:
        requests: dict[int, list[_Queue]] = {}
        leaderless = False
        for queue in list(self._active.values()):
            if queue.sending:
                continue
            node = self._cluster.leader(queue.topic_partition)
            if node is None:
                self._check_patience(queue, LeaderNotAvailableError())
                leaderless = True
            elif self._under_way[node] < REQUESTS_PER_NODE:
                if queue.batch is None:
                    queue.batch = self._next_batch(queue)
                    if queue.batch is None:
                        continue
                queue.sending = True
                requests.setdefault(node, []).append(queue)
        if leaderless:
            self._run(self._find_leaders)
        return requests

    async def _find_leaders(self) -> None:
        await self._cluster.refresh()
        await asyncio.sleep(BACKOFF_S)
        self._schedule()

    def _next_batch(self, queue: _Queue) -> _Batch | None:
        """The next batch of a queue, or None if no call is left. A call with a message that cannot be written fails alone."""
        while queue.calls:
            try:
                return self._batch(queue)
            except _Unwritable as unwritable:
                queue.calls.remove(unwritable.call)
                unwritable.call.fail(unwritable.error)
        self._rest(queue)
        return None

    def _batch(self, queue: _Queue) -> _Batch:
        """Take messages out of a queue, as many as fit. Raises _Unwritable, and has then taken none."""
        timestamp = int(time.time() * 1000)
        builder = DefaultRecordBatchBuilder(2, 0, 0, self._id, self._epoch, queue.sequence, queue.most_bytes)
        append = builder.append
        count = 0
        alone = b""
        parts: list[tuple[_Call, int]] = []
        for call in queue.calls:
            taken = 0
            try:
                for key, value, headers in call.messages[call.sent :] if call.sent else call.messages:
                    if headers and not is_plain(headers):
                        if not count:  # in a batch of its own
                            alone = encode(timestamp, key, value, headers, self._id, self._epoch, queue.sequence)
                            count = taken = 1
                        break
                    if append(count, timestamp, key, value, list(headers) if headers else _NO_HEADERS) is None:  # it is full
                        break
                    count += 1
                    taken += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this call alone
                raise _Unwritable(call, error) from None
            if taken:
                parts.append((call, taken))
            if alone or call.sent + taken < len(call.messages):
                break
        for call, taken in parts:
            call.sent += taken
            if call.sent == len(call.messages):
                queue.calls.popleft()
        first, queue.sequence = queue.sequence, (queue.sequence + count) & 0x7FFF_FFFF
        return _Batch(alone or bytes(builder.build()), first, parts, timestamp, queue.waiting_since)

    async def _request(self, node: int, queues: list[_Queue]) -> None:
        batches = [(queue.topic_partition, queue.batch.data) for queue in queues if queue.batch is not None]
        failed: KafkaError | None = None
        results: Mapping[tuple[str, int], tuple[int, int, int]] = {}
        try:
            results = (await self._cluster.ask(node, ProduceRequest(batches), self._lane)).results
        except KafkaError as error:
            failed = error
        except ConfigError as error:
            raise LogUnavailable(str(error)) from None
        if self._failure is not None:
            return
        again = False
        for queue in queues:
            code, offset, timestamp = results.get(queue.topic_partition, (-1, -1, -1))
            error = failed or (for_code(code)() if code else None)
            queue.sending = False
            if error is None or isinstance(error, DuplicateSequenceNumber):
                self._acknowledge(queue, offset, timestamp)
            elif code in _TOO_LARGE and not queue.in_doubt:
                self._split(queue)
            elif code in _REFUSALS and not queue.in_doubt:
                self._refuse(
                    queue, TopicRefused(f"Kafka refused to append to {name_of(queue.topic_partition)}: {_REFUSALS[code]}")
                )
            elif error.retriable:
                queue.in_doubt |= code != _UNKNOWN_TOPIC
                self._check_patience(queue, error)
                again = True
            else:
                raise LogUnavailable(f"Kafka refused to append to {name_of(queue.topic_partition)}: {error!r}")
        if again:
            await self._cluster.refresh()
            await asyncio.sleep(BACKOFF_S)
        self._under_way[node] -= 1
        self._schedule()

    def _acknowledge(self, queue: _Queue, offset: int, timestamp: int) -> None:
        batch, queue.batch = queue.batch, None
        assert batch is not None
        queue.in_doubt = False
        if timestamp < 0:
            timestamp = batch.timestamp
        for call, count in batch.parts:
            if offset < 0:  # a repeat of a batch whose offset the broker has forgotten
                call.acks.extend([Ack(-1, timestamp)] * count)
            else:
                call.acks.extend([Ack(topic_partition, timestamp) for topic_partition in range(offset, offset + count)])
                offset += count
            if len(call.acks) == len(call.messages) and not call.done.done():
                call.done.set_result(call.acks)
        self._rest(queue)

    def _rest(self, queue: _Queue) -> None:
        """Called when a queue has no batch under way: the patience of its next calls begins now."""
        if queue.calls:
            queue.waiting_since = time.monotonic()
        else:
            del self._active[queue.topic_partition]
            if not self._active:
                self._idle.set()

    def _split(self, queue: _Queue) -> None:
        """Called when a batch is too large for its topic: send it again in parts. If one record alone is too large, fail its
        call."""
        batch = queue.batch
        assert batch is not None
        if sum(count for _, count in batch.parts) > 1:
            queue.take_back()
            queue.most_bytes = len(batch.data) // 2
            return
        queue.most_bytes = MAX_BATCH_BYTES  # this record was too large
        [(call, _)] = batch.parts
        message = (
            f"Kafka refused to append to {name_of(queue.topic_partition)}: {len(batch.data):,} bytes are too large for the topic"
        )
        self._refuse(queue, EntryTooLarge(message, call.acks))

    def _refuse(self, queue: _Queue, error: EntryTooLarge | LogUnavailable) -> None:
        """Called when the log holds nothing of a batch: fail the calls in it, and send nothing more of them."""
        batch = queue.batch
        assert batch is not None
        queue.take_back()
        for call, _ in batch.parts:
            queue.calls.popleft()
            call.fail(copy_of(error) if isinstance(error, LogUnavailable) else error)
        self._rest(queue)

    def _check_patience(self, queue: _Queue, error: KafkaError) -> None:
        """Fail all calls of a partition that has acknowledged nothing for `patience_s`. Raises LogUnavailable if it may hold some
        of their messages."""
        since = queue.batch.since if queue.batch else queue.waiting_since
        waited_s = time.monotonic() - since
        if waited_s <= self._patience_s():
            return
        late = LogUnavailable(f"Kafka did not take records for {name_of(queue.topic_partition)} for {waited_s:.1f} s: {error!r}")
        if queue.in_doubt:
            raise late
        if queue.batch is not None:
            queue.take_back()
        for call in queue.calls:
            call.fail(copy_of(late))
        queue.calls.clear()
        self._rest(queue)

    def _fail(self, error: LogUnavailable) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for queue in self._active.values():
            waiting = {id(call): call for call, _ in (queue.batch.parts if queue.batch else ())}
            waiting.update((id(call), call) for call in queue.calls)
            for call in waiting.values():
                call.fail(copy_of(error))
        self._active.clear()
        self._idle.set()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()


# aiokafka encodes and decodes a request field by field, which costs more than all the rest of it.


class _ProduceAnswer(Response):
    """Version 7. `results`: topic and partition -> (error code, base offset, the broker's timestamp or -1)."""

    API_KEY = 0  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - aiokafka declares a property
    API_VERSION = 7  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - as the line before
    SCHEMA = Schema()
    _PARTITION: Final = struct.Struct(">ihqqq")

    def __init__(self, results: Mapping[tuple[str, int], tuple[int, int, int]]) -> None:
        super().__init__()
        self.results = results

    @classmethod
    def decode(cls, data: BytesIO | bytes) -> Self:
        body = data if isinstance(data, bytes) else data.read()
        results: dict[tuple[str, int], tuple[int, int, int]] = {}
        (topics,) = _INT32.unpack_from(body)
        at = 4
        for _ in range(topics):
            (size,) = _INT16.unpack_from(body, at)
            at += 2
            topic = body[at : at + size].decode()
            at += size
            (partitions,) = _INT32.unpack_from(body, at)
            at += 4
            for _ in range(partitions):
                partition, code, offset, timestamp, _log_start = cls._PARTITION.unpack_from(body, at)
                results[topic, partition] = code, offset, timestamp
                at += cls._PARTITION.size
        return cls(results)


class _ProduceStruct(RequestStruct):
    API_KEY = 0
    API_VERSION = 7
    RESPONSE_TYPE = _ProduceAnswer
    SCHEMA = Schema()
    _BEGINNING: Final = struct.Struct(">hhi").pack(-1, -1, _REPLICATION_TIMEOUT_MS)  # no transaction, all in-sync replicas
    _PARTITION: Final = struct.Struct(">ii")

    def __init__(self, batches: Sequence[tuple[TopicPartition, bytes]]) -> None:
        super().__init__()
        self._batches = batches

    def encode(self) -> bytes:
        by_topic: dict[str, list[bytes]] = {}
        for (topic, partition), batch in self._batches:
            by_topic.setdefault(topic, []).append(self._PARTITION.pack(partition, len(batch)) + batch)
        parts = [self._BEGINNING, _INT32.pack(len(by_topic))]
        for topic, partitions in by_topic.items():
            name = topic.encode()
            parts += (_INT16.pack(len(name)), name, _INT32.pack(len(partitions)), *partitions)
        return b"".join(parts)


class ProduceRequest(Request[_ProduceStruct]):
    API_KEY = 0

    def __init__(self, batches: Sequence[tuple[TopicPartition, bytes]]) -> None:
        self._batches = batches

    def build(self, request_struct_class: type[_ProduceStruct]) -> _ProduceStruct:
        return request_struct_class(self._batches)


_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
