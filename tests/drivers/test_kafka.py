"""The Kafka driver against a real broker: the suite, and what is its own."""

from __future__ import annotations

import pytest

from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import Log
from stepfold.testing.suite import LogSuite

pytestmark = pytest.mark.kafka


class TestSuite(LogSuite):
    @pytest.fixture(autouse=True)
    def _bootstrap(self, kafka_bootstrap: str) -> None:
        self.bootstrap = kafka_bootstrap
        self.created = 0

    async def open_log(self) -> Log:
        from uuid import uuid4

        driver = KafkaDriver(self.bootstrap, f"suite-{uuid4().hex[:12]}", session_timeout_s=6)
        await driver.create_topics(2, 1)
        await driver.open()
        return driver

    async def reopen(self, log: Log) -> Log | None:
        driver = KafkaDriver.from_url(log.name)
        await driver.open()
        return driver
