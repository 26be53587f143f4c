"""What every kind of broker must pass: the conformance suite, and the outage of a broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Protocol
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest

from stepfold.drivers.kafka import KafkaDriver
from stepfold.drivers.kafka.cluster import Cluster
from stepfold.drivers.kafka.producer import ProduceRequest
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Entry, Log, Record
from stepfold.testing import LogSuite

connections_may_leak = pytest.mark.filterwarnings(
    # aiokafka forgets to close a connection that breaks while it is being set up
    "ignore:Exception ignored in.*AIOKafkaConnection:pytest.PytestUnraisableExceptionWarning"
)


_NOT_YET = (3, 5, 6)
"""A leader has yet to learn that it leads a topic that was just made."""


class Broker(Protocol):
    """A broker that a test may kill and start again on the same address and data."""

    @property
    def bootstrap(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


def started(new_broker: Callable[[], Broker]) -> Broker:
    broker = new_broker()
    try:
        broker.start()
    except ConfigError as error:  # CI makes a failure of it, see ci_policy.py
        broker.stop()
        pytest.skip(f"no Kafka: {error}")
    return broker


class KafkaSuite(LogSuite):
    """Subclasses bring a fixture that sets `bootstrap`."""

    bootstrap: str

    async def open_log(self) -> Log:
        driver = KafkaDriver(self.bootstrap, f"suite-{uuid4().hex[:12]}")
        await driver.create_topics(2, 1)
        await driver.open()
        return driver

    async def reopen(self, log: Log) -> Log | None:
        driver = KafkaDriver.from_url(log.name)
        await driver.open()
        return driver


async def survives_a_killed_broker(broker: Broker, patience_s: float) -> int:
    """Appends and reads while the broker is killed and comes back; returns how many appends failed.

    Whatever was acknowledged is there, in order and once; what failed may be there; nobody hangs; the reader that was there
    all along has seen everything once.
    """
    driver = KafkaDriver(broker.bootstrap, f"outage-{uuid4().hex[:12]}", patience_s=patience_s)
    await driver.create_topics(2, 1)
    await driver.open()
    acknowledged: list[tuple[int, int]] = []
    failed: list[int] = []
    seen: list[Record] = []
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                [ack] = await driver.append(1, [Entry("run", json.dumps(number).encode())])
            except LogUnavailable:
                failed.append(number)
            else:
                acknowledged.append((number, ack.offset))

    async def read() -> None:
        reader = driver.reader(1, 0)
        while True:
            with contextlib.suppress(LogUnavailable):
                seen.extend(await reader.read(wait=None))

    writing, reading = asyncio.create_task(write()), asyncio.create_task(read())
    async with asyncio.timeout(120):
        await _until(lambda: len(acknowledged) > 100)
        before = len(acknowledged)
        await asyncio.to_thread(broker.kill)
        await _until(lambda: bool(failed) or patience_s > 5)
        await asyncio.to_thread(broker.start)
        await _until(lambda: len(acknowledged) > before + 100)
        stop.set()
        await writing
        await driver.append(1, [Entry("last", b"")])
        await _until(lambda: bool(seen) and seen[-1].key == "last")
    reading.cancel()
    await asyncio.wait([reading])

    stored = await driver.find(1, ["run", "last"])
    assert seen == stored, "the reader lost or repeated something"
    numbers = [json.loads(record.value) for record in stored[:-1]]
    assert numbers == sorted(set(numbers)), "something is there twice or out of order"
    offsets = {record.offset: json.loads(record.value) for record in stored[:-1]}
    for number, offset in acknowledged:
        assert number in numbers, f"{number} was acknowledged and is gone"
        assert offset == -1 or offsets[offset] == number
    await driver.close()
    return len(failed)


async def delete_group(driver: KafkaDriver) -> None:
    """As a broker does after `offsets.retention.minutes` without a member."""
    cluster = Cluster(driver.bootstrap, {})
    await cluster.start()
    found = await cluster.ask(None, FindCoordinatorRequest(driver.namespace.group, 0))
    answer = await cluster.ask(found.coordinator_id, DeleteGroupsRequest([driver.namespace.group]))
    assert [code for _, code in answer.results] == [0]
    await cluster.close()


async def produce(cluster: Cluster, topic: str, data: bytes, partition: int = 0) -> int:
    """Write these bytes; gives the broker's error code. The topics' settings decide whose timestamps are kept."""
    place = TopicPartition(topic, partition)
    while True:
        answer = await cluster.ask(cluster.leader(place), ProduceRequest([(place, data)]))
        code = answer.results[place][0]
        if code not in _NOT_YET:
            return code


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)
