"""Projections apply each accepted event exactly once, whatever happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import cast
from uuid import uuid4

import orjson
import pytest
import sqlalchemy as sa
from eventually import eventually
from followers import environment, killed_after
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import Recorder, Told, recorded, some_runs, to_be_told, told
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from unit.test_fold_properties import BEGINNING, CHOICES, Author, Choice

from stepfold import Client, ConfigError, Context, Step
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.errors import ProjectionFailed
from stepfold.events import FORMAT, RunEvent, StepCompleted
from stepfold.log import CLAIM_KEY, Entry, Log
from stepfold.projections import Batch, Lag, Projection, ProjectionRunner, RunSoFar, default_database, feed, runner
from stepfold.testing.virtual import VirtualTimeLoop, run_virtual

# Exactly once.


async def test_what_the_fold_accepts_is_applied_once_and_in_order(log: Log, small: None, database: str) -> None:
    await some_runs(log, 10)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)
        await some_runs(log, 5, "later")
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)
    assert len(await to_be_told(log)) == 15 * 4 + 9


async def test_it_follows_by_itself(log: Log, database: str) -> None:
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await some_runs(log, 3)
        expected = await to_be_told(log)

        async def is_there() -> bool:
            return await told(runner) == expected

        await eventually(is_there)


async def test_a_restart_goes_on_from_where_it_was(log: Log, small: None, database: str) -> None:
    for round_number in range(6):
        await some_runs(log, 4, f"round-{round_number}")
        async with ProjectionRunner(log, [Recorder()], database=database) as runner:
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)


@given(st.lists(CHOICES, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_history_in_any_portions_with_restarts_as_in_one_go(
    tmp_path: Path, parts: list[list[Choice]], batch: int, snapshot: int
) -> None:
    """Garbage, repeats, stale and future claims, ids that are used again: the same as a rebuild, and as the fold says."""
    author = Author()
    author.write(BEGINNING)
    now_ms = 0
    driver = MemoryDriver(clock=lambda: now_ms)
    url = f"sqlite:///{tmp_path / uuid4().hex}.db"

    async def check() -> None:
        nonlocal now_ms
        await driver.open()
        written, going_on = 0, list[Told]()
        for part in parts:
            author.write([choice for choice in part if choice[0] != "newer_claim"])
            for record in author.ledger.records[written:]:
                now_ms = record.timestamp
                await driver.append(0, [Entry(record.key, record.value)])
            written = len(author.ledger.records)
            async with ProjectionRunner(driver, [Recorder()], database=url) as runner:
                await runner.catch_up()
                going_on = await told(runner)
                assert going_on == await to_be_told(driver)
        async with ProjectionRunner(driver, [Recorder()], database=url) as runner:
            await runner.rebuild()
            assert await told(runner) == going_on
        await driver.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "BATCH_RECORDS", batch)
        patch.setattr(feed, "SNAPSHOT_RECORDS", snapshot)
        asyncio.run(check())


async def test_ids_of_ended_runs_are_remembered_over_restarts(small: None, database: str) -> None:
    now_ms = 1_900_000_000_000
    driver = MemoryDriver(clock=lambda: now_ms)
    await driver.open()
    for again in range(3):
        await some_runs(driver, 5)
        async with ProjectionRunner(driver, [Recorder()], database=database) as runner:
            await runner.catch_up()
            assert await told(runner) == await to_be_told(driver)
            starts = [row for row in await told(runner) if row[2] == "started"]
            assert len(starts) == (5 if again < 2 else 8), "run-0 and run-3 are open, the other three may begin again a day later"
        if again == 1:
            now_ms += 25 * 3600 * 1000
    await driver.close()


FOLLOW = """
import asyncio, sys
from recording import Recorder
from stepfold.drivers import SQLiteDriver
from stepfold.projections import ProjectionRunner, feed, runner

runner.BATCH_RECORDS = 5
feed.SNAPSHOT_RECORDS = 40

async def follow(path, database):
    log = SQLiteDriver(path)
    await log.open()
    tell = lambda lag: print(lag.position, flush=True)
    async with ProjectionRunner(log, [Recorder()], database=database, on_progress=tell) as running:
        await running.catch_up()
        print("done", flush=True)

asyncio.run(follow(*sys.argv[1:]))
"""


async def test_processes_that_start_at_once_share_one_database(tmp_path: Path, database: str) -> None:
    log = SQLiteDriver(tmp_path / "runs.db", partitions=2)
    await log.open()
    await some_runs(log, 30)
    command = [sys.executable, "-c", FOLLOW, str(tmp_path / "runs.db"), database]
    started = [await asyncio.create_subprocess_exec(*command, env=environment(), stdout=subprocess.PIPE) for _ in range(3)]
    printed = [(await process.communicate())[0] for process in started]
    assert [output.endswith(b"done\n") for output in printed] == [True, True, True]
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        assert await told(runner) == await to_be_told(log)
    await log.close()


async def test_killed_at_any_moment_nothing_is_left_out_or_repeated(tmp_path: Path, database: str) -> None:
    log = SQLiteDriver(tmp_path / "runs.db", partitions=2)
    await log.open()
    await some_runs(log, 60)
    kills = 0
    while await asyncio.to_thread(killed_after, 10 + kills * 7 % 11, FOLLOW, str(tmp_path / "runs.db"), database):
        kills += 1
    assert kills > 3
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)
    await log.close()


async def test_of_several_runners_on_one_database_none_does_anothers_work(log: Log, small: None, database: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        runners = [await stack.enter_async_context(ProjectionRunner(log, [Recorder()], database=database)) for _ in range(3)]
        for number in range(12):
            await some_runs(log, 2, f"part-{number}")
        for each in runners:
            await each.catch_up()
        assert await told(runners[0]) == await to_be_told(log)
        assert [each.failures for each in runners] == [{}, {}, {}]


async def test_a_runner_notices_that_another_has_rebuilt(log: Log, small: None, database: str) -> None:
    await some_runs(log, 8)
    async with ProjectionRunner(log, [Recorder()], database=database) as first:
        await first.catch_up()
        async with ProjectionRunner(log, [Recorder()], database=database) as second:
            await second.rebuild()
        await some_runs(log, 8, "later")
        await first.catch_up()
        assert await told(first) == await to_be_told(log)


def test_in_virtual_time() -> None:
    async def hours() -> int:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        client = Client(driver=MemoryDriver(clock=loop.clock))

        @client.workflow(id="patient")
        async def patient(ctx: Context[None], step: Step) -> None:
            for _ in range(3):
                await step.sleep("hour", "1h")

        async with client.worker(), ProjectionRunner(client, [Recorder()]) as runner:
            run = await client.start_workflow(patient)
            await run.result()
            await runner.catch_up()
            assert await told(runner) == await to_be_told(client.log)
            return len(await told(runner))

    assert run_virtual(hours()) == 8


@pytest.mark.kafka
async def test_on_kafka(kafka_namespace: str, small: None, database: str) -> None:
    client = Client(kafka_namespace)

    @client.workflow(id="adds")
    async def adds(ctx: Context[int], step: Step) -> int:
        return await step.run("one", lambda: 1) + await step.run("two", lambda: ctx.input.data)

    async with client.worker(), ProjectionRunner(client, [Recorder()], database=database) as runner:
        runs = [await client.start_workflow(adds, number) for number in range(20)]
        assert [await run.result() for run in runs] == list(range(1, 21))
        await runner.catch_up()
        assert await told(runner) == await to_be_told(client.log)
        assert len(await told(runner)) == 80
        await runner.rebuild()
        assert await told(runner) == await to_be_told(client.log)
        assert all(lag.behind == 0 for lag in await runner.lag())


# What fails.


class Stumbling(Projection):
    """Fails at one event, unless mended."""

    name = "stumbling"
    metadata = sa.MetaData()
    rows = sa.Table("stumbled", metadata, sa.Column("run_id", sa.String(200)), sa.Column("offset", sa.Integer))
    mended = False

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        connection.execute(self.rows.insert().values(run_id=run.id, offset=event.offset))
        if isinstance(event, StepCompleted) and run.id == "run-4" and event.step_id == "b" and not self.mended:
            raise KeyError("total")


async def offsets_in(runner: ProjectionRunner) -> list[int]:
    return await runner.query(lambda connection: list(connection.scalars(sa.select(Stumbling.rows.c.offset))))


async def test_a_failing_projection_stands_still_and_the_others_go_on(database: str, small: None) -> None:
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 8)
    expected = await to_be_told(log)
    offset = next(row[1] for row in expected if row[2:4] == ("step-completed", "run-4") and row[5] == 4)
    projection = Stumbling()
    async with ProjectionRunner(log, [projection, Recorder()], database=database) as runner:
        with pytest.raises(ProjectionFailed) as failure:
            await runner.catch_up()
        assert await told(runner) == expected
        applied = await offsets_in(runner)
        assert max(applied) < offset
        with pytest.raises(ProjectionFailed):
            await runner.wait()
    error = failure.value
    assert (error.projection, error.partition, error.offset) == ("stumbling", 0, offset)
    assert isinstance(error.__cause__, KeyError)
    assert str(error).startswith(f"projection 'stumbling' stopped at memory:// partition 0 offset {offset}: Stumbling.apply ")
    assert "for step-completed of run 'run-4', step 'b' raised KeyError: 'total'" in str(error)

    projection.mended = True
    async with ProjectionRunner(log, [projection], database=database) as runner:
        await runner.catch_up()
        assert await offsets_in(runner) == [row[1] for row in expected]
    await log.close()


async def test_a_failed_projection_can_be_rebuilt_without_a_restart(log: Log, database: str) -> None:
    await some_runs(log, 8)
    projection = Stumbling()
    async with ProjectionRunner(log, [projection], database=database) as runner:
        with pytest.raises(ProjectionFailed):
            await runner.catch_up()
        projection.mended = True
        await runner.rebuild("stumbling")
        assert runner.failures == {}


async def test_a_rebuild_that_the_database_has_interrupted_can_be_repeated(log: Log, database: str) -> None:
    """It was left without anybody who follows the log."""
    await some_runs(log, 8)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        before = await runner.query(recorded)

        def goes_away(connection: sa.Connection) -> None:
            raise OperationalError("COMMIT", None, Exception("it has gone away"))

        event.listen(runner.engine, "commit", goes_away)
        with pytest.raises(OperationalError):
            await runner.rebuild()
        event.remove(runner.engine, "commit", goes_away)
        await some_runs(log, 1, "later")
        await runner.catch_up()
        await runner.rebuild()
        assert len(await runner.query(recorded)) > len(before)


class Hasty(Projection):
    """Takes one change of each batch."""

    name = "hasty"
    metadata = sa.MetaData()

    def apply_all(self, connection: sa.Connection, batch: Batch) -> None:
        next(iter(batch))


async def test_a_batch_must_be_taken_to_its_end(log: Log, database: str) -> None:
    await some_runs(log, 8)
    async with ProjectionRunner(log, [Hasty()], database=database) as runner:
        with pytest.raises(ProjectionFailed, match=r"apply_all .*returned before it had applied all changes"):
            await runner.catch_up()


async def test_a_history_of_a_newer_format_stops_a_projection(database: str) -> None:
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 1)
    newer = {"type": "claim", "v": FORMAT + 1, "at": 1, "prev": 0, "owner": "of-tomorrow", "nonce": "n"}
    await log.append(0, [Entry(CLAIM_KEY, orjson.dumps(newer))])
    for _ in range(2):
        async with ProjectionRunner(log, [Recorder()], database=database) as runner:
            with pytest.raises(ProjectionFailed, match=f"format {FORMAT + 1}, and this stepfold knows {FORMAT}; upgrade it"):
                await runner.catch_up()
    await log.close()


async def test_an_outage_of_the_database_is_waited_out(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'tables.db'}", connect_args={"timeout": 0})
    async with ProjectionRunner(log, [Recorder()], database=engine) as runner:
        await runner.catch_up()
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            await some_runs(log, 3)

            async def is_locked_out() -> bool:
                return "database is locked; trying again" in caplog.text

            await eventually(is_locked_out)
            connection.rollback()
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)
        assert runner.failures == {}
    engine.dispose()


async def test_a_log_that_has_lost_records_is_not_followed(log: Log, database: str) -> None:
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        with runner.engine.begin() as connection:
            connection.execute(sa.update(feed.POSITIONS).values(position=10, snapshot=10))
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        with pytest.raises(ConfigError, match="it ends at offset 0, and they go up to 10"):
            await runner.catch_up()


async def test_a_log_without_its_beginning_is_not_followed_from_there(database: str) -> None:
    class Trimmed(MemoryDriver):
        async def bounds(self, partition: int) -> tuple[int, int]:
            return 2, (await super().bounds(partition))[1]

    log = Trimmed()
    await log.open()
    await some_runs(log, 1)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        with pytest.raises(ProjectionFailed, match="those from 0 on are needed: its beginning is gone"):
            await runner.catch_up()
    await log.close()


# Versions, logs and databases.


class Renamed(Recorder):
    """The next version of Recorder, with another column."""

    version = 2
    metadata = sa.MetaData()
    events = sa.Table(
        "recorded_events",
        metadata,
        sa.Column("at", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(30)),
    )

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        connection.execute(self.events.insert().values(at=event.offset, kind=event.type))


async def test_a_new_version_rebuilds_and_an_old_one_is_refused(database: str) -> None:
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 3)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        expected = [row[1:3] for row in await told(runner)]
    async with ProjectionRunner(log, [Renamed()], database=database) as runner:
        await runner.catch_up()
        rows = await runner.query(lambda connection: connection.execute(sa.select(Renamed.events)).all())
        assert [tuple(row) for row in rows] == expected
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        with pytest.raises(ConfigError, match="are of version 2 and this code is of version 1"):
            await runner.catch_up()
    await log.close()


async def test_tables_of_another_log_are_not_touched_unless_they_are_ours_alone(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = MemoryDriver(), MemoryDriver()
    for driver, name in ((first, "first"), (second, "second")):
        await driver.open()
        await some_runs(driver, 2, name)
    async with ProjectionRunner(first, [Recorder()], database=database) as runner:
        await runner.catch_up()
    async with ProjectionRunner(second, [Recorder()], database=database) as runner:
        with pytest.raises(ConfigError, match="made from another log"):
            await runner.catch_up()
        await runner.rebuild()
        assert await told(runner) == await to_be_told(second)

    for name in ("first", "second"):
        async with Client("sqlite:///runs.db") as client:
            await some_runs(client.log, 2, name)
            async with ProjectionRunner(client, [Recorder()]) as runner:
                await runner.catch_up()
                assert await told(runner) == await to_be_told(client.log)
        (tmp_path / "runs.db").unlink()
    for driver in (first, second):
        await driver.close()


async def test_where_projections_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(url: str) -> str:
        driver = MemoryDriver()
        driver.url = url
        return default_database(driver).render_as_string()

    assert of("memory://") == "sqlite://"
    assert of("sqlite:///orders.db") == "sqlite:///orders.projections.db"
    assert of("sqlite:////var/lib/orders.sqlite") == "sqlite:////var/lib/orders.projections.db"
    assert of("sqlite:///my%20orders.db?durability=normal") == "sqlite:///my orders.projections.db"
    assert of("kafka://one:9092,two:9092/shop?patience_s=5") == "sqlite:///shop.projections.db"
    with pytest.raises(ConfigError, match="name a database"):
        of("pigeon://home")
    monkeypatch.chdir(tmp_path)
    async with Client("sqlite:///orders.db") as client, ProjectionRunner(client, [Recorder()]) as runner:
        await runner.catch_up()
    assert (tmp_path / "orders.projections.db").is_file()


@pytest.mark.parametrize(
    ("database", "complaint"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be used: unable to open database file"),
        ("no url", "is not a database URL"),
        ("oracle+nothing://x", "is not a database URL"),
        ("mysql+pymysql://x/y", "install the package"),
    ],
)
async def test_a_database_that_cannot_be_used_is_an_error_at_once(database: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        async with Client("memory://") as client, ProjectionRunner(client, [Recorder()], database=database):
            pass


class Nameless(Projection):
    metadata = sa.MetaData()


class Versionless(Recorder):
    version = 0


class Tableless(Projection):
    name = "tableless"


class Greedy(Projection):
    name = "greedy"
    metadata = sa.MetaData()
    sa.Table("stepfold_positions", metadata, sa.Column("id", sa.Integer))


class Same(Recorder):
    name = "same"


@pytest.mark.parametrize(
    ("projections", "complaint"),
    [
        ([Nameless()], "Nameless: `name` must be a text"),
        ([Recorder(), Recorder()], "of its own"),
        ([Versionless()], "`version` must be a number, 1 or higher; it is 0"),
        ([Tableless()], "`metadata` must be"),
        ([Greedy()], "table 'stepfold_positions' is of 'stepfold'"),
        ([Recorder(), Same()], "table 'recorded_events' is of 'recorder'"),
    ],
)
def test_a_projection_that_cannot_work_is_an_error_at_once(projections: list[Projection], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ProjectionRunner(MemoryDriver(), projections)


async def test_a_runner_must_run() -> None:
    runner = ProjectionRunner(MemoryDriver(), [Recorder()])
    for call in (runner.catch_up(), runner.rebuild(), runner.query(recorded)):
        with pytest.raises(ConfigError, match="use the runner inside"):
            await call
    async with Client("memory://") as client, ProjectionRunner(client, [Recorder()]) as running:
        with pytest.raises(ConfigError, match="no projection 'other'"):
            await running.rebuild("other")


# What else it tells.


async def test_lag_and_progress(log: Log, small: None, database: str) -> None:
    await some_runs(log, 6)
    seen: list[Lag] = []
    async with ProjectionRunner(log, [Recorder()], database=database, on_progress=seen.append) as runner:
        await runner.catch_up()
        lags = await runner.lag()
    ends = [(await log.bounds(partition))[1] for partition in range(log.partitions)]
    assert lags == [Lag("recorder", partition, end, end) for partition, end in enumerate(ends)]
    for partition, end in enumerate(ends):
        positions = [lag.position for lag in seen if lag.partition == partition]
        assert positions == sorted(positions) and positions[-1] == end
        assert all(lag.end == end for lag in seen if lag.partition == partition)
    await some_runs(log, 2, "later")
    async with ProjectionRunner(log, [], database=database) as runner:
        assert sum(lag.behind for lag in await runner.lag()) == 15


async def test_a_query_changes_nothing(log: Log, database: str) -> None:
    await some_runs(log, 2)

    def delete(connection: sa.Connection) -> int:
        return connection.execute(sa.delete(Recorder.events)).rowcount

    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        assert await runner.query(delete) == len(await to_be_told(log))
        assert await told(runner) == await to_be_told(log)


async def test_readers_of_a_database_in_memory_see_whole_batches_only() -> None:
    log = MemoryDriver()
    await log.open()
    async with ProjectionRunner(log, [Recorder()]) as runner:
        writing = asyncio.create_task(some_runs(log, 300))

        def per_run() -> list[int]:
            with runner.engine.connect() as connection:
                return list(connection.scalars(sa.select(sa.func.count()).select_from(Recorder.events)))

        while not writing.done():
            await asyncio.to_thread(per_run)
        await writing
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)
    await log.close()
