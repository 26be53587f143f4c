"""What Kafka answers to the wish for a topic: which refusals pass by themselves, and which are wrong settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError

from stepfold import ConfigError
from stepfold.drivers.kafka.topics import Namespace, TopicDescription, check, refusal

REPLICAS = "Unable to replicate the partition 7 time(s): "


@pytest.mark.parametrize(
    ("code", "message"),
    [(41, None), (38, f"{REPLICAS}All brokers are currently fenced."), (38, "All brokers are currently fenced, or in shutdown.")],
)
def test_a_refusal_of_a_cluster_that_starts_is_tried_again(code: int, message: str | None) -> None:
    refused = refusal("shop.history", code, message)
    assert isinstance(refused, KafkaError)
    assert refused.retriable


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (38, f"{REPLICAS}The target replication factor of 7 cannot be reached because only 1 broker(s) are registered.", "of 7"),
        (17, None, "InvalidTopic"),
        (44, "no such topics here", "no such topics here"),
    ],
)
def test_a_refusal_of_the_settings_says_what_is_wrong(code: int, message: str | None, words: str) -> None:
    refused = refusal("shop.history", code, message)
    assert isinstance(refused, ConfigError)
    assert "topic shop.history could not be created" in str(refused)
    assert words in str(refused)


@pytest.mark.parametrize("code", [0, 36])
def test_a_topic_that_is_there_is_not_refused(code: int) -> None:
    assert refusal("shop.history", code, None) is None


def test_commands_that_mend_topics_have_the_url_of_the_log_with_its_options() -> None:
    namespace = Namespace("shop")
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "message.timestamp.type": "LogAppendTime",
    }
    topics = {
        namespace.history: TopicDescription(namespace.history, "", 3, 3, settings),
        namespace.checkpoints: TopicDescription(namespace.checkpoints, "", 4, 3, {"cleanup.policy": "compact"}),
    }
    cluster: Any = SimpleNamespace(bootstrap="shop:9092", brokers=3)
    findings = check(cluster, "kafka://shop:9092/shop?patience_s=5.0", namespace, topics)
    mends = [finding.mend for finding in findings]
    assert sum("--url 'kafka://shop:9092/shop?patience_s=5.0' --partitions 3 --replication 3" in mend for mend in mends) == 2
    assert sum("--url 'kafka://shop:9092/shop-2?patience_s=5.0' --partitions N" in mend for mend in mends) == 1
