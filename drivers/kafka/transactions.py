# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Open transactions of foreign producers: a transaction that hangs stops every read-committed reader.

The broker ends a transaction after its producer's `transaction.timeout.ms`, 15 minutes at most unless the broker allows more.
Until then this module can only report the transaction: its partition, its producer, its age, and the command that aborts it. It
leaves out facts that the broker does not tell (for lack of rights, say).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, for_code
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from stepfold.errors import ConfigError

from .cluster import Cluster, log, name_of, patiently
from .requests import request_of

_NO_DATE: Final = 253_402_300_800_000
"""Milliseconds to the year 10000."""
HELD_S: Final = 30.0
"""A transaction that is open for longer counts as hanging."""


class OpenTransaction(NamedTuple):
    """One open transaction. `since`: when it began, else when its producer last wrote, ms since 1970. Unknown fields are None or
    ""."""

    topic_partition: TopicPartition
    offset: int
    producer: int | None = None
    id: str = ""
    since: int | None = None
    timeout_ms: int | None = None

    @property
    def age_s(self) -> float | None:
        return None if self.since is None else time.time() - self.since / 1000

    @property
    def problem(self) -> str:
        whose = "a producer" if self.producer is None else f"producer {self.producer}"
        whose += f" ({self.id!r})" if self.id else ""
        when = ""
        if self.since is not None:
            began = datetime.fromtimestamp(self.since / 1000, UTC)
            when = f" since {began:%Y-%m-%d %H:%M:%S} UTC ({self.age_s:.0f} s)"
        return f"a transaction of {whose} is open{when} at offset {self.offset} of partition {self.topic_partition.partition}"

    def mend(self, bootstrap: str) -> str:
        at_last = "" if self.timeout_ms is None else f" (its broker does so after {self.timeout_ms / 1000:g} s)"
        return (
            f"Let its producer commit or abort it{at_last}, or run: kafka-transactions.sh --bootstrap-server {bootstrap} abort "
            f"--topic {self.topic_partition.topic} --partition {self.topic_partition.partition} --start-offset {self.offset}"
        )


async def ends(cluster: Cluster, of: Iterable[TopicPartition], patience_s: float) -> dict[TopicPartition, tuple[int, int]]:
    """For each partition, the offset up to which it can be read committed, and its end."""
    wanted = list(of)

    async def ask(isolation: int) -> dict[TopicPartition, int]:
        by_node: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for topic_partition in wanted:
            node = cluster.leader(topic_partition)
            if node is None:
                raise LeaderNotAvailableError
            by_node.setdefault(node, {}).setdefault(topic_partition.topic, []).append((topic_partition.partition, -1))
        found: dict[TopicPartition, int] = {}
        for node, topics in by_node.items():
            answer = await cluster.ask(node, OffsetRequest(-1, isolation, list(topics.items())))
            for topic, partitions in answer.topics:
                for partition, code, _timestamp, offset in partitions:
                    if code:
                        raise for_code(code)
                    found[TopicPartition(topic, partition)] = offset
        return found

    stable = await patiently(cluster, lambda: ask(1), "positions", patience_s)
    end = await patiently(cluster, lambda: ask(0), "positions", patience_s)
    return {topic_partition: (stable[topic_partition], end[topic_partition]) for topic_partition in wanted}


async def open_at(cluster: Cluster, topic_partition: TopicPartition, offset: int) -> OpenTransaction:
    """The open transaction that blocks readers at `offset`, with what the brokers tell about it. Never raises."""
    found = OpenTransaction(topic_partition, offset)
    try:
        async with asyncio.timeout(10):
            producers = await _producers(cluster, topic_partition)
            if offset not in producers:
                return found
            producer, written = producers[offset]
            since = written if 0 < written < _NO_DATE else None  # the producer chooses the timestamp
            found = found._replace(producer=producer, since=since)
            for node in cluster.nodes:
                for transaction_id in await _listed(cluster, node, producer):
                    found = found._replace(id=transaction_id)
                    timeout_ms, began = await _described(cluster, node, transaction_id)
                    return found._replace(timeout_ms=timeout_ms, since=began if 0 < began < _NO_DATE else since)
    except (KafkaError, ConfigError, TimeoutError) as error:
        log.debug("the brokers do not list transactions of %s: %r", name_of(topic_partition), error)
    return found


async def hanging(cluster: Cluster, of: Iterable[TopicPartition], patience_s: float) -> list[OpenTransaction]:
    """Transactions that have been open for `HELD_S` or longer, or for an unknown time."""
    found: list[OpenTransaction] = []
    for topic_partition, (stable, end) in (await ends(cluster, of, patience_s)).items():
        if stable < end:
            one = await open_at(cluster, topic_partition, stable)
            if one.age_s is None or one.age_s >= HELD_S:
                found.append(one)
    return found


async def _producers(cluster: Cluster, topic_partition: TopicPartition) -> Mapping[int, tuple[int, int]]:
    """First offset of a transaction -> its producer id, and when that producer last wrote."""
    answer = await cluster.ask(
        cluster.leader(topic_partition), _DescribeProducers([(topic_partition.topic, [topic_partition.partition], {})])
    )
    [(_topic, [(_partition, code, _message, producers, _)], _)] = answer.topics
    if code:
        raise for_code(code)
    return {start: (producer, written) for producer, _, _, written, _, start, _ in producers if start >= 0}


async def _listed(cluster: Cluster, node: int, producer: int) -> Sequence[str]:
    answer = await cluster.ask(node, _ListTransactions([], [producer]))
    if answer.error_code:
        raise for_code(answer.error_code)
    return [transaction_id for transaction_id, *_ in answer.transactions]


async def _described(cluster: Cluster, node: int, transaction_id: str) -> tuple[int, int]:
    """A transaction's time-out in ms, and when it began in ms since 1970."""
    answer = await cluster.ask(node, _DescribeTransactions([transaction_id]))
    [(code, _id, _state, timeout_ms, began, *_)] = answer.transactions
    if code:
        raise for_code(code)
    return timeout_ms, began


_DescribeProducers: Final = request_of(
    "DescribeProducers",
    61,
    0,
    Schema(
        ("topics", CompactArray(("name", CompactString()), ("partitions", CompactArray(Int32)), ("tags", TaggedFields))),
        ("tags", TaggedFields),
    ),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString()),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString()),
                        (
                            "producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("transaction_start", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    ),
)

_ListTransactions: Final = request_of(
    "ListTransactions",
    66,
    0,
    Schema(("states", CompactArray(CompactString())), ("producers", CompactArray(Int64)), ("tags", TaggedFields)),
    Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_filters", CompactArray(CompactString())),
        (
            "transactions",
            CompactArray(("id", CompactString()), ("producer_id", Int64), ("state", CompactString()), ("tags", TaggedFields)),
        ),
        ("tags", TaggedFields),
    ),
)

_DescribeTransactions: Final = request_of(
    "DescribeTransactions",
    65,
    0,
    Schema(("ids", CompactArray(CompactString())), ("tags", TaggedFields)),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("id", CompactString()),
                ("state", CompactString()),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(("name", CompactString()), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    ),
)
