"""The database side of projections: feeds one projection from one partition, exactly once.

    transaction { move the position · fold and apply a batch · at times keep the fold's state }

Feeds of one partition whose positions are close go together, if their projections are `Gathering`: one fold and one
transaction for all.

- The position moves in the transaction that writes the rows. It moves first, by an update that names its old value. So no
  record is applied twice or left out, whichever process dies. If several processes run one projection on one database, the
  fastest applies a batch, and the others only fold it.
- The same database keeps the state of the fold (claim, open runs, ids of ended runs): every `SNAPSHOT_RECORDS` records the
  parts that have changed, and the offset they cover (`kept`). At a start the feed loads that state, and folds the records up
  to the position without applying them.
- The position is stored with marks of the log below it (`stepfold.marks`). So the feed notices that an older copy has replaced
  the log, even if the copy has grown since.

Synchronous: everything here runs on the runner's database thread. It relies on the fold alone: the same records give the same
state in every process.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from stepfold.core.fold import PartitionState
from stepfold.errors import ConfigError, ProjectionFailed
from stepfold.events import FORMAT
from stepfold.log import Log, Record
from stepfold.marks import Mark, mark_of, marks_from, marks_of

from .base import Batch, Gathering, Projection, gather_all
from .kept import BEGINNING, ENDED_RUNS, OPEN_RUNS, POSITIONS, TABLES, Kept, make_tables
from .panels import check_panels

logger = logging.getLogger("stepfold.projections")

REBUILD = "Rebuild it: `stepfold projection rebuild`, or `await runner.rebuild()`"
SNAPSHOT_RECORDS = 10_000
OPEN_TRIES, OPEN_PAUSE_S = 5, 0.05


class Stale(Exception):
    """In-memory state is behind the database: reload."""


class _Overtaken(Exception):
    """Another process has moved the position."""


class Database:
    """The database for the projections of `log`. `database`: a URL or an engine; None: `default_database(log)`, which only
    projections use.

    Raises ConfigError for a bad database URL.
    """

    def __init__(self, log: Log, database: str | sa.URL | sa.Engine | None) -> None:
        self.log = log
        self.is_default = database is None
        self.engine = database if isinstance(database, sa.Engine) else _engine(database or default_database(log))
        self.name = self.engine.url.render_as_string(hide_password=True)
        self._is_lent = isinstance(database, sa.Engine)
        self.shared: dict[int, Shared] = {}  # by partition

    def open(self) -> None:
        """Connect and make missing tables. Raises ConfigError if the database cannot be used."""
        for tries_left in reversed(range(OPEN_TRIES)):
            try:
                with self.engine.begin() as connection:
                    make_tables(connection)
                return
            except (SQLAlchemyError, ValueError) as error:  # another process may be making the same tables
                if tries_left == 0:
                    raise ConfigError(f"the projections' database {self.name} cannot be used: {brief(error)}") from error
                time.sleep(OPEN_PAUSE_S)

    def close(self) -> None:
        if not self._is_lent:
            self.engine.dispose()

    def wipe(self, projection: Projection) -> None:
        """Empty the projection's tables and reset its positions."""
        with self.engine.begin() as connection:
            self.wipe_in(connection, projection)

    def wipe_in(self, connection: sa.Connection, projection: Projection) -> None:
        """`wipe` within a transaction.

        If the database commits at every CREATE and DROP, a crash may leave half of the tables. Version 0 marks that, and the next
        start wipes again.
        """
        for table in (OPEN_RUNS, ENDED_RUNS):
            connection.execute(sa.delete(table).where(table.c.projection == projection.name))
        ours = POSITIONS.c.projection == projection.name
        connection.execute(sa.update(POSITIONS).where(ours).values(version=0, build=""))
        projection.metadata.drop_all(connection)
        projection.metadata.create_all(connection)
        connection.execute(sa.delete(POSITIONS).where(ours))
        beginning = {
            "projection": projection.name,
            "version": projection.version,
            "build": uuid.uuid4().hex,
            "log_id": self.log.id,
            **BEGINNING,
        }
        rows = [{**beginning, "partition": partition} for partition in range(self.log.partitions)]
        connection.execute(sa.insert(POSITIONS), rows)


_MOVE = (
    sa.update(POSITIONS)
    .where(
        POSITIONS.c.projection == sa.bindparam("of_projection"),
        POSITIONS.c.partition == sa.bindparam("of_partition"),
        POSITIONS.c.position == sa.bindparam("found_at"),
        POSITIONS.c.build == sa.bindparam("of_build"),
    )
    .values(position=sa.bindparam("behind"), stood=sa.bindparam("stands", type_=sa.Text), stopped=None)
)
"""Made once: SQLAlchemy takes longer to build it than SQLite to run it."""


class Shared:
    """The feeds of one partition that go together: the leader folds the records, and applies them for itself and its riders in
    one transaction.

    No feed joins below `alone_until`, because something failed there.
    """

    def __init__(self) -> None:
        self.leader: Feed | None = None
        self.riders: list[Feed] = []
        self.alone_until = 0


class Feed:
    """Feeds one projection from one partition. `position`: all records below it are applied."""

    def __init__(self, database: Database, projection: Projection, partition: int) -> None:
        self.projection = projection
        self.partition = partition
        self.position = 0
        self.state: PartitionState | None = None  # None: not loaded
        self._database = database
        self.marks: list[Mark] = []  # of the claim in force, and of the last record below the position
        self._build = ""
        self._kept = Kept(projection.name, partition, database.log.partitions)
        self._since_snapshot = 0
        self._latest = 0  # the highest timestamp seen, ms
        self._shared = database.shared.setdefault(partition, Shared())
        self.dismissed: Future[None] = Future()

    def load(self) -> None:
        """Load from the database; make missing tables, and outdated ones again. Raises ConfigError and SQLAlchemyError."""
        log, projection = self._database.log, self.projection
        with self._database.engine.begin() as connection:
            make_tables(connection)
            try:
                row = self._row(connection)
            except SQLAlchemyError as error:  # text that is not valid, say
                if is_outage(error):
                    raise
                self._check(None)
                row = None
            else:
                if row is not None:
                    self._check(row)
            if row is None or not is_sound(row) or row.version < projection.version or row.log_id != log.id:
                self._database.wipe_in(connection, projection)
                row = self._row(connection)
                assert row is not None
            try:
                state = self._kept.load(connection, row)
            except Exception as error:
                if is_outage(error):
                    raise
                logger.warning(
                    "projection %s, partition %d: the state kept in %s cannot be used (%s); folding from the start of the log",
                    *(projection.name, self.partition, self._database.name, brief(error)),
                )
                state = self._kept.drop(connection)
        self.state, self.position, self.marks, self._build = state, row.position, marks_in(row), row.build
        self._since_snapshot = 0

    def begin_again(self, why: str) -> None:
        """Called when the rows were made from another log: rebuild them and raise Stale. Raises ConfigError in a given
        database."""
        database, projection = self._database, self.projection
        if not database.is_default:
            raise ConfigError(
                f"projection {projection.name!r}: its tables in {database.name} were made from other records than "
                f"{database.log.name} partition {self.partition} holds now: {why}. {REBUILD}, or use another database"
            )
        with database.engine.begin() as connection:
            row = self._row(connection)
            if row is not None and row.build == self._build:
                logger.warning(
                    "projection %s: its tables were made from other records than %s partition %d holds now: %s. Rebuilding them",
                    *(projection.name, database.log.name, self.partition, why),
                )
                database.wipe_in(connection, projection)
        raise Stale

    def stop(self, why: str) -> None:
        """Store why this projection has stopped, for `lag`."""
        with self._database.engine.begin() as connection:
            connection.execute(sa.update(POSITIONS).where(*self._kept.of(POSITIONS)).values(stopped=printable(why)))

    def _check(self, row: sa.Row[Any] | None) -> None:
        """Raises ConfigError if the stored position cannot be used. None: the row exists but cannot be read."""
        database, projection = self._database, self.projection
        if row is None or not is_sound(row):
            if not database.is_default:
                raise ConfigError(f"projection {projection.name!r}: its position in {database.name} is damaged. {REBUILD}")
            return
        if row.version > projection.version:
            raise ConfigError(
                f"projection {projection.name!r}: its tables in {database.name} are of version {row.version} and this code is of "
                f"version {projection.version}; run the newer code, or give this projection another name"
            )
        if row.log_id != database.log.id and not database.is_default:
            raise ConfigError(
                f"projection {projection.name!r}: its tables in {database.name} were made from another log than "
                f"{database.log.name} as it is now (which may have been deleted and recreated). {REBUILD}, or use another "
                f"database"
            )

    def take(self, records: Sequence[Record]) -> bool:
        """Fold records, and apply those that are not applied yet, for the riders too. Returns the result of `join`.

        Raises Stale, ProjectionFailed, SQLAlchemyError.
        """
        try:
            self._take(records)
        except Exception as error:
            has_riders = bool(self.riders)
            self.leave()
            if not has_riders or isinstance(error, Stale):
                raise
            # each feed applies these records alone, so that an error stops only the feed that raises it
            self._shared.alone_until = records[-1].offset + 1
            raise Stale from error
        return self.join()

    def _take(self, records: Sequence[Record]) -> None:
        state = self.state
        assert state is not None
        self._since_snapshot += len(records)
        self._latest = max(self._latest, *(record.timestamp for record in records))
        feeds = [self, *self.riders]
        while records:
            first = records[0].offset
            known = min((feed.position for feed in feeds if feed.position > first), default=None)
            those = records if known is None else [record for record in records if record.offset < known]
            behind = [feed for feed in feeds if feed.position <= first]
            try:
                if behind:
                    self._commit(state, those, feeds, behind)
                else:
                    self._fold(state, those, feeds)
            except _Overtaken:
                for feed in feeds:
                    feed._reread(state)
            else:
                records = records[len(those) :]

    def _fold(self, state: PartitionState, records: Sequence[Record], feeds: Sequence[Feed]) -> None:
        batch = Batch(state, records)
        for _ in batch:
            pass
        for feed in feeds:
            feed._kept.note(batch.changed)
        self._check_format(state)

    def _commit(self, state: PartitionState, records: Sequence[Record], feeds: Sequence[Feed], behind: Sequence[Feed]) -> None:
        """Fold records for `feeds`, and apply them to the projections of the feeds that are behind."""
        last = records[-1]
        with self._database.engine.begin() as connection:
            for feed in behind:
                feed._move(connection, last)
            batch = Batch(state, records)
            self._apply(connection, batch, behind)
            if state.offset != last.offset + 1:
                raise self._failure(batch, "returned before it had applied all changes")
            self._check_format(state)
            for feed in feeds:
                feed._kept.note(batch.changed)
            if self._since_snapshot >= SNAPSHOT_RECORDS:
                for feed in behind:
                    feed._kept.save(connection, state, self._latest)
                self._since_snapshot = 0
        for feed in behind:
            feed.position = last.offset + 1
            feed.marks = marks_of(feed._claim_mark() if batch.claim is None else mark_of(batch.claim), last)

    def _apply(self, connection: sa.Connection, batch: Batch, feeds: Sequence[Feed]) -> None:
        gathering = [feed.projection for feed in feeds if isinstance(feed.projection, Gathering)]
        try:
            if len(feeds) > 1:
                gather_all(connection, batch, gathering)
            else:
                feeds[0].projection.apply_all(connection, batch)
        except Exception as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            raise feeds[0]._failure(batch, f"raised {type(error).__name__}: {error}") from error

    def _move(self, connection: sa.Connection, last: Record) -> None:
        """Move the stored position to the offset after a record. Raises _Overtaken."""
        here = {"of_projection": self.projection.name, "of_partition": self.partition, "of_build": self._build}
        stands = orjson.dumps([tuple(mark) for mark in marks_of(self._claim_mark(), last)]).decode()
        moved = connection.execute(_MOVE, {**here, "found_at": self.position, "behind": last.offset + 1, "stands": stands})
        if moved.rowcount != 1:
            raise _Overtaken

    def _claim_mark(self) -> Mark | None:
        return self.marks[0] if self.marks else None

    @property
    def riders(self) -> list[Feed]:
        """The feeds for which this one applies the records too."""
        return list(self._shared.riders) if self._shared.leader is self else []

    @property
    def leader(self) -> Feed | None:
        """The feed that applies the records for this one."""
        return self._shared.leader if self in self._shared.riders else None

    def join(self) -> bool:
        """Whether another feed applies the records for this one from now on, until `dismissed` is done. After that, load again.

        The other feed must be at the same position or a little below. If it is a little above, this one becomes the leader.
        """
        class_, shared, state = type(self.projection), self._shared, self.state
        assert state is not None
        if not issubclass(class_, Gathering) or class_.apply_all is not Gathering.apply_all or self.position < shared.alone_until:
            return False
        if shared.leader is None:
            shared.leader = self
        leads = shared.leader.state
        if leads is None or leads is state or abs(state.offset - leads.offset) > SNAPSHOT_RECORDS:
            return False
        if state.offset < leads.offset:
            shared.leader = self
            return False
        self.state = None
        self.dismissed = Future()
        shared.riders.append(self)
        return True

    def leave(self) -> None:
        """Leave the leader, or dismiss the riders."""
        shared = self._shared
        if self in shared.riders:
            shared.riders.remove(self)
        elif shared.leader is self:
            shared.leader, riders = None, list(shared.riders)
            shared.riders.clear()
            for rider in riders:
                rider.dismissed.set_result(None)

    def _reread(self, state: PartitionState) -> None:
        with self._database.engine.connect() as connection:
            row = self._row(connection)
        if row is None or row.build != self._build or row.position < state.offset:
            raise Stale
        self.position, self.marks = row.position, marks_in(row)

    def _row(self, connection: sa.Connection) -> sa.Row[Any] | None:
        return connection.execute(sa.select(POSITIONS).where(*self._kept.of(POSITIONS))).one_or_none()

    def _check_format(self, state: PartitionState) -> None:
        if state.needs_format > FORMAT:
            raise self.failed(
                f"from offset {state.claim} on it is written in format {state.needs_format}, and this stepfold knows {FORMAT}; "
                f"upgrade it",
                state.claim,
            )

    def _failure(self, batch: Batch, what: str) -> ProjectionFailed:
        change, event = batch.last, ""
        if change is not None:
            step = f", step {change.fields['step_id']!r}" if "step_id" in change.fields else ""
            event = f" for {change.kind} of run {change.run.id!r}{step}"
        class_ = type(self.projection)
        method = "apply" if class_.apply_all is Projection.apply_all else "apply_all"
        return self.failed(
            f"{class_.__name__}.{method}{event} {what}. Offsets below {self.position} are applied. Fix it and start again; if "
            "rows are wrong already, raise its version, which rebuilds it",
            batch.current,
        )

    def failed(self, what: str, offset: int) -> ProjectionFailed:
        """The error that stops the projection because of the record at `offset`."""
        name = self.projection.name
        return ProjectionFailed(
            f"projection {name!r} stopped at {self._database.log.name} partition {self.partition} offset {offset}: {what}",
            projection=name,
            partition=self.partition,
            offset=offset,
        )


def check(projections: Sequence[Projection]) -> None:
    """Raises ConfigError for projections that cannot work, or not together."""
    users = dict.fromkeys(TABLES.tables, "stepfold")
    names: set[str] = set()
    for projection in projections:
        class_name = type(projection).__name__
        name, version, metadata = (getattr(projection, field, None) for field in ("name", "version", "metadata"))
        if not isinstance(name, str) or not 0 < len(name) <= 100 or name in names:
            raise ConfigError(f"{class_name}: `name` must be a text of its own, 1 to 100 characters; it is {name!r}")
        if not isinstance(version, int) or version < 1:
            raise ConfigError(f"projection {name!r}: `version` must be a number, 1 or higher; it is {version!r}")
        if not isinstance(metadata, sa.MetaData):
            raise ConfigError(
                f"projection {name!r}: `metadata` must be the sqlalchemy.MetaData of its tables; it is {metadata!r}"
            )
        check_panels(name, projection.pages)
        names.add(name)
        for table in metadata.tables:
            if users.setdefault(table, name) != name:
                raise ConfigError(f"projection {name!r}: table {table!r} is of {users[table]!r}; choose another name for it")


def default_database(log: Log) -> sa.URL:
    """The default database for projections of this log.

    An SQLite file beside an SQLite log (`orders.db` has `orders.projections.db`), `<namespace>.projections.db` in the current
    directory for Kafka, memory for memory. Raises ConfigError for other logs.
    """
    url = urlsplit(log.url)
    if url.scheme == "memory":
        return sa.URL.create("sqlite")
    if url.scheme == "sqlite":
        path = PurePath(unquote(url.path[1:], errors="surrogateescape"))
        return sa.URL.create("sqlite", database=str(path.with_suffix(".projections.db")))
    if url.scheme == "kafka":
        return sa.URL.create("sqlite", database=f"{url.path.strip('/')}.projections.db")
    raise ConfigError(f"name a database for the projections of {log.name}, such as database='sqlite:///projections.db'")


def _engine(database: str | sa.URL) -> sa.Engine:
    try:
        url = sa.make_url(database)
        if url.get_backend_name() != "sqlite":
            return sa.create_engine(url, pool_pre_ping=True)
        if url.database in (None, "", ":memory:"):
            # An in-memory database is its one connection. A pool lends it to one user at a time, so no reader is in the writer's
            # transaction.
            lent = {"check_same_thread": False}
            engine = sa.create_engine(url, poolclass=sa.QueuePool, pool_size=1, max_overflow=0, connect_args=lent)
        else:
            engine = sa.create_engine(url, connect_args={"timeout": 10})
    except ArgumentError as error:
        raise ConfigError(f"{database!s} is not a database URL: {error}; expected one of SQLAlchemy's") from error
    except ImportError as error:
        raise ConfigError(f"{database!s}: {error}; install the package that this database needs") from error
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Set up a connection. A power failure may undo the last transactions, with rows and position; a restart applies them
    again."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def is_outage(error: Exception) -> bool:
    """Whether the error is an outage, after which the database may answer again. Bad data in an SQLite file is not one."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    return not isinstance(error.orig, sqlite3.Error) or (code is not None and code & 0xFF != sqlite3.SQLITE_ERROR)


def is_sound(row: sa.Row[Any]) -> bool:
    """Whether the row's values have the right types: SQLite keeps any type in any column, and a file may be damaged."""
    numbers = (row.partition, row.version, row.position, row.snapshot)
    texts = (row.projection, row.build, row.log_id)
    return all(type(number) is int and number >= 0 for number in numbers) and all(type(text) is str for text in texts)


def marks_in(row: sa.Row[Any]) -> list[Mark]:
    """The marks of a row; empty if older code moved the position last or the marks cannot be read. Nothing then checks the
    log."""
    try:
        return marks_from(orjson.loads(row.stood)) if row.stood else []
    except (ValueError, TypeError):
        return []


def printable(text: str) -> str:
    """The text with NUL and lone surrogates replaced, which some databases refuse."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def brief(error: BaseException) -> str:
    """The message of a database error, without SQL and parameters."""
    return str(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)
