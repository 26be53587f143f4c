# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Who owns what, and the inbox: one member of the consumer group `<namespace>.workers`.

The group only assigns history partitions; it is Kafka's classic group protocol, spoken directly, because aiokafka's consumer
fetches what it is assigned, revokes before it reassigns and has no sticky assignor that is even per topic. During a rebalance
the old assignment stands: the engine's claims, not the group, keep two owners apart. Positions in the inbox are the only
offsets committed; whoever owns history partition p reads the inbox partitions congruent to p.

Members subscribe to the inbox too: a broker forgets the positions in a topic that nobody of a group subscribes to, after
`offsets.retention.minutes` without a commit. A member that subscribes to nothing has retired: it is in the group and has no
share. A leader of a version that does not look at subscriptions gives it one that nobody uses until it leaves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    KafkaError,
    MemberIdRequired,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import InboxRecord

from .kafka_cluster import Cluster, log, new_backoff, patiently
from .kafka_producer import Message, Producer
from .kafka_tail import Fetcher, Raw, Tail, offsets, raw
from .kafka_topics import MIN_MESSAGE_BYTES, Namespace

HEARTBEAT_S: Final = 0.15
"""How soon a member learns that another has come or gone."""
LIVE_PATIENCE_S: Final = 10.0
_PROTOCOL: Final = "stepfold-sticky"
_NOT_STATIC: Final[Any] = None  # which aiokafka's annotations do not foresee
_LANE: Final = "group"
_QUICK_LANE: Final = "quick"  # what shall not stand behind a join that waits for the others
_HOPELESS: Final = (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
)


def share(partitions: int, members: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Who gets what: as even as possible, and everybody keeps as much as that allows of what they had."""
    if not members:
        return {}
    least, more = divmod(partitions, len(members))
    by_wealth = sorted(members, key=lambda member: (-len(members[member]), member))
    quota = {member: least + (rank < more) for rank, member in enumerate(by_wealth)}
    free = set(range(partitions))
    shares: dict[str, list[int]] = {}
    for member in by_wealth:
        shares[member] = sorted(free.intersection(members[member]))[: quota[member]]
        free.difference_update(shares[member])
    left = sorted(free, reverse=True)
    for member in by_wealth:
        while len(shares[member]) < quota[member]:
            shares[member].append(left.pop())
        shares[member].sort()
    return shares


class GroupMember:
    """A `Membership`. Keeps itself in the group until it leaves; `assigned` raises only what repeating cannot mend."""

    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, Any],
        namespace: Namespace,
        partitions: int,
        member: str,
        session_timeout_s: float,
        left: Callable[[], None],
    ) -> None:
        # Joining waits for the slowest of the others, so this member's requests need more time than any other's.
        self._cluster = Cluster(bootstrap, options, client_id=member, request_timeout_s=session_timeout_s + 15)
        self._namespace = namespace
        self._partitions = partitions
        self._session_timeout_ms = int(session_timeout_s * 1000)
        self._left = left
        self._coordinator: int | None = None
        self._member_id = ""
        self._generation = -1
        self.assignment: frozenset[int] | None = None
        self._told: frozenset[int] | None = None
        self._error: ConfigError | LogUnavailable | None = None
        self._retired = False
        self._gone = False
        self._join_again = asyncio.Event()
        self._changed = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self._task = asyncio.create_task(self._run())

    async def assigned(self) -> frozenset[int]:
        while self._error is None and (self.assignment is None or self.assignment == self._told):
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise type(self._error)(str(self._error))
        assert self.assignment is not None
        self._told = self.assignment
        return self._told

    async def is_live(self, member: str) -> bool:
        async def ask() -> bool:
            answer = await self._ask(DescribeGroupsRequest([self._namespace.group]), _QUICK_LANE)
            [(code, _group, _state, _type, _protocol, members, *_)] = answer.groups
            _raise_for(code)
            return any(client_id == member for _member_id, client_id, *_ in members)

        return await patiently(self._cluster, ask, f"the members of group {self._namespace.group}", LIVE_PATIENCE_S)

    async def retire(self) -> None:
        """Returns at once; the others know after the next rebalance."""
        if not self._retired:
            self._retired = True
            self._join_again.set()
            self._assign(frozenset())

    async def leave(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._coordinator is not None and self._member_id:
            request = LeaveGroupRequest(self._namespace.group, self._member_id)
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(5):
                    await self._cluster.ask(self._coordinator, request, _QUICK_LANE)
        await self._cluster.close()
        self._end(LogUnavailable("this member has left"))
        self._left()

    def _end(self, error: ConfigError | LogUnavailable) -> None:
        self._error = self._error or error
        self._changed.set()
        self.on_change()

    async def _run(self) -> None:
        backoff = new_backoff()
        while True:
            try:
                await self._cluster.start([self._namespace.history])
                await self._join()
                backoff.reset()
                await self._stay()
                continue
            except (RebalanceInProgressError, MemberIdRequired, IllegalGenerationError):
                continue
            except UnknownMemberIdError:
                self._member_id = ""  # the others were told that this member is gone; it comes back as a new one
                continue
            except _HOPELESS as error:
                self._end(ConfigError(f"group {self._namespace.group} refuses this worker: {_explain(error)}"))
                return
            except (KafkaError, LogUnavailable) as error:
                log.info("group %s: %r; trying again", self._namespace.group, error)
            except Exception as error:  # noqa: BLE001 - a background task does not die silently
                log.exception("membership of group %s failed", self._namespace.group)
                self._end(LogUnavailable(f"membership of group {self._namespace.group} failed: {error!r}"))
                return
            self._coordinator = None
            await asyncio.sleep(backoff.next_s())
            await self._cluster.refresh()

    async def _ask(self, request: Any, lane: str = _LANE) -> Any:
        if self._coordinator is None:
            answer = await self._cluster.ask(None, FindCoordinatorRequest(self._namespace.group, 0), lane)
            _raise_for(answer.error_code)
            self._coordinator = answer.coordinator_id
        return await self._cluster.ask(self._coordinator, request, lane)

    async def _join(self) -> None:
        """One rebalance: everybody joins, the group's leader shares out, everybody learns its share."""
        self._join_again.clear()
        group = self._namespace.group
        had = json.dumps(sorted(self.assignment or ())).encode()
        topics = [] if self._retired else [self._namespace.history, self._namespace.inbox]
        metadata = ConsumerProtocolMemberMetadata(0, topics, had).encode()
        timeout_ms = self._session_timeout_ms
        joined = await self._ask(
            JoinGroupRequest(group, timeout_ms, timeout_ms, self._member_id, _NOT_STATIC, "consumer", [(_PROTOCOL, metadata)])
        )
        if joined.member_id:
            self._member_id = joined.member_id
        _raise_for(joined.error_code)
        self._generation = joined.generation_id
        shares = self._share(joined.members) if joined.leader_id == joined.member_id else []
        synced = await self._ask(SyncGroupRequest(group, self._generation, self._member_id, _NOT_STATIC, shares))
        _raise_for(synced.error_code)
        mine = ConsumerProtocolMemberAssignment.decode(synced.member_assignment)
        self._assign(frozenset(place.partition for place in mine.partitions()))

    def _assign(self, assignment: frozenset[int]) -> None:
        self.assignment = frozenset() if self._retired else assignment
        self._changed.set()
        self.on_change()

    def _share(self, members: Sequence[tuple[Any, ...]]) -> list[tuple[str, bytes]]:
        had: dict[str, list[int]] = {}
        retired: dict[str, list[int]] = {}
        for member_id, *_, encoded in members:
            metadata = ConsumerProtocolMemberMetadata.decode(encoded)
            if self._namespace.history in metadata.subscription:
                old = json.loads(metadata.user_data or b"[]")
                had[member_id] = [partition for partition in old if 0 <= partition < self._partitions]
            else:
                retired[member_id] = []
        history = self._namespace.history
        return [
            (member, ConsumerProtocolMemberAssignment(0, [(history, share_)], b"").encode())
            for member, share_ in (share(self._partitions, had) | retired).items()
        ]

    async def _stay(self) -> None:
        """Heartbeats, until the group wants something else, or this member does."""
        while not self._join_again.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._join_again.wait()
            beat = await self._ask(HeartbeatRequest(self._namespace.group, self._generation, self._member_id))
            _raise_for(beat.error_code)

    async def committed(self, topic: str, partitions: Sequence[int], patience_s: float) -> dict[int, int]:
        """The committed offset of each partition that has one."""

        async def ask() -> dict[int, int]:
            answer = await self._ask(OffsetFetchRequest(self._namespace.group, [(topic, list(partitions))]), _QUICK_LANE)
            found: dict[int, int] = {}
            for _topic, places in answer.topics:
                for partition, offset, _metadata, code in places:
                    _raise_for(code)
                    if offset >= 0:
                        found[partition] = offset
            return found

        return await patiently(self._cluster, ask, f"committed positions of {topic}", patience_s)

    async def commit(self, topic: str, positions: Mapping[int, int]) -> None:
        """Raises KafkaError, during a rebalance for instance."""
        places = [(partition, offset, "") for partition, offset in positions.items()]
        request = OffsetCommitRequest(self._namespace.group, self._generation, self._member_id, -1, [(topic, places)])
        answer = await self._ask(request, _QUICK_LANE)
        for _topic, codes in answer.topics:
            for _partition, code in codes:
                _raise_for(code)


def _raise_for(code: int) -> None:
    error = for_code(code)
    if error is not NoError:
        raise error


def _explain(error: KafkaError) -> str:
    if isinstance(error, InvalidSessionTimeoutError):
        return (
            "session_timeout_s is outside of what the brokers allow (group.min.session.timeout.ms, group.max.session.timeout.ms)"
        )
    if isinstance(error, InconsistentGroupProtocolError):
        return "another kind of consumer uses this group id"
    return repr(error)


class KafkaInbox:
    """The inbox partitions of one member. What was received and is not done comes again, here or at the next owner."""

    def __init__(
        self,
        cluster: Cluster,
        fetcher: Fetcher,
        producer: Callable[[], Producer],
        member: GroupMember,
        namespace: Namespace,
        history_partitions: int,
        inbox_partitions: int,
        patience_s: float,
    ) -> None:
        self._cluster = cluster
        self._fetcher = fetcher
        self._producer = producer
        self._member = member
        self._namespace = namespace
        self._history_partitions = history_partitions
        self._inbox_partitions = inbox_partitions
        self._patience_s = patience_s
        self._tails: dict[int, Tail[Raw]] = {}
        self._received: Sequence[InboxRecord] = ()
        self._done: dict[int, int] = {}
        self._news = asyncio.Event()
        self._closed = False
        member.on_change = self._news.set

    async def receive(self) -> Sequence[InboxRecord]:
        while True:
            if self._closed:
                raise LogUnavailable(f"{self._namespace.inbox}: this member has left")
            self._news.clear()
            await self._follow_assignment()
            if self._received:
                return self._received
            records: list[InboxRecord] = []
            failure: LogUnavailable | None = None
            for partition, tail in list(self._tails.items()):
                try:
                    records += (_record(tail.place, taken) for taken in tail.take(1000))
                except LogUnavailable as error:
                    tail.close()
                    del self._tails[partition]
                    failure = error
            if records:  # first: they are taken, and would not come again
                self._received = records
                return records
            if failure is not None:
                raise failure
            await self._news.wait()

    def _let_go(self) -> set[int]:
        """Have nothing to do any more with partitions that are not this member's; those that are."""
        assignment = self._member.assignment or frozenset()
        mine = {place for place in range(self._inbox_partitions) if place % self._history_partitions in assignment}
        for partition in self._tails.keys() - mine:
            self._tails.pop(partition).close()
            self._done.pop(partition, None)
        self._received = [record for record in self._received if _place_of(record)[0] in mine]
        return mine

    async def _follow_assignment(self) -> None:
        mine = self._let_go()
        new = sorted(mine - self._tails.keys())
        if not new:
            return
        committed = await self._member.committed(self._namespace.inbox, new, self._patience_s)
        for partition in new:
            place = TopicPartition(self._namespace.inbox, partition)
            earliest, _ = await offsets(self._cluster, place, self._patience_s)
            start = committed.get(partition, earliest)
            if start < earliest:
                log.error("%s/%d: requests %d to %d were deleted unread; raise its retention", *place, start, earliest - 1)
            tail = Tail(self._fetcher, place, max(start, earliest), raw, self._news.set)
            tail.start()
            self._tails[partition] = tail

    async def done(self, records: Sequence[InboxRecord]) -> None:
        self._received = ()
        self._let_go()  # a position that another member has moved on must not be set back
        for record in records:
            partition, offset = _place_of(record)
            if partition in self._tails:
                self._done[partition] = max(offset + 1, self._done.get(partition, 0))
        positions = dict(self._done)
        if not positions:
            return
        try:
            await self._member.commit(self._namespace.inbox, positions)
        except KafkaError as error:
            log.debug("positions of %s not committed, the next time they are: %r", self._namespace.inbox, error)
        else:
            self._done = {partition: offset for partition, offset in self._done.items() if positions.get(partition) != offset}

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        value = record.value
        headers = [*record.headers, ("stepfold-reason", reason.encode()), ("stepfold-origin", record.place.encode())]
        if value is not None and len(value) > MIN_MESSAGE_BYTES:
            # A compressed batch can hold more than fits uncompressed; the record itself is still in the inbox.
            headers.append(("stepfold-omitted-bytes", str(len(value)).encode()))
            value = None
        place = TopicPartition(self._namespace.dead_letters, 0)
        await self._producer().send(place, [Message(record.key, value, headers)])

    def close(self) -> None:
        self._closed = True
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()
        self._news.set()


def _record(place: TopicPartition, record: Raw) -> InboxRecord:
    headers = tuple((name, value or b"") for name, value in record.headers)
    return InboxRecord(f"{place.topic}/{place.partition}/{record.offset}", record.timestamp, record.key, record.value, headers)


def _place_of(record: InboxRecord) -> tuple[int, int]:
    _, partition, offset = record.place.rsplit("/", 2)
    return int(partition), int(offset)
