"""Projections over a log that is not the one their rows were made from: put back to an older copy, made again, cut off."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from recording import Recorder, some_runs, to_be_told, told

from stepfold import ConfigError, LogUnavailable
from stepfold.client.requests import started
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.log import Entry, Log
from stepfold.projections import ProjectionRunner, RunsProjection, feed, kept, list_runs

# Ways to copy a file that may be in use, and to put the copy back where nobody uses it.


def _copy_file(log: Path, copy: Path) -> None:
    """With all that is not in the file itself yet."""
    for suffix in ("", "-wal"):
        if Path(f"{log}{suffix}").exists():
            shutil.copy(f"{log}{suffix}", f"{copy}{suffix}")


def _copy_file_alone(log: Path, copy: Path) -> None:
    """After all of it has come into the file."""
    with contextlib.closing(sqlite3.connect(log)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(log, copy)


def _backup(log: Path, copy: Path) -> None:
    """As `.backup` of the sqlite3 shell, and `.restore` the other way round."""
    with contextlib.closing(sqlite3.connect(log)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _put_back_file(copy: Path, log: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{log}{suffix}").unlink(missing_ok=True)
    _copy_file(copy, log)


WAYS = [
    pytest.param(_copy_file, _put_back_file, id="cp with the WAL"),
    pytest.param(_copy_file_alone, _put_back_file, id="cp of the file"),
    pytest.param(_backup, _backup, id="backup and restore"),
]


@contextlib.asynccontextmanager
async def opened(path: Path, partitions: int = 1) -> AsyncGenerator[SQLiteDriver]:
    log = SQLiteDriver(path, partitions=partitions)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def requests(log: Log, *run_ids: str) -> None:
    """Starts that nobody serves: a client appends them before any worker is there again."""
    for run_id in run_ids:
        await log.append(0, [started(run_id, "w", None, b"null", request=f"request of {run_id}", at=1)])


async def brought_up_to_date(log: Log, database: str | None) -> None:
    async with ProjectionRunner(log, [Recorder(), RunsProjection()], database=database) as runner:
        await runner.catch_up()


@pytest.mark.parametrize(("copy", "put_back"), WAYS)
@pytest.mark.parametrize("since", ["nothing", "less", "requests as many", "more with a claim"])
async def test_a_log_put_back_to_an_older_copy(
    copy: Callable[[Path, Path], None], put_back: Callable[[Path, Path], None], since: str, small: None, tmp_path: Path
) -> None:
    path, backup = tmp_path / "runs.db", tmp_path / "runs.backup"
    async with opened(path) as log:
        await some_runs(log, 3)
        copy(path, backup)
        await some_runs(log, 2, "ghost")
        end = (await log.bounds(0))[1]
        await brought_up_to_date(log, None)
        await brought_up_to_date(log, f"sqlite:///{tmp_path}/elsewhere.db")
    put_back(backup, path)
    async with opened(path) as log:
        if since == "less":
            await requests(log, "b")
        elif since == "requests as many":
            missing = end - (await log.bounds(0))[1]
            await requests(log, *(f"later-{number}" for number in range(missing)))
        elif since == "more with a claim":
            await some_runs(log, 20, "later")
        async with ProjectionRunner(log, []) as runner:
            assert all("its rows were made from other records" in (lag.stopped or "") for lag in await runner.lag())
        async with ProjectionRunner(log, [Recorder(), RunsProjection()]) as runner:
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)
            assert not any(row.run_id.startswith("ghost") for row in await runner.query(list_runs, limit=100))
            assert [lag.stopped for lag in await runner.lag()] == [None, None]
        async with ProjectionRunner(log, [Recorder()], database=f"sqlite:///{tmp_path}/elsewhere.db") as runner:
            with pytest.raises(ConfigError, match=r"made from other records than .* holds now") as refusal:
                await runner.catch_up()
            assert "`stepfold projection rebuild`" in str(refusal.value) and "from a backup" not in str(refusal.value)
            await runner.rebuild()
            assert await told(runner) == await to_be_told(log)


async def test_an_older_copy_of_the_projections_is_brought_up_to_date(small: None, tmp_path: Path) -> None:
    path, tables = tmp_path / "runs.db", tmp_path / "runs.projections.db"
    async with opened(path) as log:
        await some_runs(log, 3)
        await brought_up_to_date(log, None)
        _copy_file_alone(tables, tmp_path / "copy")
        await some_runs(log, 3, "later")
        await brought_up_to_date(log, None)
        _put_back_file(tmp_path / "copy", tables)
        async with ProjectionRunner(log, [Recorder(), RunsProjection()]) as runner:
            before = {(lag.projection, lag.stopped) for lag in await runner.lag()}
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)
    assert before == {("recorder", None), ("stepfold-runs", None)}


async def test_a_log_made_again_under_its_projections_is_told_by_lag(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with opened(path) as log:
        await some_runs(log, 2)
        await brought_up_to_date(log, None)
    path.unlink()
    async with opened(path) as log, ProjectionRunner(log, []) as runner:
        assert all("recreated" in (lag.stopped or "") for lag in await runner.lag())


async def test_a_log_made_again_is_told_by_lag_in_a_database_of_ones_own_too(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/elsewhere.db"
    async with opened(tmp_path / "runs.db") as log:
        await some_runs(log, 2)
        await brought_up_to_date(log, database)
    async with opened(tmp_path / "other.db") as log, ProjectionRunner(log, [], database=database) as runner:
        lags = await runner.lag()
        assert {lag.projection for lag in lags} == {"recorder", "stepfold-runs"}
        assert all("of another log" in (lag.stopped or "") for lag in lags)


async def test_whoever_has_a_patience_is_told_why_the_log_cannot_be_read(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs.db") as log:
        await some_runs(log, 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("DELETE FROM records_0 WHERE offset = 2")
    async with opened(tmp_path / "runs.db") as log, ProjectionRunner(log, [Recorder()], patience=0) as runner:
        with pytest.raises(LogUnavailable, match=r"'recorder' has made no progress .* no longer has all records"):
            await runner.catch_up()
        with pytest.raises(LogUnavailable, match="no longer has all records"):
            await runner.rebuild()


# What is kept of the fold's state.


SPOILT: dict[str, str] = {
    "another version": "UPDATE stepfold_positions SET kept = '0.0' || substr(kept, instr(kept, ' '))",
    "no version": "UPDATE stepfold_positions SET kept = NULL, stood = NULL",
    "a summary of another state": "UPDATE stepfold_positions SET kept = replace(kept, 'runs', 'sunr')",
    "garbage": "UPDATE stepfold_positions SET kept = x'ff00ff', stood = x'ff00'",
    "no JSON": "UPDATE stepfold_positions SET stood = '[[', kept = kept || 'x'",
    "a number": "UPDATE stepfold_positions SET stood = 7, kept = 7",
    "a run less": "DELETE FROM stepfold_open_runs WHERE run_id = 'run-3'",
    "a run twice": "INSERT INTO stepfold_open_runs SELECT projection, partition, 'again', state FROM stepfold_open_runs LIMIT 1",
    "a run of nothing": "UPDATE stepfold_open_runs SET state = x''",
    "a run of text": "UPDATE stepfold_open_runs SET state = 'text'",
    "a run that is no UTF-8": "UPDATE stepfold_open_runs SET state = CAST(x'ff00ff' AS TEXT)",
    "a run that is damaged": "UPDATE stepfold_open_runs SET state = CAST(substr(state, 1, 20) || x'00' AS BLOB)",
    "ids less": "DELETE FROM stepfold_ended_runs",
    "ids that are damaged": "UPDATE stepfold_ended_runs SET entries = substr(entries, 1, 20)",
    "ids under another number": "UPDATE stepfold_ended_runs SET chunk = chunk + 7",
    "ahead of the rows": "UPDATE stepfold_positions SET position = snapshot - 1, stood = NULL",
}


@pytest.mark.parametrize("how", SPOILT)
async def test_kept_state_that_cannot_be_used_costs_a_fold_from_the_beginning(
    how: str, small: None, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows and position stay: what was applied is not applied again, which the recorder would fail at."""
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 12)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        before = await told(runner)
    with contextlib.closing(sqlite3.connect(tmp_path / "tables.db")) as connection, connection:
        assert connection.execute(SPOILT[how]).rowcount > 0
        if how == "ahead of the rows":
            connection.execute("DELETE FROM recorded_events WHERE offset >= (SELECT position FROM stepfold_positions)")
            connection.execute("DELETE FROM recorded_counts")
            connection.execute("INSERT INTO recorded_counts SELECT run_id, count(*) FROM recorded_events GROUP BY run_id")
    for part in ("later", "last"):
        async with ProjectionRunner(log, [Recorder()], database=database) as runner:
            await runner.catch_up()
            await some_runs(log, 4, part)
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)
            assert (await told(runner))[: len(before)] == before
    assert caplog.text.count("folding from the start of the log") == 1


async def test_tables_of_older_code_are_taken_over(small: None, database: str, tmp_path: Path) -> None:
    """Those of 0.1 have fewer columns, and packed runs without a version."""
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 12)
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
    with contextlib.closing(sqlite3.connect(tmp_path / "tables.db")) as connection, connection:
        for column in ("stood", "kept", "stopped"):
            connection.execute(f"ALTER TABLE stepfold_positions DROP COLUMN {column}")
        connection.execute("UPDATE stepfold_open_runs SET state = substr(state, 5)")
        connection.execute("UPDATE stepfold_ended_runs SET entries = substr(entries, 5)")
    await some_runs(log, 4, "later")
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        assert await told(runner) == await to_be_told(log)


@pytest.mark.parametrize(
    "damage",
    [
        "position = 'x'",
        "position = -1",
        "version = 1.5",
        "build = CAST(x'ff' AS TEXT)",
        "build = x'07'",
        "log_id = x'00'",
        "snapshot = x''",
    ],
)
async def test_a_position_that_is_damaged(damage: str, database: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with opened(path) as log:
        await some_runs(log, 3)
        await brought_up_to_date(log, None)
        await brought_up_to_date(log, database)
        for file in (tmp_path / "runs.projections.db", tmp_path / "tables.db"):
            with contextlib.closing(sqlite3.connect(file)) as connection, connection:
                connection.execute(f"UPDATE stepfold_positions SET {damage}")
        async with ProjectionRunner(log, [Recorder()]) as runner:
            with contextlib.suppress(ConfigError):
                await runner.lag()
            await runner.catch_up()
            assert await told(runner) == await to_be_told(log)
        async with ProjectionRunner(log, [Recorder()], database=database) as runner:
            with contextlib.suppress(ConfigError):
                await runner.lag()
            with pytest.raises(ConfigError, match=r"is damaged. Rebuild it: `stepfold projection rebuild`"):
                await runner.catch_up()


async def test_why_a_projection_stands_still_is_there_for_whoever_asks_later(database: str) -> None:
    from test_projections import Stumbling

    log = MemoryDriver()
    await log.open()
    await some_runs(log, 8)
    projection = Stumbling()
    async with ProjectionRunner(log, [projection, RunsProjection()], database=database) as runner:
        with contextlib.suppress(Exception):
            await runner.catch_up()
    async with ProjectionRunner(log, [], database=database) as runner:
        stopped = {lag.projection: lag.stopped for lag in await runner.lag()}
    assert stopped["stepfold-runs"] is None
    assert "Stumbling.apply for step-completed of run 'run-4', step 'b' raised KeyError" in (stopped["stumbling"] or "")
    projection.mended = True
    async with ProjectionRunner(log, [projection], database=database) as runner:
        await runner.catch_up()
        assert [lag.stopped for lag in await runner.lag()] == [None, None]


def test_the_version_of_what_is_kept_goes_with_that_of_packed_runs() -> None:
    from stepfold.worker.checkpoint import VERSION

    assert kept.VERSION.endswith(f".{VERSION}"), "a changed snapshot.pack() changes both"
    assert {column.name for column in feed.POSITIONS.c} >= {"stood", "kept", "stopped"}


async def test_the_marks_of_a_batch_are_those_of_its_claim_and_its_last_record(database: str) -> None:
    log = MemoryDriver()
    await log.open()
    await some_runs(log, 2)
    await log.append(0, [Entry("nobody", b"no event at all")])
    async with ProjectionRunner(log, [Recorder()], database=database) as runner:
        await runner.catch_up()
        [stood] = await runner.query(lambda connection: connection.scalars(sa.select(feed.POSITIONS.c.stood)).all())
    end = (await log.bounds(0))[1]
    assert stood is not None and f"[{end - 1}," in stood
