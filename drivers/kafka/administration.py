"""The work of the commands on a namespace: its topics, the positions of its inbox, its dead letters."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from shlex import quote

from aiokafka import TopicPartition

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import DeadLetter, EntryTooLarge, Redriven

from . import topics as kafka_topics
from . import transactions as kafka_transactions
from .cluster import Cluster, describe
from .dead_letters import Settled, letter_of, marker, read_dead_letters
from .fetcher import offsets
from .group import committed
from .producer import Message, Producer
from .records import Raw
from .topics import Namespace, TopicDescription, TopicProblem

_LETTERS_MORE = 4
"""To find n letters, read this many times n records from the end of the topic, and go further back if these hold too few."""


@dataclass(frozen=True, slots=True)
class InboxPosition:
    """How far the group has read a partition of the inbox. `position` is None if the group has none.

    `waiting` counts offsets, including those of transaction markers. `held`: in words, the open transaction that blocks the
    group.
    """

    partition: int
    position: int | None
    end: int
    waiting: int
    held: str


class Administration:
    """The work of one command over a connected cluster. `KafkaDriver` has the same methods, with their documentation.

    `url`: the log's URL, for the commands that messages suggest.
    """

    def __init__(
        self, cluster: Cluster, url: str, namespace: Namespace, patience_s: float, patience: Callable[[], float]
    ) -> None:
        self._cluster = cluster
        self._url = url
        self._namespace = namespace
        self._patience_s = patience_s
        self._patience = patience

    async def create_topics(self, partitions: int, replication: int) -> None:
        await kafka_topics.create(self._cluster, self._url, self._namespace, partitions, replication, self._patience_s)

    async def check_topics(self) -> list[TopicProblem]:
        cluster = self._cluster
        topics = await kafka_topics.look(cluster, self._namespace, self._patience_s)
        findings = kafka_topics.check(cluster, self._url, self._namespace, topics)
        inbox, history = topics.get(self._namespace.inbox), topics.get(self._namespace.history)
        if inbox is not None:
            findings += await kafka_topics.check_positions(cluster, inbox)
        held = [topic for topic in (inbox, history) if topic is not None]
        await cluster.start([topic.name for topic in held])
        partitions = [TopicPartition(topic.name, partition) for topic in held for partition in range(topic.partitions)]
        findings += (
            TopicProblem(one.topic_partition.topic, one.problem, one.mend(cluster.bootstrap), fatal=False)
            for one in await kafka_transactions.hanging(cluster, partitions, self._patience_s)
        )
        return findings

    async def describe(self) -> list[TopicDescription]:
        topics = await kafka_topics.look(self._cluster, self._namespace, self._patience_s)
        return [topics[name] for name in self._namespace.topics if name in topics]

    async def inbox_positions(self) -> list[InboxPosition]:
        cluster = self._cluster
        topics = await kafka_topics.look(cluster, self._namespace, self._patience_s)
        if self._namespace.inbox not in topics:
            raise ConfigError(f"{self._namespace.inbox} does not exist. Run: stepfold topics create --url {quote(self._url)}")
        await cluster.start([self._namespace.inbox])
        partitions = [TopicPartition(self._namespace.inbox, number) for number in range(topics[self._namespace.inbox].partitions)]
        ends = await kafka_transactions.ends(cluster, partitions, self._patience_s)
        done = await committed(cluster, self._namespace, len(partitions), self._patience_s)
        found: list[InboxPosition] = []
        for topic_partition, (stable, end) in ends.items():
            one = await kafka_transactions.open_at(cluster, topic_partition, stable) if stable < end else None
            first, _ = await offsets(cluster, topic_partition, self._patience_s)
            last = done.get(topic_partition.partition)
            position = None if last is None or not last.counts_in(topics[topic_partition.topic].id) else last.offset
            waiting = end - max(first, first if position is None else position)
            found.append(InboxPosition(topic_partition.partition, position, end, max(waiting, 0), one.problem if one else ""))
        return found

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        await self._start_with(self._namespace.dead_letters)
        first, end = await offsets(self._cluster, TopicPartition(self._namespace.dead_letters, 0), self._patience_s)
        size = _LETTERS_MORE * limit
        while True:
            letters: deque[Raw] = deque(maxlen=limit)
            start = max(first, end - size)
            settled = await read_dead_letters(self._cluster, self._namespace, start, end, letters.append, self._patience_s)
            if len(letters) == limit or start == first:
                return [letter_of(self._namespace, record, settled) for record in letters]
            size *= _LETTERS_MORE

    async def _letters_at(self, places: Sequence[str] | None) -> list[DeadLetter]:
        """The letters at these places; without places, all waiting letters whose bytes were kept."""
        letters: list[Raw] = []
        start, end = await offsets(self._cluster, TopicPartition(self._namespace.dead_letters, 0), self._patience_s)
        if places is not None:
            form = re.compile(re.escape(self._namespace.dead_letters) + "/0/([0-9]{1,18})")
            start = max(start, min((int(found[1]) for place in places if (found := form.fullmatch(place))), default=end))
        settled = await read_dead_letters(self._cluster, self._namespace, start, end, letters.append, self._patience_s)
        all_letters = [letter_of(self._namespace, record, settled) for record in letters]
        if places is None:
            return [one for one in all_letters if not (one.redriven or one.dropped or one.omitted)]
        return [one for one in all_letters if one.place in places]

    async def drop_letters(self, places: Sequence[str], by: str | None, why: str | None) -> None:
        await self._start_with(self._namespace.dead_letters)
        missing = set(places) - {letter.place for letter in await self._letters_at(places)}
        if missing:
            raise ConfigError(f"cannot be dropped: {', '.join(sorted(missing))}; see `stepfold inbox dead-letters` for what can")
        producer = Producer(self._cluster, self._patience)
        try:
            messages = [marker(place, Settled(True, by, why)) for place in dict.fromkeys(places)]
            await producer.send(TopicPartition(self._namespace.dead_letters, 0), messages)
        finally:
            await producer.close()

    async def redrive(
        self, places: Sequence[str] | None, *, value: bytes | None = None, by: str | None = None, why: str | None = None
    ) -> Redriven:
        cluster = self._cluster
        await self._start_with(self._namespace.dead_letters, self._namespace.inbox)
        chosen = await self._letters_at(places)
        if value is not None and len(chosen) > 1:
            raise ConfigError("only one request can be sent with another value")
        missing = set(places or ()) - {letter.place for letter in chosen}
        omitted = {letter.place for letter in chosen if letter.omitted and value is None}
        if missing or omitted:
            raise ConfigError(
                f"cannot be sent again: {', '.join(sorted(missing | omitted))}; see `stepfold inbox dead-letters` for what can"
            )
        refused: dict[str, str] = {}
        producer = Producer(cluster, self._patience)
        try:
            for letter in chosen:
                message = Message(letter.key, letter.value if value is None else value, letter.headers)
                began = time.monotonic()
                try:
                    await producer.send(self._origin(letter), [message])
                except EntryTooLarge as error:
                    refused[letter.place] = str(error)
                    continue
                except LogUnavailable as error:
                    if time.monotonic() - began >= self._patience():  # no answer: the next records would wait just as long
                        raise
                    await producer.close()
                    refused[letter.place] = str(error)
                    producer = Producer(cluster, self._patience)
                    continue
                done = marker(letter.place, Settled(False, by, why))
                await producer.send(TopicPartition(self._namespace.dead_letters, 0), [done])
        finally:
            await producer.close()
        return Redriven(len(chosen) - len(refused), refused)

    async def _start_with(self, *topics: str) -> None:
        """Connect to topics. Raises ConfigError if one is missing, because no broker would ever answer for it."""
        found = await describe(self._cluster, topics, self._patience_s)
        missing = [topic for topic in topics if topic not in found]
        if missing:
            raise ConfigError(f"{', '.join(missing)} does not exist. Run: stepfold topics create --url {quote(self._url)}")
        await self._cluster.start(topics)

    def _origin(self, letter: DeadLetter) -> TopicPartition:
        """The partition of the inbox that a letter came from; partition 0 if that is unknown."""
        found = re.fullmatch(r".*/([0-9]{1,9})/[0-9]+", letter.origin)
        topic_partition = TopicPartition(self._namespace.inbox, int(found[1]) if found else 0)
        return topic_partition if self._cluster.leader(topic_partition) is not None else TopicPartition(self._namespace.inbox, 0)
