# ruff: noqa: S608 - what is put into statements are numbers of partitions and question marks
"""The SQLite file: its tables, and what is asked of them. Synchronous; one thread uses one object.

    records_0(offset, timestamp, key, value)    one table for each partition, so that every append is at the end of one
    records_1 ...
    record_keys(partition, key, offset)         an index of the records below `indexed`; the few behind it are scanned. It is
                                                made some thousand records at a time: an index that keeps up with every
                                                commit writes a page for every run in it, which halves the throughput
                                                where run ids are random (where they rise it costs a fifth more CPU)
    indexed(partition, end)
    checkpoints(partition, key, value)
    meta(name, value)                           id, partitions
    history                                     a view for people: partition, offset, timestamp, key, value

`application_id` says that it is ours, `user_version` is the format. Offsets count from 0 without gaps. The file is in WAL
mode, so readers never wait for the writer. Every error leaves as a StepfoldError that names the file.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack, Entry, Record

T = TypeVar("T")

Row = tuple[int, int, str, bytes]
"""What a Record is made of."""

APPLICATION_ID = int.from_bytes(b"stpf")
FORMAT = 1
DEFAULT_PARTITIONS = 4

INDEX_EVERY = 2048
"""So many records may be without an index; a find that scans them all took 0.4 ms instead of 0.1."""

PORTION_BYTES = 8_000_000
"""About as much as one fetch takes into memory."""

KEYS_PER_QUERY = 500
CHECKPOINTS_PER_QUERY = 500

LOCKED_S = 10.0
"""How long other processes may hold the file before it counts as unavailable."""

_WRITABLE = "it and its directory must be writable for this user"

SCHEMA = f"""
CREATE TABLE record_keys (partition INTEGER, key TEXT, offset INTEGER, PRIMARY KEY (partition, key, offset)) WITHOUT ROWID;
CREATE TABLE indexed (partition INTEGER PRIMARY KEY, end INTEGER NOT NULL);
CREATE TABLE checkpoints (partition INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, key));
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""


@contextlib.contextmanager
def explaining(path: Path, *, opening: bool = False) -> Generator[None]:
    """Turn SQLite's errors into ours, which say what to do: LogUnavailable, or ConfigError where opening can never succeed."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        kind = LogUnavailable
        if code == sqlite3.SQLITE_BUSY:
            says = f"{path} was locked by other processes for {LOCKED_S:g} s; end what keeps a transaction open on it"
        elif code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            says = f"{path} could not be written or read ({error}); see whether its disk is full or failing"
        elif code == sqlite3.SQLITE_CORRUPT:
            says = f"{path} is damaged ({error}); restore it from a backup"
        elif code == sqlite3.SQLITE_NOTADB:
            kind, says = ConfigError, f"{path} is not an SQLite database; choose another path"
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            kind, says = ConfigError, f"{path} cannot be written ({error}); {_WRITABLE}"
        else:
            says = f"{path} could not be used: {error}"
        raise (kind if opening else LogUnavailable)(says) from error


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def patiently(call: Callable[[], T]) -> T:
    """Repeat `call` while others have the file locked.

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
    """Connections do not wait for locks by themselves and begin no transactions; one thread at a time may use them."""
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


class Locked(Exception):
    """Another process has the file, and the caller did not want to wait for it."""


class Writer:
    """Everything that changes the file, and the news of what others changed. Opens the file, makes it where there is none."""

    def __init__(self, path: Path, *, synchronous: str, partitions: int | None, clock: Callable[[], int]) -> None:
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; the path of a log names a file")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no directory {path.parent}; create it first, or choose another path")
        if path.exists() and not os.access(path, os.W_OK):  # SQLite says so only at the first append
            raise ConfigError(f"{path} cannot be written; {_WRITABLE}")
        self._path = path
        self._clock = clock
        self.ends: list[int] = []
        self._timestamps: list[int] = []
        self._unindexed = 0
        self._version: int | None = None
        with explaining(path, opening=True):
            self._connection = connect(path)
            try:
                patiently(lambda: self._prepare(synchronous, partitions))
                self._file = path.stat()
                patiently(self._refresh)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, synchronous: str, partitions: int | None) -> None:
        self._connection.execute("BEGIN")  # what the file is must be of one moment: another process may be making it
        try:
            ours = self._is_ours()
        finally:
            self._connection.execute("ROLLBACK")
        self._one("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        if not ours:
            with self._transaction():
                if not self._is_ours():  # another process may have been faster
                    self._create(partitions or DEFAULT_PARTITIONS)
        self.id = str(self._one("SELECT value FROM meta WHERE name = 'id'"))
        self.partitions = int(self._one("SELECT value FROM meta WHERE name = 'partitions'"))
        if partitions not in (None, self.partitions):
            raise ConfigError(
                f"{self._path} was created with {self.partitions} partitions, which is fixed; "
                f"leave out partitions={partitions}, or choose another path"
            )

    def _is_ours(self) -> bool:
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if application == APPLICATION_ID:
            if version != FORMAT:
                raise ConfigError(f"{self._path} has format {version} and this stepfold reads {FORMAT}; use a version that fits")
            return True
        if application or version or self._one("SELECT count(*) FROM sqlite_master"):
            raise ConfigError(f"{self._path} is an SQLite database of something else; choose another path")
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
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def look(self) -> None:
        """Bring `ends` up to date with what others have committed."""
        self._check_file()
        with explaining(self._path):
            patiently(self._refresh)

    def commit(
        self,
        appends: Sequence[tuple[int, Sequence[Entry]]],
        checkpoints: Sequence[tuple[int, Mapping[str, bytes | None]]] = (),
        *,
        wait: bool = True,
    ) -> tuple[list[list[Ack]], dict[int, list[Row]]]:
        """One transaction: append entries to partitions, store checkpoints (None: delete).

        Returns the acks of each append, and what each partition was given, which stands there without a gap. With `wait`
        false, raises Locked (and nothing was done) while another process has the file.
        """
        self._check_file()
        with explaining(self._path):
            try:
                with self._transaction(wait=wait):
                    self._refresh()
                    done = self._append(appends)
                    for partition, items in checkpoints:
                        self._checkpoint(partition, items)
            except BaseException:
                self._version = None  # what is remembered of the file may be wrong now
                raise
        return done

    def _check_file(self) -> None:
        try:
            if os.path.samestat(self._file, self._path.stat()):
                return
        except FileNotFoundError:
            pass
        raise LogUnavailable(f"{self._path} was removed or replaced while it was open; restart everything that uses it")

    def _refresh(self) -> None:
        """Forget and read again what is remembered of the partitions' ends, if another connection has committed since."""
        version = int(self._one("PRAGMA data_version"))
        if version == self._version:
            return
        last = [
            self._connection.execute(
                f"SELECT offset + 1, timestamp FROM records_{partition} ORDER BY offset DESC LIMIT 1"
            ).fetchone()
            or (0, 0)
            for partition in range(self.partitions)
        ]
        self.ends = [end for end, _ in last]
        self._timestamps = [timestamp for _, timestamp in last]
        self._unindexed = sum(self.ends) - int(self._one("SELECT sum(end) FROM indexed"))
        self._version = version

    def _append(self, appends: Sequence[tuple[int, Sequence[Entry]]]) -> tuple[list[list[Ack]], dict[int, list[Row]]]:
        now = self._clock()
        rows: dict[int, list[Row]] = {}
        answers: list[list[Ack]] = []
        for partition, entries in appends:
            of_partition = rows.get(partition)
            if of_partition is None:
                of_partition = rows[partition] = []
                self._timestamps[partition] = max(now, self._timestamps[partition])  # no timestamp is below the one before it
            offset, timestamp = self.ends[partition], self._timestamps[partition]
            acks: list[Ack] = []
            for key, value in entries:
                of_partition.append((offset, timestamp, key, value))
                acks.append(Ack._make((offset, timestamp)))
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
    """What only reads. Connects at the first question, so that it may be made on another thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with explaining(self._path):
            if self._connection is None:
                self._connection = connect(self._path)
                self._connection.execute("PRAGMA query_only = ON")
            connection = self._connection
            return patiently(lambda: question(connection))

    def end(self, partition: int) -> int:
        """The offset behind the last record."""
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
                size += sum(len(row[3]) for row in rows)
                records += map(Record._make, rows)
            cursor.close()
            return records

        return self._ask(ask)

    def find(self, partition: int, keys: Iterable[str], start: int) -> list[Record]:
        """All records of the keys, in order."""
        wanted = list(set(keys))

        def ask(connection: sqlite3.Connection) -> list[Record]:
            found: list[Record] = []
            connection.execute("BEGIN")  # the index and what is behind it must be of one moment
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
                        found += map(Record._make, connection.execute(query, (*some, first)))
            finally:
                connection.execute("COMMIT")
            return sorted(found)

        return self._ask(ask)

    def checkpoints(self, partition: int, after: str | None) -> dict[str, bytes]:
        """Some of what is stored, by key, beyond the key `after`."""
        query = "SELECT key, value FROM checkpoints WHERE partition = ? AND key > ? ORDER BY key LIMIT ?"
        if after is None:
            query, after = query.replace("key >", "key >="), ""

        def ask(connection: sqlite3.Connection) -> dict[str, bytes]:
            return dict(connection.execute(query, (partition, after, CHECKPOINTS_PER_QUERY)).fetchall())

        return self._ask(ask)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
