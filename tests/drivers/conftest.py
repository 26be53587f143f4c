# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The admin client and the foreign producer are aiokafka's, which ships no types.
"""A driver on a namespace of its own on a real broker, and clients of that broker that share no code with it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from stepfold.drivers.kafka import KafkaDriver


@pytest.fixture
async def driver(kafka_namespace: str) -> AsyncIterator[KafkaDriver]:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    await driver.open()
    yield driver
    await driver.close()


@pytest.fixture
async def admin(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    yield admin
    await admin.close()


@pytest.fixture
async def foreigner(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    yield producer
    await producer.stop()
