"""Projections that gather share one fold and one transaction, and that shows in nothing but the speed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from eventually import eventually
from followers import killed_after
from recording import Noter, records_of, some_runs, to_be_told

from stepfold.core.fold import Change, PartitionState
from stepfold.core.fold import fold as fold_record
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.errors import ProjectionFailed
from stepfold.log import Log, Record
from stepfold.projections import ProjectionRunner, base


async def expected(log: Log) -> list[Any]:
    return [row[:5] for row in await to_be_told(log)]


async def check(running: ProjectionRunner, noters: list[Noter]) -> None:
    for noter in noters:
        assert await noter.told(running) == await expected(running.log)


async def test_each_record_is_folded_once_for_all(log: Log, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[int] = []

    def fold(state: PartitionState, record: Record) -> Change | None:
        folded.append(record.offset)
        return fold_record(state, record)

    monkeypatch.setattr(base, "fold", fold)
    noters = [Noter(letter) for letter in "abc"]
    async with ProjectionRunner(log, noters, database=database) as running:
        rounds = 0

        async def is_folded_once() -> bool:
            nonlocal rounds
            rounds += 1
            before = sum([len(await records_of(log, partition)) for partition in range(log.partitions)])
            folded.clear()
            await some_runs(log, 6, f"round-{rounds}")
            await running.catch_up()
            await check(running, noters)
            return len(folded) == sum([len(await records_of(log, partition)) for partition in range(log.partitions)]) - before

        await eventually(is_folded_once)


async def test_each_goes_on_alone_from_what_they_kept_together(
    log: Log, small: None, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    noters = [Noter(letter) for letter in "abc"]
    for chosen in (noters, noters[:1], noters[1:], noters, noters[2:], noters):
        await some_runs(log, 5, f"before-{len(caplog.records)}-{id(chosen)}")
        async with ProjectionRunner(log, chosen, database=database) as running:
            await running.catch_up()
            await check(running, chosen)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_ids_that_are_forgotten_are_forgotten_for_each(
    small: None, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepfold.core.ended.Ended.CHUNK_ENTRIES", 3)
    now_ms = 1_900_000_000_000
    driver = MemoryDriver(clock=lambda: now_ms)
    await driver.open()
    noters = [Noter(letter) for letter in "abc"]
    for chosen in (noters, noters[:1], noters, noters[1:], noters):
        await some_runs(driver, 20)
        async with ProjectionRunner(driver, chosen, database=database) as running:
            await running.catch_up()
            await check(running, chosen)
        now_ms += 50 * 3600 * 1000
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    await driver.close()


async def test_of_those_that_go_together_one_fails(log: Log, small: None, database: str) -> None:
    await some_runs(log, 4)
    noters = [Noter(letter) for letter in "abc"]
    async with ProjectionRunner(log, noters, database=database) as running:
        await running.catch_up()
        await some_runs(log, 8, "later")
        await running.catch_up()
        noters[1].fails_at = ("completed", "last-4")
        await some_runs(log, 8, "last")
        with pytest.raises(ProjectionFailed, match=r"Noter.apply_all for completed of run 'last-4' raised KeyError") as failure:
            await running.catch_up()
        assert failure.value.projection == "noter-b"
        assert list(running.failures) == ["noter-b"]
        await check(running, [noters[0], noters[2]])
        assert len(await noters[1].told(running)) < len(await expected(log))
        noters[1].fails_at = None
        await running.rebuild("noter-b")
        await some_runs(log, 3, "behind")
        await running.catch_up()
        await check(running, noters)


async def test_a_new_one_and_one_that_is_made_anew_join_the_others(log: Log, small: None, database: str) -> None:
    noters = [Noter(letter) for letter in "abc"]
    await some_runs(log, 10)
    async with ProjectionRunner(log, noters[:2], database=database) as running:
        await running.catch_up()
    async with ProjectionRunner(log, noters, database=database) as running:
        for number, name in enumerate(["noter-a", "noter-c", "noter-b"]):
            await some_runs(log, 3, f"before-{number}")
            await running.rebuild(name)
            await some_runs(log, 3, f"behind-{number}")
            await running.catch_up()
            await check(running, noters)


async def test_several_runners_with_some_of_them_each(log: Log, small: None, database: str) -> None:
    noters = [Noter(letter) for letter in "abc"]
    async with (
        ProjectionRunner(log, noters, database=database) as first,
        ProjectionRunner(log, noters, database=database) as second,
        ProjectionRunner(log, noters[1:2], database=database) as third,
    ):
        for number in range(10):
            await some_runs(log, 2, f"part-{number}")
        for each in (first, second, third):
            await each.catch_up()
            assert each.failures == {}
        await check(first, noters)


async def test_the_database_is_away_for_all(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'tables.db'}", connect_args={"timeout": 0})
    noters = [Noter(letter) for letter in "abc"]
    async with ProjectionRunner(log, noters, database=engine) as running:
        for number in range(3):
            await some_runs(log, 3, f"before-{number}")
            await running.catch_up()
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            await some_runs(log, 3)

            async def is_locked_out() -> bool:
                return "database is locked; trying again" in caplog.text

            await eventually(is_locked_out)
            connection.rollback()
        await running.catch_up()
        await check(running, noters)
    engine.dispose()


FOLLOW = """
import asyncio, sys
from recording import Noter
from stepfold.drivers import SQLiteDriver
from stepfold.projections import ProjectionRunner, feed, runner

runner.BATCH_RECORDS = 5
feed.SNAPSHOT_RECORDS = 40

async def follow(path, database):
    log = SQLiteDriver(path)
    await log.open()
    tell = lambda lag: print(lag.position, flush=True)
    async with ProjectionRunner(log, [Noter(letter) for letter in "abc"], database=database, on_progress=tell) as running:
        await running.catch_up()
        print("done", flush=True)

asyncio.run(follow(*sys.argv[1:]))
"""


async def test_killed_at_any_moment_nothing_is_left_out_or_repeated(tmp_path: Path, database: str) -> None:
    log = SQLiteDriver(tmp_path / "runs.db", partitions=2)
    await log.open()
    await some_runs(log, 60)
    kills = 0
    while await asyncio.to_thread(killed_after, 70 + kills * 7 % 11, FOLLOW, str(tmp_path / "runs.db"), database):
        kills += 1
    assert kills > 3
    noters = [Noter(letter) for letter in "abc"]
    async with ProjectionRunner(log, noters, database=database) as running:
        await running.catch_up()
        await check(running, noters)
    await log.close()
