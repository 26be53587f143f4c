# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The admin client is aiokafka's, which ships no types.
"""A record that cannot be published fails its publisher alone: everybody else's records go on, on a real broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stepfold import Client, Context, InputInvalid, Step
from stepfold.drivers.kafka import KafkaDriver
from stepfold.drivers.kafka.cluster import Cluster, TopicPartition
from stepfold.drivers.kafka.fetcher import offsets
from stepfold.drivers.kafka.producer import Message, Producer
from stepfold.errors import ConfigError, LogUnavailable, PayloadTooLarge, WorkflowFailed
from stepfold.log import Ack, EntryTooLarge, InboxRecord

pytestmark = pytest.mark.kafka


async def made(admin: AIOKafkaAdminClient, topic: str, **settings: str) -> str:
    configs = {name.replace("_", "."): value for name, value in settings.items()}
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=configs)])
    while topic not in await admin.list_topics():
        pass
    return topic


async def publish(driver: KafkaDriver, topic: str, value: bytes, *headers: Any) -> int:
    """The offset of a record of any kind, past the checks of `step.ext.publish`."""
    _, offset = await driver.publish(topic, value, None, headers, b"")
    return offset


class Steps:
    """A Step that runs nothing: the arguments are refused at the call."""

    async def run(self, id: str, fn: Any, /) -> None:
        raise AssertionError("no step runs")


REFUSED: list[Any] = [
    ({"topic": 5, "value": 1}, TypeError, "the topic must be a str, not int"),
    ({"topic": ""}, ConfigError, "'' cannot be the name of a Kafka topic"),
    ({"topic": "a/b"}, ConfigError, "'a/b' cannot be the name of a Kafka topic"),
    ({"topic": "bad topic!"}, ConfigError, "'bad topic!' cannot be the name of a Kafka topic"),
    ({"topic": ".."}, ConfigError, "'..' cannot be the name of a Kafka topic"),
    ({"topic": "__consumer_offsets"}, ConfigError, "is Kafka's own"),
    ({"key": 5}, TypeError, "the key for topic 't' must be a str or bytes, not int"),
    ({"key": "\ud800"}, ValueError, "the key for topic 't' is not text"),
    ({"headers": [("a", "b")]}, TypeError, "the headers for topic 't' must be a mapping of names to values, not list"),
    ({"headers": {"a": 5}}, TypeError, "the header 'a' for topic 't' must be a str or bytes, not int"),
    ({"headers": {"a": None}}, TypeError, "the header 'a' for topic 't' must be a str or bytes, not NoneType"),
    ({"headers": {"a": "\ud800"}}, ValueError, "the header 'a' for topic 't' is not text"),
    ({"headers": {5: "x"}}, TypeError, "the name of a header for topic 't' must be a str, not int"),
    ({"headers": {"\ud800": "x"}}, ValueError, "the name '.ud800' of a header for topic 't' is not text"),
    ({"value": "\ud800"}, InputInvalid, "the value for topic 't' is not text"),
]


@pytest.mark.parametrize(("given", "kind", "why"), REFUSED)
def test_what_cannot_be_published_is_refused_at_the_call(given: dict[str, Any], kind: type[Exception], why: str) -> None:
    step = KafkaDriver("127.0.0.1:1", "shop").step_ext(Steps())
    arguments: dict[str, Any] = {"topic": "t", "value": "x", **given}
    with pytest.raises(kind, match=why):
        step.publish(**arguments).close()


async def test_a_bad_header_fails_its_run_alone(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    topic = await made(admin, f"{driver.namespace.name}.orders")
    client = Client(driver=driver)

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> None:
        await step.ext.publish(topic, "x", headers={"a": 5})

    @client.workflow(id="polite")
    async def polite(ctx: Context, step: Step) -> None:
        await step.ext.publish(topic, "x", headers={"a": "5"})

    async with client.worker():
        run = await client.start_workflow(hostile)
        with pytest.raises(WorkflowFailed, match="TypeError: the header 'a'"):
            await run.result("20s")
        await (await client.start_workflow(polite)).result("20s")


@pytest.mark.parametrize("header", [("\ud800", b"x"), ("a", 5), (5, b"x"), "a"], ids=str)
async def test_a_message_that_no_batch_can_hold_fails_alone(driver: KafkaDriver, admin: AIOKafkaAdminClient, header: Any) -> None:
    """Past the checks: the session of the producer goes on, with all that others put into the same batch."""
    topic = await made(admin, f"{driver.namespace.name}.orders")
    record = InboxRecord(f"{driver.namespace.inbox}/0/7", 1, None, b"junk", ())
    async with asyncio.timeout(20):
        assert await publish(driver, topic, b"first") == 0
        *published, refused, _, last = await asyncio.gather(
            *(publish(driver, topic, b"before") for _ in range(3)),
            publish(driver, topic, b"bad", header),
            driver.dead_letter(record, "junk"),
            publish(driver, topic, b"behind"),
            return_exceptions=True,
        )
        assert [*published, last] == [1, 2, 3, 4]
        assert isinstance(refused, TypeError | ValueError | AttributeError)
        with pytest.raises((TypeError, ValueError, AttributeError)):
            await publish(driver, topic, b"alone", header)
        assert await publish(driver, topic, b"next") == 5
    assert [letter.value for letter in await driver.dead_letters()] == [b"junk"]


# A topic that refuses.


async def test_a_record_that_its_topic_refuses_fails_alone(driver: KafkaDriver, admin: AIOKafkaAdminClient) -> None:
    small = await made(admin, f"{driver.namespace.name}.small", max_message_bytes="1000")
    fine = await made(admin, f"{driver.namespace.name}.fine")
    record = InboxRecord(f"{driver.namespace.inbox}/0/7", 1, None, b"junk", ())
    assert await publish(driver, small, b"x") == 0
    async with asyncio.timeout(30):
        for number in range(5):
            *refused, published, before, behind, put, told = await asyncio.gather(
                publish(driver, small, b"x" * 5000),
                publish(driver, small, b"", ("header", b"x" * 5000)),
                publish(driver, fine, b"fine"),
                publish(driver, small, b"before"),
                publish(driver, small, b"behind"),
                driver.checkpoint_put(0, {"a": b"1"}),
                driver.dead_letter(record, "junk"),
                return_exceptions=True,
            )
            assert [published, before, behind, put, told] == [number, 2 * number + 1, 2 * number + 2, None, None]
            for error in refused:
                assert isinstance(error, PayloadTooLarge)
                assert f"too large for topic '{small}', whose max.message.bytes is 1,000: raise it" in str(error)


async def test_a_topic_that_takes_no_such_record_is_a_config_error(driver: KafkaDriver, admin: AIOKafkaAdminClient) -> None:
    compacted = await made(admin, f"{driver.namespace.name}.compacted", cleanup_policy="compact")
    fine = await made(admin, f"{driver.namespace.name}.fine")
    async with asyncio.timeout(30):
        refused, published = await asyncio.gather(
            publish(driver, compacted, b"without a key"), publish(driver, fine, b"fine"), return_exceptions=True
        )
        assert published == 0
        assert isinstance(refused, ConfigError)
        assert "a compacted topic takes only records with a key" in str(refused)
        assert await driver.publish(compacted, b"x", b"key", [], b"") == (0, 0)


async def test_only_what_is_too_large_is_refused_and_the_rest_is_appended_once_and_in_order(
    driver: KafkaDriver, admin: AIOKafkaAdminClient
) -> None:
    topic = await made(admin, f"{driver.namespace.name}.small", max_message_bytes="10000")
    place = TopicPartition(topic, 0)
    cluster = Cluster(driver.bootstrap, {})
    await cluster.start([topic])
    producer = Producer(cluster, lambda: 10)

    def send(*sizes: int) -> asyncio.Future[list[Ack]]:
        return producer.send(place, [Message(None, b"x" * size) for size in sizes])

    small, mixed, large, behind = await asyncio.gather(
        send(*[1] * 5000), send(1, 2, 20_000, 3), send(30_000), send(4, 5), return_exceptions=True
    )
    assert isinstance(small, list) and [ack.offset for ack in small] == list(range(5000))
    assert isinstance(mixed, EntryTooLarge) and [ack.offset for ack in mixed.appended] == [5000, 5001]
    assert isinstance(large, EntryTooLarge) and not large.appended
    assert isinstance(behind, list) and [ack.offset for ack in behind] == [5002, 5003]
    assert [ack.offset for ack in await send(6)] == [5004]
    assert not producer.failed
    assert await offsets(cluster, place, 10) == (0, 5005)
    await producer.close()
    await cluster.close()


async def test_a_topic_that_was_deleted_holds_up_only_its_own_records(kafka_namespace: str, admin: AIOKafkaAdminClient) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6, patience_s=1)
    await driver.open()
    gone = await made(admin, f"{driver.namespace.name}.gone")
    fine = await made(admin, f"{driver.namespace.name}.fine")
    assert await publish(driver, gone, b"x") == 0
    await admin.delete_topics([gone])
    async with asyncio.timeout(30):
        waiting = asyncio.gather(publish(driver, gone, b"x"), return_exceptions=True)
        count = 0
        while not waiting.done():
            assert await publish(driver, fine, b"fine") == count
            count += 1
        [error] = await waiting
        assert isinstance(error, LogUnavailable)
        assert count and await publish(driver, fine, b"fine") == count
    await driver.close()
