"""Files that somebody has damaged: the SQLite log, and the database of its projections."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import sqlite3
import tempfile
import zlib
from functools import cache
from pathlib import Path
from random import Random

from targets import LOOP, Target, _history  # pyright: ignore[reportPrivateUsage] # the same history, in a file

from stepfold.drivers import SQLiteDriver
from stepfold.errors import StepfoldError
from stepfold.log import Entry
from stepfold.projections import ProjectionRunner, RunsProjection, feed, list_runs
from stepfold.projections.base import Projection

FOLDER = Path(tempfile.mkdtemp(prefix="stepfold-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
DEADLINE_S = 20.0
"""How long one file may take; on a busy machine most take a hundredth of a second."""
LOG, TABLES = FOLDER / "whole.db", FOLDER / "whole.projections.db"
VALUES = (
    "NULL",
    "0",
    "-1",
    "9223372036854775807",
    "1.5",
    "'text'",
    "''",
    "x''",
    "x'ff00ff'",
    "CAST(x'ff' AS TEXT)",
    "zeroblob(100000)",
)


@cache
def whole() -> None:
    """A log and its projection, closed, each in one file."""

    async def write() -> None:
        log = SQLiteDriver(LOG, partitions=1, clock=lambda: 1_900_000_000_000)
        await log.open()
        await log.append(0, [Entry(one.key, one.value) for one in _history()])
        await log.checkpoint_put(0, {"0/m": b"{}"})
        usual, feed.SNAPSHOT_RECORDS = feed.SNAPSHOT_RECORDS, 5
        async with ProjectionRunner(log, [RunsProjection()]) as runner:
            await runner.catch_up()
        feed.SNAPSHOT_RECORDS = usual
        await log.close()

    LOOP.run_until_complete(write())
    for path in (LOG, TABLES):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")


def _corpus(path: Path) -> list[bytes]:
    whole()
    return [path.read_bytes()]


def _damaged(path: Path, name: str, data: bytes) -> Path:
    """A file of these bytes, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    (folder / name).write_bytes(data)
    return folder


def run_log(data: bytes) -> None:
    """Opened, read, asked and written."""
    whole()
    folder = _damaged(LOG, "log.db", data)

    async def use() -> None:
        log = SQLiteDriver(folder / "log.db", clock=lambda: 1_900_000_000_000)
        try:
            await log.open()
            for partition in range(min(log.partitions, 4)):
                with contextlib.suppress(StepfoldError):
                    reader = log.reader(partition, 0)
                    while await reader.read(100):
                        pass
                with contextlib.suppress(StepfoldError):
                    await log.find(partition, ["one", "@claim"])
                with contextlib.suppress(StepfoldError):
                    async for _ in log.checkpoint_load(partition):
                        pass
                await log.append(partition, [Entry("new", b"{}")])
        except StepfoldError:
            pass
        finally:
            with contextlib.suppress(StepfoldError):
                await log.close()

    try:
        LOOP.run_until_complete(asyncio.wait_for(use(), DEADLINE_S))
    finally:
        shutil.rmtree(folder)


def run_tables(data: bytes) -> None:
    """The projections' database beside a log that is whole: brought up to date, or refused in one error."""
    whole()
    folder = _damaged(TABLES, "log.projections.db", data)
    shutil.copy(LOG, folder / "log.db")
    try:
        LOOP.run_until_complete(asyncio.wait_for(_follow(folder / "log.db"), DEADLINE_S))
    finally:
        shutil.rmtree(folder)


def run_rows(data: bytes) -> None:
    """One or two fields of what the projections keep: as it is their own database they make it good again."""
    whole()
    random = Random(zlib.crc32(data))
    folder = _damaged(TABLES, "log.projections.db", TABLES.read_bytes())
    shutil.copy(LOG, folder / "log.db")
    with contextlib.closing(sqlite3.connect(folder / "log.projections.db")) as connection, connection:
        for _ in range(random.choice((1, 1, 2))):
            table = random.choice(list(feed.TABLES.tables.values()))
            column = random.choice(list(table.c)).name
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(f"UPDATE {table.name} SET {column} = {random.choice(VALUES)}")
    try:
        LOOP.run_until_complete(asyncio.wait_for(_follow(folder / "log.db"), DEADLINE_S))
    finally:
        shutil.rmtree(folder)


async def _follow(path: Path) -> None:
    log = SQLiteDriver(path, clock=lambda: 1_900_000_000_000)
    await log.open()
    try:
        projections: list[Projection] = [RunsProjection()]
        async with ProjectionRunner(log, projections) as runner:
            with contextlib.suppress(StepfoldError):
                await runner.lag()
            await runner.catch_up()
            await log.append(0, [Entry("@claim", _history()[-1].value)])
            await runner.catch_up()
            with contextlib.suppress(Exception):  # rows that others have damaged are the database's word
                await runner.query(list_runs)
    except StepfoldError:
        pass
    finally:
        await log.close()


FILES = [
    Target("log-file", lambda: _corpus(LOG), run_log),
    Target("tables-file", lambda: _corpus(TABLES), run_tables),
    Target("kept-rows", lambda: [b"0", b"1"], run_rows),
]
