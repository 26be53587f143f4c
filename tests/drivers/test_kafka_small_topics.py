# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The admin client and the foreign producer are aiokafka's, which ships no types.
"""The topics of a namespace are changed under its workers: what does not fit any more fails alone, on a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from eventually import eventually

from stepfold import Client, Context, RunNotFound, Step
from stepfold.drivers.kafka import DeadLetter, KafkaDriver
from stepfold.drivers.kafka.dead_letters import DeadLetterWriter
from stepfold.errors import WorkflowFailed
from stepfold.log import InboxRecord

pytestmark = pytest.mark.kafka


async def limit(admin: AIOKafkaAdminClient, topic: str, size: int) -> None:
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})])
    await asyncio.sleep(1)  # a setting takes effect a little later


def serving(driver: KafkaDriver) -> Client:
    client = Client(driver=driver)

    @client.workflow(id="large")
    async def large(ctx: Context, step: Step) -> int:
        return len(await step.run("s", lambda: "x" * 20_000))

    @client.workflow(id="polite")
    async def polite(ctx: Context[Any], step: Step) -> str:
        for _ in range(10):
            await step.run("s", lambda: 1)
            await step.sleep("z", 0.02)
        return "ok"

    return client


async def started(producer: AIOKafkaProducer, driver: KafkaDriver, run_id: str, data: Any = None) -> None:
    request = {"type": "start", "workflow": "polite", "run_id": run_id, "data": data}
    await producer.send_and_wait(driver.namespace.inbox, json.dumps(request).encode(), partition=0)


async def result(client: Client, run_id: str) -> Any:
    while True:
        try:
            return await client.run(run_id).result("30s")
        except RunNotFound:
            await asyncio.sleep(0.05)


async def letters(driver: KafkaDriver, count: int) -> list[DeadLetter]:
    found: list[DeadLetter] = []

    async def there() -> bool:
        found[:] = await driver.dead_letters()
        return len(found) >= count

    await eventually(there)
    return found


async def test_a_result_that_the_history_takes_no_more_fails_its_run_alone(
    kafka_namespace: str, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    client = serving(driver)
    async with client.worker():
        neighbours = [await client.start_workflow("polite", None, run_id=f"before-{number}") for number in range(8)]
        await limit(admin, driver.namespace.history, 10_000)
        hostile = [await client.start_workflow("large", None) for _ in range(4)]
        neighbours += [await client.start_workflow("polite", None, run_id=f"after-{number}") for number in range(8)]
        for run in hostile:
            with pytest.raises(WorkflowFailed, match="PayloadTooLarge: the record step-completed"):
                await run.result("30s")
        assert [await run.result("30s") for run in neighbours] == ["ok"] * 16
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR and record.name == "stepfold.worker"]
    assert len(said) == 4
    assert f"{driver.namespace.history}, whose max.message.bytes is 10,000: raise it again, see `stepfold topics check" in said[0]


async def test_a_start_that_the_history_takes_no_more_goes_to_the_dead_letters(
    kafka_namespace: str, admin: AIOKafkaAdminClient, foreigner: AIOKafkaProducer
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    client = serving(driver)
    async with client.worker():
        await started(foreigner, driver, "first")
        assert await result(client, "first") == "ok"
        await limit(admin, driver.namespace.history, 2000)
        await asyncio.gather(*(started(foreigner, driver, f"run-{n}", "x" * (3000 if n % 3 == 1 else 1)) for n in range(9)))
        for number in range(9):
            if number % 3 != 1:
                assert await result(client, f"run-{number}") == "ok"
        found = await letters(driver, 3)
    assert all("is too large for" in letter.reason and "max.message.bytes is 2,000" in letter.reason for letter in found)
    assert sorted(json.loads(letter.value or b"")["run_id"] for letter in found) == ["run-1", "run-4", "run-7"]


async def test_a_letter_that_the_dead_letters_take_no_more_leaves_bytes_out(
    kafka_namespace: str, admin: AIOKafkaAdminClient, foreigner: AIOKafkaProducer, caplog: pytest.LogCaptureFixture
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    client = serving(driver)
    async with client, client.worker():
        await limit(admin, driver.namespace.dead_letters, 1000)
        for key, value in (b"key", b"x"), (b"key", b"x" * 5000), (b"k" * 5000, b"x" * 5000):
            await foreigner.send_and_wait(driver.namespace.inbox, value, key=key, partition=0)
        await started(foreigner, driver, "next")
        assert await result(client, "next") == "ok"
        found = await letters(driver, 3)
    assert [(one.key, one.value, one.omitted) for one in found] == [
        (b"key", b"x", False),
        (b"key", None, True),
        (None, None, True),
    ]
    assert sum("its dead letter was written without all its bytes" in record.message for record in caplog.records) == 2


async def test_dead_letters_that_were_deleted_are_named_with_the_remedy_and_the_inbox_goes_on_when_they_are_back(
    kafka_namespace: str,
    admin: AIOKafkaAdminClient,
    foreigner: AIOKafkaProducer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = list[str]()
    bury = DeadLetterWriter.bury

    async def counted(self: DeadLetterWriter, record: InboxRecord, reason: str) -> None:
        tries.append(record.place)
        await bury(self, record, reason)

    monkeypatch.setattr(DeadLetterWriter, "bury", counted)
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6, patience_s=2)
    client = serving(driver)
    async with client, client.worker():
        await started(foreigner, driver, "first")
        assert await result(client, "first") == "ok"
        await admin.delete_topics([driver.namespace.dead_letters])

        async def gone() -> bool:
            return driver.namespace.dead_letters not in {topic.name for topic in await driver.describe()}

        await eventually(gone)  # until then the broker takes a letter, which goes with the topic
        await foreigner.send_and_wait(driver.namespace.inbox, b"junk", partition=0)
        await started(foreigner, driver, "next")

        async def said() -> bool:
            errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
            return any(f"{driver.namespace.dead_letters} does not exist any more" in error for error in errors)

        await eventually(said)
        begun = len(tries)

        async def tried_again() -> bool:
            return len(tries) >= begun + 2

        await eventually(tried_again)
        await driver.create_topics(4, 1)
        assert await result(client, "next") == "ok"
        assert [one.value for one in await letters(driver, 1)] == [b"junk"]
        assert sum("does not exist any more, so" in record.message for record in caplog.records) == 1
