"""A history that is not what it was: workers say so and go on with what is there, or say what to do and touch nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from eventually import eventually
from fleet import Fleet, until
from rawlog import Audit, KafkaHistory

from stepfold import Client
from stepfold.drivers.kafka import KafkaDriver
from stepfold.errors import ProjectionFailed
from stepfold.projections import ProjectionRunner, RunsProjection, count_runs

pytestmark = pytest.mark.kafka

PARTITIONS = 4


@asynccontextmanager
async def administering(url: str) -> AsyncGenerator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=KafkaDriver.from_url(url).bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def make_again(url: str, topics: Sequence[str]) -> None:
    driver = KafkaDriver.from_url(url)
    async with administering(url) as admin:
        await admin.delete_topics(list(topics))

    async def are_gone() -> bool:
        return not {topic.name for topic in await driver.describe()}.intersection(topics)

    await eventually(are_gone)
    await driver.create_topics(PARTITIONS, 1)


async def some_work(fleet: Fleet, url: str) -> None:
    """A worker executes some runs, all of them to their end."""
    audit = Audit()
    async with KafkaHistory(url) as history:
        client = fleet.client(rate=20)
        await until(lambda: audit.counts.ends.total() > 20, history, audit)
        client.terminate()
        await until(lambda: client.poll() is not None, history, audit)
    audit.conclude()


@pytest.mark.parametrize("and_checkpoints", [True, False])
async def test_topics_made_again_under_a_running_worker(tmp_path: Path, kafka_namespace: str, and_checkpoints: bool) -> None:
    names = KafkaDriver.from_url(kafka_namespace).namespace
    with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
        worker = fleet.worker()
        await some_work(fleet, kafka_namespace)

        await make_again(kafka_namespace, names.topics if and_checkpoints else [names.history])
        await fleet.gives_up(worker)
        assert "was deleted and recreated while it was in use" in fleet.said(worker)

        again = fleet.worker()
        async with Client(kafka_namespace) as client:
            run = await client.start_workflow("journey", {})
            await run.result("60s")
        assert ("its checkpoint is of another log" in fleet.said(again)) is not and_checkpoints


async def test_a_history_truncated_below_a_checkpoint(tmp_path: Path, kafka_namespace: str) -> None:
    history = KafkaDriver.from_url(kafka_namespace).namespace.history
    with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
        worker = fleet.worker()
        await some_work(fleet, kafka_namespace)
        fleet.kill(worker)
        async with Client(kafka_namespace) as client:
            for _ in range(5 * PARTITIONS):
                await client.start_workflow("journey", {})

        driver = KafkaDriver.from_url(kafka_namespace)
        await driver.open()
        ends = [(await driver.bounds(partition))[1] for partition in range(PARTITIONS)]
        async with administering(kafka_namespace) as admin:
            await admin.delete_records(
                {TopicPartition(history, partition): RecordsToDelete(end) for partition, end in enumerate(ends)}
            )
        late = fleet.worker()
        await fleet.gives_up(late)
        said = fleet.said(late)
        assert "records were lost" in said or "no checkpoint covers them" in said
        assert "Restore the log from a backup, or use a new namespace" in said
        assert [await driver.bounds(partition) for partition in range(PARTITIONS)] == [(end, end) for end in ends]
        await driver.close()


async def test_projections_over_topics_made_again_and_emptied(
    tmp_path: Path, kafka_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the default database is
    names = KafkaDriver.from_url(kafka_namespace).namespace
    for count in (5, 3):
        async with Client(kafka_namespace) as client:
            for _ in range(count):
                await client.start_workflow("journey", {})
            async with ProjectionRunner(client, [RunsProjection()]) as runner:
                await runner.catch_up()
                assert await runner.query(count_runs) == count
        if count == 5:
            await make_again(kafka_namespace, names.topics)
            async with Client(kafka_namespace) as client, ProjectionRunner(client, []) as runner:
                assert all("it was recreated" in (lag.stopped or "") for lag in await runner.lag())

    driver = KafkaDriver.from_url(kafka_namespace)
    await driver.open()
    ends = [(await driver.bounds(partition))[1] for partition in range(PARTITIONS)]
    async with administering(kafka_namespace) as admin:
        everything = {TopicPartition(names.history, partition): RecordsToDelete(end) for partition, end in enumerate(ends) if end}
        await admin.delete_records(everything)
    async with ProjectionRunner(driver, [RunsProjection()]) as runner:
        with pytest.raises(ProjectionFailed, match="its beginning is gone"):
            await runner.catch_up()
    await driver.close()
