"""What the inbox asks for reaches its run in whatever order it comes, once, or somebody is told: on a real broker."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from eventually import eventually

from stepfold import Client, Context, RunNotFound, Step
from stepfold.drivers.kafka import KafkaDriver

pytestmark = pytest.mark.kafka
PAIRS = 20


class Asking:
    """A producer that shares no code with us."""

    def __init__(self, driver: KafkaDriver, producer: AIOKafkaProducer) -> None:
        self._topic = driver.namespace.inbox
        self._producer = producer

    async def ask(self, partition: int, **request: Any) -> None:
        await self._producer.send_and_wait(self._topic, json.dumps(request).encode(), partition=partition)  # pyright: ignore[reportUnknownMemberType]  # aiokafka ships no types


def serving(driver: KafkaDriver) -> Client:
    client = Client(driver=driver)

    @client.workflow(id="waits")
    async def waits(ctx: Context[Any], step: Step) -> Any:
        return (await step.wait_for_signal("go", signal="go")).data

    return client


async def reasons(driver: KafkaDriver) -> list[str]:
    return [letter.reason for letter in await driver.dead_letters()]


async def test_signals_may_come_before_the_starts_of_their_runs(kafka_namespace: str, kafka_bootstrap: str) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    client = serving(driver)
    async with client, client.worker(), AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        asking = Asking(driver, producer)
        for number in range(PAIRS):
            await asking.ask(number % 4, type="signal", run_id=f"run-{number}", signal="go", data=number)
        for number in range(PAIRS):
            await asking.ask((number + 1) % 4, type="start", workflow="waits", run_id=f"run-{number}")

        async def result(number: int) -> Any:
            while True:
                try:
                    return await client.run(f"run-{number}").result("60s")
                except RunNotFound:
                    await asyncio.sleep(0.1)

        assert await asyncio.gather(*(result(number) for number in range(PAIRS))) == list(range(PAIRS))


async def test_what_the_owner_refuses_comes_to_the_dead_letters_once_read_and_again_to_the_inbox(
    kafka_namespace: str, kafka_bootstrap: str
) -> None:
    driver = KafkaDriver.from_url(kafka_namespace, session_timeout_s=6)
    client = serving(driver)
    async with client, client.worker(), AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        asking = Asking(driver, producer)
        await asking.ask(0, type="start", workflow="waits", run_id="r", data=1)
        await asking.ask(0, type="start", workflow="waits", run_id="r", data=1)
        await asking.ask(0, type="start", workflow="waits", run_id="r", data=2)
        await asking.ask(0, type="cancel", run_id="nobody")
        await asking.ask(0, type="start", workflow="waits", run_id="s", data=1, reply_to="answers")

        async def all_told() -> bool:
            return len(await reasons(driver)) == 3

        await eventually(all_told)
        told = sorted(await reasons(driver))
        assert "`reply_to` is not served yet" in told[0]
        assert told[1:] == ["run 'r' exists, of workflow 'waits', with another input", "there is no run 'nobody'"]
        letters = {letter.reason: letter for letter in await driver.dead_letters()}
        letter = letters["there is no run 'nobody'"]
        assert letter.value == b'{"type":"cancel","run_id":"nobody"}' and letter.origin == f"{driver.namespace.inbox}/0/3"
        await asking.ask(1, type="start", workflow="waits", run_id="nobody")
        await eventually(lambda: _begun(client, "nobody"))
        assert (await driver.redrive([letter.place])).sent == 1

        async def cancelled() -> bool:
            return (await client.run("nobody").status()).state == "cancelled"

        await eventually(cancelled)


async def _begun(client: Client, run_id: str) -> bool:
    try:
        return (await client.run(run_id).status()).state == "waiting"
    except RunNotFound:
        return False
