# ruff: noqa: ASYNC240 - a file is what these tests are about
"""The SQLite driver: the suite, and what is its own: the file, other processes, and what may happen to both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepfold.drivers import SQLiteDriver
from stepfold.drivers.sqlite.file import Writer
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Entry, InboxMembership, Log, Record
from stepfold.testing import LogSuite

ONE = [Entry("run", b"{}")]


def numbered(start: int, end: int, key: str = "run") -> list[Entry]:
    return [Entry(key, b'{"n":%d}' % number) for number in range(start, end)]


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncGenerator[SQLiteDriver]:
    log = SQLiteDriver(path, **options)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def everything(log: Log, partition: int = 0) -> list[Record]:
    _, end = await log.bounds(partition)
    reader = log.reader(partition, 0)
    records: list[Record] = []
    while len(records) < end:
        records += await reader.read(wait=None)
    return records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


class TestSuite(LogSuite):
    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.logs = 0

    async def open_log(self) -> Log:
        self.logs += 1
        return await self.opened(self.path / f"{self.logs}.db")

    async def reopen(self, log: Log) -> Log | None:
        return await self.opened(Path(log.name.removeprefix("sqlite:///")))

    async def opened(self, path: Path) -> SQLiteDriver:
        log = SQLiteDriver(path, partitions=3)
        await log.open()
        return log


# The file.


async def test_anyone_can_read_the_history_with_sql(path: Path) -> None:
    async with opened(path, partitions=2, clock=lambda: 1_000) as log:
        await log.append(1, numbered(0, 2))
        await log.append(0, numbered(2, 3))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT partition, offset, timestamp, key, value FROM history").fetchall()
    assert rows == [(0, 0, 1_000, "run", b'{"n":2}'), (1, 0, 1_000, "run", b'{"n":0}'), (1, 1, 1_000, "run", b'{"n":1}')]


async def test_timestamps_never_go_back(path: Path) -> None:
    async with opened(path, clock=lambda: 2_000) as log:
        await log.append(0, ONE)
    async with opened(path, clock=lambda: 1_000) as log:
        await log.append(0, ONE)
        await log.append(1, ONE)
        assert [record.timestamp for record in await everything(log, 0)] == [2_000, 2_000]
        assert [record.timestamp for record in await everything(log, 1)] == [1_000]


async def test_what_is_not_indexed_yet_is_found_all_the_same(path: Path) -> None:
    keys = [f"run-{number}" for number in range(40)]
    async with opened(path, partitions=2) as log, opened(path) as other:
        for size in (1, 500, 1_500, 47, 3_000, 1):  # the index is extended after 2,001 and after 5,048 records
            await log.append(0, [Entry(keys[number % 40], b"%d" % number) for number in range(size)])
            await other.append(1, [Entry(keys[number % 40], b"%d" % number) for number in range(size)])
            for partition in (0, 1):
                records = await everything(log, partition)
                for start in (0, 100, len(records) - 1):
                    expected = [record for record in records if record.key in keys[3:5] and record.offset >= start]
                    assert await log.find(partition, keys[3:5], start) == expected
                    assert await other.find(partition, keys[3:5], start) == expected


async def test_readers_at_the_end_do_not_ask_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as log:
        await log.append(0, numbered(0, 3))
        reader, late = log.reader(0, 3), log.reader(0, 1)

        def fail(*_: object) -> None:
            raise AssertionError("a query")

        monkeypatch.setattr("stepfold.drivers.sqlite.file.Queries.fetch", fail)
        reading = asyncio.create_task(reader.read(wait=None))
        await log.append(0, numbered(3, 5))
        assert [record.value for record in await reading] == [b'{"n":3}', b'{"n":4}']
        assert [record.offset for record in await late.read(2)] == [1, 2]
        assert [record.offset for record in await late.read(2)] == [3, 4]
        assert await reader.read(wait=0.01) == ()


async def test_what_is_kept_for_readers_never_hides_what_others_appended(path: Path) -> None:
    async with opened(path) as log, opened(path) as other:
        reader = log.reader(0, 0)
        seen: list[Record] = []
        for number in range(30):
            await (log, other, log)[number % 3].append(0, numbered(number, number + 1))
            if number % 4 == 0:
                while len(seen) < number + 1:
                    seen += await reader.read(wait=None)
        seen += await reader.read(wait=None)
        assert [record.value for record in seen] == [entry.value for entry in numbered(0, 30)]
        assert [record.offset for record in seen] == list(range(30))


async def test_large_payloads_come_in_portions(path: Path) -> None:
    async with opened(path) as log, opened(path) as other:
        for _ in range(10):
            await log.append(0, [Entry("run", b"x" * 900_000)] * 3)
        assert 1 <= len(await other.reader(0, 0).read(wait=None)) < 30
        assert len(await everything(other)) == 30


async def test_a_seek_past_the_end_keeps_a_waiting_reader_asleep(path: Path) -> None:
    async with opened(path) as log:
        reader = log.reader(0, 0)
        reading = asyncio.create_task(reader.read(wait=None))
        [mine] = await log.append(0, ONE)
        reader.seek(mine.offset + 1)
        await asyncio.sleep(0.1)
        assert not reading.done()
        [theirs] = await log.append(0, ONE)
        assert [record.offset for record in await reading] == [theirs.offset]


async def test_an_entry_that_has_no_utf8_fails_alone(path: Path) -> None:
    async with opened(path) as log:
        good, bad = log.append(0, ONE), log.append(0, [Entry("\ud800", b"{}")])
        results = await asyncio.gather(good, bad, return_exceptions=True)
        assert isinstance(results[1], UnicodeEncodeError)
        assert [record.key for record in await everything(log)] == ["run"]


async def test_durability_normal_is_a_log_like_the_other(path: Path) -> None:
    async with opened(path, durability="normal") as log:
        await log.append(0, numbered(0, 10))
    async with opened(path) as log:
        assert len(await everything(log)) == 10


async def test_it_adds_nothing_to_ext(path: Path) -> None:
    log = SQLiteDriver(path)
    await log.open()
    member = await log.join("a")
    assert not isinstance(member, InboxMembership)
    await member.leave()
    await log.close()
    with pytest.raises(ConfigError, match=r"sqlite:/// adds nothing to step\.ext"):
        log.step_ext(None).publish  # noqa: B018 - the access is the test
    with pytest.raises(ConfigError, match=r"sqlite:/// adds nothing to ctx\.ext"):
        log.ctx_ext("run").publish  # noqa: B018 - the access is the test


# A file that cannot be it.


async def refused(path: Path, says: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        async with opened(path, **options):
            pass
    assert path.name in str(raised.value)


async def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("Dear diary, " * 100)
    await refused(path, "is not an SQLite database")
    assert path.read_text().startswith("Dear diary"), "nothing of it was touched"


async def test_a_database_of_something_else(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (id)")
    await refused(path, "of another program")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]


async def test_a_newer_format(path: Path) -> None:
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")
    await refused(path, "has format 999")


async def test_another_number_of_partitions(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(path, partitions=3):
        pass
    for partitions in (None, 3):
        async with opened(path, partitions=partitions) as log:
            assert log.partitions == 3 and not caplog.messages
    async with opened(path, partitions=5) as log:
        assert log.partitions == 3
    assert caplog.messages == [f"{path} was made with 3 partitions, which is fixed: partitions=5 counts for a new file only"]


async def test_a_directory(path: Path) -> None:
    path.mkdir()
    await refused(path, "is a directory")


async def test_a_directory_that_is_missing(path: Path) -> None:
    await refused(path.parent / "missing" / path.name, "there is no directory")
    assert not (path.parent / "missing").exists()


async def test_a_file_that_may_not_be_written(path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which no other user may enter
        directory = Path(name)
        path = directory / path.name
        async with opened(path):
            pass
        path.chmod(0o444)
        for mode, says in (0o755, "must be writable"), (0o600, r"Permission denied|must be writable"):
            directory.chmod(mode)
            if os.geteuid() == 0:  # root may write everything
                os.seteuid(65534)
                try:
                    await refused(path, says)
                finally:
                    os.seteuid(0)
            else:
                await refused(path, says)


# What may happen while it is open.


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_a_file_that_is_removed_or_replaced(path: Path, replaced: bool) -> None:
    kind, says = (
        (ConfigError, "was replaced while it was open") if replaced else (LogUnavailable, "was removed while it was open")
    )
    async with opened(path.with_name("other.db")):
        pass
    async with opened(path) as log:
        await log.append(0, ONE)
        reading = asyncio.create_task(log.reader(0, 1).read(wait=None))
        await asyncio.sleep(0.01)
        if replaced:
            path.with_name("other.db").replace(path)
        else:
            path.unlink()
        for asks in (reading, log.append(0, ONE), log.find(0, ["run"]), log.bounds(0), log.checkpoint_put(0, {"a": b"b"})):
            with pytest.raises(kind, match=rf"orders\.db {says}"):
                await asks


async def test_a_path_that_leads_nowhere_any_more(path: Path) -> None:
    directory = path.parent / "directory"
    directory.mkdir()
    async with opened(directory / path.name) as log:
        await log.append(0, ONE)
        directory.rename(path.parent / "elsewhere")
        directory.touch()
        for asks in (log.append(0, ONE), log.find(0, ["run"])):
            with pytest.raises(LogUnavailable, match=r"orders\.db could not be used: .*Not a directory"):
                await asks


async def test_records_that_somebody_removed_are_never_skipped(path: Path) -> None:
    async with opened(path, partitions=1) as log:
        await log.append(0, numbered(0, 10))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM records_0 WHERE offset BETWEEN 3 AND 4")
    async with opened(path) as log:
        reader = log.reader(0, 0)
        with pytest.raises(LogUnavailable, match="no longer has all records of partition 0"):
            await reader.read()
        assert reader.position == 0


async def test_rows_of_other_types_stop_nobody_and_all_readers_take_them_for_the_same(path: Path) -> None:
    """SQLite keeps anything in any column, and anybody may write into a file. What is not UTF-8 Python refuses to give."""
    odd: list[tuple[Any, Any, Any, tuple[int, str, bytes]]] = [
        (7, "run", '{"n":1}', (7, "run", b'{"n":1}')),
        ("soon", "run", b"text as a time", (0, "run", b"text as a time")),
        (7.5, "run", b"half a millisecond", (0, "run", b"half a millisecond")),
        (b"", b"run", b"bytes as a key", (0, "", b"bytes as a key")),
        (7, 5, 5, (7, "5", b"")),  # by the column's affinity
        (7, "run", 5.5, (7, "run", b"")),
        (7, "run", "", (7, "run", b"")),
    ]
    async with opened(path, partitions=1) as log:
        await log.append(0, ONE)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            for offset, (at, key, value, _) in enumerate(odd, 1):
                other.execute("INSERT INTO records_0 VALUES (?, ?, ?, ?)", (offset, at, key, value))
            no_text = "CAST(x'72ff' AS TEXT)"
            other.execute(f"INSERT INTO records_0 VALUES ({len(odd) + 1}, 7, {no_text}, {no_text})")
        [last] = await log.append(0, ONE)
        assert last.offset == len(odd) + 2
        found = await everything(log)
        assert [tuple(record[1:]) for record in found[1:-1]] == [*(expected for *_, expected in odd), (7, "", b"r\xff")]
        for key in ("run", "5"):
            assert await log.find(0, [key]) == [record for record in found if record.key == key]
    async with opened(path) as log:
        assert await everything(log) == found
        await log.append(0, ONE)


async def test_checkpoints_of_other_types_are_damaged_pieces(path: Path) -> None:
    async with opened(path, partitions=1) as log:
        await log.checkpoint_put(0, {"a": b"1", "b": b"2"})
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE checkpoints SET value = 'text' WHERE key = 'b'")
            other.execute("INSERT INTO checkpoints VALUES (0, x'ff', x'ff'), (0, CAST(x'ff' AS TEXT), x'ff')")
        loaded = {key: value async for portion in log.checkpoint_load(0) for key, value in portion.items()}
        assert loaded == {"a": b"1", "b": b""}


@pytest.mark.parametrize("when", ["open", "closed"])
async def test_lost_checkpoints_are_made_anew(path: Path, when: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(path, partitions=1) as log:
        await log.checkpoint_put(0, {"a": b"1"})
        if when == "open":
            drop(path, "checkpoints")
            assert [portion async for portion in log.checkpoint_load(0)] == []
    if when == "closed":
        drop(path, "checkpoints")
    async with opened(path) as log:
        assert [portion async for portion in log.checkpoint_load(0)] == []
        await log.checkpoint_put(0, {"b": b"2"})
        assert [portion async for portion in log.checkpoint_load(0)] == [{"b": b"2"}]
    assert set(caplog.messages) == {f"{path} has lost its checkpoints; workers make new ones from the log"}


@pytest.mark.parametrize("table", ["meta", "indexed", "record_keys", "records_0"])
async def test_a_file_that_lost_another_table_is_damaged(path: Path, table: str) -> None:
    says = rf"orders\.db is damaged \(no such table: {table}\); restore it from a backup"
    async with opened(path, partitions=1) as log:
        await log.append(0, ONE)
    drop(path, table)
    with pytest.raises(LogUnavailable, match=says):
        async with opened(path) as log:
            await log.find(0, ["run"])


def drop(path: Path, table: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(f"DROP TABLE {table}")


async def test_a_file_that_stays_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as log:
        monkeypatch.setattr("stepfold.drivers.sqlite.file.LOCKED_S", 0.05)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailable, match=r"orders\.db was locked by other processes"):
                await log.append(0, ONE)
            other.execute("ROLLBACK")
        await log.append(0, ONE)
        assert len(await everything(log)) == 1


async def test_a_file_that_is_locked_for_a_while(path: Path) -> None:
    async with opened(path) as log:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            appending = asyncio.create_task(log.append(0, ONE))
            await asyncio.sleep(0.1)
            assert not appending.done()
            other.execute("COMMIT")
            await appending


@contextlib.contextmanager
def files_up_to(size: int) -> Generator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_disk_that_is_full(path: Path) -> None:
    async with opened(path) as log:
        await log.append(0, ONE)
        with files_up_to(300_000), pytest.raises(LogUnavailable, match=r"orders\.db could not be written or read"):
            await log.append(0, [Entry("run", b"x" * 900_000)])
        await log.append(0, ONE)
        assert [record.value for record in await everything(log)] == [b"{}", b"{}"]


async def test_a_disk_that_is_full_when_the_file_is_opened(path: Path) -> None:
    """There is no room for the files beside it."""
    async with opened(path) as log:
        await log.append(0, ONE)
    with (
        files_up_to(1_000),
        pytest.raises(LogUnavailable, match=r"orders\.db could not be written or read .*see whether its disk is full"),
    ):
        async with opened(path):
            pass
    async with opened(path) as log:
        assert len(await everything(log)) == 1


async def test_close_leaves_no_thread_behind(path: Path) -> None:
    before = threading.active_count()
    async with opened(path) as log:
        await log.append(0, ONE)
        await everything(log)
    for thread in threading.enumerate():
        if thread.name.startswith(log.name):
            await asyncio.to_thread(thread.join, 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(log.name)]
    assert threading.active_count() <= before + 1  # to_thread's own


async def test_a_join_that_is_cancelled_leaves_no_member(path: Path) -> None:
    async with opened(path) as log, opened(path) as other:
        for turns in range(6):
            joining = asyncio.create_task(log.join("gone"))
            for _ in range(turns):
                await asyncio.sleep(0)
            joining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await joining).leave()
        member = await other.join("stays")
        while await member.assigned() != frozenset(range(other.partitions)):
            pass
        await member.leave()


# Other processes.

PRELUDE = """
import asyncio, os, sys, time
from stepfold.drivers import SQLiteDriver
from stepfold.drivers.sqlite.file import Writer
from stepfold.log import Entry

def say(*words):
    print(*words, flush=True)

async def main():
    log = SQLiteDriver(sys.argv[1])
    await log.open()
    try:
        await work(log, *sys.argv[2:])
    finally:
        await log.close()
"""

APPEND = """
async def work(log, key, count):
    say("ready")
    sys.stdin.readline()
    for number in range(int(count)):
        [ack] = await log.append(0, [Entry(key, b'{"n":%d}' % number)])
        say(number, ack.offset)
"""

JOIN = """
async def work(log, name):
    member = await log.join(name)
    while True:
        say(*sorted(await member.assigned()))
"""

FORK = """
async def work(log, name):
    await log.join(name)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    say(child)
    await asyncio.sleep(60)
"""

IDENTITY = """
async def work(log):
    say(log.id, log.partitions)
"""


@contextlib.asynccontextmanager
async def process(script: str, *arguments: object) -> AsyncGenerator[Process]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", f"{PRELUDE}{script}\nasyncio.run(main())"]
    running = await asyncio.create_subprocess_exec(*command, *map(str, arguments), stdin=PIPE, stdout=PIPE)
    try:
        yield running
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.kill()
        await running.communicate()


async def line(running: Process) -> list[int]:
    assert running.stdout is not None
    async with asyncio.timeout(30):
        return [int(word) for word in (await running.stdout.readline()).split()]


async def go(running: Process) -> None:
    assert running.stdout is not None and running.stdin is not None
    async with asyncio.timeout(30):
        assert await running.stdout.readline() == b"ready\n"
    running.stdin.write(b"go\n")


async def test_processes_that_make_the_same_file_at_once_all_succeed(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(process(IDENTITY, path)) for _ in range(4)]
        answers = [(await running.communicate())[0] for running in processes]
        assert [running.returncode for running in processes] == [0] * 4
        assert len(set(answers)) == 1 and answers[0]


def test_a_file_that_another_makes_at_the_wrong_moment(path: Path) -> None:
    def make() -> Writer:
        return Writer(path, synchronous="full", partitions=None, clock=lambda: 0)

    class Interrupted(Writer):
        other: threading.Thread | None = None

        def _one(self, query: str, parameters: Sequence[object] = ()) -> int | str:
            found = super()._one(query, parameters)
            if query == "PRAGMA user_version" and self.other is None:
                self.other = threading.Thread(target=lambda: make().close())
                self.other.start()
                self.other.join(0.2)  # it has to wait for us
            return found

    writer = Interrupted(path, synchronous="full", partitions=None, clock=lambda: 0)
    assert writer.other is not None
    writer.other.join()
    writer.close()


@pytest.mark.parametrize(("durability", "synced"), [("full", 1), ("normal", 0)])
def test_what_is_synced_is_synced_through_the_cache_of_the_disk(path: Path, durability: str, synced: int) -> None:
    """Which only macOS tells apart."""

    class Asked(Writer):
        def asked(self, pragma: str) -> int | str:
            return self._one(f"PRAGMA {pragma}")

    writer = Asked(path, synchronous=durability, partitions=None, clock=lambda: 0)
    assert [writer.asked(pragma) for pragma in ("fullfsync", "checkpoint_fullfsync")] == [synced, synced]
    writer.close()


async def test_appends_of_several_processes_make_one_order(path: Path) -> None:
    count = 200
    async with opened(path) as log:
        reading = asyncio.create_task(log.reader(0, 0).read(1, wait=None))
        async with process(APPEND, path, "a", count) as a, process(APPEND, path, "b", count) as b:
            await go(a)
            await go(b)
            for number in range(count):
                await log.append(0, numbered(number, number + 1, "c"))
            offsets = {key: [await line(running) for _ in range(count)] for key, running in (("a", a), ("b", b))}
        records = await everything(log)
        assert await reading == records[:1], "the first append of any process wakes a waiting reader"
        assert [record.offset for record in records] == list(range(3 * count))
        for key in "abc":
            mine = [record for record in records if record.key == key]
            assert [record.value for record in mine] == [entry.value for entry in numbered(0, count)]
            if key in offsets:
                assert [record.offset for record in mine] == [offset for _, offset in offsets[key]]
        stamps = [record.timestamp for record in records]
        assert stamps == sorted(stamps)


async def test_what_a_killed_process_had_acknowledged_is_there(path: Path) -> None:
    acknowledged: list[int] = []
    for round_ in range(3):
        async with process(APPEND, path, f"round-{round_}", 1_000_000) as running:
            await go(running)
            for _ in range(50):
                number, offset = await line(running)
                assert number == len(acknowledged) - round_ * 50
                acknowledged.append(offset)
            running.send_signal(signal.SIGKILL)
    async with opened(path) as log:
        records = await everything(log)
        assert [record.offset for record in records] == list(range(len(records)))
        for place, offset in enumerate(acknowledged):
            assert records[offset] == Record(
                offset, records[offset].timestamp, f"round-{place // 50}", b'{"n":%d}' % (place % 50)
            )


async def test_a_killed_members_partitions_go_to_the_others(path: Path) -> None:
    everyone = frozenset(range(4))
    async with opened(path, partitions=4) as log:
        member = await log.join("stays")
        assert await member.assigned() == everyone
        async with process(JOIN, path, "killed") as running:
            theirs = frozenset(await line(running))
            async with asyncio.timeout(30):
                mine = await member.assigned()
                assert len(theirs) == len(mine) == 2 and theirs | mine == everyone
                running.send_signal(signal.SIGKILL)
                assert await member.assigned() == everyone
        await member.leave()


async def test_a_child_of_a_killed_member_does_not_keep_it_alive(path: Path) -> None:
    async with opened(path) as log:
        member = await log.join("stays")
        everyone = await member.assigned()
        async with process(FORK, path, "killed") as running:
            [child] = await line(running)
            try:
                async with asyncio.timeout(30):
                    assert await member.assigned() != everyone
                    running.send_signal(signal.SIGKILL)
                    assert await member.assigned() == everyone
            finally:
                os.kill(child, signal.SIGKILL)
        await member.leave()
