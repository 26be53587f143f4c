# ruff: noqa: S608 - only numbers of partitions and question marks are put into statements
"""The SQLite file: its tables and queries. Synchronous; one thread at a time uses an object.

    records_0(offset, timestamp, key, value)    one table for each partition, so that every append is at the end of one
    records_1 ...
    record_keys(partition, key, offset)         an index of the records below `indexed`; a query scans the few after it. It is
                                                filled some thousand records at a time: an index that follows every commit
                                                writes a page for each run in it, which halves the throughput if run ids
                                                are random (if they rise, it costs a fifth more CPU)
    indexed(partition, end)
    checkpoints(partition, key, value)
    meta(name, value)                           id, partitions
    history                                     a view for people: partition, offset, timestamp, key, value

`application_id` marks the file as stepfold's, `user_version` is the format. Offsets count from 0 without gaps. The file is in
WAL mode, so readers never wait for the writer. Every error leaves this module as a StepfoldError that names the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack, Entry, Record, ack_of, record_of

logger = logging.getLogger("stepfold.sqlite")

T = TypeVar("T")

Row = tuple[int, int, str, bytes]
"""The fields of a Record."""
_INTS, _TEXTS, _BYTES = {int}, {str}, {bytes}
"""The types of times, keys and values that stepfold writes. SQLite keeps any type in any column, and others may write into the
file."""
_Stands = tuple[int, int, str, int]
"""The fields that identify a record: offset, time, key, length of its value."""

APPLICATION_ID = int.from_bytes(b"stpf")
FORMAT = 1
DEFAULT_PARTITIONS = 4

INDEX_EVERY = 2048
"""The most records that are not in the index yet; a query that scans them all took 0.4 ms instead of 0.1."""

PORTION_BYTES = 8_000_000
"""A fetch reads about this much into memory."""

KEYS_PER_QUERY = 500
CHECKPOINTS_PER_QUERY = 500

LOCKED_S = 10.0
"""How long other processes may lock the file before it counts as unavailable."""

_WRITABLE = "it and its directory must be writable for this user"

CHECKPOINTS = """
CREATE TABLE IF NOT EXISTS checkpoints (
    partition INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, key)
)"""
SCHEMA = f"""
CREATE TABLE record_keys (partition INTEGER, key TEXT, offset INTEGER, PRIMARY KEY (partition, key, offset)) WITHOUT ROWID;
CREATE TABLE indexed (partition INTEGER PRIMARY KEY, end INTEGER NOT NULL);
{CHECKPOINTS};
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""


@contextlib.contextmanager
def explaining(path: Path, *, opening: bool = False) -> Generator[None]:
    """Turn errors of SQLite into LogUnavailable, or into ConfigError if `opening` can never succeed."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        error_class = LogUnavailable
        if code == sqlite3.SQLITE_BUSY:
            says = f"{path} was locked by other processes for {LOCKED_S:g} s; end what keeps a transaction open on it"
        elif code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            says = f"{path} could not be written or read ({error}); see whether its disk is full or failing"
        elif code == sqlite3.SQLITE_CORRUPT or _lacks_table(error):
            says = f"{path} is damaged ({error}); restore it from a backup"
        elif code == sqlite3.SQLITE_NOTADB:
            error_class, says = ConfigError, f"{path} is not an SQLite database; choose another path"
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            error_class, says = ConfigError, f"{path} cannot be written ({error}); {_WRITABLE}"
        else:
            says = f"{path} could not be used: {error}"
        raise (error_class if opening else LogUnavailable)(says) from error
    except (TypeError, ValueError, OverflowError) as error:  # a row that stepfold has not written
        raise LogUnavailable(f"{path} is damaged ({error}); restore it from a backup") from error
    except OSError as error:  # a directory without permission, say
        raise (ConfigError if opening else LogUnavailable)(f"{path} could not be used: {error}") from error


def _records(rows: list[tuple[Any, ...]]) -> tuple[Iterable[Record], int]:
    """Rows as records, and the bytes of their values.

    Never raises: a foreign row with values of other types must not stop a reader, and every reader must see the same record.
    """
    _, times, keys, values = zip(*rows, strict=True)
    if set(map(type, times)) == _INTS and set(map(type, keys)) == _TEXTS and set(map(type, values)) == _BYTES:
        return map(record_of, rows), sum(map(len, values))
    strange = list(map(_strange, rows))
    return strange, sum(len(record.value) for record in strange)


def _strange(row: tuple[Any, ...]) -> Record:
    """A foreign row as a record: a key that is not text becomes "", as `WHERE key = ?` sees it; a text value becomes its bytes,
    and any other value b"".
    """
    offset, at, key, value = row
    if type(value) is str:
        value = value.encode()
    return Record(offset, at if type(at) is int else 0, key if type(key) is str else "", value if type(value) is bytes else b"")


def _text(data: bytes) -> str | bytes:
    """A value of a TEXT column: text, or bytes that are not valid UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _lacks_table(error: sqlite3.Error, name: str = "") -> bool:
    return str(error).startswith(f"no such table: {name}")


def patiently(call: Callable[[], T]) -> T:
    """Repeat `call` while other processes lock the file, up to `LOCKED_S`.

    SQLite's own waiting backs off to 100 ms: beside a busy process its median append is a little faster than with this, but
    the longest took 130 ms instead of 16.
    """
    until = time.monotonic() + LOCKED_S
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.0002, 0.001))


def connect(path: Path) -> sqlite3.Connection:
    """A connection that does not wait for locks and begins no transactions by itself; one thread at a time may use it."""
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


def _end(connection: sqlite3.Connection) -> None:
    """Roll back a transaction that has only read, or has failed. After some failures, such as a full disk, SQLite has done so
    itself."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


class PutBack(LogUnavailable):
    """An older copy of the file has replaced it, and may hold other records by now."""


class Locked(Exception):
    """Another process has locked the file, and the caller does not want to wait."""


def _check_same(file: os.stat_result, path: Path) -> None:
    """Raises LogUnavailable if the file is gone from its path, ConfigError if another file is there."""
    try:
        same = os.path.samestat(file, path.stat())
    except FileNotFoundError:
        says = f"{path} was removed while it was open; put it back, or restart everything that uses it, which creates a new one"
        raise LogUnavailable(says) from None
    if not same:
        raise ConfigError(f"{path} was replaced while it was open; restart everything that uses it; the present file counts")


class Writer:
    """Makes and changes the file, and notices the commits of others."""

    def __init__(self, path: Path, *, synchronous: str, partitions: int | None, clock: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        self.ends: list[int] = []
        self._timestamps: list[int] = []
        self._last: list[_Stands | None] = []  # the last record of each partition, as far as is known
        self._unindexed = 0
        self._version: int | None = None
        with explaining(path, opening=True):
            if path.is_dir():
                raise ConfigError(f"{path} is a directory; the path of a log names a file")
            if not path.parent.is_dir():
                raise ConfigError(f"{path}: there is no directory {path.parent}; create it first, or choose another path")
            if path.exists() and not os.access(path, os.W_OK):  # SQLite would report it only at the first append
                raise ConfigError(f"{path} cannot be written; {_WRITABLE}")
            self._connection = connect(path)
            self._connection.text_factory = _text
            try:
                patiently(lambda: self._prepare(synchronous, partitions))
                self.file = path.stat()
                patiently(self._refresh)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, synchronous: str, partitions: int | None) -> None:
        self._connection.execute("BEGIN")  # read the file's state at one moment: another process may be making it
        try:
            ours = self._is_ours()
        finally:
            _end(self._connection)
        self._one("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        if synchronous == "full":  # on macOS fsync alone leaves data in the disk's cache; elsewhere this changes nothing
            self._connection.execute("PRAGMA fullfsync = 1")
            self._connection.execute("PRAGMA checkpoint_fullfsync = 1")
        if not ours:
            with self._transaction():
                if not self._is_ours():  # another process may have been faster
                    self._create(partitions or DEFAULT_PARTITIONS)
        self.id = str(self._one("SELECT value FROM meta WHERE name = 'id'"))
        self.partitions = int(self._one("SELECT value FROM meta WHERE name = 'partitions'"))
        if partitions not in (None, self.partitions):
            logger.warning(
                "%s was made with %d partitions, which is fixed: partitions=%d counts for a new file only",
                self._path,
                self.partitions,
                partitions,
            )

    def _is_ours(self) -> bool:
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if application == APPLICATION_ID:
            if version != FORMAT:
                raise ConfigError(
                    f"{self._path} has format {version} and this version of stepfold reads {FORMAT}; use a matching version"
                )
            return True
        if application or version or self._one("SELECT count(*) FROM sqlite_master"):
            raise ConfigError(f"{self._path} is an SQLite database of another program; choose another path")
        return False

    def _create(self, partitions: int) -> None:
        execute = self._connection.execute
        for statement in SCHEMA.split(";"):
            execute(statement)
        for partition in range(partitions):
            execute(
                f"CREATE TABLE records_{partition}"
                " (offset INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL)"
            )
            execute("INSERT INTO indexed VALUES (?, 0)", (partition,))
        parts = (
            f"SELECT {number} AS partition, offset, timestamp, key, value FROM records_{number}" for number in range(partitions)
        )
        execute(f"CREATE VIEW history AS {' UNION ALL '.join(parts)}")
        execute("INSERT INTO meta VALUES ('id', ?), ('partitions', ?)", (uuid.uuid4().hex, partitions))

    def _one(self, query: str, parameters: Sequence[object] = ()) -> int | str:
        return self._connection.execute(query, parameters).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self, *, wait: bool = True) -> Generator[None]:
        if wait:
            patiently(lambda: self._connection.execute("BEGIN IMMEDIATE"))
        else:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if _code(error) == sqlite3.SQLITE_BUSY:
                    raise Locked from error
                raise
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            _end(self._connection)
            raise

    def look(self) -> None:
        """Update `ends` with the commits of other processes. Raises PutBack."""
        with explaining(self._path):
            self._check_file()
            patiently(self._refresh)

    def commit(
        self,
        appends: Sequence[tuple[int, Sequence[Entry]]],
        checkpoints: Sequence[tuple[int, Mapping[str, bytes | None]]] = (),
        *,
        wait: bool = True,
    ) -> tuple[list[list[Ack]], dict[int, list[Row]]]:
        """One transaction: append entries to partitions, and store checkpoints (None: delete).

        Returns the acks of each append, and the rows of each partition, which lie in it without a gap. If `wait` is false,
        raises Locked, and changes nothing, while another process has locked the file.
        """
        with explaining(self._path):
            self._check_file()
            try:
                with self._transaction(wait=wait):
                    self._refresh()
                    done = self._append(appends)
                    for partition, items in checkpoints:
                        self._checkpoint(partition, items)
                for partition, rows in done[1].items():
                    offset, timestamp, key, value = rows[-1]
                    self._last[partition] = (offset, timestamp, key, len(value))
            except BaseException:
                self._version = None  # the cached state of the file may be wrong now
                raise
        return done

    def _check_file(self) -> None:
        _check_same(self.file, self._path)

    def _refresh(self) -> None:
        """Read the partitions' ends again if another connection has committed. Raises PutBack."""
        version = int(self._one("PRAGMA data_version"))
        if version == self._version:
            return
        last = [self._row(partition, "ORDER BY offset DESC LIMIT 1") for partition in range(self.partitions)]
        put_back = any(self._is_other(partition, row) for partition, row in enumerate(last))
        self._last = last
        self.ends = [0 if row is None else row[0] + 1 for row in last]
        self._timestamps = [row[1] if row is not None and type(row[1]) is int else 0 for row in last]
        self._unindexed = sum(self.ends) - int(self._one("SELECT sum(end) FROM indexed"))
        self._version = version
        if put_back:
            raise PutBack(
                f"{self._path} was restored from an older copy while it was open; what was read of it must be read again"
            )

    def _row(self, partition: int, which: str, *parameters: int) -> _Stands | None:
        query = f"SELECT offset, timestamp, key, length(value) FROM records_{partition} {which}"
        return self._connection.execute(query, parameters).fetchone()

    def _is_other(self, partition: int, row: _Stands | None) -> bool:
        """Whether the last known record has gone. `row`: the partition's last record now."""
        before = self._last[partition] if self._last else None
        if before is None or before == row:
            return False
        return row is None or row[0] <= before[0] or self._row(partition, "WHERE offset = ?", before[0]) != before

    def _append(self, appends: Sequence[tuple[int, Sequence[Entry]]]) -> tuple[list[list[Ack]], dict[int, list[Row]]]:
        now = self._clock()
        rows: dict[int, list[Row]] = {}
        answers: list[list[Ack]] = []
        for partition, entries in appends:
            of_partition = rows.get(partition)
            if of_partition is None:
                of_partition = rows[partition] = []
                self._timestamps[partition] = max(now, self._timestamps[partition])  # timestamps never fall
            offset, timestamp = self.ends[partition], self._timestamps[partition]
            acks: list[Ack] = []
            for key, value in entries:
                of_partition.append((offset, timestamp, key, value))
                acks.append(ack_of((offset, timestamp)))
                offset += 1
            self.ends[partition] = offset
            answers.append(acks)
        for partition, of_partition in rows.items():
            self._connection.executemany(f"INSERT INTO records_{partition} VALUES (?, ?, ?, ?)", of_partition)
            self._unindexed += len(of_partition)
        if self._unindexed >= INDEX_EVERY:
            self._index()
        return answers, rows

    def _index(self) -> None:
        for partition, end in enumerate(self.ends):
            self._connection.execute(
                f"INSERT INTO record_keys SELECT {partition}, key, offset FROM records_{partition}"
                " WHERE offset >= (SELECT end FROM indexed WHERE partition = ?) ORDER BY key, offset",
                (partition,),
            )
            self._connection.execute("UPDATE indexed SET end = ? WHERE partition = ?", (end, partition))
        self._unindexed = 0

    def _checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        self._connection.execute(CHECKPOINTS)  # a lost table is made again: workers write new checkpoints
        self._connection.executemany(
            "INSERT INTO checkpoints VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            [(partition, key, value) for key, value in items.items() if value is not None],
        )
        self._connection.executemany(
            "DELETE FROM checkpoints WHERE partition = ? AND key = ?",
            [(partition, key) for key, value in items.items() if value is None],
        )

    def close(self) -> None:
        with explaining(self._path):
            self._connection.close()


class Queries:
    """Reads the file. Connects at the first query, so that another thread may make the object."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.file: os.stat_result | None = None  # the file that was opened

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with explaining(self._path):
            if self.file is not None:
                _check_same(self.file, self._path)
            if self._connection is None:
                self._connection = connect(self._path)
                self._connection.execute("PRAGMA query_only = ON")
            connection = self._connection
            try:
                return patiently(lambda: question(connection))
            except sqlite3.OperationalError as error:
                if _code(error):
                    raise
            connection.text_factory = _text  # Python raised for TEXT that is not valid UTF-8; this factory is slower
            try:
                return patiently(lambda: question(connection))
            finally:
                connection.text_factory = str

    def end(self, partition: int) -> int:
        """The offset after the last record."""
        query = f"SELECT ifnull(max(offset) + 1, 0) FROM records_{partition}"
        return self._ask(lambda connection: connection.execute(query).fetchone()[0])

    def fetch(self, partition: int, start: int, limit: int) -> list[Record]:
        """At most `limit` records, and not much more than PORTION_BYTES."""
        query = f"SELECT offset, timestamp, key, value FROM records_{partition} WHERE offset >= ? ORDER BY offset LIMIT ?"

        def ask(connection: sqlite3.Connection) -> list[Record]:
            cursor = connection.execute(query, (start, limit))
            records: list[Record] = []
            size = 0
            while size < PORTION_BYTES and (rows := cursor.fetchmany(20)):
                some, bytes_ = _records(rows)
                records += some
                size += bytes_
            cursor.close()
            return records

        return self._ask(ask)

    def find(self, partition: int, keys: Iterable[str], start: int) -> list[Record]:
        """All records of the keys, in order."""
        wanted = list(set(keys))

        def ask(connection: sqlite3.Connection) -> list[Record]:
            found: list[Record] = []
            connection.execute("BEGIN")  # the index and the records after it must be read in one transaction
            try:
                [end] = connection.execute("SELECT end FROM indexed WHERE partition = ?", (partition,)).fetchone()
                for some in (wanted[at : at + KEYS_PER_QUERY] for at in range(0, len(wanted), KEYS_PER_QUERY)):
                    marks = ", ".join("?" * len(some))
                    by_index = (
                        f"SELECT offset, timestamp, records_{partition}.key, value"
                        f" FROM record_keys CROSS JOIN records_{partition} USING (offset)"
                        f" WHERE record_keys.key IN ({marks}) AND partition = {partition} AND offset >= ?"
                    )
                    behind = (
                        f"SELECT offset, timestamp, key, value FROM records_{partition} WHERE key IN ({marks}) AND offset >= ?"
                    )
                    for query, first in (by_index, start), (behind, max(start, end)):
                        rows = connection.execute(query, (*some, first)).fetchall()
                        if rows:
                            found += _records(rows)[0]
            finally:
                _end(connection)
            return sorted(found)

        return self._ask(ask)

    def checkpoints(self, partition: int, after: str | None) -> dict[str, bytes]:
        """Some stored items whose keys follow `after`, by key."""
        query = "SELECT key, value FROM checkpoints WHERE partition = ? AND key > ? ORDER BY key LIMIT ?"
        if after is None:
            query, after = query.replace("key >", "key >="), ""

        def ask(connection: sqlite3.Connection) -> dict[str, bytes]:
            try:
                rows = connection.execute(query, (partition, after, CHECKPOINTS_PER_QUERY)).fetchall()
            except sqlite3.OperationalError as error:
                if not _lacks_table(error, "checkpoints"):
                    raise
                logger.warning("%s has lost its checkpoints; workers make new ones from the log", self._path)
                return {}
            # A foreign value counts as a damaged piece, which costs a fold from the start.
            return {key: value if type(value) is bytes else b"" for key, value in rows if type(key) is str}

        return self._ask(ask)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
