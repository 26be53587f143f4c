# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Assignment of partitions: one member of the consumer group `<namespace>.workers`.

The group only assigns history partitions. This module speaks Kafka's classic group protocol itself, because aiokafka's consumer
fetches its partitions, revokes before it reassigns, and has no sticky assignor that is even per topic. During a rebalance the old
assignment stays valid: claims, not the group, keep two owners apart. Only positions in the inbox are committed as offsets, each
with the topic's id as its metadata, so that a position does not count in a topic that was made again. The owner of history
partition p reads the inbox partitions congruent to p.

Members subscribe to the inbox too: a broker forgets the positions in a topic to which no member subscribes, after
`offsets.retention.minutes` without a commit. A member that subscribes to nothing has retired: it is in the group without a share.
A leader of an older version, which ignores subscriptions, assigns it a share that stays unused until it leaves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

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

from .cluster import Cluster, log, new_backoff, patiently
from .topics import Namespace

HEARTBEAT_S: Final = 0.15
"""The interval of heartbeats, and so the time until a member learns that another has come or gone."""
LIVE_PATIENCE_S: Final = 10.0
_OF_TOPIC: Final = "topic-id="
_PROTOCOL: Final = "stepfold-sticky"
_NOT_STATIC: Final[Any] = None  # aiokafka's annotations do not allow None
_MOST_REASON: Final = 10_000
_MOST_BYTES_A_LETTER: Final = 4
_LANE: Final = "group"
_QUICK_LANE: Final = "quick"  # for requests that must not queue behind a join, which waits for the others
_HOPELESS: Final = (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
)


def share(partitions: int, members: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Assign partitions to members: as even as possible; within that, members keep what they had."""
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


class Position(NamedTuple):
    """A committed position, and the id of the topic in which it was; "" if a tool or an older version has committed it."""

    offset: int
    topic_id: str

    def counts_in(self, topic_id: str) -> bool:
        return self.topic_id in ("", topic_id)


class GroupMember:
    """A `Membership`. Stays in the group until it leaves; `assigned` raises only errors that repeating cannot repair."""

    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, Any],
        namespace: Namespace,
        partitions: int,
        member: str,
        session_timeout_s: float,
        on_retire: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        # A join waits for the slowest of the others, so this member's requests need more time than any other's.
        self._cluster = Cluster(bootstrap, options, client_id=member, request_timeout_s=session_timeout_s + 15)
        self._namespace = namespace
        self._partitions = partitions
        self._session_timeout_ms = int(session_timeout_s * 1000)
        self._on_retire = on_retire
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

    @property
    def retired(self) -> bool:
        return self._retired or self._gone

    async def retire(self) -> None:
        """See `Membership.retire`. Returns at once; other members learn it at the next rebalance."""
        if not self._retired:
            self._retired = True
            self._on_retire()
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
                async with asyncio.timeout(self._cluster.last_wait_s):
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
                self._member_id = ""  # for the others this member has left; it joins again as a new one
                continue
            except _HOPELESS as error:
                self._end(ConfigError(f"group {self._namespace.group} refuses this worker: {_explain(error)}"))
                return
            except (KafkaError, LogUnavailable) as error:
                log.info("group %s: %r; trying again", self._namespace.group, error)
            except Exception as error:  # noqa: BLE001 - a background task must not die silently
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
        """One rebalance: all members join, the leader assigns, each member learns its share."""
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
        history = [each.partition for each in mine.partitions() if each.topic == self._namespace.history]
        self._assign(frozenset(partition for partition in history if 0 <= partition < self._partitions))

    def _assign(self, assignment: frozenset[int]) -> None:
        self.assignment = frozenset() if self._retired else assignment
        self._changed.set()
        self.on_change()

    def _share(self, members: Sequence[tuple[Any, ...]]) -> list[tuple[str, bytes]]:
        had: dict[str, list[int]] = {}
        retired: dict[str, list[int]] = {}
        for member_id, *_, encoded in members:
            shared, old = _said(encoded, self._namespace.history)
            if shared:
                had[member_id] = [partition for partition in range(self._partitions) if partition in old]
            else:
                retired[member_id] = []
        history = self._namespace.history
        return [
            (member, ConsumerProtocolMemberAssignment(0, [(history, share_)], b"").encode())
            for member, share_ in (share(self._partitions, had) | retired).items()
        ]

    async def _stay(self) -> None:
        """Send heartbeats until the group rebalances or this member wants a rebalance."""
        while not self._join_again.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._join_again.wait()
            beat = await self._ask(HeartbeatRequest(self._namespace.group, self._generation, self._member_id))
            _raise_for(beat.error_code)

    async def committed(self, topic: str, partitions: Sequence[int], patience_s: float) -> dict[int, Position]:
        """Partition -> committed position, without partitions that have none."""

        async def ask() -> dict[int, Position]:
            return _positions(
                await self._ask(OffsetFetchRequest(self._namespace.group, [(topic, list(partitions))]), _QUICK_LANE)
            )

        return await patiently(self._cluster, ask, f"committed positions of {topic}", patience_s)

    async def commit(self, topic: str, topic_id: str, positions: Mapping[int, int]) -> None:
        """Commit positions. Raises KafkaError, during a rebalance for instance."""
        positions_sent = [(partition, offset, f"{_OF_TOPIC}{topic_id}") for partition, offset in positions.items()]
        request = OffsetCommitRequest(self._namespace.group, self._generation, self._member_id, -1, [(topic, positions_sent)])
        answer = await self._ask(request, _QUICK_LANE)
        for _topic, codes in answer.topics:
            for _partition, code in codes:
                _raise_for(code)


def _said(encoded: bytes, history: str) -> tuple[bool, Collection[int]]:
    """Whether a member wants a share, and what it had. A member with unknown metadata is foreign and gets no share."""
    try:
        metadata = ConsumerProtocolMemberMetadata.decode(encoded)
        old = json.loads(metadata.user_data or b"[]")
        return history in metadata.subscription, {one for one in old if type(one) is int}
    except Exception as error:  # noqa: BLE001 - the metadata may hold anything
        log.warning("a member of the group of %s is not a stepfold worker, and gets no partitions: %r", history, error)
        return False, ()


async def committed(cluster: Cluster, namespace: Namespace, partitions: int, patience_s: float) -> dict[int, Position]:
    """How far the group has read the inbox, for a caller that is not a member."""

    async def ask() -> dict[int, Position]:
        found = await cluster.ask(None, FindCoordinatorRequest(namespace.group, 0))
        _raise_for(found.error_code)
        request = OffsetFetchRequest(namespace.group, [(namespace.inbox, list(range(partitions)))])
        return _positions(await cluster.ask(found.coordinator_id, request))

    return await patiently(cluster, ask, f"committed positions of {namespace.inbox}", patience_s)


def _positions(answer: Any) -> dict[int, Position]:
    found: dict[int, Position] = {}
    for _topic, positions in answer.topics:
        for partition, offset, metadata, code in positions:
            _raise_for(code)
            if offset >= 0:
                is_ours = (metadata or "").startswith(_OF_TOPIC)
                found[partition] = Position(offset, metadata.removeprefix(_OF_TOPIC) if is_ours else "")
    return found


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
