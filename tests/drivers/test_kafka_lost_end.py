"""A Kafka partition that has lost its end and has grown again: whoever has read beyond is told, however long it is now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import pytest
from eventually import eventually

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import CLAIM_KEY, Entry
from stepfold.projections import ProjectionRunner, RunsProjection
from stepfold.worker.checkpoint import Checkpoint

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncGenerator[KafkaDriver]:
    driver = KafkaDriver.from_url(url)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


def entries(start: int, end: int) -> list[Entry]:
    return [Entry(f"run-{number}", b'{"n":%d}' % number) for number in range(start, end)]


def cut_off(data: Path) -> None:
    """As if the leader that has the last batch were lost: the broker finds it incomplete, and drops it."""
    [log] = data.glob("**/*.history-0/*.log")
    with log.open("rb+") as file:
        file.truncate(log.stat().st_size - 10)


@pytest.mark.parametrize("since", [1, 9])
async def test_a_partition_that_lost_its_end(tmp_path: Path, since: int) -> None:
    """One start of a broker serves all of it: readers, appends, what is found by key, checkpoints and projections."""
    broker = LocalBroker(tmp_path / "kafka")
    await asyncio.to_thread(broker.start)
    url = f"kafka://{broker.bootstrap}/lost-{uuid4().hex[:12]}"
    database = f"sqlite:///{tmp_path}/tables.db"
    try:
        await KafkaDriver.from_url(url).create_topics(1, 1)
        async with opened(url) as log, opened(url) as reading:
            await log.append(0, entries(0, 5))
            await log.append(0, entries(5, 10))
            reader = reading.reader(0, 0)
            found = 0
            while found < 10:
                found += len(await reader.read(100, None))
            assert len(await reading.find(0, ["run-7"])) == 1
            checkpoint = Checkpoint(log, 0, lambda run: False)
            state = await checkpoint.load()
            for record in await log.reader(0, 0).read(100, None):
                checkpoint.last = record
                state.offset = record.offset + 1
            checkpoint.begin(state, state.claim)
            await checkpoint.commit()
            async with ProjectionRunner(log, [RunsProjection()], database=database) as runner:
                await runner.catch_up()

            await asyncio.to_thread(broker.kill)
            cut_off(tmp_path / "kafka")
            await asyncio.to_thread(broker.start)
            async with opened(url) as other:
                assert await other.bounds(0) == (0, 5)
                await other.append(0, [Entry(CLAIM_KEY, b"{}") for _ in range(since)])

            async def is_told() -> bool:
                try:
                    await reader.read(100, 1)
                except LogUnavailable as error:
                    return "holds another record than before" in str(error)
                return False

            await eventually(is_told)
            assert await reading.find(0, ["run-7"]) == [], "what was known of it is forgotten"
            assert not await checkpoint.fits(state)
            assert (await Checkpoint(log, 0, lambda run: False).load()).offset == 0
            async with ProjectionRunner(log, [RunsProjection()], database=database) as runner:
                with pytest.raises(ConfigError, match="were made from other records than"):
                    await runner.catch_up()
            with pytest.raises(LogUnavailable):  # the broker misses what this producer had written before
                await log.append(0, entries(10, 11))
            await log.append(0, entries(11, 12))
    finally:
        await asyncio.to_thread(broker.stop)
