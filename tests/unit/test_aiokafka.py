"""Everything of aiokafka that the driver uses and its documentation does not promise, held against the version that is installed.

The driver speaks Kafka's protocol through aiokafka's connections, structures and parsers. A new version may change any of them
without notice: then this fails, with the list of what has changed, before anything subtler does. Kept by hand; the list of
imports is held against the sources.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
from typing import Any

from repository import ROOT

from stepfold.drivers.kafka.cluster import SPOKEN

# Module, name, parameters as `inspect.signature` has them (None: no function, or not called by us).
USED: list[tuple[str, str, str | None]] = [
    ("aiokafka", "AIOKafkaClient.bootstrap", "(self)"),
    ("aiokafka", "AIOKafkaClient.close", "(self)"),
    ("aiokafka", "AIOKafkaClient.force_metadata_update", "(self)"),
    ("aiokafka", "AIOKafkaClient.get_random_node", "(self)"),
    ("aiokafka", "AIOKafkaClient.hosts", None),
    ("aiokafka", "AIOKafkaClient.send", "(self, node_id, request, *, group=<ConnectionGroup.DEFAULT: 0>)"),
    ("aiokafka", "AIOKafkaClient.set_topics", "(self, topics)"),
    ("aiokafka", "TopicPartition._fields", None),
    ("aiokafka.abc", "AbstractTokenProvider", None),
    ("aiokafka.cluster", "ClusterMetadata.brokers", "(self)"),
    ("aiokafka.cluster", "ClusterMetadata.leader_for_partition", "(self, partition)"),
    ("aiokafka.conn", "create_conn", None),
    ("aiokafka.conn", "AIOKafkaConnection.close", "(self, reason=None, exc=None)"),
    ("aiokafka.coordinator.protocol", "ConsumerProtocolMemberAssignment", None),
    ("aiokafka.coordinator.protocol", "ConsumerProtocolMemberMetadata", None),
    ("aiokafka.errors", "for_code", "(error_code: int) -> type[aiokafka.errors.BrokerResponseError]"),
    ("aiokafka.errors", "KafkaError.retriable", None),
    ("aiokafka.partitioner", "murmur2", "(data)"),
    ("aiokafka.protocol.abstract", "AbstractType", None),
    ("aiokafka.protocol.api", "Request.prepare", None),
    ("aiokafka.protocol.api", "RequestStruct.FLEXIBLE_VERSION", None),
    ("aiokafka.protocol.api", "Response.decode", None),
    ("aiokafka.record.default_records", "DefaultRecordBatch.validate_crc", None),
    ("aiokafka.record.default_records", "DefaultRecordBatch.__iter__", None),
    ("aiokafka.record.default_records", "DefaultRecordBatchBuilder.append", None),
    ("aiokafka.record.default_records", "DefaultRecordBatchBuilder.build", None),
    ("aiokafka.record.legacy_records", "LegacyRecordBatch.validate_crc", None),
    ("aiokafka.record.legacy_records", "LegacyRecordBatch.__iter__", None),
    ("aiokafka.record.util", "calc_crc32c", None),
]

# What brokers are asked: module, class, its parameters, and the versions among which aiokafka chooses. How an answer is laid out
# depends on the version; the ones that a broker must speak are in SPOKEN.
REQUESTS: list[tuple[str, str, str, tuple[int, ...]]] = [
    ("admin", "ApiVersionRequest", "()", (0, 1, 2)),
    ("admin", "CreateTopicsRequest", "(create_topic_requests, timeout, validate_only)", (0, 1, 2, 3)),
    ("admin", "DescribeConfigsRequest", "(resources, include_synonyms)", (0, 1, 2)),
    ("admin", "DescribeGroupsRequest", "(groups, include_authorized_operations)", (0, 1, 2, 3)),
    (
        "commit",
        "OffsetCommitRequest",
        "(consumer_group, consumer_group_generation_id, consumer_id, retention_time, topics)",
        (2, 3),
    ),
    ("commit", "OffsetFetchRequest", "(consumer_group, partitions)", (1, 2, 3)),
    ("coordination", "FindCoordinatorRequest", "(coordinator_key, coordinator_type)", (0, 1)),
    ("group", "HeartbeatRequest", "(group, generation_id, member_id)", (0, 1)),
    (
        "group",
        "JoinGroupRequest",
        "(group, session_timeout, rebalance_timeout, member_id, group_instance_id, protocol_type, group_protocols)",
        (0, 1, 2, 5),
    ),
    ("group", "LeaveGroupRequest", "(group, member_id)", (0, 1)),
    ("group", "SyncGroupRequest", "(group, generation_id, member_id, group_instance_id, group_assignment)", (0, 1, 3)),
    ("metadata", "MetadataRequest", "(topics, allow_auto_topic_creation)", (0, 1, 2, 3, 4, 5)),
    ("offset", "OffsetRequest", "(replica_id, isolation_level, topics)", (0, 1, 2, 3)),
    ("transaction", "InitProducerIdRequest", "(transactional_id, transaction_timeout_ms)", (0,)),
]

# Those of which the driver takes one version and lays out questions and answers itself: the fields of the answer.
PINNED = {
    "FetchRequest_v11": (
        "(throttle_time_ms, error_code, session_id, topics:[topics, partitions:[partition, error_code, highwater_offset, "
        "last_stable_offset, log_start_offset, aborted_transactions:[producer_id, first_offset], preferred_read_replica, "
        "message_set]])"
    )
}

# aiokafka's loggers that are kept quiet about connections of ours.
LOGGERS = {"aiokafka.client": "aiokafka", "aiokafka.conn": "aiokafka.conn", "aiokafka.cluster": "aiokafka.cluster"}


def resolve(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def parameters(request: type) -> str:
    names = list(inspect.signature(request).parameters)
    return f"({', '.join(names)})"


def fields(schema: Any) -> str:
    parts: list[str] = []
    for name, kind in zip(schema.names, schema.fields, strict=True):
        inner = getattr(kind, "array_of", None)
        parts.append(f"{name}:[{fields(inner)[1:-1]}]" if hasattr(inner, "names") else name)
    return f"({', '.join(parts)})"


def test_nothing_of_aiokafka_that_is_used_has_changed() -> None:
    changed: list[str] = []
    for module, name, signature in USED:
        try:
            found = resolve(module, name)
        except (ImportError, AttributeError):
            changed.append(f"{module}.{name} is gone")
            continue
        if signature is not None and str(inspect.signature(found)) != signature:
            changed.append(f"{module}.{name}{inspect.signature(found)} was {signature}")
    for module, name, signature, versions in REQUESTS:
        try:
            request = resolve(f"aiokafka.protocol.{module}", name)
        except (ImportError, AttributeError):
            changed.append(f"aiokafka.protocol.{module}.{name} is gone")
            continue
        if parameters(request) != signature:
            changed.append(f"{name}{parameters(request)} was {signature}")
        there = tuple(one.API_VERSION for one in request._CLASSES)
        if there != versions:
            changed.append(f"{name} chooses among versions {there}, not {versions}: are the new ones' answers laid out alike?")
    for name, layout in PINNED.items():
        request = resolve("aiokafka.protocol.fetch", name)
        if fields(request.RESPONSE_TYPE.SCHEMA) != layout:
            changed.append(f"the answer to {name} is {fields(request.RESPONSE_TYPE.SCHEMA)}, not {layout}")
    if not hasattr(resolve("aiokafka.cluster", "ClusterMetadata")(), "controller"):
        changed.append("aiokafka.cluster.ClusterMetadata().controller is gone")
    for module, name in LOGGERS.items():
        found = importlib.import_module(module).log
        if not isinstance(found, logging.Logger) or found.name != name:
            changed.append(f"{module} logs as {getattr(found, 'name', found)!r}, not {name!r}")
    assert not changed, "aiokafka has changed:\n" + "\n".join(changed)


def test_brokers_are_asked_for_versions_that_aiokafka_has() -> None:
    by_key = {resolve(f"aiokafka.protocol.{module}", name).API_KEY: versions for module, name, _, versions in REQUESTS}
    for key, (name, oldest, newest) in SPOKEN.items():
        if key in by_key and name != "Metadata":
            assert {oldest, newest} <= set(by_key[key]), name
            assert newest == by_key[key][-1], name


def test_the_list_is_whole() -> None:
    """Whatever the drivers import from aiokafka, but for its errors, is named above."""
    named = {(module, name.partition(".")[0]) for module, name, _ in USED}
    named |= {(f"aiokafka.protocol.{module}", name) for module, name, *_ in REQUESTS}
    named |= {("aiokafka.protocol.fetch", name) for name in PINNED}
    imported: set[tuple[str, str]] = set()
    for path in (ROOT / "drivers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aiokafka":
                imported |= {(node.module or "", alias.name) for alias in node.names}
    plain = {"aiokafka.errors", "aiokafka.protocol.types"}
    missing = {one for one in imported - named if one[0] not in plain}
    missing -= {("aiokafka.protocol.api", name) for name in ("Request", "RequestStruct", "Response")}
    assert not missing, f"not named: {sorted(missing)}"
