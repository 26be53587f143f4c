"""Three brokers with three copies of everything, two of which must be in sync: one may die; without two, work stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from fleet import Fleet, happens
from rawlog import Audit, KafkaHistory

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.errors import ConfigError

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def brokers() -> Iterator[Sequence[LocalBroker]]:
    brokers = LocalBroker.cluster(3)
    try:
        LocalBroker.start_together(brokers)
    except ConfigError as error:  # CI makes a failure of it, see ci_policy.py
        pytest.skip(f"no Kafka: {error}")
    else:
        yield brokers
    finally:
        for broker in brokers:  # those that leave in good order would wait for each other
            broker.kill()
            broker.stop()


async def leader(bootstrap: str, topic: str) -> int:
    """The node id of who leads its first partition."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        [described] = await admin.describe_topics([topic])
        return next(int(partition["leader"]) for partition in described["partitions"] if partition["partition"] == 0)
    finally:
        await admin.close()


async def test_one_dies_then_two(brokers: Sequence[LocalBroker], tmp_path: Path) -> None:
    bootstrap = ",".join(broker.bootstrap for broker in brokers)
    url = f"kafka://{bootstrap}/three"
    driver = KafkaDriver.from_url(url)
    await driver.create_topics(4, 3)
    with Fleet(f"{url}?session_timeout_s=3&patience_s=3", tmp_path, seed=0) as fleet:
        for _ in range(2):
            fleet.worker()
        client = fleet.client(rate=10)

        async def work_goes_on() -> None:
            started, ended = len(fleet.acknowledged()), len(fleet.outcomes())
            await happens(lambda: len(fleet.acknowledged()) > started + 10 and len(fleet.outcomes()) > ended + 10)

        await work_goes_on()
        first = brokers[await leader(bootstrap, driver.namespace.history) - 1]
        await asyncio.to_thread(first.kill)
        await work_goes_on()
        await asyncio.to_thread(first.start)
        await work_goes_on()

        last, *others = (broker for broker in brokers if broker is not first)
        for broker in first, *others:
            await asyncio.to_thread(broker.kill)
        refusals = fleet.said(client).count("did not take records")
        await happens(lambda: fleet.said(client).count("did not take records") > refusals)
        acknowledged = len(fleet.acknowledged())
        await happens(lambda: fleet.said(client).count("did not take records") > refusals + 1)
        assert len(fleet.acknowledged()) == acknowledged
        assert last.pid is not None

        await asyncio.to_thread(LocalBroker.start_together, brokers)
        await work_goes_on()
        audit = Audit()
        async with KafkaHistory(url) as history:
            print(await fleet.finish(client, history, audit))
