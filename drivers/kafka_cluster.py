# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""The Kafka driver's connections, and what a cluster says of its topics. Knows nothing of runs, claims or the engine.

aiokafka gives the connections, the protocol's structures and the record format. Its producer and consumer are not used: a
batch of theirs never expires, so what was given up may land much later; one fetch serves all partitions of a node, so a
slow reader delays the others; and an entry costs several times as much. See `kafka_producer` and `kafka_tail`.

A *lane* is one connection per node. A broker answers a connection's requests one after another, so whatever may wait there
(a fetch, a rebalance) has a lane of its own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.conn import create_conn
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    SaslAuthenticationFailed,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from stepfold.backoff import Backoff
from stepfold.errors import ConfigError, LogUnavailable

T = TypeVar("T")
log = logging.getLogger("stepfold.kafka")

REQUEST_TIMEOUT_S: Final = 15.0
BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 1.0
_LOOK_S: Final = 5.0


class Topic(NamedTuple):
    """A topic as the cluster describes it: its id (another one after it was made again) and each partition's replica count."""

    id: str
    replicas: Mapping[int, int]
    ready: bool  # every partition has a leader


class Cluster:
    """Connections to one Kafka cluster. `options` are those of AIOKafkaClient for security."""

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

    async def start(self, topics: Sequence[str] = ()) -> None:
        """Connect and follow the leaders of `topics`, which exist: a broker may create what is named to it."""
        if self._client is None:
            self._client = await self._connect()
        if topics:
            self._topics.update(topics)
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._client.set_topics(sorted(self._topics))
            except TimeoutError:
                raise LogUnavailable(f"Kafka at {self.bootstrap} does not say who leads {', '.join(topics)}") from None

    async def close(self) -> None:
        client, self._client = self._client, None
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        if client is not None:
            await _quietly(client.close(), "closing connections")

    async def ask(self, node: int | None, request: Any, lane: str = "main") -> Any:
        """The answer of a node (None: any). Raises KafkaError, whatever goes wrong on the way."""
        client = self._client
        if client is None:
            raise KafkaError("the connection was closed")
        if node is None:
            node = client.get_random_node()
        try:
            return await client.send(node, request, group=lane)
        except KafkaError:
            raise
        except NotImplementedError as error:
            raise ConfigError(f"Kafka at {self.bootstrap} is too old for stepfold ({error}); it needs 3.1 or later") from None
        except Exception as error:  # the client has unguarded corners when a connection goes while it is used
            raise KafkaConnectionError(repr(error)) from error

    def leader(self, place: TopicPartition) -> int | None:
        """The node that leads the partition, as far as is known."""
        if self._client is None:
            return None
        node = self._client.cluster.leader_for_partition(place)
        return None if node is None or node < 0 else node

    async def refresh(self) -> None:
        """Learn the leaders anew. Never raises; callers at the same time share one refresh."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.wait([self._refreshing])

    async def _refresh(self) -> None:
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
        elif self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since > REQUEST_TIMEOUT_S:
            # Every node it knew is gone; the bootstrap address may lead to others by now.
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
        # Its first connection is known to nobody else: who is cancelled meanwhile would leave it open.
        bootstrapping = asyncio.ensure_future(client.bootstrap())
        try:
            await asyncio.shield(bootstrapping)
        except KafkaError:
            await _quietly(client.close(), "closing connections")
            raise LogUnavailable(f"no Kafka broker answers at {self.bootstrap}: {await self._why_not(client.hosts)}") from None
        except asyncio.CancelledError:
            await _quietly(bootstrapping, "connecting")
            await _quietly(client.close(), "closing connections")
            raise
        return client

    async def _why_not(self, hosts: Sequence[tuple[str, int, Any]]) -> str:
        """Why no connection came about: aiokafka says that only in its own log, so try again and look."""
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
                return f"what listens there does not answer to {speaks}. Is it Kafka, and is that its security_protocol?"
            connection.close()
        return "it takes connections, and does not say what brokers there are"

    @property
    def controller(self) -> int | None:
        """The node that takes changes of topics."""
        node = None if self._client is None else self._client.cluster.controller
        return None if node is None else node.nodeId

    @property
    def brokers(self) -> int:
        return 0 if self._client is None else len(self._client.cluster.brokers())

    def take_lane(self) -> str:
        """A lane that nobody uses. Give it back only when no request is on it."""
        lane = next(name for name in (f"lane-{number}" for number in count()) if name not in self._lanes)
        self._lanes.add(lane)
        return lane

    def give_lane(self, lane: str) -> None:
        self._lanes.discard(lane)


async def _quietly(awaitable: Awaitable[object], what: str) -> None:
    """The client's own endings may hang or fail; neither may hold up ours."""
    try:
        async with asyncio.timeout(5):
            await awaitable
    except Exception as error:  # noqa: BLE001 - nothing depends on it any more
        log.debug("%s: %r", what, error)


def new_backoff() -> Backoff:
    return Backoff(BACKOFF_S, _MAX_BACKOFF_S)


async def patiently(cluster: Cluster, call: Callable[[], Awaitable[T]], place: TopicPartition | str, patience_s: float) -> T:
    """Repeat `call` until it succeeds. Raises LogUnavailable when patience is exhausted or repeating cannot help."""
    started = time.monotonic()
    backoff = new_backoff()
    while True:
        try:
            return await call()
        except KafkaError as error:
            if not error.retriable or time.monotonic() - started > patience_s:
                name = place if isinstance(place, str) else name_of(place)
                raise LogUnavailable(f"Kafka does not answer for {name}: {error!r}") from None
        await cluster.refresh()
        await asyncio.sleep(backoff.next_s())


def name_of(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"


def copy_of(error: LogUnavailable) -> LogUnavailable:
    """A copy: an exception raised in several tasks would collect all their tracebacks."""
    return LogUnavailable(str(error))


# Describing. aiokafka's own metadata request is too old to give topic ids (KIP-516).


class _Uuid(AbstractType[str]):
    @classmethod
    def encode(cls, value: str) -> bytes:
        return uuid.UUID(value).bytes

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        return str(uuid.UUID(bytes=data.read(16)))


class _MetadataResponse(Response):
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - aiokafka declares a property
    API_VERSION = 12  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - as the line before
    SCHEMA = Schema(
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
    )


class _MetadataStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        no_id = str(uuid.UUID(int=0))
        return request_struct_class([(no_id, topic, {}) for topic in self._topics], False, False, {})


async def describe(cluster: Cluster, topics: Sequence[str], patience_s: float) -> dict[str, Topic]:
    """Those of the topics that exist. Creates none, whatever the brokers' settings."""
    answer = await patiently(cluster, lambda: cluster.ask(None, _MetadataRequest(topics)), "topic metadata", patience_s)
    found: dict[str, Topic] = {}
    for code, name, topic_id, _internal, partitions, *_ in answer.topics:
        error = for_code(code)
        if error is UnknownTopicOrPartitionError:
            continue
        if error not in (NoError, LeaderNotAvailableError):
            raise LogUnavailable(f"Kafka does not describe topic {name}: {error()!r}")
        replicas = {partition: len(nodes) for _, partition, _, _, nodes, *_ in partitions}
        found[name] = Topic(topic_id, replicas, bool(replicas) and all(leader >= 0 for _, _, leader, *_ in partitions))
    return found
