"""Projections in a real PostgreSQL, which refuses what SQLite takes: NULs, numbers beyond a column, texts longer than one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
import sqlalchemy as sa
from recording import Recorder, some_runs, to_be_told, told
from strange import strange_log
from test_search import counts_around_a_write

from stepfold.drivers import MemoryDriver
from stepfold.errors import ConfigError, ProjectionFailed
from stepfold.events import RunEvent, Started
from stepfold.log import Entry
from stepfold.projections import (
    Number,
    Projection,
    ProjectionRunner,
    RunSoFar,
    RunsProjection,
    StepsProjection,
    TableView,
    count_runs,
    list_runs,
    list_steps,
    read_panels,
)

pytestmark = pytest.mark.postgres


def _programs() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them off PATH."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of these tests' own, on a socket in a folder of its own; gives the beginning of its URLs."""
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL here: install the package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="stepfold-pg-"))
    user: str | None = None
    if os.getuid() == 0:  # as whom it does not run
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        shutil.chown(folder, user)
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "stepfold", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True, user=user)
    control = [
        programs / "pg_ctl",
        "-D",
        data,
        "-w",
        "-o",
        f"-k {folder} -c listen_addresses='' -c fsync=off",
        "-l",
        folder / "log",
    ]
    subprocess.run([*control, "start"], cwd=folder, check=True, capture_output=True, user=user)
    try:
        yield f"postgresql+psycopg://stepfold@/{{}}?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, check=False, capture_output=True, user=user)
        shutil.rmtree(folder)


@pytest.fixture
def database(server: str) -> str:
    name = f"db{uuid4().hex[:12]}"
    engine = sa.create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.format(name)


async def test_exactly_once_over_restarts_and_a_rebuild(small: None, database: str) -> None:
    log = MemoryDriver()
    await log.open()
    for part in ("one", "two", "three"):
        await some_runs(log, 6, part)
        async with ProjectionRunner(log, [Recorder(), RunsProjection(), StepsProjection()], database=database) as runner:
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)
            assert [lag.behind for lag in await runner.lag()] == [0, 0, 0]
    async with ProjectionRunner(log, [Recorder(), RunsProjection(), StepsProjection()], database=database) as runner:
        await runner.rebuild()
        assert await told(runner) == await to_be_told(log)
        assert await runner.query(count_runs) == 18
        steps = [row for run in await runner.query(list_runs, limit=100) for row in await runner.query(list_steps, run.run_id)]
        assert {row.state for row in steps} == {"done"} and len(steps) >= 18


async def test_a_search_uses_an_index_and_can_be_stopped(database: str) -> None:
    log = MemoryDriver()
    await log.open()
    for number in range(9):
        fields = {"type": "started", "v": 1, "run_id": f"r-{number}", "at": 1, "request": f"q-{number}", "workflow": "Ship"}
        await log.append(0, [Entry(f"r-{number}", orjson.dumps(fields | {"input": f"100% of Customer_{number}"}))])
    async with ProjectionRunner(log, [RunsProjection()], database=database) as runner:
        await runner.catch_up()
        for text, found in {
            "customer_3": ["r-3"],
            "CUSTOMER": 9,
            "0% of customer_4": ["r-4"],
            "sh": 9,
            "hip": 9,
            "hi": 0,
        }.items():
            rows = [row.run_id for row in await runner.query(list_runs, search=text)]
            assert rows == found or len(rows) == found, text

        def plan(connection: sa.Connection) -> str:
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            columns = ("run_id", "workflow", "last_error", "input", "result")
            likes = " OR ".join(f"{column} ILIKE '%customer%'" for column in columns)
            return "\n".join(connection.scalars(sa.text(f"EXPLAIN SELECT * FROM stepfold_runs WHERE {likes}")))

        assert "stepfold_runs_texts" in await runner.query(plan)
        with pytest.raises(TimeoutError):
            await runner.query_within(0.1, lambda connection: connection.execute(sa.text("SELECT pg_sleep(60)")).all())
        assert await runner.query(count_runs) == 9
        await runner.rebuild()
        assert await runner.query(count_runs, search="customer_3") == 1


async def test_every_record_is_survived(small: None, database: str) -> None:
    log = await strange_log()
    for _ in range(2):
        async with ProjectionRunner(log, [RunsProjection(), StepsProjection()], database=database) as runner:
            await runner.catch_up()
            rows = await runner.query(list_runs, limit=1000)
            assert {row.run_id for row in rows} >= {"plain", "last"}
            assert next(row for row in rows if row.run_id == "last").state == "completed"
            await runner.rebuild()


async def test_a_log_that_was_put_back_is_refused_until_a_rebuild(small: None, database: str) -> None:
    old, new = MemoryDriver(log_id="one"), MemoryDriver(log_id="one")
    await old.open()
    await new.open()
    await some_runs(old, 4, "ghost")
    await some_runs(new, 9)
    async with ProjectionRunner(old, [Recorder()], database=database) as runner:
        await runner.catch_up()
    async with ProjectionRunner(new, [Recorder()], database=database) as runner:
        with pytest.raises(ConfigError, match="`stepfold projection rebuild`"):
            await runner.catch_up()
        await runner.rebuild()
        assert await told(runner) == await to_be_told(new)


class Trusting(Projection):
    """Writes what it is given as it is given."""

    name = "trusting"
    metadata = sa.MetaData()
    rows = sa.Table("trusted", metadata, sa.Column("run_id", sa.String(200)), sa.Column("text", sa.String(20)))

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        if isinstance(event, Started):
            connection.execute(self.rows.insert().values(run_id=run.id, text=str(event.input)))


async def test_what_a_users_projection_cannot_take_stops_that_one_alone(small: None, database: str) -> None:
    log = await strange_log()
    async with ProjectionRunner(log, [Trusting(), RunsProjection()], database=database) as runner:
        with pytest.raises(ProjectionFailed, match=r"Trusting.apply for started of run .* raised"):
            await runner.catch_up()
        assert "stepfold-runs" not in runner.failures
        assert next(row for row in await runner.query(list_runs, limit=1000) if row.run_id == "last").state == "completed"
        stopped = {lag.projection: lag.stopped for lag in await runner.lag()}
    assert "Trusting.apply" in (stopped["trusting"] or "") and stopped["stepfold-runs"] is None


async def test_panels_are_read_within_their_limits(database: str) -> None:
    metadata = sa.MetaData()
    things = sa.Table("things", metadata, sa.Column("name", sa.String(20), primary_key=True), sa.Column("cents", sa.BigInteger))
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(things), [{"name": f"thing {number}", "cents": 50} for number in range(4)])
    slept = sa.select(sa.func.pg_sleep(30))
    wrote = sa.select(sa.func.setval(sa.func.pg_get_serial_sequence("counted", "id"), 7))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE counted (id SERIAL)")
    with engine.connect() as connection:
        panels = [
            Number("late", slept),
            Number("writes", wrote),
            Number("sum", sa.select(sa.func.sum(things.c.cents) / 100)),
            TableView("all", sa.select(things).order_by(things.c.name)),
        ]
        late, writes, total, table = read_panels(connection, panels, 0.3)
        assert late.failed == "the select took longer than 0.3 s"
        assert "read-only transaction" in str(writes.failed)
        assert total.rows == [[2]]
        assert table.rows[0] == ["thing 0", 50]
        connection.execute(sa.delete(things))
        assert connection.execute(sa.select(sa.func.count()).select_from(things)).scalar() == 0
    engine.dispose()


async def test_a_read_sees_one_state(database: str) -> None:
    log = MemoryDriver()
    await log.open()
    async with ProjectionRunner(log, [], database=database) as runner:
        with runner.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE seen (n INTEGER)"))
        assert await runner.query(counts_around_a_write, runner) == [0, 0]
        assert await runner.query_within(5, counts_around_a_write, runner) == [1, 1]
