# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The foreign producers are aiokafka's, which ships no types.
"""Bytes of others, through a real broker: what foreign producers write is served or refused, and the next records are served.

Whatever a broker takes is tried here; what it refuses nobody has to read. `tests/unit/test_kafka_records.py` tries the rest.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
from aiokafka import AIOKafkaProducer
from kafka_batches import batch, record
from kafka_suite import connections_may_leak, produce

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.drivers.kafka import inbox as kafka_inbox
from stepfold.drivers.kafka import transactions as kafka_transactions
from stepfold.drivers.kafka.cluster import Cluster
from stepfold.errors import LogUnavailable
from stepfold.log import Entry, Inbox, InboxRecord, Record
from stepfold.worker.inbox import Refused, parse

pytestmark = pytest.mark.kafka


@pytest.fixture
async def cluster(driver: KafkaDriver) -> AsyncIterator[Cluster]:
    cluster = Cluster(driver.bootstrap, {})
    await cluster.start(driver.namespace.topics)
    yield cluster
    await cluster.close()


async def received(driver: KafkaDriver, last: bytes) -> tuple[Inbox, list[InboxRecord]]:
    """All records of the inbox up to the one with this value."""
    member = await driver.join("router")
    while not await member.assigned():
        pass
    inbox = member.inbox()
    found: list[InboxRecord] = []
    async with asyncio.timeout(60):
        while not found or found[-1].value != last:
            portion = await inbox.receive()
            found += portion
            await inbox.done(portion)
    return inbox, found


SERVED: list[Any] = [
    pytest.param(batch([record(headers=[(b"\xff\xfe", b"1")])]), id="a header's name that is no UTF-8"),
    pytest.param(batch([record(0), record(1, headers=[(b"\xff", None)]), record(2)]), id="one of three"),
    pytest.param(batch([record(headers=[(b"a", None), (b"", b"")])]), id="a header without a value or a name"),
    pytest.param(batch([record(key=b"\xff", value=b"\xff")]), id="a key that is no UTF-8"),
    pytest.param(batch([record(key=None, value=None)]), id="nulls"),
    pytest.param(batch([record(attributes=0xFF)]), id="attributes"),
    pytest.param(batch([record()], first_timestamp=-1, max_timestamp=-1), id="no timestamp"),
    pytest.param(batch([record()], first_timestamp=0, max_timestamp=0), id="1970"),
    pytest.param(
        batch([], attributes=1, count=1, last_delta=0, payload=gzip.compress(record(headers=[(b"\xff", b"")]))), id="gzip"
    ),
    pytest.param(
        batch(
            [], attributes=2, count=1, last_delta=0, payload=bytes(cramjam.snappy.compress_raw(record(headers=[(b"\xff", b"")])))
        ),
        id="snappy",
    ),
    pytest.param(
        batch([], attributes=4, count=1, last_delta=0, payload=bytes(cramjam.zstd.compress(record(headers=[(b"\xff", b"")])))),
        id="zstd",
    ),
]


@pytest.mark.parametrize("data", SERVED)
async def test_strange_records_are_read_and_refused_as_they_were(driver: KafkaDriver, cluster: Cluster, data: bytes) -> None:
    assert await produce(cluster, driver.namespace.inbox, data) == 0
    assert await produce(cluster, driver.namespace.inbox, batch([record(value=b"next")])) == 0
    inbox, found = await received(driver, b"next")
    assert found[:-1]
    for one in found[:-1]:
        assert not one.damage
        with pytest.raises(Refused) as refused:
            parse(one)
        await inbox.refuse(one, str(refused.value))
    letters = await driver.dead_letters()
    assert [(one.key, one.value, one.headers) for one in letters] == [(one.key, one.value, one.headers) for one in found[:-1]]
    assert (await driver.redrive()).sent == len(letters)
    portion: list[InboxRecord] = []
    async with asyncio.timeout(60):
        while len(portion) < len(letters):
            new = await inbox.receive()
            portion += new
            await inbox.done(new)
    assert [(one.key, one.value, one.headers) for one in portion] == [(one.key, one.value, one.headers) for one in found[:-1]]


async def test_what_cannot_be_unpacked_is_refused_with_its_bytes(driver: KafkaDriver, cluster: Cluster) -> None:
    """A megabyte that would be a gigabyte. A broker unpacks it bit by bit and takes it."""
    bomb = record(value=bytes(80_000_000))
    data = batch([], attributes=4, count=1, last_delta=0, payload=bytes(cramjam.zstd.compress(bomb)))
    assert await produce(cluster, driver.namespace.inbox, data) == 0
    assert await produce(cluster, driver.namespace.inbox, batch([record(value=b"next")])) == 0
    inbox, found = await received(driver, b"next")
    [damaged, _] = found
    with pytest.raises(Refused, match="more than 64 MiB"):
        parse(damaged)
    await inbox.refuse(damaged, damaged.damage)
    [letter] = await driver.dead_letters()
    assert letter.value is not None
    assert letter.value[61:] == data[61:], "but for what the broker fills in"


async def test_a_header_larger_than_a_dead_letter_is_left_out(driver: KafkaDriver, cluster: Cluster) -> None:
    huge = record(key=bytes(2_000_000), headers=[(b"a" * 2_000_000, bytes(2_000_000))])
    data = batch([], attributes=4, count=1, last_delta=0, payload=bytes(cramjam.zstd.compress(huge)))
    assert await produce(cluster, driver.namespace.inbox, data) == 0
    assert await produce(cluster, driver.namespace.inbox, batch([record(value=b"next")])) == 0
    inbox, found = await received(driver, b"next")
    await inbox.refuse(found[0], "it is \ud800 " + "long " * 1_000_000)
    [letter] = await driver.dead_letters()
    assert (letter.key, letter.value, letter.headers, letter.omitted) == (None, None, (), True)
    assert letter.reason.startswith("it is \\ud800 long ")


async def test_strange_records_in_the_history_stop_nobody(
    driver: KafkaDriver, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    history = driver.namespace.history
    strange = [parameter.values[0] for parameter in SERVED]
    for data in strange:
        assert await produce(cluster, history, data) == 0
        await driver.append(0, [Entry("run", b"ours")])
    bomb = batch([], attributes=4, count=1, last_delta=0, payload=bytes(cramjam.zstd.compress(record(value=bytes(80_000_000)))))
    with caplog.at_level(logging.WARNING, "stepfold.kafka"):
        assert await produce(cluster, history, bomb) == 0
        [ack] = await driver.append(0, [Entry("run", b"last")])
        reader = driver.reader(0, 0)
        found: list[Record] = []
        async with asyncio.timeout(60):
            while not found or found[-1].offset < ack.offset:
                found += await reader.read(wait=None)
    assert [one.value for one in found if one.key == "run"] == [b"ours"] * len(strange) + [b"last"]
    assert found[-2][2:] == ("", b"")
    assert [one.offset for one in found] == sorted({one.offset for one in found})
    assert await driver.find(0, ["run"]) == [one for one in found if one.key == "run"]
    said = [one.message for one in caplog.records]
    assert len(said) == 1, "once, however often it is read"
    assert f"{history}/0 at {ack.offset - 1}: its batch cannot be unpacked" in said[0]
    assert "the record is ignored" in said[0]


@connections_may_leak
async def test_damage_on_its_disk_is_refused_in_the_inbox_and_stops_its_partition_of_the_history(
    tmp_path: Path,
) -> None:
    with LocalBroker(tmp_path) as broker:
        driver = KafkaDriver(broker.bootstrap, "damaged", session_timeout_s=6, patience_s=1)
        await driver.create_topics(2, 1)
        await driver.open()
        cluster = Cluster(broker.bootstrap, {})
        await cluster.start(driver.namespace.topics)
        for value in b"before", b"DAMAGED", b"next":
            assert await produce(cluster, driver.namespace.inbox, batch([record(value=value)])) == 0
            for partition in range(2):
                await driver.append(partition, [Entry("run", value)])
        await cluster.close()
        await driver.close()
        await asyncio.to_thread(broker._end, signal.SIGTERM)  # pyright: ignore[reportPrivateUsage] - in order, so that it does not look
        for topic in driver.namespace.inbox, driver.namespace.history:
            segment = tmp_path / "data" / f"{topic}-0" / "00000000000000000000.log"
            segment.write_bytes(segment.read_bytes().replace(b"DAMAGED", b"damaged"))
        await asyncio.to_thread(broker.start)
        await driver.open()
        inbox, found = await received(driver, b"next")
        assert [one.value for one in found if not one.damage] == [b"before", b"next"]
        [damaged] = [one for one in found if one.damage]
        assert b"damaged" in (damaged.value or b"")
        with pytest.raises(Refused, match="checksum is wrong"):
            parse(damaged)
        await inbox.refuse(damaged, damaged.damage)
        reader = driver.reader(0, 0)
        assert [one.value for one in await reader.read(wait=None)] == [b"before"]
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=r"damaged\.history/0.*offset 1 is damaged in Kafka's storage"):
                await reader.read(wait=None)
        with pytest.raises(LogUnavailable, match=r"damaged\.history/0: the record batch that ends at offset 1 is damaged"):
            await driver.find(0, ["run"])
        assert [one.value for one in await driver.find(1, ["run"])] == [b"before", b"DAMAGED", b"next"], "the others go on"
        await driver.close()


# Transactions.


@pytest.fixture
async def transactional(driver: KafkaDriver) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=driver.bootstrap, transactional_id=f"{driver.namespace.name}-writer")
    await producer.start()
    yield producer
    await producer.stop()


async def test_of_transactions_the_inbox_gives_what_was_committed(
    driver: KafkaDriver, cluster: Cluster, transactional: AIOKafkaProducer
) -> None:
    inbox = driver.namespace.inbox
    for number in range(6):
        await transactional.begin_transaction()
        await transactional.send_and_wait(inbox, b"%d" % number, partition=0)
        await (transactional.commit_transaction() if number % 2 else transactional.abort_transaction())
    await produce(cluster, inbox, batch([record(value=b"last")]))
    _, found = await received(driver, b"last")
    assert [one.value for one in found] == [b"1", b"3", b"5", b"last"]


async def test_nothing_of_an_open_transaction_is_received_before_it_is_committed(
    driver: KafkaDriver, cluster: Cluster, transactional: AIOKafkaProducer
) -> None:
    inbox = driver.namespace.inbox
    await produce(cluster, inbox, batch([record(value=b"before")]))
    await transactional.begin_transaction()
    await transactional.send_and_wait(inbox, b"in it", partition=0)
    await produce(cluster, inbox, batch([record(value=b"behind it")]))
    await produce(cluster, inbox, batch([record(value=b"elsewhere")]), partition=1)
    member = await driver.join("router")
    while not await member.assigned():
        pass
    router = member.inbox()
    found: list[bytes | None] = []
    async with asyncio.timeout(60):
        while len(found) < 2:
            portion = await router.receive()
            await router.done(portion)
            found += [one.value for one in portion]
        assert sorted(one or b"" for one in found) == [b"before", b"elsewhere"]
        receiving = asyncio.create_task(router.receive())
        await driver.append(0, [Entry("run", b"the history goes on")])
        assert (await driver.reader(0, 0).read(wait=None))[0].value == b"the history goes on"
        assert not receiving.done()
        await transactional.commit_transaction()
        found = [one.value for one in await receiving]
        while len(found) < 2:
            found += [one.value for one in await router.receive() if one.value not in found]
    assert found == [b"in it", b"behind it"]


async def test_a_transaction_that_hangs_is_shown(
    driver: KafkaDriver,
    cluster: Cluster,
    transactional: AIOKafkaProducer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_transactions, "HELD_S", 0.5)
    monkeypatch.setattr(kafka_inbox, "_LOOK_S", 0.1)
    topic = driver.namespace.inbox
    await produce(cluster, topic, batch([record(value=b"before")]))
    await transactional.begin_transaction()
    await transactional.send_and_wait(topic, b"in it", partition=0)
    await produce(cluster, topic, batch([record(value=b"behind it")]))
    router, _ = await received(driver, b"before")
    receiving = asyncio.create_task(router.receive())

    def said(part: str) -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "stepfold.kafka" and part in one.getMessage()]

    with caplog.at_level(logging.INFO, "stepfold.kafka"):
        async with asyncio.timeout(60):
            while not said("no request is read"):
                await asyncio.sleep(0.05)
        name = f"{driver.namespace.name}-writer"
        [line] = said("no request is read")
        for part in (f"{topic}/0", f"({name!r}) is open since 20", "at offset 1 of partition 0", "its broker does so after 60 s"):
            assert part in line
        command = (
            f"kafka-transactions.sh --bootstrap-server {driver.bootstrap} abort --topic {topic} --partition 0 --start-offset 1"
        )
        assert command in line
        [finding] = await driver.check_topics()
        assert (finding.topic, finding.fatal) == (topic, False)
        assert f"({name!r}) is open since 20" in finding.problem
        assert command in finding.mend
        first, *others = await driver.inbox_positions()
        assert (first.partition, first.position, first.end, first.waiting) == (0, 1, 3, 2)
        assert f"({name!r})" in first.held
        assert not any(one.waiting or one.held for one in others)
        assert not receiving.done()
        await transactional.commit_transaction()
        await receiving
        async with asyncio.timeout(60):
            while not said("is read again"):
                await asyncio.sleep(0.05)
    assert len(said("no request is read")) == 1, "once"
    assert await driver.check_topics() == []


async def test_what_a_killed_producer_left_open_is_never_received(driver: KafkaDriver, cluster: Cluster) -> None:
    """Its successor, or its time-out, aborts it."""
    code = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
async def main():
    producer = AIOKafkaProducer(bootstrap_servers=sys.argv[1], transactional_id=sys.argv[2])
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(sys.argv[3], b"in it", partition=0)
    print("sent", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    inbox, name = driver.namespace.inbox, f"{driver.namespace.name}-killed"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, driver.bootstrap, name, inbox, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"sent\n"
    process.kill()
    await process.wait()
    await produce(cluster, inbox, batch([record(value=b"behind it")]))
    successor = AIOKafkaProducer(bootstrap_servers=driver.bootstrap, transactional_id=name)
    await successor.start()
    await successor.stop()
    _, found = await received(driver, b"behind it")
    assert [one.value for one in found] == [b"behind it"]


@pytest.mark.parametrize("end", ["commit", "abort", "hang"])
async def test_what_is_written_into_the_history_in_a_transaction_counts_for_nothing_and_holds_up_nobody(
    driver: KafkaDriver, transactional: AIOKafkaProducer, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """The history cannot wait for its end, as no reader may go on before; and what was not waited for may yet be aborted."""
    await transactional.begin_transaction()
    await transactional.send_and_wait(driver.namespace.history, b'{"type":"started"}', b"run", partition=0)
    if end == "commit":
        await transactional.commit_transaction()
    elif end == "abort":
        await transactional.abort_transaction()
    [ack] = await driver.append(0, [Entry("run", b"ours")])
    reader = driver.reader(0, 0)
    found: list[Record] = []
    async with asyncio.timeout(30):
        while not found or found[-1].offset < ack.offset:
            found += await reader.read(wait=None)
    assert [(one.key, one.value) for one in found] == [("", b""), ("run", b"ours")]
    assert [one.value for one in await driver.find(0, ["run"])] == [b"ours"]
    [said] = [one.message for one in caplog.records if one.name == "stepfold.kafka"]
    assert f"{driver.namespace.history}/0 at 0: produced in a transaction" in said
    if end == "hang":
        await transactional.abort_transaction()
