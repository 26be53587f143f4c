# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The foreign producer is aiokafka's, which ships no types.
"""Older Kafka: the driver speaks the protocol itself, so each version is tried with what could differ: suite, kill, inbox.

The newest one, with all the rest, is what every other test runs on. What is spoken to it is in `kafka_cluster.SPOKEN`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from kafka_suite import Broker, KafkaSuite, connections_may_leak, started, survives_a_killed_broker

from stepfold.drivers.broker import KAFKA_VERSION, KAFKA_VERSIONS, LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.drivers.kafka import transactions as kafka_transactions
from stepfold.errors import ConfigError
from stepfold.log import InboxRecord

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module", params=[version for version in KAFKA_VERSIONS if version != KAFKA_VERSION])
def old_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    broker = started(lambda: LocalBroker(version=request.param))
    yield broker
    broker.stop()


class TestSuite(KafkaSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, old_broker: Broker) -> None:
        self.bootstrap = old_broker.bootstrap


async def test_topics_members_and_an_inbox(old_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics are made and found right; what is committed is received, dead letters are written and sent again, positions are
    kept, and what an open transaction holds up is told with its producer's name."""
    monkeypatch.setattr(kafka_transactions, "HELD_S", 0.0)
    name = f"versions-{uuid4().hex[:8]}"
    driver = KafkaDriver(old_broker.bootstrap, name, session_timeout_s=6)
    await driver.create_topics(2, 1)
    assert await driver.check_topics() == []
    await driver.open()
    producer = AIOKafkaProducer(bootstrap_servers=old_broker.bootstrap, transactional_id=f"{name}-writer")
    await producer.start()
    for number in range(4):
        await producer.begin_transaction()
        await producer.send_and_wait(driver.namespace.inbox, b"%d" % number, partition=0, headers=[("name", b"\xff")])
        await (producer.commit_transaction() if number % 2 else producer.abort_transaction())
    await producer.begin_transaction()
    await producer.send_and_wait(driver.namespace.inbox, b"open", partition=0)

    async def receive(count: int) -> list[InboxRecord]:
        inbox = member.inbox()
        found: list[InboxRecord] = []
        async with asyncio.timeout(60):
            while len(found) < count:
                portion = await inbox.receive()
                found += portion
                for one in portion:
                    if not found.index(one):
                        await inbox.refuse(one, "the first")
                await inbox.done(portion)
        return found

    member = await driver.join("first")
    assert await member.assigned() == {0, 1}
    assert await member.is_live("first")
    assert [one.value for one in await receive(2)] == [b"1", b"3"]
    [finding] = await driver.check_topics()
    assert f"'{name}-writer'" in finding.problem
    await producer.abort_transaction()
    await producer.stop()
    assert [(letter.value, letter.headers) for letter in await driver.dead_letters()] == [(b"1", (("name", b"\xff"),))]
    assert (await driver.redrive()).sent == 1
    assert [one.value for one in await receive(1)] == [b"1"]
    await member.retire()
    await member.leave()
    assert sum(one.waiting for one in await driver.inbox_positions()) == 0
    await driver.close()


async def test_replicas_that_there_are_no_brokers_for(old_broker: Broker) -> None:
    with pytest.raises(ConfigError, match=r"could not be created: .* broker"):
        await KafkaDriver(old_broker.bootstrap, "too-many").create_topics(1, 7)


@connections_may_leak
async def test_an_append_outlasts_a_killed_broker(old_broker: Broker) -> None:
    assert await survives_a_killed_broker(old_broker, patience_s=60) == 0
