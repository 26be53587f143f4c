"""The database's side of projections: one projection fed from one partition, exactly once.

    transaction { move the position · fold and apply a batch · at times keep the fold's state }

- The position moves in the transaction that writes the rows, and moves first, by an update that says where it must be. So
  nothing is applied twice or left out, whoever dies when; and of several processes that run one projection on one database
  one is a little faster each time, the others only fold along.
- The state of the fold (claim, open runs, ids of ended ones) is kept in the same database: every `SNAPSHOT_RECORDS` records
  what of it has changed, and the offset it covers. A start loads that and folds, without applying, what lies between it and
  the position.

Synchronous: everything here runs on the runner's database thread. It relies on the fold alone: the same records give the
same state in every process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from stepfold.errors import ConfigError, ProjectionFailed
from stepfold.events import FORMAT
from stepfold.fold import PartitionState, RunState
from stepfold.log import Log, Record

from .base import Batch, Projection

SNAPSHOT_RECORDS = 10_000
OPEN_TRIES, OPEN_PAUSE_S = 5, 0.05
FORGET_LATE_MS = 3_600_000
"""The log's time may step back a little: ids of ended runs are kept this much longer than they are remembered."""

_BYTES = sa.LargeBinary(2**31 - 1)
TABLES = sa.MetaData()
POSITIONS = sa.Table(
    "stepfold_positions",
    TABLES,
    sa.Column("projection", sa.String(100), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("build", sa.String(32), nullable=False),  # another one after a rebuild
    sa.Column("log_id", sa.String(200), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),  # all records below are in the tables
    sa.Column("snapshot", sa.BigInteger, nullable=False),  # all records below are in the state kept here
    sa.Column("claim", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(200)),
    sa.Column("format", sa.Integer, nullable=False),
)
OPEN_RUNS = sa.Table(
    "stepfold_open_runs",
    TABLES,
    sa.Column("projection", sa.String(100), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("state", _BYTES, nullable=False),
)
ENDED_RUNS = sa.Table(
    "stepfold_ended_runs",
    TABLES,
    sa.Column("projection", sa.String(100), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("entries", _BYTES, nullable=False),
)


class Stale(Exception):
    """What is in memory is not what the database goes on from: load again."""


class _Overtaken(Exception):
    """Another process has moved the position."""


class Database:
    """Where projections of `log` are kept. `given`: a URL or an engine; None: `default_database(log)`, nobody else's.

    Raises ConfigError for what is no database URL.
    """

    def __init__(self, log: Log, given: str | sa.URL | sa.Engine | None) -> None:
        self.log = log
        self.is_default = given is None
        self.engine = given if isinstance(given, sa.Engine) else _engine(given or default_database(log))
        self.name = self.engine.url.render_as_string(hide_password=True)
        self._is_lent = isinstance(given, sa.Engine)

    def open(self) -> None:
        """Raises ConfigError where it cannot be used."""
        for tries_left in reversed(range(OPEN_TRIES)):
            try:
                TABLES.create_all(self.engine)
                return
            except SQLAlchemyError as error:  # another process may be making the same tables
                if tries_left == 0:
                    raise ConfigError(f"the projections' database {self.name} cannot be used: {brief(error)}") from error
                time.sleep(OPEN_PAUSE_S)

    def close(self) -> None:
        if not self._is_lent:
            self.engine.dispose()

    def wipe(self, projection: Projection) -> None:
        """Empty tables, and positions at the beginning."""
        with self.engine.begin() as connection:
            self.wipe_in(connection, projection)

    def wipe_in(self, connection: sa.Connection, projection: Projection) -> None:
        """The same within a transaction. Databases that commit at every CREATE and DROP may be left in between: with version
        0, so that the next start wipes again."""
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
            "position": 0,
            "snapshot": 0,
            "claim": -1,
            "owner": None,
            "format": FORMAT,
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
    .values(position=sa.bindparam("behind"))
)
"""Made once: SQLAlchemy takes longer to build it than SQLite to run it."""


class Feed:
    """One projection over one partition. `position`: everything below it is applied."""

    def __init__(self, database: Database, projection: Projection, partition: int) -> None:
        self.projection = projection
        self.partition = partition
        self.position = 0
        self.state: PartitionState | None = None  # None: to be loaded
        self._database = database
        self._build = ""
        self._changed: set[str] = set()  # runs that the kept state does not have as they are
        self._chunks: dict[int, int] = {}  # of the ids of ended runs: those in the kept state, and their length
        self._since_snapshot = 0
        self._latest = 0  # the highest timestamp seen

    def load(self) -> None:
        """From the database; what is not there, or of an older version, is made anew. Raises ConfigError, SQLAlchemyError."""
        log, projection = self._database.log, self.projection
        with self._database.engine.begin() as connection:
            TABLES.create_all(connection)
            row = self._row(connection)
            if row is not None:
                self._check(row)
            if row is None or row.version < projection.version or row.log_id != log.id:
                self._database.wipe_in(connection, projection)
                row = self._row(connection)
                assert row is not None
            state = PartitionState(self.partition, log.partitions)
            state.offset, state.claim, state.owner, state.format = row.snapshot, row.claim, row.owner, row.format
            state.needs_format = max(FORMAT, row.format)
            for packed in connection.scalars(sa.select(OPEN_RUNS.c.state).where(*self._here(OPEN_RUNS))):
                run = RunState.unpack(packed)
                state.runs[run.id] = run
            chunks = sa.select(ENDED_RUNS.c.chunk, ENDED_RUNS.c.entries).where(*self._here(ENDED_RUNS))
            for number, entries in connection.execute(chunks.order_by(ENDED_RUNS.c.chunk)):
                state.ended.load(number, entries)
        self.state, self.position, self._build = state, row.position, row.build
        self._changed.clear()
        self._chunks = {number: len(chunk) for number, chunk in state.ended.chunks.items()}
        self._since_snapshot = 0

    def _check(self, row: sa.Row[Any]) -> None:
        database, projection = self._database, self.projection
        if row.version > projection.version:
            raise ConfigError(
                f"projection {projection.name!r}: its tables in {database.name} are of version {row.version} and this code is of "
                f"version {projection.version}; run the newer code, or give this projection another name"
            )
        if row.log_id != database.log.id and not database.is_default:
            raise ConfigError(
                f"projection {projection.name!r}: its tables in {database.name} were made from another log than "
                f"{database.log.name} as it is now (which may have been deleted and made again); rebuild the projection, or use "
                f"another database"
            )

    def take(self, records: Sequence[Record]) -> None:
        """Fold records, and apply those that nobody has applied. Raises Stale, ProjectionFailed, SQLAlchemyError."""
        state = self.state
        assert state is not None
        self._since_snapshot += len(records)
        self._latest = max(self._latest, *(record.timestamp for record in records))
        while records:
            if records[0].offset < self.position:
                for _ in Batch(state, [r for r in records if r.offset < self.position], self._changed.add):
                    pass
                self._check_format(state)
                records = [r for r in records if r.offset >= self.position]
                continue
            try:
                self._commit(state, records)
            except _Overtaken:
                self._reread(state)
            else:
                return

    def _commit(self, state: PartitionState, records: Sequence[Record]) -> None:
        behind = records[-1].offset + 1
        with self._database.engine.begin() as connection:
            here = {"of_projection": self.projection.name, "of_partition": self.partition, "of_build": self._build}
            moved = connection.execute(_MOVE, {**here, "found_at": self.position, "behind": behind})
            if moved.rowcount != 1:
                raise _Overtaken
            batch = Batch(state, records, self._changed.add)
            try:
                self.projection.apply_all(connection, batch)
            except Exception as error:
                if isinstance(error, DBAPIError) and error.connection_invalidated:
                    raise
                raise self._failure(batch, f"raised {type(error).__name__}: {error}") from error
            if state.offset != behind:
                raise self._failure(batch, "returned before it had taken all changes")
            self._check_format(state)
            if self._since_snapshot >= SNAPSHOT_RECORDS:
                self._snapshot(connection, state)
        self.position = behind

    def _reread(self, state: PartitionState) -> None:
        with self._database.engine.connect() as connection:
            row = self._row(connection)
        if row is None or row.build != self._build or row.position < state.offset:
            raise Stale
        self.position = row.position

    def _snapshot(self, connection: sa.Connection, state: PartitionState) -> None:
        """Keep the state as it is now. Should the transaction fail, `load` puts right what is noted here."""
        here = {"projection": self.projection.name, "partition": self.partition}
        if self._changed:
            connection.execute(
                sa.delete(OPEN_RUNS).where(*self._here(OPEN_RUNS), OPEN_RUNS.c.run_id == sa.bindparam("id")),
                [{"id": run_id} for run_id in self._changed],
            )
        packed = [{**here, "run_id": i, "state": state.runs[i].pack()} for i in self._changed if i in state.runs]
        if packed:
            connection.execute(sa.insert(OPEN_RUNS), packed)
        gone = state.ended.forget(self._latest - FORGET_LATE_MS)
        grown = {n: bytes(chunk) for n, chunk in state.ended.chunks.items() if self._chunks.get(n) != len(chunk)}
        if gone or grown:
            connection.execute(sa.delete(ENDED_RUNS).where(*self._here(ENDED_RUNS), ENDED_RUNS.c.chunk.in_([*gone, *grown])))
        if grown:
            connection.execute(sa.insert(ENDED_RUNS), [{**here, "chunk": n, "entries": chunk} for n, chunk in grown.items()])
        owner = None if state.owner is None else state.owner[:200].replace("\0", "")
        connection.execute(
            sa.update(POSITIONS)
            .where(*self._here(POSITIONS))
            .values(snapshot=state.offset, claim=state.claim, owner=owner, format=state.format)
        )
        self._changed.clear()
        self._chunks = {number: len(chunk) for number, chunk in state.ended.chunks.items()}
        self._since_snapshot = 0

    def _row(self, connection: sa.Connection) -> sa.Row[Any] | None:
        return connection.execute(sa.select(POSITIONS).where(*self._here(POSITIONS))).one_or_none()

    def _here(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
        return table.c.projection == self.projection.name, table.c.partition == self.partition

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
        kind = type(self.projection)
        method = "apply" if kind.apply_all is Projection.apply_all else "apply_all"
        return self.failed(
            f"{kind.__name__}.{method}{event} {what}. Offsets below {self.position} are applied. Mend it and start again; where "
            f"rows are wrong already, raise its version, which rebuilds it",
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
        kind = type(projection).__name__
        name, version, metadata = (getattr(projection, field, None) for field in ("name", "version", "metadata"))
        if not isinstance(name, str) or not 0 < len(name) <= 100 or name in names:
            raise ConfigError(f"{kind}: `name` must be a text of its own, 1 to 100 characters; it is {name!r}")
        if not isinstance(version, int) or version < 1:
            raise ConfigError(f"projection {name!r}: `version` must be a number, 1 or higher; it is {version!r}")
        if not isinstance(metadata, sa.MetaData):
            raise ConfigError(
                f"projection {name!r}: `metadata` must be the sqlalchemy.MetaData of its tables; it is {metadata!r}"
            )
        names.add(name)
        for table in metadata.tables:
            if users.setdefault(table, name) != name:
                raise ConfigError(f"projection {name!r}: table {table!r} is of {users[table]!r}; choose another name for it")


def default_database(log: Log) -> sa.URL:
    """Where projections of this log are kept unless another database is named.

    An SQLite file beside an SQLite log (`orders.db` has `orders.projections.db`), `<namespace>.projections.db` in the current
    directory for Kafka, memory for memory. Raises ConfigError for other logs.
    """
    scheme, _, rest = log.name.partition("://")
    if scheme == "memory":
        return sa.URL.create("sqlite")
    if scheme == "sqlite":
        return sa.URL.create("sqlite", database=str(PurePath(rest[1:]).with_suffix(".projections.db")))
    if scheme == "kafka":
        return sa.URL.create("sqlite", database=f"{rest.rpartition('/')[2]}.projections.db")
    raise ConfigError(f"name a database for the projections of {log.name}, such as database='sqlite:///projections.db'")


def _engine(database: str | sa.URL) -> sa.Engine:
    try:
        url = sa.make_url(database)
        if url.get_backend_name() != "sqlite":
            return sa.create_engine(url, pool_pre_ping=True)
        if url.database in (None, "", ":memory:"):
            # The database is its connection: one, and lent to one at a time, so that no reader sits in the writer's transaction.
            lent = {"check_same_thread": False}
            engine = sa.create_engine(url, poolclass=sa.QueuePool, pool_size=1, max_overflow=0, connect_args=lent)
        else:
            engine = sa.create_engine(url, connect_args={"timeout": 10})
    except ArgumentError as error:
        raise ConfigError(f"{database!s} is no database URL: {error}; expected one of SQLAlchemy's") from error
    except ImportError as error:
        raise ConfigError(f"{database!s}: {error}; install the package that this database needs") from error
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """A power failure may undo the last transactions, rows and position alike: they are applied again."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def brief(error: BaseException) -> str:
    """What a database says, without SQL and parameters."""
    return str(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)
