"""The inbox: one member's partitions, read committed, with their positions and dead letters.

Anyone may write into the inbox, so no record stops its reader: the reader returns an unreadable record as damaged, and the router
refuses it. Records after an open transaction cannot be read before it ends; a warning names a transaction that hangs.

An inbox may be deleted and made again while workers read it. Its offsets then begin at 0 again, and positions in the old topic
would skip requests. So this module compares the topic's id with the known one whenever a fetch has failed and every `LOOK_S`, and
with the id of a committed position.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from stepfold.errors import LogUnavailable
from stepfold.log import InboxRecord

from . import topics as kafka_topics
from . import transactions as kafka_transactions
from .cluster import Cluster, Topic, describe, log, name_of
from .dead_letters import DeadLetterWriter
from .fetcher import Fetcher, KafkaTail, offsets
from .group import GroupMember
from .records import Raw, raw
from .topics import Namespace, TopicProblem

_LOOK_S: Final = 5.0
"""How often to look for transactions that hang."""
_LOOK_AT_TOPIC_EVERY: Final = 4
"""One look in this many also checks the topics: they may get other settings or more partitions, or be deleted."""
_SAY_AGAIN_S: Final = 3_600.0
"""How often to repeat an error about the topics."""


class KafkaInbox:
    """The inbox partitions of one member. Records that were received and not marked as done are read again, here or by the next
    owner."""

    def __init__(
        self,
        cluster: Cluster,
        fetcher: Fetcher,
        letters: DeadLetterWriter,
        member: GroupMember,
        url: str,
        namespace: Namespace,
        history_partitions: int,
        inbox_partitions: int,
        patience_s: float,
    ) -> None:
        self._cluster = cluster
        self._fetcher = fetcher
        self._letters = letters
        self._member = member
        self._url = url
        self._namespace = namespace
        self._history_partitions = history_partitions
        self._inbox_partitions = inbox_partitions
        self._patience_s = patience_s
        self._tails: dict[int, KafkaTail[Raw]] = {}
        self._received: Sequence[InboxRecord] = ()
        self._topic_id = ""
        self._is_suspect = False  # the inbox may be another topic by now
        self._done: dict[int, int] = {}
        self._news = asyncio.Event()
        self._closed = False
        self._held: dict[int, int] = {}
        """Partition that an open transaction blocks -> the offset for which a warning was logged."""
        self._told: dict[TopicProblem, float] = {}
        """The problems of the topics that were logged, and when."""
        member.on_change = self._news.set
        self._watching = asyncio.create_task(self._watch())

    async def receive(self) -> Sequence[InboxRecord]:
        try:
            return await self._next()
        except LogUnavailable:
            self._check_open()  # after the member has left, that is the error to raise
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable(f"{self._namespace.inbox}: this member has left") from None

    async def _next(self) -> Sequence[InboxRecord]:
        while True:
            self._check_open()
            self._news.clear()
            await self._check_identity()
            await self._follow_assignment()
            if self._received:
                return self._received
            records: list[InboxRecord] = []
            failure: LogUnavailable | None = None
            for partition, tail in list(self._tails.items()):
                try:
                    records += (_record(tail.topic_partition, taken, self._topic_id) for taken in tail.take(1000))
                except LogUnavailable as error:
                    tail.close()
                    del self._tails[partition]
                    failure = error
            if records:  # first, because these are no longer in the tails
                self._received = records
                return records
            if failure is not None:
                raise failure
            await self._news.wait()

    def _let_go(self) -> set[int]:
        """Drop partitions that are not this member's any more. Returns this member's partitions."""
        assignment = self._member.assignment or frozenset()
        mine = {number for number in range(self._inbox_partitions) if number % self._history_partitions in assignment}
        for partition in self._tails.keys() - mine:
            self._tails.pop(partition).close()
            self._done.pop(partition, None)
        self._received = [record for record in self._received if _place_of(record)[0] in mine]
        return mine

    async def _check_identity(self) -> None:
        """If a fetch has failed, check the topic's id, and start from the beginning if the inbox is another topic."""
        cut_off = [tail for tail in self._tails.values() if tail.was_cut_off]
        if not cut_off and not self._is_suspect:
            return
        for tail in cut_off:
            tail.was_cut_off = False  # reset before the request: a fetch may fail before its answer
        try:
            topics = await describe(self._cluster, [self._namespace.inbox], self._patience_s)
        except LogUnavailable:
            self._is_suspect = True
            raise
        self._is_suspect = self._namespace.inbox not in topics
        if not self._is_suspect:
            self._identify(topics[self._namespace.inbox])

    def _identify(self, topic: Topic) -> None:
        """Remember which topic the inbox is. If it is another one than before, drop everything known about the old one, except
        received records: these are still served."""
        before, self._topic_id = self._topic_id, topic.id
        if before in ("", topic.id):
            return
        log.warning(
            "%s was deleted and made again: the new topic is read from its beginning. "
            "Requests that no worker had read are gone with the old one",
            self._namespace.inbox,
        )
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()
        self._done.clear()
        self._inbox_partitions = len(topic.replicas)

    async def _follow_assignment(self) -> None:
        if not self._let_go() - self._tails.keys():
            return
        topics = await describe(self._cluster, [self._namespace.inbox], self._patience_s)
        if self._namespace.inbox not in topics:
            raise LogUnavailable(f"{self._namespace.inbox} does not exist; see `stepfold topics check`")
        self._identify(topics[self._namespace.inbox])
        new = sorted(self._let_go() - self._tails.keys())
        committed = await self._member.committed(self._namespace.inbox, new, self._patience_s)
        for partition in new:
            topic_partition = TopicPartition(self._namespace.inbox, partition)
            earliest, end = await offsets(self._cluster, topic_partition, self._patience_s)
            position = committed.get(partition)
            start = None if position is None else position.offset
            if position is not None and not position.counts_in(self._topic_id):
                log.warning(
                    "%s/%d was made again after it was read up to %d: it is read from its beginning", *topic_partition, start
                )
                start = earliest
            elif start is None:
                start = earliest
                if end > earliest:
                    await self._say_lost(topic_partition, end - earliest)
            elif start > end:
                log.warning(
                    "%s/%d ends at %d, and was read up to %d: it was recreated or truncated", *topic_partition, end, start
                )
                start = earliest
            elif start < earliest:
                log.error(
                    "%s/%d: requests %d to %d were deleted unread; raise its retention", *topic_partition, start, earliest - 1
                )
            self._check_open()  # otherwise no `close` would close the tail
            tail = KafkaTail(self._fetcher, topic_partition, max(start, earliest), raw, self._news.set, committed=True)
            tail.start()
            self._tails[partition] = tail

    async def _say_lost(self, topic_partition: TopicPartition, count: int) -> None:
        """Warn that a partition is read from its beginning, unless the history is empty: a new group, or one that lost its
        positions.
        """
        served = TopicPartition(self._namespace.history, topic_partition.partition % self._history_partitions)
        _, end = await offsets(self._cluster, served, self._patience_s)
        if end:
            log.warning(
                "%s: group %s has no position there: no worker ran for longer than offsets.retention.minutes, or the group was "
                "deleted or is new. All %d requests are read again; those that were served are recognised by their place, and "
                "void",
                name_of(topic_partition),
                self._namespace.group,
                count,
            )

    async def _watch(self) -> None:
        """Warn about transactions that keep requests from being read, and log when reading continues."""
        for look in itertools.count(1):
            await asyncio.sleep(_LOOK_S)
            if look % _LOOK_AT_TOPIC_EVERY == 0:
                await self._look_at_topics()
            for partition, tail in list(self._tails.items()):
                is_held = tail.held_since is not None and time.monotonic() - tail.held_since >= kafka_transactions.HELD_S
                if not is_held:
                    if self._held.pop(partition, None) is not None:
                        log.info("%s is read again: the transaction has ended", name_of(tail.topic_partition))
                elif self._held.get(partition) != tail.stable:
                    self._held[partition] = tail.stable
                    found = await kafka_transactions.open_at(self._cluster, tail.topic_partition, tail.stable)
                    mend = found.mend(self._cluster.bootstrap)
                    log.warning("%s: no request is read, for %s. %s", name_of(tail.topic_partition), found.problem, mend)
            for partition in self._held.keys() - self._tails.keys():
                del self._held[partition]

    async def _look_at_topics(self) -> None:
        """Start to read partitions that were added to the inbox, and log problems of the topics.

        A worker continues in spite of problems: others would take its runs over, and find the same problems. It cannot keep the
        brokers from deleting records, but an operator who reads the log output can.
        """
        inbox = self._namespace.inbox
        try:
            topics = await kafka_topics.look(self._cluster, self._namespace, self._patience_s)
        except (KafkaError, LogUnavailable):
            return  # other calls report the error
        self._tell(kafka_topics.check_in_use(self._cluster, self._url, self._namespace, topics, self._history_partitions))
        if inbox in topics and self._topic_id not in ("", topics[inbox].id):
            self._is_suspect = True
            self._news.set()
        elif inbox in topics and topics[inbox].partitions != self._inbox_partitions:
            log.info("%s has %d partitions now, and had %d", inbox, topics[inbox].partitions, self._inbox_partitions)
            self._inbox_partitions = topics[inbox].partitions
            self._news.set()

    def _tell(self, findings: Sequence[TopicProblem]) -> None:
        """Log each problem once: an error, and again every hour, if workers would refuse to start with it; else a warning."""
        now = time.monotonic()
        for finding in findings:
            told = self._told.get(finding)
            if told is None or (finding.fatal and now - told >= _SAY_AGAIN_S):
                self._told[finding] = now
                log.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", kafka_topics.in_words([finding]))
        for finding in self._told.keys() - set(findings):
            del self._told[finding]
            log.info("%s: this problem is fixed: %s", finding.topic, finding.problem)

    async def done(self, records: Sequence[InboxRecord]) -> None:
        self._received = ()
        self._let_go()  # must not set back a position that another member has moved
        for record in records:
            partition, offset = _place_of(record)
            if partition in self._tails and record.inbox == self._topic_id:
                self._done[partition] = max(offset + 1, self._done.get(partition, 0))
        positions = dict(self._done)
        if not positions:
            return
        try:
            await self._member.commit(self._namespace.inbox, self._topic_id, positions)
        except KafkaError as error:
            log.debug("positions of %s were not committed; the next commit includes them: %r", self._namespace.inbox, error)
        else:
            self._done = {partition: offset for partition, offset in self._done.items() if positions.get(partition) != offset}

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        await self._letters.bury(record, reason)

    def close(self) -> None:
        self._closed = True
        self._watching.cancel()
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()
        self._news.set()


def _record(topic_partition: TopicPartition, record: Raw, topic_id: str) -> InboxRecord:
    offset, timestamp, key, value, headers, damage = record
    return InboxRecord(
        f"{topic_partition.topic}/{topic_partition.partition}/{offset}", timestamp, key, value, headers, damage, topic_id
    )


def _place_of(record: InboxRecord) -> tuple[int, int]:
    _, partition, offset = record.place.rsplit("/", 2)
    return int(partition), int(offset)
