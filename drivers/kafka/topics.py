# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""A namespace's topics: their required settings, their creation, and findings with fixes.

Topics are made only on request. `_required` holds the settings that must not differ. A difference that would lose records or
make every append fail is `fatal`: the driver refuses to open.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any, Final
from urllib.parse import urlsplit

from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    NoError,
    NotControllerError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest

from stepfold.errors import ConfigError, LogUnavailable

from .cluster import Cluster, Topic, describe, names, patiently

MIN_MESSAGE_BYTES: Final = 1_048_588
"""Topics must accept batches of this size, which is Kafka's own default."""
DEAD_LETTER_BYTES: Final = 2 * MIN_MESSAGE_BYTES
"""Topics for dead letters must accept more: a dead letter holds a record of the inbox and the reason."""
_UNCLEAN: Final = "unclean.leader.election.enable"
"""If it is true, a replica without all acknowledged records may become leader. False is Kafka's default, and some clusters do not
allow topics to set it. So it is checked and not set.
"""
_POSITIONS_KEPT: Final = "offsets.retention.minutes"
_TOPIC_RESOURCE: Final = 2
_BROKER_RESOURCE: Final = 4
_READY_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """A problem of a topic. `fatal`: the driver refuses to work with it."""

    topic: str
    problem: str
    mend: str
    fatal: bool


def in_words(findings: Iterable[TopicProblem]) -> str:
    """The findings on one line; topics with the same problem are grouped."""
    topics: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        topics.setdefault((finding.problem, finding.mend), []).append(finding.topic)
    return "; ".join(f"{', '.join(names)}: {problem}. {mend}" for (problem, mend), names in topics.items())


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic with its settings, defaults included."""

    name: str
    id: str
    partitions: int
    replication: int
    settings: Mapping[str, str]


class Namespace:
    """The names that belong to one namespace. Raises ConfigError for a bad name."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,200}", name) or not name.strip("."):
            raise ConfigError(
                f"{name!r} is not a Kafka namespace: 1 to 200 letters, digits, dots, hyphens and underscores, and not dots alone"
            )
        self.name = name
        self.history = f"{name}.history"
        self.inbox = f"{name}.inbox"
        self.dead_letters = f"{name}.dead-letters"
        self.checkpoints = f"{name}.checkpoints"
        self.group = f"{name}.workers"
        self.topics = (self.history, self.inbox, self.dead_letters, self.checkpoints)


def _required(namespace: Namespace) -> dict[str, dict[str, str]]:
    """The settings that the engine's guarantees need."""
    return {
        namespace.history: {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",
        },
        namespace.checkpoints: {"cleanup.policy": "compact"},
        namespace.inbox: {"cleanup.policy": "delete"},
        namespace.dead_letters: {"cleanup.policy": "delete"},
    }


def _wanted(namespace: Namespace, replication: int) -> dict[str, dict[str, str]]:
    """The settings for new topics: required and recommended ones."""
    wanted = _required(namespace)
    for topic, settings in wanted.items():
        settings["min.insync.replicas"] = str(max(1, replication - 1))
        settings["max.message.bytes"] = str(DEAD_LETTER_BYTES if topic == namespace.dead_letters else MIN_MESSAGE_BYTES)
    # Compaction leaves the active segment alone: with small segments, a start reads little more than live data.
    wanted[namespace.checkpoints] |= {"segment.bytes": str(32 * 1024 * 1024), "min.cleanable.dirty.ratio": "0.2"}
    return wanted


async def create(cluster: Cluster, url: str, namespace: Namespace, partitions: int, replication: int, patience_s: float) -> None:
    """Make the missing topics. Raises ConfigError, before it makes any, if an existing one differs."""
    if partitions < 1 or replication < 1:
        raise ConfigError(f"partitions ({partitions}) and replication ({replication}) must be at least 1")
    existing = await look(cluster, namespace, patience_s)
    wrong = [finding for finding in check(cluster, url, namespace, existing) if finding.topic in existing and finding.fatal]
    for name in (namespace.history, namespace.checkpoints):
        found = existing.get(name)
        if found is not None and found.partitions != partitions:
            wrong.append(_resized(url, namespace, name, f"has {found.partitions} partitions, not {partitions}"))
    if wrong:
        raise ConfigError(f"topics exist with other settings. {in_words(wrong)}")
    like = {_alike(name): name for name in namespace.topics}
    for name in await names(cluster, patience_s):
        ours = like.get(_alike(name))
        if ours is not None and ours != name:
            raise ConfigError(
                f"topic {ours} cannot be created beside {name}: Kafka takes a dot and an underscore for the same in topics' "
                "names. "
                "Name the namespace differently"
            )
    counts = {namespace.dead_letters: 1}  # dead letters are few, and read as one list
    requests: list[Any] = [
        (name, counts.get(name, partitions), replication, [], list(settings.items()))
        for name, settings in _wanted(namespace, replication).items()
        if name not in existing
    ]
    if not requests:
        return

    async def ask() -> Any:
        answer = await cluster.ask(cluster.controller, CreateTopicsRequest(requests, 15_000, validate_only=False))
        for name, code, message in answer.topic_errors:
            refused = refusal(name, code, message)
            if refused is not None:
                raise refused

    await patiently(cluster, ask, "making topics", patience_s)
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while True:
                found = await describe(cluster, namespace.topics, patience_s)
                if len(found) == len(namespace.topics) and all(topic.ready for topic in found.values()):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise LogUnavailable(
            f"the topics of {namespace.name} were created but have no leaders after {_READY_TIMEOUT_S} s"
        ) from None


class _BrokersFenced(KafkaError):
    """The controller accepts no broker for replicas yet: the brokers are starting, or cannot reach it."""

    retriable = True


def refusal(topic: str, code: int, message: str | None) -> KafkaError | ConfigError | None:
    """The error in the answer to a request to create a topic; None if the topic exists now. After a KafkaError another try may
    succeed."""
    error = for_code(code)
    if error in (NoError, TopicAlreadyExistsError):
        return None
    if error is NotControllerError:
        return NotControllerError()
    if error is InvalidReplicationFactorError and "brokers are currently fenced" in (message or ""):
        return _BrokersFenced(message)
    return ConfigError(f"topic {topic} could not be created: {message or error.__name__}")


def _alike(topic: str) -> str:
    return topic.replace(".", "_")


async def look(cluster: Cluster, namespace: Namespace, patience_s: float) -> dict[str, TopicDescription]:
    """The existing topics of the namespace, by name."""
    topics: dict[str, Topic] = await describe(cluster, namespace.topics, patience_s)
    if not topics:
        return {}
    resources = [(_TOPIC_RESOURCE, name, None) for name in topics]
    answer = await patiently(cluster, lambda: cluster.ask(None, DescribeConfigsRequest(resources)), "topic settings", patience_s)
    settings: dict[str, dict[str, str]] = {}
    for code, message, _type, name, entries in answer.resources:
        if code:
            raise LogUnavailable(f"Kafka does not tell the settings of {name}: {message or for_code(code).__name__}")
        settings[name] = {key: value for key, value, *_ in entries if value is not None}
    return {
        name: TopicDescription(name, topic.id, len(topic.replicas), min(topic.replicas.values(), default=0), settings[name])
        for name, topic in topics.items()
    }


async def limit(cluster: Cluster, topic: str) -> str:
    """The `max.message.bytes` of a topic, for an error message; "unknown" if the brokers do not tell."""
    request = DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, ["max.message.bytes"])])
    try:
        answer = await cluster.ask(None, request)
    except (KafkaError, ConfigError):
        return "unknown"
    found = [value for _, _, _, _, entries in answer.resources for key, value, *_ in entries if key == "max.message.bytes"]
    return f"{int(found[0]):,}" if found and found[0] else "unknown"


def check(cluster: Cluster, url: str, namespace: Namespace, topics: Mapping[str, TopicDescription]) -> list[TopicProblem]:
    """The problems of the topics as `look` found them, the fatal ones first."""
    findings: list[TopicProblem] = []
    history = topics.get(namespace.history)
    for name, required in _required(namespace).items():
        topic = topics.get(name)
        if topic is None:
            partitions, replication = (history.partitions, history.replication) if history else ("N", "R")
            mend = f"Run: stepfold topics create --url {quote(url)} --partitions {partitions} --replication {replication}"
            findings.append(TopicProblem(name, "does not exist", mend, fatal=True))
            continue
        is_unclean = name == namespace.history and topic.settings.get(_UNCLEAN) == "true"
        findings += _check_settings(cluster, namespace, topic, {**required, _UNCLEAN: "false"} if is_unclean else required)
        findings += _check_replication(cluster, topic)
    checkpoints = topics.get(namespace.checkpoints)
    if history and checkpoints and history.partitions != checkpoints.partitions:
        counts = f"has {history.partitions} partitions and {namespace.checkpoints} {checkpoints.partitions}"
        findings.append(_resized(url, namespace, namespace.history, counts))
    return sorted(findings, key=lambda finding: not finding.fatal)


def check_in_use(
    cluster: Cluster, url: str, namespace: Namespace, topics: Mapping[str, TopicDescription], partitions: int
) -> list[TopicProblem]:
    """As `check`, for a history that a worker has opened with this number of partitions."""
    findings = check(cluster, url, namespace, topics)
    history = topics.get(namespace.history)
    if history is not None and history.partitions != partitions:
        enlarged = f"was given {history.partitions} partitions, and {partitions} are in use"
        resized = _resized(url, namespace, namespace.history, enlarged)
        findings = [resized, *(finding for finding in findings if finding.mend != resized.mend)]
    return findings


async def check_positions(cluster: Cluster, inbox: TopicDescription) -> list[TopicProblem]:
    """Whether the inbox keeps requests for longer than the brokers keep the group's positions in it. Empty if the brokers do not
    tell.
    """
    nodes = cluster.nodes
    if not nodes:
        return []
    request = DescribeConfigsRequest([(_BROKER_RESOURCE, str(nodes[0]), [_POSITIONS_KEPT])])
    try:
        answer = await cluster.ask(nodes[0], request)
    except KafkaError:
        return []
    settings = {key: value for _, _, _, _, entries in answer.resources for key, value, *_ in entries}
    kept_ms = int(settings.get(_POSITIONS_KEPT) or 0) * 60_000
    retention_ms = int(inbox.settings.get("retention.ms", "0"))
    if not kept_ms or 0 <= retention_ms <= kept_ms:
        return []
    kept = "for ever" if retention_ms < 0 else f"for {retention_ms / 86_400_000:g} days"
    problem = (
        f"requests are kept {kept}, the workers' positions among them for {kept_ms / 86_400_000:g} ({_POSITIONS_KEPT}): after "
        "that time without a worker, workers read all kept requests again. Nothing runs twice, but it takes time"
    )
    mend = f"{_alter(cluster, inbox, 'retention.ms', str(kept_ms))}, or raise {_POSITIONS_KEPT} of the brokers"
    return [TopicProblem(inbox.name, problem, mend, fatal=False)]


def _check_settings(
    cluster: Cluster, namespace: Namespace, topic: TopicDescription, required: Mapping[str, str]
) -> Sequence[TopicProblem]:
    findings: list[TopicProblem] = []
    for key, value in required.items():
        found = topic.settings.get(key)
        if found != value:
            findings.append(
                TopicProblem(topic.name, f"{key} is {found}, not {value}", _alter(cluster, topic, key, value), fatal=True)
            )
    least = MIN_MESSAGE_BYTES
    if topic.name == namespace.dead_letters:
        least = DEAD_LETTER_BYTES
    size = int(topic.settings.get("max.message.bytes", least))
    if size < least:
        mend = _alter(cluster, topic, "max.message.bytes", str(least))
        findings.append(TopicProblem(topic.name, f"max.message.bytes is {size}, below {least}", mend, fatal=True))
    return findings


def _check_replication(cluster: Cluster, topic: TopicDescription) -> Sequence[TopicProblem]:
    in_sync = int(topic.settings.get("min.insync.replicas", 1))
    if in_sync > topic.replication:
        problem = f"min.insync.replicas is {in_sync} with {topic.replication} replicas, so nothing can be appended"
        return [
            TopicProblem(topic.name, problem, _alter(cluster, topic, "min.insync.replicas", str(topic.replication)), fatal=True)
        ]
    if in_sync == topic.replication > 1:
        problem = f"min.insync.replicas is {in_sync} with {topic.replication} replicas, so one lost broker stops every append"
        mend = _alter(cluster, topic, "min.insync.replicas", str(topic.replication - 1))
        return [TopicProblem(topic.name, problem, mend, fatal=False)]
    if topic.replication >= 3 and in_sync < 2:
        problem = f"min.insync.replicas is {in_sync}, so one lost broker may lose what was acknowledged"
        return [TopicProblem(topic.name, problem, _alter(cluster, topic, "min.insync.replicas", "2"), fatal=False)]
    if topic.replication < 3 <= cluster.brokers:
        problem = f"has {topic.replication} replicas where {cluster.brokers} brokers could keep 3"
        mend = f"Give its partitions 3 replicas: kafka-reassign-partitions.sh --bootstrap-server {cluster.bootstrap} --execute"
        return [TopicProblem(topic.name, problem, mend, fatal=False)]
    return []


def _alter(cluster: Cluster, topic: TopicDescription, key: str, value: str) -> str:
    return (
        f"Run: kafka-configs.sh --bootstrap-server {cluster.bootstrap} --alter --entity-type topics "
        f"--entity-name {topic.name} --add-config {key}={value}"
    )


def _resized(url: str, namespace: Namespace, name: str, problem: str) -> TopicProblem:
    other = urlsplit(url)._replace(path=f"/{namespace.name}-2").geturl()
    mend = (
        "The partitions of a history are fixed when it is created, since they decide where each run is. Start a new namespace "
        f"(stepfold topics create --url {quote(other)} --partitions N --replication R), or, if only {namespace.checkpoints} "
        "has other settings, delete it and create it again: it is rebuilt from the history"
    )
    return TopicProblem(name, problem, mend, fatal=True)
