# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The foreign producers and consumers are aiokafka's, which ships no types.
"""The Kafka driver against a real broker: the suite, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from aiokafka.structs import TopicPartition
from kafka_suite import Broker, KafkaSuite, connections_may_leak, delete_group, survives_a_killed_broker

from stepfold.drivers.kafka import KafkaDriver, Redriven
from stepfold.drivers.kafka import cluster as kafka_cluster
from stepfold.drivers.kafka.driver import KafkaMember
from stepfold.errors import ConfigError, LogUnavailable, PayloadTooLarge
from stepfold.log import Entry, Inbox, InboxRecord, Record

pytestmark = pytest.mark.kafka

EVERYTHING = frozenset(range(4))


class TestSuite(KafkaSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, kafka_bootstrap: str) -> None:
        self.bootstrap = kafka_bootstrap


# Outages and errors.


@connections_may_leak
async def test_an_append_outlasts_a_killed_broker(kafka_broker: Broker) -> None:
    assert await survives_a_killed_broker(kafka_broker, patience_s=60) == 0


@connections_may_leak
async def test_without_patience_an_append_fails_and_the_next_ones_recover(kafka_broker: Broker) -> None:
    assert await survives_a_killed_broker(kafka_broker, patience_s=0.5) > 0


@connections_may_leak
async def test_members_come_back_after_a_killed_broker(kafka_broker: Broker) -> None:
    driver = KafkaDriver(kafka_broker.bootstrap, "group-outage", session_timeout_s=6)
    await driver.create_topics(4, 1)
    await driver.open()
    first = await driver.join("first")
    assert await first.assigned() == EVERYTHING
    await asyncio.to_thread(kafka_broker.kill)
    await asyncio.to_thread(kafka_broker.start)
    async with asyncio.timeout(60):
        second = await driver.join("second")
        while await second.assigned() | await first.assigned() != EVERYTHING:
            pass
    await driver.close()


async def test_nobody_listening_is_log_unavailable() -> None:
    with pytest.raises(LogUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        await KafkaDriver("127.0.0.1:1", "shop").open()


async def test_security_that_cannot_work_is_a_config_error(kafka_bootstrap: str) -> None:
    with pytest.raises(ConfigError, match="ssl_context"):
        await KafkaDriver(kafka_bootstrap, "shop", security_protocol="SSL").open()


async def test_a_refused_append_fails_and_the_next_one_works(driver: KafkaDriver, admin: AIOKafkaAdminClient) -> None:
    async def append_large_ones() -> None:
        while True:  # a setting takes effect a little later
            await driver.append(0, [Entry("large", b"x" * 2000)])

    await configure(admin, driver.namespace.history, {"max.message.bytes": "1000"})
    with pytest.raises(PayloadTooLarge, match=r"of 2,000 bytes is too large for .*\.history, whose max.message.bytes is 1,000"):
        await append_large_ones()
    [ack] = await driver.append(0, [Entry("run", b"small")])
    assert [record.offset for record in await driver.find(0, ["run"])] == [ack.offset]


async def test_large_appends_are_split_into_batches_and_stay_in_order(driver: KafkaDriver) -> None:
    entries = [Entry("run", bytes([number]) * 300_000) for number in range(20)]
    acks = await asyncio.gather(*(driver.append(0, entries[start : start + 10]) for start in (0, 10)))
    found = await driver.find(0, ["run"])
    assert [record.value[0] for record in found] == list(range(20))
    assert [ack.offset for answer in acks for ack in answer] == [record.offset for record in found]


async def test_a_slow_reader_gets_everything_and_holds_up_nobody(driver: KafkaDriver) -> None:
    slow, quick = driver.reader(0, 0), driver.reader(1, 0)
    await slow.read(wait=0.05)
    for _ in range(10):
        await driver.append(0, [Entry("run", b"x" * 900_000) for _ in range(3)])
    await driver.append(1, [Entry("run", b"quick")])
    assert [record.value for record in await quick.read(wait=None)] == [b"quick"]
    count = 0
    while count < 30:
        count += len(await slow.read(1, wait=None))
    assert [len(await reader.read(wait=0.05)) for reader in (slow, quick)] == [0, 0]


async def test_a_key_that_is_too_long_is_refused(driver: KafkaDriver) -> None:
    with pytest.raises(PayloadTooLarge):
        await driver.append(0, [Entry("x" * 100_000, b"")])


async def test_deleted_records_are_an_error_and_never_skipped(driver: KafkaDriver, admin: AIOKafkaAdminClient) -> None:
    await driver.append(0, [Entry("run", b"%d" % number) for number in range(10)])
    reader = driver.reader(0, 0)
    await admin.delete_records({TopicPartition(driver.namespace.history, 0): RecordsToDelete(before_offset=5)})
    for _ in range(2):
        with pytest.raises(LogUnavailable, match=r"\.history/0 has no offset 0: records were deleted"):
            await reader.read(wait=None)
    assert (await driver.bounds(0))[0] == 5
    later = driver.reader(0, 5)
    assert (await later.read(wait=None))[0].value == b"5"


async def test_what_foreign_hands_write_into_the_history_is_read(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    await foreigner.send_and_wait(driver.namespace.history, key=b"\xff\xfe", value=None, partition=0)
    await foreigner.send_and_wait(driver.namespace.history, key=None, value=b"{}", partition=0)
    await driver.append(0, [Entry("run", b"ours")])
    reader = driver.reader(0, 0)
    records = [await reader.read(1, wait=None) for _ in range(3)]
    assert [(record.key, record.value) for [record] in records] == [("\ufffd\ufffd", b""), ("", b"{}"), ("run", b"ours")]


async def test_what_others_append_between_our_own_is_read_in_order(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    records: list[Record] = []

    async def read() -> None:
        reader = driver.reader(0, 0)
        while len(records) < 90:
            records.extend(await reader.read(wait=None))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(read())
        for number in range(30):
            await driver.append(0, [Entry("ours", b"%d" % number), Entry("ours", b"again")])
            await foreigner.send_and_wait(driver.namespace.history, key=b"theirs", value=b"%d" % number, partition=0)
    assert [record.key for record in records] == ["ours", "ours", "theirs"] * 30
    assert records == await driver.find(0, ["ours", "theirs"]), "also what was not fetched is as it is in the log"


async def test_our_own_are_there_without_being_fetched(driver: KafkaDriver) -> None:
    one, other, behind = driver.reader(0, 0), driver.reader(0, 0), driver.reader(0, 0)
    await one.read()
    await other.read()
    for number in range(20):
        [ack] = await driver.append(0, [Entry("run", b"%d" % number)])
        for reader in (one, other):
            assert await reader.read() == [Record(ack.offset, ack.timestamp, "run", b"%d" % number)]
    assert len(await behind.read(wait=None)) == 20


# Topics.


async def test_topics_are_never_made_silently(kafka_bootstrap: str) -> None:
    driver = KafkaDriver(kafka_bootstrap, "nobody-made-this")
    with pytest.raises(ConfigError) as refusal:
        await driver.open()
    assert f"stepfold topics create --url kafka://{kafka_bootstrap}/nobody-made-this --partitions N --replication R" in str(
        refusal.value
    )
    assert await driver.describe() == []
    assert {(finding.topic.split(".")[1], finding.fatal) for finding in await driver.check_topics()} == {
        ("history", True),
        ("inbox", True),
        ("dead-letters", True),
        ("checkpoints", True),
    }


async def test_making_topics_twice_is_once(kafka_namespace: str) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    await driver.create_topics(4, 1)
    assert await driver.check_topics() == []
    history, inbox, dead_letters, checkpoints = await driver.describe()
    assert [topic.partitions for topic in (history, inbox, dead_letters, checkpoints)] == [4, 4, 1, 4]
    assert history.replication == 1
    assert history.settings["message.timestamp.type"] == "LogAppendTime"
    assert checkpoints.settings["cleanup.policy"] == "compact"
    with pytest.raises(ConfigError, match="has 4 partitions, not 5"):
        await driver.create_topics(5, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        await driver.create_topics(0, 1)


async def test_more_replicas_than_brokers_is_an_error_that_says_so(kafka_bootstrap: str) -> None:
    driver = KafkaDriver(kafka_bootstrap, "too-many-replicas")
    with pytest.raises(ConfigError, match=r"too-many-replicas\.history could not be created: .* only 1 broker"):
        await driver.create_topics(1, 7)


async def test_only_what_is_missing_is_made(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    await delete(admin, [driver.namespace.checkpoints])
    with pytest.raises(ConfigError, match="--partitions 4 --replication 1"):
        await driver.open()
    await driver.create_topics(4, 1)
    await driver.open()
    await driver.close()


@pytest.mark.parametrize(
    ("topic", "setting", "value", "problem"),
    [
        ("history", "cleanup.policy", "compact", "cleanup.policy is compact, not delete"),
        ("history", "retention.ms", "604800000", "retention.ms is 604800000, not -1"),
        ("history", "retention.bytes", "1000000", "retention.bytes is 1000000, not -1"),
        ("history", "unclean.leader.election.enable", "true", "unclean.leader.election.enable is true, not false"),
        ("history", "message.timestamp.type", "CreateTime", "message.timestamp.type is CreateTime, not LogAppendTime"),
        ("history", "max.message.bytes", "1000", "max.message.bytes is 1000, below 1048588"),
        ("history", "min.insync.replicas", "2", "min.insync.replicas is 2 with 1 replicas, so nothing can be appended"),
        ("checkpoints", "cleanup.policy", "delete", "cleanup.policy is delete, not compact"),
        ("inbox", "cleanup.policy", "compact", "cleanup.policy is compact, not delete"),
        ("dead-letters", "max.message.bytes", "1048588", "max.message.bytes is 1048588, below 2097176"),
    ],
)
async def test_a_wrong_setting_is_found_and_its_command_mends_it(
    kafka_namespace: str, admin: AIOKafkaAdminClient, topic: str, setting: str, value: str, problem: str
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    name = f"{driver.namespace.name}.{topic}"
    await configure(admin, name, {setting: value})
    [finding] = await driver.check_topics()
    assert (finding.topic, finding.problem, finding.fatal) == (name, problem, True)
    with pytest.raises(ConfigError) as refusal:
        await driver.open()
    assert finding.mend in str(refusal.value)
    command = finding.mend.removeprefix("Run: ").split()
    assert command[0] == "kafka-configs.sh"
    assert command[command.index("--bootstrap-server") + 1] == driver.bootstrap
    assert command[command.index("--entity-name") + 1] == name
    mended, _, good = command[command.index("--add-config") + 1].partition("=")
    await configure(admin, name, {mended: good})
    assert await driver.check_topics() == []


async def test_a_history_that_was_enlarged_is_refused(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    await admin.create_partitions({driver.namespace.history: NewPartitions(8)})
    while (await driver.describe())[0].partitions != 8:
        pass
    with pytest.raises(ConfigError, match=r"has 8 partitions and .*\.checkpoints 4\. The partitions of a history are fixed"):
        await driver.open()


async def test_topics_made_again_are_another_log(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    await driver.open()
    before = driver.id
    await driver.close()
    await delete(admin, driver.namespace.topics)
    await driver.create_topics(4, 1)
    await driver.open()
    assert driver.id != before
    await driver.close()


async def test_records_of_topics_that_are_gone_are_not_found(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    await driver.open()
    await driver.append(0, [Entry("run", b"1"), Entry("run", b"2")])
    assert len(await driver.find(0, ["run"])) == 2
    other = KafkaDriver.from_url(kafka_namespace)
    await delete(admin, driver.namespace.topics)
    await other.create_topics(4, 1)
    with pytest.raises(ConfigError, match="was deleted and recreated while it was in use"):
        await driver.find(0, ["run"])
    await driver.close()


async def test_names_that_kafka_takes_for_the_same_are_refused_before_anything_is_made(kafka_bootstrap: str) -> None:
    name = f"a.b-{uuid4().hex[:8]}"
    await KafkaDriver(kafka_bootstrap, name).create_topics(1, 1)
    other = KafkaDriver(kafka_bootstrap, name.replace(".", "_"))
    with pytest.raises(ConfigError, match=r"cannot be created beside a\.b-.*a dot and an underscore for the same"):
        await other.create_topics(1, 1)
    assert await other.describe() == []
    await KafkaDriver(kafka_bootstrap, name).create_topics(1, 1)


@pytest.mark.parametrize("name", [".", "..", "...", "", "a b", "a/b", "ä", "a" * 201, "a\n"])
def test_namespaces_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a Kafka namespace"):
        KafkaDriver("host:9092", name)


async def test_brokers_that_lack_a_request_are_refused_by_name(kafka_namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kafka_cluster.SPOKEN, 1, ("Fetch", 98, 99))
    monkeypatch.setitem(kafka_cluster.SPOKEN, 999, ("Teleport", 0, 0))
    words = r"Fetch is there in versions \d+ to \d+, not 98 to 99; Teleport is missing\. .* Kafka 3\.1"
    with pytest.raises(ConfigError, match=words):
        await KafkaDriver.from_url(kafka_namespace).open()


async def test_without_positions_the_inbox_is_read_from_its_beginning_and_it_is_said(
    driver: KafkaDriver, admin: AIOKafkaAdminClient, foreigner: AIOKafkaProducer, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        await foreigner.send_and_wait(driver.namespace.inbox, b"%d" % number, partition=0)
    member = await joined(driver, "first")
    assert len(await receive(member.inbox(), 3)) == 3
    await member.leave()
    assert not [one for one in caplog.records if "has no position" in one.getMessage()], "a new group has lost nothing"
    await driver.append(0, [Entry("run", b"")])
    await delete_group(driver)
    second = await joined(driver, "second")
    assert len(await receive(second.inbox(), 3)) == 3
    [line] = [one.getMessage() for one in caplog.records if "has no position" in one.getMessage()]
    assert f"{driver.namespace.inbox}/0: group {driver.namespace.group} has no position there" in line
    assert "All 3 requests are read again" in line


async def test_an_inbox_that_was_made_again_is_read_from_its_beginning(
    driver: KafkaDriver, admin: AIOKafkaAdminClient, foreigner: AIOKafkaProducer
) -> None:
    for number in range(3):
        await foreigner.send_and_wait(driver.namespace.inbox, b"%d" % number, partition=0)
    member = await joined(driver, "first")
    await receive(member.inbox(), 3)
    await member.leave()
    await delete(admin, [driver.namespace.inbox])
    await driver.create_topics(4, 1)
    again = KafkaDriver.from_url(driver.name)
    await again.open()
    await foreigner.send_and_wait(driver.namespace.inbox, b"new", partition=0)
    second = await joined(again, "second")
    [one] = await receive(second.inbox(), 1)
    assert one.value == b"new"
    await again.close()


async def test_requests_that_are_kept_longer_than_positions_are_a_finding(
    kafka_namespace: str, admin: AIOKafkaAdminClient
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace)
    for retention, words in ("-1", "kept for ever"), ("864000000", "kept for 10 days"):
        await configure(admin, driver.namespace.inbox, {"retention.ms": retention})
        [finding] = await driver.check_topics()
        assert (finding.topic, finding.fatal) == (driver.namespace.inbox, False)
        assert words in finding.problem
        assert "for 7 (offsets.retention.minutes)" in finding.problem
        assert "--add-config retention.ms=604800000" in finding.mend


@connections_may_leak
async def test_closing_does_not_wait_for_a_dead_broker(kafka_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    url = f"kafka://{kafka_broker.bootstrap}/closing"
    await KafkaDriver.from_url(url).create_topics(2, 1)
    driver = KafkaDriver.from_url(url, session_timeout_s=6)
    await driver.open()
    member = await driver.join("member")
    await member.assigned()
    reader = driver.reader(0, 0)
    reading = asyncio.create_task(reader.read(wait=None))
    await asyncio.to_thread(kafka_broker.kill)
    appending = asyncio.create_task(driver.append(0, [Entry("run", b"")]))
    async with asyncio.timeout(60):
        while not [one for one in caplog.records if "has not answered for" in one.getMessage()]:
            await asyncio.sleep(0.1)
    async with asyncio.timeout(10):  # it took 32 s
        await driver.close()
    with pytest.raises(LogUnavailable, match="was closed"):
        await appending
    with pytest.raises(LogUnavailable, match=r"was closed|is not open"):
        await reading
    lines = [one for one in caplog.records if one.levelno >= logging.WARNING and one.name != "asyncio"]
    assert {one.name for one in lines} == {"stepfold.kafka"}, "aiokafka's lines are not for whoever runs this"
    assert len(lines) <= 2, "one for what the driver asks, and one for its member"


async def test_who_uses_aiokafka_otherwise_keeps_its_lines(driver: KafkaDriver, caplog: pytest.LogCaptureFixture) -> None:
    await driver.append(0, [Entry("run", b"")])
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(KafkaError):
        await producer.start()
    await producer.stop()
    assert [one for one in caplog.records if one.name == "aiokafka" and one.levelno == logging.ERROR]


@pytest.mark.parametrize(
    "url",
    ["kafka://host:9092", "kafka:///shop", "kafka://host/a/b", "kafka://me:pw@host/shop", "kafka://host/sh op", "http://h/shop"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError):
        KafkaDriver.from_url(url)


def test_options_in_a_url() -> None:
    driver = KafkaDriver.from_url("kafka://a:1,b:2/shop?session_timeout_s=6&patience_s=2.5")
    assert (driver.bootstrap, driver.namespace.history) == ("a:1,b:2", "shop.history")
    with pytest.raises(ConfigError, match="unknown option 'acks'"):
        KafkaDriver.from_url("kafka://a/shop?acks=0")
    with pytest.raises(ConfigError, match="a number of seconds"):
        KafkaDriver.from_url("kafka://a/shop?patience_s=long")


# Members and the inbox.


async def test_a_killed_worker_loses_its_partitions_to_the_other(driver: KafkaDriver) -> None:
    code = """
import asyncio, sys
from stepfold.drivers.kafka import KafkaDriver
async def main():
    driver = KafkaDriver.from_url(sys.argv[1], session_timeout_s=6)
    await driver.open()
    member = await driver.join("doomed")
    while True:
        print(len(await member.assigned()), flush=True)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, driver.name, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"4\n"
            member = await driver.join("stays")
            while len(await member.assigned()) != 2:
                pass
            while await process.stdout.readline() != b"2\n":
                pass
            process.send_signal(signal.SIGKILL)
            while await member.assigned() != EVERYTHING:
                pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_session_timeout_that_brokers_do_not_allow_says_so(kafka_namespace: str) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=0.1)
    await driver.open()
    member = await driver.join("hasty")
    with pytest.raises(ConfigError, match="session_timeout_s is outside of what the brokers allow"):
        await member.assigned()
    await driver.close()


async def test_the_inbox_takes_records_of_any_producer_once(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    sent = [f"request {number}".encode() for number in range(50)]
    for number, value in enumerate(sent):
        await foreigner.send_and_wait(driver.namespace.inbox, value, key=None if number % 2 else b"key-%d" % number)
    first = await joined(driver, "first")
    inbox = first.inbox()
    records = await receive(inbox, 50)
    assert sorted(record.value or b"" for record in records) == sorted(sent)
    assert len({record.place for record in records}) == 50
    assert all(record.place.startswith(f"{driver.namespace.inbox}/") and record.timestamp > 0 for record in records)
    await first.leave()
    second = await joined(driver, "second")
    await foreigner.send_and_wait(driver.namespace.inbox, b"one more", headers=[("ce_id", b"7"), ("empty", b"")])
    [news] = await receive(second.inbox(), 1)
    assert (news.value, news.headers) == (b"one more", (("ce_id", b"7"), ("empty", b"")))


async def test_what_is_not_done_comes_again(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    await foreigner.send_and_wait(driver.namespace.inbox, b"a", partition=2)
    first = await joined(driver, "first")
    inbox = first.inbox()
    [once] = await inbox.receive()
    assert list(await inbox.receive()) == [once], "here"
    await first.leave()
    second = await joined(driver, "second")
    inbox = second.inbox()
    assert list(await inbox.receive()) == [once], "at the next owner"
    await inbox.done([once])
    await second.leave()
    third = await joined(driver, "third")
    await foreigner.send_and_wait(driver.namespace.inbox, b"b", partition=2)
    [next_one] = await third.inbox().receive()
    assert next_one.value == b"b"


async def test_the_inbox_is_for_members(driver: KafkaDriver) -> None:
    """Who waits for it while its member leaves is told that, whatever it was just asking the broker for."""
    for turns in (0, 1, 2, 4, 8, 16):
        member = await joined(driver, "short")
        inbox = member.inbox()
        receiving = asyncio.create_task(inbox.receive())
        for _ in range(turns):
            await asyncio.sleep(0)
        await member.leave()
        with pytest.raises(LogUnavailable, match="has left"):
            await receiving


async def test_members_subscribe_to_the_inbox_until_they_retire(driver: KafkaDriver, admin: AIOKafkaAdminClient) -> None:
    """Or the broker would forget its positions after a week without a request, and all requests would come again."""

    async def subscribed() -> list[str]:
        answers: list[Any] = await admin.describe_consumer_groups([driver.namespace.group])
        [(_error, _group, _state, _type, _protocol, members, *_)] = answers[0].groups
        [(_member_id, _client_id, _host, metadata, *_)] = members
        return ConsumerProtocolMemberMetadata.decode(metadata).subscription if metadata else ["while it is rebalanced"]

    async def comes_to(topics: list[str]) -> None:
        async with asyncio.timeout(60):
            while await subscribed() != topics:
                await asyncio.sleep(0.05)

    member = await joined(driver, "member")
    await comes_to([driver.namespace.history, driver.namespace.inbox])
    await member.retire()
    await comes_to([])


async def test_who_retires_reads_no_inbox_and_what_it_had_not_done_comes_to_the_other(
    driver: KafkaDriver, foreigner: AIOKafkaProducer
) -> None:
    one = await joined(driver, "one")
    retiring = one.inbox()
    await foreigner.send_and_wait(driver.namespace.inbox, b"done", partition=0)
    await retiring.done(await retiring.receive())
    await foreigner.send_and_wait(driver.namespace.inbox, b"not done", partition=0)
    received = await retiring.receive()
    assert [record.value for record in received] == [b"not done"]
    other = await driver.join("other")
    await one.retire()
    while await other.assigned() != EVERYTHING:
        pass
    for partition in range(4):
        await foreigner.send_and_wait(driver.namespace.inbox, b"%d" % partition, partition=partition)
    values = [record.value or b"" for record in await receive(other.inbox(), 5)]
    assert sorted(values) == [b"0", b"1", b"2", b"3", b"not done"]
    await retiring.done(received)
    for member in one, other:
        await member.leave()
    third = await joined(driver, "third")
    await foreigner.send_and_wait(driver.namespace.inbox, b"later", partition=0)
    assert [record.value for record in await receive(third.inbox(), 1)] == [b"later"]


async def test_two_members_share_the_inbox(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    first, second = await driver.join("first"), None
    one = first.inbox()
    second = await driver.join("second")
    other = second.inbox()
    while len(await first.assigned()) != 2:
        pass
    while len(await second.assigned()) != 2:
        pass
    for partition in range(4):
        await foreigner.send_and_wait(driver.namespace.inbox, b"%d" % partition, partition=partition)
    received = await asyncio.gather(receive(one, 2), receive(other, 2))
    assert sorted(record.value or b"" for records in received for record in records) == [b"0", b"1", b"2", b"3"]


async def test_refused_records_are_kept_as_they_were_and_can_be_sent_again(
    driver: KafkaDriver, foreigner: AIOKafkaProducer, kafka_bootstrap: str
) -> None:
    headers = [("trace", b"\x00\xff"), ("stepfold-reason", b"a header of the producer's own")]
    await foreigner.send_and_wait(driver.namespace.inbox, b"\x00 not JSON", key=b"\xfe", partition=3, headers=headers)
    await foreigner.send_and_wait(driver.namespace.inbox, value=None, key=b"tombstone", partition=3)
    router = await joined(driver, "router")
    inbox = router.inbox()
    records = await receive(inbox, 2, done=False)
    for record in records:
        await inbox.refuse(record, "it is not JSON — ключ")
    await inbox.done(records)

    letter, tombstone = await driver.dead_letters()
    assert (letter.key, letter.value, letter.headers) == (b"\xfe", b"\x00 not JSON", tuple(headers))
    assert (letter.reason, letter.origin) == ("it is not JSON — ключ", records[0].place)
    assert (tombstone.key, tombstone.value, tombstone.omitted, tombstone.redriven) == (b"tombstone", None, False, False)
    assert [found.place for found in await driver.dead_letters(limit=1)] == [tombstone.place]
    reader = AIOKafkaConsumer(driver.namespace.dead_letters, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await reader.start()
    raw = await reader.getone()
    await reader.stop()
    assert (raw.key, raw.value) == (b"\xfe", b"\x00 not JSON")
    assert raw.headers[-2:] == (
        ("stepfold-reason", "it is not JSON — ключ".encode()),
        ("stepfold-origin", records[0].place.encode()),
    )

    assert (await driver.redrive()).sent == 2
    again = await receive(inbox, 2)
    assert [(record.key, record.value, record.headers) for record in again] == [
        (record.key, record.value, record.headers) for record in records
    ]
    assert [found.redriven for found in await driver.dead_letters()] == [True, True]
    assert (await driver.redrive()).sent == 0
    assert (await driver.redrive([letter.place])).sent == 1
    [once_more] = await receive(inbox, 1)
    assert once_more.value == b"\x00 not JSON"
    with pytest.raises(ConfigError, match="cannot be sent again: nowhere/0/1"):
        await driver.redrive(["nowhere/0/1"])


async def test_dead_letters_of_others_are_sent_again_as_well(driver: KafkaDriver, foreigner: AIOKafkaProducer) -> None:
    for origin in (b"", b"nonsense", b"a/b/c", b"shop.inbox/99/1", b"shop.inbox/-1/1", b"\xff/3/7", b"shop.inbox/2/7"):
        headers = [("stepfold-reason", b"\xff"), ("stepfold-origin", origin)]
        await foreigner.send_and_wait(driver.namespace.dead_letters, origin, partition=0, headers=headers)
    await foreigner.send_and_wait(driver.namespace.dead_letters, b"without headers", partition=0)
    assert (await driver.redrive()).sent == 8
    router = await joined(driver, "router")
    records = await receive(router.inbox(), 8)
    partitions = {record.value: record.place.split("/")[1] for record in records}
    assert (partitions[b"shop.inbox/2/7"], partitions[b"\xff/3/7"], partitions[b"shop.inbox/99/1"]) == ("2", "3", "0")
    assert len(partitions) == 8


async def test_the_newest_dead_letters_are_found_before_all_that_was_done_with_them(
    driver: KafkaDriver, foreigner: AIOKafkaProducer
) -> None:
    for number in range(12):
        headers = [("stepfold-reason", b"no"), ("stepfold-origin", f"{driver.namespace.inbox}/0/{number}".encode())]
        await foreigner.send_and_wait(driver.namespace.dead_letters, b"%d" % number, partition=0, headers=headers)
    places = [letter.place for letter in await driver.dead_letters()]
    for times in range(3):
        await driver.drop_letters(places, why=f"for the {times}. time")
    await driver.redrive(places[10:11], why="after all")
    for limit in (1, 2, 5, 12, 100):
        letters = await driver.dead_letters(limit)
        assert [letter.place for letter in letters] == places[-limit:]
        assert [letter.why for letter in letters if letter.place != places[10]] == ["for the 2. time"] * (
            len(letters) - (limit > 1)
        )
        assert [letter.place for letter in letters if letter.redriven] == ([places[10]] if limit > 1 else [])
    with pytest.raises(ConfigError, match="cannot be dropped"):
        await driver.drop_letters([places[3], f"{driver.namespace.dead_letters}/0/99999"])


async def test_a_dead_letter_that_kafka_does_not_take_holds_up_no_other(
    driver: KafkaDriver, admin: AIOKafkaAdminClient, foreigner: AIOKafkaProducer
) -> None:
    for value in b"first", b"x" * 5_000, b"third":
        headers = [("stepfold-reason", b"no"), ("stepfold-origin", f"{driver.namespace.inbox}/2/7".encode())]
        await foreigner.send_and_wait(driver.namespace.dead_letters, value, partition=0, headers=headers)
    _, large, _ = await driver.dead_letters()
    await configure(admin, driver.namespace.inbox, {"max.message.bytes": "2000"})
    done = await driver.redrive()
    assert (done.sent, list(done.refused)) == (2, [large.place])
    assert "are too large for the topic" in done.refused[large.place]
    assert [letter.redriven for letter in await driver.dead_letters()] == [True, False, True]
    done = await driver.redrive()
    assert (done.sent, list(done.refused)) == (0, [large.place])
    await configure(admin, driver.namespace.inbox, {"max.message.bytes": "1048588"})
    assert await driver.redrive() == Redriven(1, {})


async def test_a_member_that_is_none_of_ours_gets_no_share_and_stops_nobody(driver: KafkaDriver) -> None:
    cluster = kafka_cluster.Cluster(driver.bootstrap, {}, client_id="foreign")
    await cluster.start()
    member = await driver.join("ours")
    assert await member.assigned() == EVERYTHING
    coordinator = (await cluster.ask(None, FindCoordinatorRequest(driver.namespace.group, 0))).coordinator_id
    no_instance: Any = None
    member_id, joins = "", None
    async with asyncio.timeout(60):
        while joins is None or joins.error_code:
            said = ConsumerProtocolMemberMetadata(0, [driver.namespace.history], b"\xff no JSON").encode()
            protocols = [("stepfold-sticky", said)]
            request = JoinGroupRequest(driver.namespace.group, 6000, 6000, member_id, no_instance, "consumer", protocols)
            joins = await cluster.ask(coordinator, request)
            member_id = joins.member_id
        if joins.leader_id != member_id:
            synced = await cluster.ask(
                coordinator, SyncGroupRequest(driver.namespace.group, joins.generation_id, member_id, no_instance, [])
            )
            assert synced.error_code == 0
            assert ConsumerProtocolMemberAssignment.decode(synced.member_assignment).assignment == [
                (driver.namespace.history, [])
            ]
    assert await member.is_live("ours")
    await cluster.ask(coordinator, LeaveGroupRequest(driver.namespace.group, member_id))
    await cluster.close()


async def test_a_record_too_large_to_be_copied_is_refused_without_its_value(driver: KafkaDriver) -> None:
    router = await joined(driver, "router")
    huge = InboxRecord(f"{driver.namespace.inbox}/0/7", 1, b"key", b"x" * 3_000_000, ())
    await router.inbox().refuse(huge, "too large")
    [letter] = await driver.dead_letters()
    assert (letter.key, letter.value, letter.omitted) == (b"key", None, True)
    assert (await driver.redrive()).sent == 0
    with pytest.raises(ConfigError, match="cannot be sent again"):
        await driver.redrive([letter.place])


async def test_the_largest_record_of_an_inbox_fits_into_the_dead_letters(driver: KafkaDriver, kafka_bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_request_size=2_000_000)
    await producer.start()
    value = b"x" * 1_048_500
    await producer.send_and_wait(driver.namespace.inbox, value, partition=0)
    await producer.stop()
    router = await joined(driver, "router")
    inbox = router.inbox()
    [record] = await inbox.receive()
    await inbox.refuse(record, "too large")
    [letter] = await driver.dead_letters()
    assert (letter.value, letter.omitted) == (value, False)


# What users get.


async def test_publish_is_a_step_and_carries_its_idempotency_key(
    driver: KafkaDriver, admin: AIOKafkaAdminClient, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{driver.namespace.name}.orders"
    await admin.create_topics([NewTopic(topic, 3, 1)])
    while topic not in await admin.list_topics():
        pass
    ran: list[str] = []

    class Running:
        idempotency_key = "order-42/publish"

    running: ContextVar[Running] = ContextVar("running")
    running.set(Running())
    monkeypatch.setattr("stepfold.current_step", running.get)

    class Steps:
        async def run(self, id: str, fn: Callable[[], Awaitable[None]], /) -> None:
            ran.append(id)
            await fn()

    step = driver.step_ext(Steps())
    await step.publish(topic, {"order": 42}, key="order-42", headers={"kind": "paid"})
    await step.publish(topic, b"\x00", key=b"order-42")
    await step.publish(topic, "text", key="order-42")
    with pytest.raises(ConfigError, match="topic 'nowhere' does not exist"):
        await step.publish("nowhere", 1)
    assert ran == [f"publish/{topic}"] * 3 + ["publish/nowhere"]

    reader = AIOKafkaConsumer(topic, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await reader.start()
    records = [await reader.getone() for _ in range(3)]
    await reader.stop()
    assert [record.value for record in records] == [b'{"order":42}', b"\x00", b"text"]
    assert records[0].headers == (("kind", b"paid"), ("stepfold-id", b"order-42/publish"))
    assert len({record.partition for record in records}) == 1, "one key, one partition"


async def test_a_context_says_where_the_run_lives(driver: KafkaDriver) -> None:
    context = driver.ctx_ext("order-42")
    assert context.namespace == driver.namespace.name
    assert context.partition in EVERYTHING


# Helpers.


async def configure(admin: AIOKafkaAdminClient, topic: str, settings: dict[str, str]) -> None:
    """Change these settings and keep the others, as kafka-configs.sh does."""
    own = await settings_of(admin, topic) | settings
    answer: Any
    [answer] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, own)])
    assert answer.resources[0][0] == 0, answer
    while not settings.items() <= (await settings_of(admin, topic)).items():
        pass


async def settings_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """Those set on the topic itself."""
    described: Any
    [described] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(_, _, _, _, entries)] = described.resources
    return {name: value for name, value, _, source, *_ in entries if source == 1}


async def delete(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> None:
    await admin.delete_topics(list(topics))
    while set(topics) & set(await admin.list_topics()):
        pass


async def joined(driver: KafkaDriver, name: str) -> KafkaMember:
    member = await driver.join(name)
    while await member.assigned() != EVERYTHING:
        pass
    return member


async def receive(inbox: Inbox, count: int, *, done: bool = True) -> list[InboxRecord]:
    """`count` records, in as many portions as it takes."""
    records: list[InboxRecord] = []
    async with asyncio.timeout(60):
        while len(records) < count:
            portion = await inbox.receive()
            records = [*records, *(record for record in portion if record not in records)]
            if done:
                await inbox.done(portion)
    assert len(records) == count
    return records
