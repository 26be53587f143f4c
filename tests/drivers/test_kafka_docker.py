"""The Kafka driver against apache/kafka in a container: the suite, and a killed broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kafka_container import KafkaContainer
from kafka_suite import KafkaSuite, connections_may_leak, survives_a_killed_broker

from stepfold.errors import ConfigError

pytestmark = [pytest.mark.kafka, pytest.mark.docker]


@pytest.fixture(scope="module")
def container() -> Iterator[KafkaContainer]:
    container = KafkaContainer()
    try:
        container.start()
    except ConfigError as error:  # CI makes a failure of it, see ci_policy.py
        pytest.skip(str(error))
    yield container
    container.stop()


class TestSuite(KafkaSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, container: KafkaContainer) -> None:
        self.bootstrap = container.bootstrap


@connections_may_leak
async def test_an_append_outlasts_a_killed_broker(container: KafkaContainer) -> None:
    assert await survives_a_killed_broker(container, patience_s=60) == 0
