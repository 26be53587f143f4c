"""A SQLite log that is put back to an older copy while it is open: whoever has read beyond is told, and goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest
from eventually import DEADLINE_S, eventually

from stepfold import Client, ConfigError, Context, LogUnavailable, Run, Step, Workflow
from stepfold.drivers import SQLiteDriver
from stepfold.log import Entry
from stepfold.projections import ProjectionRunner, RunsProjection, list_runs


def entries(start: int, end: int) -> list[Entry]:
    return [Entry(f"run-{number}", b'{"n":%d}' % number) for number in range(start, end)]


def copy(source: Path, target: Path) -> None:
    """As `.backup` and `.restore` of the sqlite3 shell, which take turns with whoever has the files open."""
    with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as other:
        one.backup(other)


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[SQLiteDriver]:
    log = SQLiteDriver(path, partitions=1)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


@pytest.mark.parametrize("since", [0, 2, 5, 20])
@pytest.mark.parametrize("finds_out", ["by an append", "by waiting"])
async def test_whoever_has_read_beyond_is_told(tmp_path: Path, since: int, finds_out: str) -> None:
    """However many records the copy has been given since, by another process."""
    path, backup = tmp_path / "log.db", tmp_path / "backup.db"
    async with opened(path) as log:
        await log.append(0, entries(0, 5))
        copy(path, backup)
        await log.append(0, entries(5, 10))
        reader = log.reader(0, 0)
        assert len(await reader.read(100)) == 10
        waits = asyncio.create_task(reader.read(100, None)) if finds_out == "by waiting" else None

        def put_back() -> None:
            copy(backup, path)
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                for number in range(5, 5 + since):
                    other.execute("INSERT INTO records_0 VALUES (?, 7, 'other', x'7b7d')", (number,))

        await asyncio.to_thread(put_back)
        if waits is not None:
            with pytest.raises(LogUnavailable, match="restored from an older copy while it was open"):
                await waits
        else:
            with pytest.raises(LogUnavailable, match="restored from an older copy while it was open"):
                await log.append(0, entries(0, 1))
        with pytest.raises(LogUnavailable, match="must be read again"):
            await reader.read(100)
        [ack] = await log.append(0, entries(99, 100))
        assert ack.offset == 5 + since
        again = await log.reader(0, 0).read(100)
        assert [record.key for record in again] == [f"run-{n}" for n in range(5)] + ["other"] * since + ["run-99"]
        assert (await log.bounds(0))[1] == 6 + since


async def test_records_of_others_are_no_older_copy(tmp_path: Path) -> None:
    async with opened(tmp_path / "log.db") as one, opened(tmp_path / "log.db") as other:
        reader = one.reader(0, 0)
        for number in range(20):
            await (one, other)[number % 2].append(0, entries(number, number + 1 + number % 3))
            assert await reader.read(100)


async def test_a_worker_a_client_and_a_projection_go_on_from_the_copy(tmp_path: Path) -> None:
    path, backup = tmp_path / "log.db", tmp_path / "backup.db"
    client = Client(f"sqlite:///{path}?partitions=1")

    @client.workflow(id="adds")
    async def adds(ctx: Context[int], step: Step) -> int:
        return await step.run("one", lambda: 1) + ctx.input.data

    async with client.worker(), ProjectionRunner(client, [RunsProjection()]) as runner:
        before = await client.start_workflow(adds, 1, run_id="before")
        assert await before.result("30s") == 2
        await asyncio.to_thread(copy, path, backup)
        for number in range(5):
            ghost = await client.start_workflow(adds, number, run_id=f"ghost-{number}")
            await ghost.result("30s")
        await runner.catch_up()
        await asyncio.to_thread(copy, backup, path)

        async def is_served() -> bool:
            with contextlib.suppress(LogUnavailable, TimeoutError):
                run = await client.start_workflow(adds, 5, run_id="after")
                return await run.result("5s") == 6
            return False

        await eventually(is_served)
        again = await client.start_workflow(adds, 7, run_id="ghost-1")
        assert await again.result("30s") == 8, "of what is not in the copy nothing is known"
        await runner.catch_up()
        rows = await runner.query(list_runs)
        assert {row.run_id: row.state for row in rows} == dict.fromkeys(("before", "after", "ghost-1"), "completed")


async def test_a_checkpoint_that_lands_on_the_copy_is_taken_for_none_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, backup = tmp_path / "log.db", tmp_path / "backup.db"
    log = Late(path, partitions=1)
    client = Client(driver=log)

    @client.workflow(id="collects")
    async def collects(ctx: Context, step: Step) -> list[str]:
        return [(await step.wait_for_signal(name, signal=name)).data for name in ("first", "second")]

    async with client.worker(checkpoint_records=1):
        run = await client.start_workflow(collects, run_id="r")
        await eventually(lambda: waits_for(run, "first"))
        await asyncio.to_thread(copy, path, backup)
        log.held = asyncio.Event()
        await run.signal("first", "of the lost log")
        await eventually(lambda: asyncio.sleep(0, log.late))
        await asyncio.to_thread(copy, backup, path)
        await eventually(lambda: asyncio.sleep(0, "was restored from an older copy" in caplog.text))
        log.held.set()
        await asyncio.gather(*log.late)
        await run.signal("first", "of the copy")
    async with client.worker():
        await run.signal("second", "too")
        assert await run.result("30s") == ["of the copy", "too"]


class Late(SQLiteDriver):
    """Its checkpoints are under way for as long as they are held, whoever waits for them, and then land."""

    held: asyncio.Event | None = None

    def __init__(self, path: Path, partitions: int) -> None:
        super().__init__(path, partitions=partitions)
        self.late: list[asyncio.Task[None]] = []

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        put, held = super().checkpoint_put, self.held
        if held is None:
            await put(partition, items)
            return

        async def puts() -> None:
            await asyncio.wait_for(held.wait(), DEADLINE_S)
            await put(partition, items)

        self.late.append(asyncio.create_task(puts()))
        await asyncio.shield(self.late[-1])


async def waits_for(run: Run[Any], signal: str) -> bool:
    with contextlib.suppress(LogUnavailable):
        return signal in str((await run.status()).waiting_on)
    return False


def counting(url: str) -> tuple[Client, Workflow[int, int]]:
    client = Client(url)

    @client.workflow(id="adds")
    async def adds(ctx: Context[int], step: Step) -> int:
        return await step.run("one", lambda: 1) + ctx.input.data

    return client, adds


async def test_a_worker_whose_file_was_away_goes_on_once_it_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.db"
    client, adds = counting(f"sqlite:///{path}")
    async with client.worker():
        assert await (await client.start_workflow(adds, 1)).result("30s") == 2
        path.rename(tmp_path / "elsewhere")
        await eventually(lambda: asyncio.sleep(0, "was removed while it was open; put it back, or restart" in caplog.text))
        (tmp_path / "elsewhere").rename(path)
        assert await (await client.start_workflow(adds, 2)).result("30s") == 3


async def test_a_worker_whose_file_was_replaced_ends(tmp_path: Path) -> None:
    path, backup = tmp_path / "log.db", tmp_path / "backup.db"
    client, adds = counting(f"sqlite:///{path}")

    async def serve() -> None:
        async with client.worker() as worker:
            assert await (await client.start_workflow(adds, 1)).result("30s") == 2
            await asyncio.to_thread(copy, path, backup)
            backup.replace(path)
            with pytest.raises(ConfigError, match="restart everything that uses it"):
                await client.start_workflow(adds, 2)
            await asyncio.wait_for(worker.wait(), 30)

    with pytest.raises(ConfigError, match="was replaced while it was open"):
        await serve()
