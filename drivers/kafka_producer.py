# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Producing: one idempotent session at a time, each batch once and in order, and nothing after it has failed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import DuplicateSequenceNumber, KafkaError, LeaderNotAvailableError, NoError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack

from .kafka_cluster import BACKOFF_S, Backoff, Cluster, copy_of, log, name_of

MAX_BATCH_BYTES: Final = 1_040_000
"""Below the brokers' default `max.message.bytes` (1,048,588), which limits a batch, not a record."""
_REPLICATION_TIMEOUT_MS: Final = 10_000
_NOT_TRANSACTIONAL: Final[Any] = None  # which aiokafka's annotations do not foresee


class Message(NamedTuple):
    """What is produced."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class _Call:
    """One `send`: its messages, and what is known of where they are."""

    __slots__ = ("acks", "done", "messages", "sent")

    def __init__(self, messages: Sequence[Message], done: asyncio.Future[list[Ack]]) -> None:
        self.messages = messages
        self.done = done
        self.sent = 0
        self.acks: list[Ack] = []


class _Batch(NamedTuple):
    data: bytes
    parts: list[tuple[_Call, int]]  # whose messages are in it, and how many of each
    since: float


class _Queue:
    """What waits for one partition. At most one batch is under way, so that order and sequence cannot break."""

    __slots__ = ("batch", "calls", "place", "sending", "sequence", "waiting_since")

    def __init__(self, place: TopicPartition) -> None:
        self.place = place
        self.calls: deque[_Call] = deque()
        self.batch: _Batch | None = None
        self.sending = False
        self.sequence = 0
        self.waiting_since = 0.0


class Producer:
    """One idempotent session: every message once and in the order of `send`, or the session fails as a whole.

    While a request to a node travels, what arrives for it waits and then travels together. What is not acknowledged within
    `patience_s` fails the session; `failed` says so, and the owner makes another.
    """

    def __init__(self, cluster: Cluster, patience_s: float) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._lane = cluster.take_lane()
        self._queues: dict[TopicPartition, _Queue] = {}
        self._active: dict[TopicPartition, _Queue] = {}
        self._busy: set[int] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: LogUnavailable | None = None
        self._id, self._epoch = -1, -1
        self._requests: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def send(self, place: TopicPartition, messages: Sequence[Message]) -> asyncio.Future[list[Ack]]:
        """Queue them; the future gives one Ack each, offset -1 where the broker cannot say, or raises LogUnavailable."""
        done: asyncio.Future[list[Ack]] = self._loop.create_future()
        if self._failure is not None:
            done.set_exception(copy_of(self._failure))
        elif not messages:
            done.set_result([])
        else:
            queue = self._active.get(place)
            if queue is None:
                queue = self._queues.get(place)
                if queue is None:
                    queue = self._queues[place] = _Queue(place)
                self._active[place] = queue
                queue.waiting_since = time.monotonic()
                self._idle.clear()
            queue.calls.append(_Call(messages, done))
            self._wake.set()
        return done

    async def close(self, timeout_s: float = 0) -> None:
        """Finish what is under way within `timeout_s`; what is not finished then raises LogUnavailable and is not sent again."""
        if timeout_s and not self.failed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        self._fail(LogUnavailable("the log was closed"))
        await asyncio.gather(self._task, *self._requests, return_exceptions=True)
        self._cluster.give_lane(self._lane)

    async def _run(self) -> None:
        try:
            await self._introduce()
            while True:
                await self._wake.wait()
                self._wake.clear()
                for node, queues in self._next_requests().items():
                    self._busy.add(node)
                    task = asyncio.create_task(self._request(node, queues))
                    self._requests.add(task)
                    task.add_done_callback(self._requests.discard)
        except LogUnavailable as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a background task does not die silently
            log.exception("the producer failed")
            self._fail(LogUnavailable(f"the producer failed: {error!r}"))

    async def _introduce(self) -> None:
        """Get a producer id, for as long as anybody who waits is patient."""
        backoff = Backoff()
        started = time.monotonic()
        while True:
            try:
                answer = await self._cluster.ask(None, InitProducerIdRequest(_NOT_TRANSACTIONAL, 2**31 - 1), self._lane)
                error = for_code(answer.error_code)
                if error is NoError:
                    self._id, self._epoch = answer.producer_id, answer.producer_epoch
                    return
                raise error()
            except KafkaError as error:
                if not error.retriable or time.monotonic() - started > self._patience_s:
                    raise LogUnavailable(f"Kafka gave no producer id: {error!r}") from None
                await self._cluster.refresh()
                await backoff.sleep()

    def _next_requests(self) -> dict[int, list[_Queue]]:
        requests: dict[int, list[_Queue]] = {}
        leaderless = False
        for queue in self._active.values():
            if queue.sending:
                continue
            node = self._cluster.leader(queue.place)
            if node is None:
                self._check_patience(queue, LeaderNotAvailableError())
                leaderless = True
            elif node not in self._busy:
                if queue.batch is None:
                    queue.batch = self._batch(queue)
                queue.sending = True
                requests.setdefault(node, []).append(queue)
        if leaderless:
            task = asyncio.create_task(self._find_leaders())
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
        return requests

    async def _find_leaders(self) -> None:
        await self._cluster.refresh()
        await asyncio.sleep(BACKOFF_S)
        self._wake.set()

    def _batch(self, queue: _Queue) -> _Batch:
        timestamp = int(time.time() * 1000)
        builder = DefaultRecordBatchBuilder(2, 0, 0, self._id, self._epoch, queue.sequence, MAX_BATCH_BYTES)
        append = builder.append
        count = 0
        parts: list[tuple[_Call, int]] = []
        calls = queue.calls
        while calls:
            call = calls[0]
            taken = 0
            for key, value, headers in call.messages[call.sent :] if call.sent else call.messages:
                if append(count, timestamp, key, value, list(headers)) is None:  # full
                    break
                count += 1
                taken += 1
            if taken:
                call.sent += taken
                parts.append((call, taken))
            if call.sent < len(call.messages):
                break
            calls.popleft()
        queue.sequence = (queue.sequence + count) & 0x7FFF_FFFF
        return _Batch(bytes(builder.build()), parts, queue.waiting_since)

    async def _request(self, node: int, queues: list[_Queue]) -> None:
        by_topic: dict[str, list[tuple[int, bytes]]] = {}
        for queue in queues:
            assert queue.batch is not None
            by_topic.setdefault(queue.place.topic, []).append((queue.place.partition, queue.batch.data))
        request = ProduceRequest(None, -1, _REPLICATION_TIMEOUT_MS, list(by_topic.items()))
        failed: KafkaError | None = None
        results: dict[tuple[str, int], tuple[int, int, int]] = {}
        try:
            answer = await self._cluster.ask(node, request, self._lane)
            for topic, partitions in answer.topics:
                for partition, code, offset, timestamp, *_ in partitions:
                    results[topic, partition] = code, offset, timestamp
        except KafkaError as error:
            failed = error
        except ConfigError as error:
            self._fail(LogUnavailable(str(error)))
        if self._failure is not None:
            return
        try:
            again = False
            for queue in queues:
                code, offset, timestamp = results.get(queue.place, (-1, -1, -1))
                error = failed or (for_code(code)() if code else None)
                queue.sending = False
                if error is None or isinstance(error, DuplicateSequenceNumber):
                    self._acknowledge(queue, offset, timestamp)
                elif error.retriable:
                    self._check_patience(queue, error)
                    again = True
                else:
                    raise LogUnavailable(f"Kafka refused to append to {name_of(queue.place)}: {error!r}")
        except LogUnavailable as error:
            self._fail(error)
            return
        if again:
            await self._cluster.refresh()
            await asyncio.sleep(BACKOFF_S)
        self._busy.discard(node)
        self._wake.set()

    def _acknowledge(self, queue: _Queue, offset: int, timestamp: int) -> None:
        batch, queue.batch = queue.batch, None
        assert batch is not None
        if timestamp < 0:
            timestamp = int(time.time() * 1000)
        for call, count in batch.parts:
            if offset < 0:  # a repetition whose first place the broker has forgotten
                call.acks.extend([Ack(-1, timestamp)] * count)
            else:
                call.acks.extend([Ack(place, timestamp) for place in range(offset, offset + count)])
                offset += count
            if len(call.acks) == len(call.messages) and not call.done.done():
                call.done.set_result(call.acks)
        if queue.calls:
            queue.waiting_since = time.monotonic()
        else:
            del self._active[queue.place]
            if not self._active:
                self._idle.set()

    def _check_patience(self, queue: _Queue, error: KafkaError) -> None:
        since = queue.batch.since if queue.batch else queue.waiting_since
        if time.monotonic() - since > self._patience_s:
            where = name_of(queue.place)
            raise LogUnavailable(f"Kafka did not take records for {where} within {self._patience_s:g} s: {error!r}")

    def _fail(self, error: LogUnavailable) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for queue in self._active.values():
            waiting = {id(call): call for call, _ in (queue.batch.parts if queue.batch else ())}
            waiting.update((id(call), call) for call in queue.calls)
            for call in waiting.values():
                if not call.done.done():
                    call.done.set_exception(copy_of(error))
                    call.done.exception()  # who was cancelled meanwhile does not fetch it
        self._active.clear()
        self._idle.set()
        current = asyncio.current_task()
        for task in (self._task, *self._requests):
            if task is not current:
                task.cancel()
