"""Kafka as the log: `KafkaDriver`, and its `step.ext` and `ctx.ext`.

    Client("kafka://broker-1:9092,broker-2:9092/shop")          # the namespace "shop"
    Client(driver=KafkaDriver("broker-1:9092", "shop", security_protocol="SASL_SSL", sasl_mechanism=..., ...))

A namespace is four topics: `shop.history` (the log), `shop.inbox` (requests from anyone), `shop.dead-letters` (refused ones)
and `shop.checkpoints` (compacted). `stepfold topics create` makes them; this driver never does so by itself. The consumer group
`shop.workers` assigns partitions to workers. The engine is responsible for positions, fencing and checkpoints; the driver judges
no record.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from shlex import quote
from typing import Any, Final, Unpack, cast
from urllib.parse import urlencode

from aiokafka.partitioner import murmur2  # pyright: ignore[reportUnknownVariableType] - aiokafka ships no types

from stepfold.errors import ConfigError, LogUnavailable, PayloadTooLarge
from stepfold.log import Ack, DeadLetter, Entry, EntryTooLarge, InboxRecord, Record, Redriven, Redriving, partition_of

from . import topics as kafka_topics
from .administration import Administration, InboxPosition
from .cluster import Cluster, TopicPartition, describe
from .dead_letters import DeadLetterWriter, text_of
from .fetcher import Fetcher, KafkaTail, offsets, scan
from .finder import Finder
from .group import GroupMember
from .inbox import KafkaInbox
from .options import KafkaOptions, KafkaSecurity, check, parsed
from .producer import Message, Producer, TopicRefused
from .publish import KafkaContext, KafkaStep
from .reader import KafkaReader
from .topics import Namespace, TopicDescription, TopicProblem

__all__ = ["DeadLetter", "KafkaContext", "KafkaDriver", "KafkaStep", "Redriven", "TopicDescription", "TopicProblem"]

MAX_VALUE_BYTES: Final = 1_000_000
"""One record must fit into a batch of Kafka's default size, with its key and the batch's header."""
_MAX_KEY_BYTES: Final = 40_000
_LEAVING_PATIENCE_S: Final = 3
_LOOK_S: Final = 0.25


class KafkaMember(GroupMember):
    """A member with its inbox."""

    reads: KafkaInbox

    def inbox(self) -> KafkaInbox:
        return self.reads


class KafkaDriver:
    """A `Log` on Kafka. `bootstrap` is `host:port[,host:port…]`.

    `patience_s`: how long the driver repeats an append or a query before it raises LogUnavailable, and how long a partition
    may be silent before its readers raise it. `session_timeout_s`: how long a dead worker keeps its partitions; by default
    brokers allow 6 s and more. Raises ConfigError for a bad address or namespace.
    """

    def __init__(
        self,
        bootstrap: str,
        namespace: str,
        *,
        session_timeout_s: float = 10,
        patience_s: float = 30,
        **security: Unpack[KafkaSecurity],
    ) -> None:
        check(bootstrap, session_timeout_s, patience_s)
        self.bootstrap = bootstrap
        self.namespace = Namespace(namespace)
        self.max_value_bytes = MAX_VALUE_BYTES
        self._security = security
        self._session_timeout_s = session_timeout_s
        self._patience_s = patience_s
        self._cluster: Cluster | None = None
        self._fetcher: Fetcher | None = None
        self._id = ""
        self._replaced = ""  # if the topic was deleted and made again: the error message
        self._partitions = 0
        self._inbox_partitions = 0
        self._producers: dict[str, Producer] = {}
        self._letters = DeadLetterWriter(self._opened, lambda: self._producer("other"), self.namespace, patience_s)
        self._members: set[KafkaMember] = set()
        self._tails: dict[int, set[KafkaTail[Record]]] = {}
        self._finders: dict[int, Finder] = {}
        self._echoes: list[tuple[int, Sequence[Entry], Sequence[Ack]]] = []
        self._foreign_topics: dict[str, int] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._hurrying: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, **options: Unpack[KafkaOptions]) -> KafkaDriver:
        """Parses `kafka://host:port[,host:port…]/namespace[?session_timeout_s=10&patience_s=30]`; `options` win over the URL."""
        bootstrap, namespace, of_url = parsed(url)
        try:
            return cls(bootstrap, namespace, **{**of_url, **options})
        except ConfigError as error:
            raise ConfigError(f"{url!r}: {error}") from None

    @property
    def name(self) -> str:
        return f"kafka://{self.bootstrap}/{self.namespace.name}"

    @property
    def url(self) -> str:
        options = {"session_timeout_s": (self._session_timeout_s, 10), "patience_s": (self._patience_s, 30)}
        query = urlencode({name: f"{seconds}" for name, (seconds, default) in options.items() if seconds != default})
        return f"{self.name}?{query}" if query else self.name

    @property
    def id(self) -> str:
        """The id that the cluster gave the history topic when it was made (KIP-516)."""
        return self._id

    @property
    def partitions(self) -> int:
        return self._partitions

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    # Opening and closing.

    async def open(self) -> None:
        if self._cluster is not None:
            return
        cluster = self._connection()
        try:
            await cluster.start()
            topics = await kafka_topics.look(cluster, self.namespace, self._patience_s)
            wrong = [finding for finding in kafka_topics.check(cluster, self.url, self.namespace, topics) if finding.fatal]
            if wrong:
                raise ConfigError(f"{self.name} cannot be used. {kafka_topics.in_words(wrong)}")
            history = topics[self.namespace.history]
            self._id, self._partitions, self._replaced = history.id, history.partitions, ""
            self._inbox_partitions = topics[self.namespace.inbox].partitions
            await cluster.start(self.namespace.topics)
        except BaseException:
            await cluster.close()
            raise
        self._cluster = cluster
        self._fetcher = Fetcher(cluster, self._patience_s)

    async def close(self) -> None:
        cluster, self._cluster = self._cluster, None
        fetcher, self._fetcher = self._fetcher, None
        if cluster is None or fetcher is None:
            return
        await asyncio.gather(*(member.leave() for member in self._members))
        await asyncio.gather(*(producer.close(cluster.last_wait_s) for producer in self._producers.values()))
        closed = LogUnavailable(f"{self.name} was closed")
        for tails in self._tails.values():
            for tail in tails:
                tail.end(closed)
        await fetcher.close()
        if self._hurrying is not None:
            self._hurrying.cancel()
            await asyncio.wait([self._hurrying])
        await asyncio.gather(*self._endings)
        self._producers.clear()
        self._tails.clear()
        self._finders.clear()
        self._foreign_topics.clear()
        await cluster.close()

    def _connection(self) -> Cluster:
        return Cluster(self.bootstrap, cast(Mapping[str, Any], self._security))

    def _opened(self) -> Cluster:
        if self._cluster is None:
            raise LogUnavailable(f"{self.name} is not open")
        if self._replaced:
            raise ConfigError(self._replaced)
        return self._cluster

    def _patience(self) -> float:
        """Seconds to wait for a broker: only a few if all members are leaving."""
        return min(self._patience_s, _LEAVING_PATIENCE_S) if self._is_leaving() else self._patience_s

    def _is_leaving(self) -> bool:
        return bool(self._members) and all(member.retired for member in self._members)

    def _hurry(self) -> None:
        """A member retires: from now on, do not wait for brokers that do not answer."""
        if self._hurrying is None or self._hurrying.done():
            self._hurrying = asyncio.create_task(self._watch_leaving())

    async def _watch_leaving(self) -> None:
        while self._cluster is not None and self._is_leaving():
            if self._cluster.is_silent:
                for producer in self._producers.values():
                    producer.give_up(f"{self.name} does not answer, and this worker is leaving")
            await asyncio.sleep(_LOOK_S)

    def _producer(self, purpose: str) -> Producer:
        """The producer for this purpose, so that a large checkpoint does not delay appends. After a failure this is a new one."""
        producer = self._producers.get(purpose)
        if producer is None or producer.failed:
            if producer is not None:
                ending = asyncio.create_task(producer.close())
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
            producer = self._producers[purpose] = Producer(self._opened(), self._patience)
        return producer

    # The history.

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        self._opened()
        messages = _messages(entries)
        topic_partition = TopicPartition(self.namespace.history, partition)
        fetcher = self._fetcher
        assert fetcher is not None
        fetcher.append_begins(topic_partition)
        try:
            acks = await self._producer("history").send(topic_partition, messages)
        except EntryTooLarge as error:
            size, appended = len(entries[len(error.appended)].value), error.appended
            raise EntryTooLarge(await self._no_room(topic_partition.topic, size), appended) from None
        finally:
            fetcher.append_ends(topic_partition)
        if acks:
            if not self._echoes:
                asyncio.get_running_loop().call_soon(self._echo)
            self._echoes.append((partition, entries, acks))
        return acks

    async def _no_room(self, topic: str, size: int) -> str:
        """The message for a record that a topic of the namespace does not take."""
        limit = await kafka_topics.limit(self._opened(), topic)
        return (
            f"a record of {size:,} bytes is too large for {topic}, whose max.message.bytes is {limit}: raise it again, see "
            f"`stepfold topics check --url {quote(self.url)}`"
        )

    def _echo(self) -> None:
        """Hand this process's appends to the tails right before them (not to readers that the appender has advanced already)."""
        echoes, self._echoes = self._echoes, []
        if self._fetcher is None:
            return
        for partition, entries, acks in echoes:
            first, end = acks[0].offset, acks[-1].offset + 1
            if first < 0 or end - first != len(entries):
                continue
            tails = self._tails.get(partition, ())
            following = [tail for tail in tails if tail.offset == first]
            if following:
                records = [Record(ack.offset, ack.timestamp, *entry) for entry, ack in zip(entries, acks, strict=True)]
                size_bytes = sum(len(entry.value) for entry in entries)
                for tail in following:
                    tail.echo(records, size_bytes)
            self._fetcher.appended(TopicPartition(self.namespace.history, partition), end)

    def lost_end(self, partition: int, offset: int) -> LogUnavailable:
        """The error for readers if another record, or none, stands at an offset that was read."""
        self._finders.pop(partition, None)  # the finder's index covers deleted records
        return LogUnavailable(
            f"{self.name} partition {partition}: offset {offset} holds another record than before, or none: it has lost its end "
            "(by an unclean leader election, say) or was restored from an older copy, and must be read again"
        )

    async def check_identity(self) -> None:
        """Raises ConfigError if the history is not the topic that was opened."""
        history = self.namespace.history
        found = await describe(self._opened(), [history], self._patience_s)
        if history in found and found[history].id != self._id:
            self._replaced = (
                f"{self.name}: the topic {history} was deleted and recreated while it was in use (its id was {self._id} and "
                f"is {found[history].id}): its records are gone. Restart everything that uses it; the present records of the "
                "topic count"
            )
            raise ConfigError(self._replaced)

    async def bounds(self, partition: int) -> tuple[int, int]:
        return await offsets(self._opened(), TopicPartition(self.namespace.history, partition), self._patience_s)

    def reader(self, partition: int, offset: int) -> KafkaReader:
        return KafkaReader(self, partition, offset)

    def tail(self, partition: int, offset: int, news: Callable[[], None]) -> KafkaTail[Record]:
        """A tail of history records, which `close` ends."""
        self._opened()
        assert self._fetcher is not None
        tail = KafkaTail(self._fetcher, TopicPartition(self.namespace.history, partition), offset, _record, news)
        self._tails.setdefault(partition, set()).add(tail)
        return tail

    def forget(self, tail: KafkaTail[Record]) -> None:
        self._tails.get(tail.topic_partition.partition, set[KafkaTail[Record]]()).discard(tail)

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        wanted = [key.encode("utf-8", "surrogatepass") for key in keys]
        first, end = await self.bounds(partition)
        finder = self._finders.get(partition)
        if finder is not None and end < finder.end:  # the log has fewer records than before
            await self.check_identity()
            finder = None
        if finder is None:
            topic_partition = TopicPartition(self.namespace.history, partition)
            finder = self._finders[partition] = Finder(
                lambda start, end, make: scan(self._opened(), topic_partition, start, end, make, self._patience_s), _record
            )
        return await finder.find(wanted, max(first, start), end) if wanted else []

    # Members and the inbox.

    async def join(self, member: str) -> KafkaMember:
        cluster = self._opened()
        assert self._fetcher is not None

        def left() -> None:
            self._members.discard(joined)
            joined.reads.close()

        joined = KafkaMember(
            self.bootstrap,
            cast(Mapping[str, Any], self._security),
            self.namespace,
            self._partitions,
            member,
            self._session_timeout_s,
            self._hurry,
            left,
        )
        joined.reads = KafkaInbox(
            cluster,
            self._fetcher,
            self._letters,
            joined,
            self.url,
            self.namespace,
            self._partitions,
            self._inbox_partitions,
            self._patience_s,
        )
        self._members.add(joined)
        return joined

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        await self._letters.bury(record, reason)

    # Checkpoints.

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        self._opened()
        messages = _messages(items.items())
        topic_partition = TopicPartition(self.namespace.checkpoints, partition)
        try:
            await self._producer("other").send(topic_partition, messages)
        except EntryTooLarge as error:
            size = len(messages[len(error.appended)].value or b"")
            raise PayloadTooLarge(await self._no_room(topic_partition.topic, size)) from None

    async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        cluster = self._opened()
        topic_partition = TopicPartition(self.namespace.checkpoints, partition)
        start, end = await offsets(cluster, topic_partition, self._patience_s)

        def make(record: Any) -> tuple[str, bytes | None]:
            return text_of(record.key or b""), record.value

        async for portion in scan(cluster, topic_partition, start, end, make, self._patience_s):
            yield dict(portion)

    # Users' extensions.

    def step_ext(self, step: Any) -> KafkaStep:
        return KafkaStep(self, step)

    def ctx_ext(self, run_id: str) -> KafkaContext:
        return KafkaContext(self.namespace.name, partition_of(run_id, self._partitions))

    async def publish(
        self, topic: str, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]], spread_by: bytes
    ) -> tuple[int, int]:
        """Produce to any topic. The partition is the Java client's choice for `key`, or for `spread_by` without a key.

        Returns partition and offset. Raises ConfigError if the topic does not exist or takes no such records, LogUnavailable,
        PayloadTooLarge.
        """
        cluster = self._opened()
        if len(value) > MAX_VALUE_BYTES:
            raise _too_large(topic, value)
        partitions = self._foreign_topics.get(topic)
        if partitions is None:
            found = await describe(cluster, [topic], self._patience_s)
            if topic not in found:
                raise ConfigError(f"topic {topic!r} does not exist at {self.bootstrap}: create it, or name another")
            partitions = self._foreign_topics[topic] = len(found[topic].replicas)
            await cluster.start([topic])
        partition = (murmur2(spread_by if key is None else key) & 0x7FFF_FFFF) % partitions
        try:  # other topics have a producer of their own, so that they never delay a dead letter or a checkpoint
            [ack] = await self._producer("foreign").send(TopicPartition(topic, partition), [Message(key, value, headers)])
        except EntryTooLarge:
            size = len(value) + len(key or b"") + sum(len(name) + len(content) for name, content in headers)
            raise PayloadTooLarge(
                f"a record of {size:,} bytes is too large for topic {topic!r}, whose max.message.bytes is "
                f"{await kafka_topics.limit(cluster, topic)}: raise it, or keep large payloads elsewhere and pass a reference"
            ) from None
        except TopicRefused as refused:
            raise ConfigError(f"topic {topic!r}: {refused}; fix the topic or the rights, or publish to another one") from None
        return partition, ack.offset

    # For the command line. These methods do not need an open driver.

    async def create_topics(self, partitions: int, replication: int) -> None:
        """Make the namespace's missing topics. Raises ConfigError if an existing one differs."""
        async with self._administering() as administration:
            await administration.create_topics(partitions, replication)

    async def check_topics(self) -> list[TopicProblem]:
        """The problems of the topics, each with its fix, the fatal ones first."""
        async with self._administering() as administration:
            return await administration.check_topics()

    async def describe(self) -> list[TopicDescription]:
        """The namespace's existing topics with their settings."""
        async with self._administering() as administration:
            return await administration.describe()

    async def inbox_positions(self) -> list[InboxPosition]:
        """How far the workers have read each partition of the inbox, and the transaction that holds them up."""
        async with self._administering() as administration:
            return await administration.inbox_positions()

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The last `limit` refused records, the oldest first. Reads only the end of the topic, a few times as many records."""
        async with self._administering() as administration:
            return await administration.dead_letters(limit)

    async def redrive(self, places: Sequence[str] | None = None, **options: Unpack[Redriving]) -> Redriven:
        """See `KeepsDeadLetters`. A record that Kafka refuses does not stop the others."""
        async with self._administering() as administration:
            return await administration.redrive(places, **options)

    async def drop_letters(self, places: Sequence[str], *, by: str | None = None, why: str | None = None) -> None:
        async with self._administering() as administration:
            await administration.drop_letters(places, by, why)

    @contextlib.asynccontextmanager
    async def _administering(self) -> AsyncGenerator[Administration, None]:
        cluster = self._cluster or self._connection()
        try:
            if cluster is not self._cluster:
                await cluster.start()
            yield Administration(cluster, self.url, self.namespace, self._patience_s, self._patience)
        finally:
            if cluster is not self._cluster:
                await cluster.close()


def _record(record: Any) -> Record:
    """A record of the history. Never raises: a record from a foreign producer becomes a Record too, and the fold rejects it."""
    key: bytes | None = record.key
    return Record(record.offset, record.timestamp, text_of(key) if key else "", record.value or b"")


def _messages(items: Iterable[tuple[str, bytes | None]]) -> list[Message]:
    """One message for each key and value. Raises PayloadTooLarge."""
    made: list[Message] = []
    for key, value in items:
        key_bytes = key.encode("utf-8", "surrogatepass")
        if len(value or b"") > MAX_VALUE_BYTES or len(key_bytes) > _MAX_KEY_BYTES:
            raise _too_large(key, value or b"")
        made.append(Message(key_bytes, value))
    return made


def _too_large(key: str, value: bytes) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"a record of {len(value)} bytes for {key[:200]!r} is above the limit of {MAX_VALUE_BYTES}: "
        "keep large payloads elsewhere and pass a reference"
    )
