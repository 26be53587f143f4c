# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""The Kafka driver's connections, and descriptions of topics. Does not know runs, claims or the engine.

aiokafka provides connections, structures of the protocol and the record format. Its producer and consumer are not used: a batch
of the producer never expires, so an append that was given up may reach the log much later; one fetch of the consumer serves all
partitions of a node, so a slow reader delays the others; and an entry costs several times as much. See `producer` and `fetcher`.

A *lane* is one connection per node. A broker answers the requests of a connection one after another, so each request that may
wait there (a fetch, a rebalance) has a lane of its own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from io import BytesIO
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NoError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.values.backoff import Pauses

from .records import Damaged, Raw
from .requests import request_of

T = TypeVar("T")
log = logging.getLogger("stepfold.kafka")

REQUEST_TIMEOUT_S: Final = 15.0
BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 1.0
_CONNECT_S: Final = 8.0
_LOOK_S: Final = 2.0
_MOST_REPORTED: Final = 1_000
_AWAY_S: Final = 2.0
_LAST_WAIT_S: Final = 3.0
_LAST_WAIT_AWAY_S: Final = 0.5
_WORKS_WITH: Final = "stepfold works with Kafka 3.1 and later; it is tested with 3.7, 3.9, 4.0 and 4.1"
SPOKEN: Final = {
    0: ("Produce", 7, 7),
    1: ("Fetch", 11, 11),
    2: ("ListOffsets", 2, 3),
    3: ("Metadata", 12, 12),
    8: ("OffsetCommit", 2, 3),
    9: ("OffsetFetch", 1, 3),
    10: ("FindCoordinator", 0, 1),
    11: ("JoinGroup", 2, 5),
    12: ("Heartbeat", 0, 1),
    13: ("LeaveGroup", 0, 1),
    14: ("SyncGroup", 0, 3),
    15: ("DescribeGroups", 0, 3),
    19: ("CreateTopics", 1, 3),
    22: ("InitProducerId", 0, 0),
    32: ("DescribeConfigs", 1, 2),
}
"""Protocol key of each required request -> the versions that this driver knows; a broker must speak one of them. A test compares
them with aiokafka's. (Metadata requests of aiokafka itself use any version from 0 to 5.)"""
_QUIET: Final[ContextVar[bool]] = ContextVar("stepfold_quiet", default=False)
"""True in tasks in which aiokafka works for stepfold."""
_ENDINGS: Final[set[asyncio.Task[None]]] = set()


def _not_ours(record: logging.LogRecord) -> bool:
    """Turn aiokafka's warnings about our connections into debug lines.

    aiokafka logs one to three lines for each attempt to reach an unreachable broker. `Cluster` logs that once. Other users of
    aiokafka in this process keep their lines.
    """
    if not _QUIET.get() or record.levelno < logging.WARNING or record.exc_info:
        return True
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return log.isEnabledFor(logging.DEBUG)


for _name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster"):
    logging.getLogger(_name).addFilter(_not_ours)


class Topic(NamedTuple):
    """A topic as the cluster describes it: its id (another one after it was made again) and each partition's replica count."""

    id: str
    replicas: Mapping[int, int]
    ready: bool  # every partition has a leader


class Cluster:
    """Connections to one Kafka cluster. `options` are the security options of AIOKafkaClient."""

    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, Any],
        *,
        client_id: str = "stepfold",
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.bootstrap = bootstrap
        self._options = dict(options)
        self._client_id = client_id
        self._request_timeout_ms = int(request_timeout_s * 1000)
        self._client: Any = None
        self._topics: set[str] = set()
        self._lanes: set[str] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._lost_since: float | None = None
        self._away_since: float | None = None
        """Since when no request has been answered; None if the last one was."""
        self._said_away = False
        self._unanswered_since: float | None = None
        """Since when a request has had no answer. A process that fetches gets an answer every second."""
        self._reported: set[tuple[TopicPartition, int]] = set()

    async def start(self, topics: Sequence[str] = ()) -> None:
        """Connect, and follow the leaders of `topics`. The topics must exist: a broker may create a topic that is named to it."""
        if self._client is None:
            self._client = await self._connect()
            await self._check_versions()
        if topics:
            self._topics.update(topics)
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._client.set_topics(sorted(self._topics))
            except TimeoutError:
                raise LogUnavailable(f"Kafka at {self.bootstrap} does not say who leads {', '.join(topics)}") from None

    @property
    def last_wait_s(self) -> float:
        """How long a closing object may wait for an answer: a short time if brokers are unreachable."""
        return _LAST_WAIT_AWAY_S if self.is_silent else _LAST_WAIT_S

    @property
    def is_silent(self) -> bool:
        """Whether brokers are unreachable, or have left requests unanswered for a while: a frozen broker does not refuse
        connections."""
        return self._away_since is not None or (
            self._unanswered_since is not None and time.monotonic() - self._unanswered_since > _LAST_WAIT_S
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        if client is not None:
            await _quietly(client.close(), "closing connections")

    async def ask(self, node: int | None, request: Any, lane: str = "main") -> Any:
        """The answer of a node (None: any). Raises KafkaError for any failure on the way, ConfigError for an unknown version."""
        client = self._client
        if client is None:
            raise KafkaError("the connection was closed")
        if node is None:
            node = client.get_random_node()
        quiet = _QUIET.set(True)
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        try:
            answer = await client.send(node, request, group=lane)
        except NodeNotReadyError:
            self._is_away(f"no connection to broker {node} can be made")
            raise
        except (KafkaConnectionError, RequestTimedOutError) as error:
            self._is_away(repr(error))
            raise
        except KafkaError:
            raise
        except NotImplementedError as error:
            raise ConfigError(f"Kafka at {self.bootstrap}: {error}. {_WORKS_WITH}") from None
        except Exception as error:  # aiokafka's client raises other errors when a connection closes while it is used
            self._is_away(repr(error))
            raise KafkaConnectionError(repr(error)) from error
        finally:
            _QUIET.reset(quiet)
        self._unanswered_since = None
        if self._away_since is not None:
            self._is_back()
        return answer

    def _is_away(self, why: str) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        elif now - self._away_since > _AWAY_S and not self._said_away:
            self._said_away = True
            since_s = now - self._away_since
            log.warning("Kafka at %s has not answered for %.0f s: %s; trying again", self.bootstrap, since_s, why)

    def _is_back(self) -> None:
        if self._said_away and self._away_since is not None:
            log.info("Kafka at %s answers again, after %.0f s", self.bootstrap, time.monotonic() - self._away_since)
        self._away_since, self._said_away = None, False

    def leader(self, topic_partition: TopicPartition) -> int | None:
        """The node that leads the partition, as far as is known; else None."""
        if self._client is None:
            return None
        node = self._client.cluster.leader_for_partition(topic_partition)
        return None if node is None or node < 0 else node

    async def refresh(self) -> None:
        """Ask for the leaders again. Never raises; concurrent callers share one request."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.wait([self._refreshing])

    async def _check_versions(self) -> None:
        """Raises ConfigError if the broker does not speak a required request in a version that we know."""
        answer = await patiently(self, lambda: self.ask(None, ApiVersionRequest()), "what it speaks", REQUEST_TIMEOUT_S)
        speaks = {key: (first, last) for key, first, last in answer.api_versions}
        wrong: list[str] = []
        for key, (name, oldest, newest) in SPOKEN.items():
            if key not in speaks:
                wrong.append(f"{name} is missing")
            elif speaks[key][1] < oldest or speaks[key][0] > newest:
                first, last = speaks[key]
                wrong.append(f"{name} is there in versions {first} to {last}, not {oldest} to {newest}")
        if wrong:
            raise ConfigError(
                f"Kafka at {self.bootstrap} does not support what stepfold needs: {'; '.join(wrong)}. {_WORKS_WITH}"
            )

    async def _refresh(self) -> None:
        _QUIET.set(True)  # in this task only
        client = self._client
        if client is None:
            return
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                known = await client.force_metadata_update()
        except (KafkaError, TimeoutError):
            known = False
        now = time.monotonic()
        if known:
            self._lost_since = None
            self._is_back()
            return
        self._is_away("none of its brokers answers")
        if self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since > REQUEST_TIMEOUT_S:
            # All known nodes are unreachable; the bootstrap address may lead to others by now.
            with suppress(LogUnavailable):
                fresh = await self._connect()
                if self._topics:
                    fresh.set_topics(sorted(self._topics))
                if self._client is client:
                    self._client, self._lost_since = fresh, None
                else:
                    client = fresh
                await _quietly(client.close(), "closing connections")

    async def _connect(self) -> Any:
        try:
            client = AIOKafkaClient(
                bootstrap_servers=self.bootstrap,
                client_id=self._client_id,
                request_timeout_ms=self._request_timeout_ms,
                **self._options,
            )
        except ValueError as error:
            raise ConfigError(f"Kafka at {self.bootstrap}: {error}") from None
        # Nobody else knows the first connection: a plain cancellation would leave it open.
        quiet = _QUIET.set(True)
        bootstrapping = asyncio.ensure_future(client.bootstrap())
        _QUIET.reset(quiet)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.shield(bootstrapping)
        except TimeoutError:
            _finish(_give_up(bootstrapping, client))
            raise LogUnavailable(f"no Kafka broker answers at {self.bootstrap} for {_CONNECT_S:g} s") from None
        except KafkaError:
            await _quietly(client.close(), "closing connections")
            raise LogUnavailable(f"no Kafka broker answers at {self.bootstrap}: {await self._why_not(client.hosts)}") from None
        except asyncio.CancelledError:
            _finish(_give_up(bootstrapping, client))
            raise
        return client

    async def _why_not(self, hosts: Sequence[tuple[str, int, Any]]) -> str:
        """The reason why no connection was made. aiokafka only logs it, so connect again to see the error."""
        for host, port, _ in hosts:
            try:
                async with asyncio.timeout(_LOOK_S):
                    connection = await create_conn(host, port, client_id=self._client_id, **self._options)
            except TimeoutError:
                return f"{host}:{port} does not answer"
            except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
                return f"{error}. Check sasl_mechanism, user and password"
            except ssl.SSLCertVerificationError as error:
                return f"{error}. The ssl_context has to know the authority that issued the certificate"
            except OSError as error:
                return str(error)
            except KafkaError:
                speaks = self._options.get("security_protocol", "PLAINTEXT")
                return (
                    f"the program that listens there does not answer to {speaks}. Is it Kafka, and is that its security_protocol?"
                )
            connection.close()
        return "it accepts connections, but does not name its brokers"

    def report(self, topic_partition: TopicPartition, damaged: Raw) -> None:
        """Warn once that a record does not count, so that its producer can be corrected."""
        where = topic_partition, damaged.offset
        if where not in self._reported and len(self._reported) < _MOST_REPORTED:
            self._reported.add(where)
            log.warning("%s at %d: %s; the record is ignored", name_of(topic_partition), damaged.offset, damaged.damage)

    @property
    def controller(self) -> int | None:
        """The node that accepts changes of topics."""
        node = None if self._client is None else self._client.cluster.controller
        return None if node is None else node.nodeId

    @property
    def nodes(self) -> list[int]:
        return [] if self._client is None else sorted(broker.nodeId for broker in self._client.cluster.brokers())

    @property
    def brokers(self) -> int:
        return 0 if self._client is None else len(self._client.cluster.brokers())

    def take_lane(self) -> str:
        """An unused lane. Give it back only when no request is under way on it."""
        lane = next(name for name in (f"lane-{number}" for number in count()) if name not in self._lanes)
        self._lanes.add(lane)
        return lane

    def give_lane(self, lane: str) -> None:
        self._lanes.discard(lane)


def _finish(ending: Coroutine[Any, Any, None]) -> None:
    """Run `ending` in the background."""
    task = asyncio.create_task(ending)
    _ENDINGS.add(task)
    task.add_done_callback(_ENDINGS.discard)


async def _give_up(bootstrapping: asyncio.Future[None], client: Any) -> None:
    """Let a connection attempt end, and close the client; the cancelled caller does not wait for it."""
    await _quietly(bootstrapping, "connecting")
    await _quietly(client.close(), "closing connections")


async def _quietly(awaitable: Awaitable[object], what: str) -> None:
    """Await a closing call of the client, with a limit and without raising: it may hang or fail."""
    try:
        async with asyncio.timeout(_LAST_WAIT_S):
            await awaitable
    except Exception as error:  # noqa: BLE001 - nothing depends on it any more
        log.debug("%s: %r", what, error)


def in_words(error: KafkaError) -> str:
    """A Kafka error in words. If an access right is missing, the words say which."""
    missing: dict[type[KafkaError], str] = {
        ClusterAuthorizationFailedError: ": this user may write to no topic",  # this right is needed for a producer id
        GroupAuthorizationFailedError: ": this user lacks the right to read in the group",
        TopicAuthorizationFailedError: ": this user lacks the right to do that with the topic",
    }
    return f"{error!r}{missing.get(type(error), '')}"


def new_backoff() -> Pauses:
    return Pauses(BACKOFF_S, _MAX_BACKOFF_S)


async def patiently(
    cluster: Cluster, call: Callable[[], Awaitable[T]], topic_partition: TopicPartition | str, patience_s: float
) -> T:
    """Repeat `call` until it succeeds. Raises LogUnavailable after `patience_s`, or if repeating cannot help."""
    started = time.monotonic()
    backoff = new_backoff()
    while True:
        try:
            return await call()
        except KafkaError as error:
            if not error.retriable or time.monotonic() - started > patience_s:
                name = topic_partition if isinstance(topic_partition, str) else name_of(topic_partition)
                if isinstance(error, Damaged):
                    raise LogUnavailable(f"{name}: {error}") from None
                waited_s = time.monotonic() - started
                tried = f" for {waited_s:.0f} s" if waited_s >= 1 else ""
                raise LogUnavailable(f"Kafka does not answer for {name}{tried}: {in_words(error)}") from None
        await cluster.refresh()
        await asyncio.sleep(backoff.next_s())


def name_of(topic_partition: TopicPartition) -> str:
    return f"{topic_partition.topic}/{topic_partition.partition}"


def copy_of(error: LogUnavailable) -> LogUnavailable:
    """A copy: an exception raised in several tasks would collect all their tracebacks."""
    return type(error)(str(error))


# Descriptions. aiokafka's own metadata request is too old for topic ids (KIP-516).


class _Uuid(AbstractType[str]):
    @classmethod
    def encode(cls, value: str) -> bytes:
        return uuid.UUID(value).bytes

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        return str(uuid.UUID(bytes=data.read(16)))


_Metadata: Final = request_of(
    "Metadata",
    3,
    12,
    Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    ),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()), ("tags", TaggedFields)
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    ),
)


def _metadata(topics: Sequence[str] | None) -> Any:
    """A request for these topics, or for all; creates none."""
    no_id = str(uuid.UUID(int=0))
    return _Metadata(None if topics is None else [(no_id, topic, {}) for topic in topics], False, False)


async def names(cluster: Cluster, patience_s: float) -> list[str]:
    """The names of all topics that this user may see."""
    answer = await patiently(cluster, lambda: cluster.ask(None, _metadata(None)), "topic metadata", patience_s)
    return [name for _code, name, *_ in answer.topics]


async def describe(cluster: Cluster, topics: Sequence[str], patience_s: float) -> dict[str, Topic]:
    """The existing ones among `topics`, by name. Creates none, whatever the brokers' settings."""
    answer = await patiently(cluster, lambda: cluster.ask(None, _metadata(topics)), "topic metadata", patience_s)
    found: dict[str, Topic] = {}
    for code, name, topic_id, _internal, partitions, *_ in answer.topics:
        error = for_code(code)
        if error is UnknownTopicOrPartitionError:
            continue
        if error not in (NoError, LeaderNotAvailableError):
            raise LogUnavailable(f"Kafka does not describe topic {name}: {in_words(error())}")
        replicas = {partition: len(nodes) for _, partition, _, _, nodes, *_ in partitions}
        found[name] = Topic(topic_id, replicas, bool(replicas) and all(leader >= 0 for _, _, leader, *_ in partitions))
    return found
