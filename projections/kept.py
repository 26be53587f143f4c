"""The fold's state and the positions, which a database keeps beside the projection's rows.

The state is kept in pieces: a row for each open run, and one for each chunk of remembered ids. A summary holds the version of the
pieces, and counts and digests to check them: other code may have written them, and a database may be damaged. If the pieces do
not match the summary, the feed folds the log from its beginning; rows and position stay.

Synchronous: everything here runs on the runner's database thread, within the caller's transactions.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

import orjson
import sqlalchemy as sa

from stepfold.core.ended import fingerprint
from stepfold.core.fold import PartitionState
from stepfold.core.messages import Outbox
from stepfold.core.snapshot import unpack
from stepfold.events import FORMAT
from stepfold.worker.checkpoint import VERSION as PACKED
from stepfold.worker.checkpoint import begin_at, summary_of

VERSION = f"1.{PACKED}"
"""The format of the kept state, and of the packed runs in it. A reader ignores state in any other format."""
FORGET_LATE_MS = 3_600_000
"""The log's time may step back a little, so ids of ended runs are kept this much longer than the fold remembers them."""
SUM_BYTES = 4

_BYTES = sa.LargeBinary(2**31 - 1)
TABLES = sa.MetaData()
POSITIONS = sa.Table(
    "stepfold_positions",
    TABLES,
    sa.Column("projection", sa.String(100), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("build", sa.String(32), nullable=False),  # a rebuild changes it
    sa.Column("log_id", sa.String(200), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),  # all records below are applied
    sa.Column("snapshot", sa.BigInteger, nullable=False),  # all records below are in the kept state
    sa.Column("claim", sa.BigInteger, nullable=False),  # this and the next two columns are for users' SQL, and for stepfold 0.1
    sa.Column("owner", sa.String(200)),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("stood", sa.Text),  # marks of the records below the position
    sa.Column("kept", sa.Text),  # the summary of the kept state
    sa.Column("stopped", sa.Text),  # why the projection has stopped
)
_LATER = ("stood", "kept", "stopped")  # columns that tables of older versions lack
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

BEGINNING: dict[str, Any] = {"position": 0, "snapshot": 0, "claim": -1, "owner": None, "format": FORMAT}


def make_tables(connection: sa.Connection) -> None:
    """Make missing tables, and the columns that tables of older versions lack."""
    TABLES.create_all(connection)
    there = {column["name"] for column in sa.inspect(connection).get_columns(POSITIONS.name)}
    preparer = connection.dialect.identifier_preparer
    for name in _LATER:
        if name not in there:
            column = sa.schema.CreateColumn(POSITIONS.c[name]).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {preparer.format_table(POSITIONS)} ADD COLUMN {column}")


class Kept:
    """The kept state of one projection's fold over one partition."""

    def __init__(self, projection: str, partition: int, partitions: int) -> None:
        self._projection = projection
        self._partition = partition
        self._partitions = partitions
        self._changed: set[str] = set()  # runs that changed since the last save
        self._chunks: dict[int, int] = {}  # chunk of ended runs' ids -> its kept length
        self.note = self._changed.update
        """Note the ids of runs that have changed since the last save."""

    def load(self, connection: sa.Connection, row: sa.Row[Any]) -> PartitionState:
        """Read the kept state. Raises ValueError, or any error of reading foreign bytes, if it cannot be used."""
        self._changed.clear()
        self._chunks.clear()
        state = PartitionState(self._partition, self._partitions)
        if row.kept is None and row.snapshot == 0:
            return state
        summary = _summary(row.kept)
        for packed in connection.scalars(sa.select(OPEN_RUNS.c.state).where(*self.of(OPEN_RUNS))):
            run = unpack(_whole(packed))
            state.runs.add(run)
            state.open_mark ^= fingerprint(run.id)
        chunks = sa.select(ENDED_RUNS.c.chunk, ENDED_RUNS.c.entries).where(*self.of(ENDED_RUNS))
        for number, entries in connection.execute(chunks.order_by(ENDED_RUNS.c.chunk)):
            state.ended.load(number, _whole(entries))
        state.outbox = Outbox.unpack(orjson.dumps(summary.pop("outbox")))
        begin_at(state, summary)
        if summary_of(state) != summary or state.offset > row.position:
            raise ValueError("its pieces do not add up")
        self._chunks = {number: len(chunk) for number, chunk in state.ended.chunks.items()}
        return state

    def drop(self, connection: sa.Connection) -> PartitionState:
        """Delete the kept state, and return the state at the log's beginning."""
        self._changed.clear()
        self._chunks.clear()
        for table in (OPEN_RUNS, ENDED_RUNS):
            connection.execute(sa.delete(table).where(*self.of(table)))
        connection.execute(sa.update(POSITIONS).where(*self.of(POSITIONS)).values(snapshot=0, kept=None))
        return PartitionState(self._partition, self._partitions)

    def save(self, connection: sa.Connection, state: PartitionState, latest: int) -> None:
        """Save the state. `latest`: the log's time, ms.

        If the transaction fails, call `load`: this object then differs from the database.
        """
        here = {"projection": self._projection, "partition": self._partition}
        if self._changed:
            connection.execute(
                sa.delete(OPEN_RUNS).where(*self.of(OPEN_RUNS), OPEN_RUNS.c.run_id == sa.bindparam("id")),
                [{"id": run_id} for run_id in self._changed],
            )
        packed = [{**here, "run_id": i, "state": _summed(state.runs.snapshot(i))} for i in self._changed if i in state.runs]
        if packed:
            connection.execute(sa.insert(OPEN_RUNS), packed)
        state.ended.forget(latest - FORGET_LATE_MS, state.memory_ms)
        grown = {n: _summed(bytes(chunk)) for n, chunk in state.ended.chunks.items() if self._chunks.get(n) != len(chunk)}
        first, chunk = next(iter(state.ended.chunks), 0), ENDED_RUNS.c.chunk
        connection.execute(sa.delete(ENDED_RUNS).where(*self.of(ENDED_RUNS), sa.or_(chunk < first, chunk.in_([*grown]))))
        if grown:
            connection.execute(sa.insert(ENDED_RUNS), [{**here, "chunk": n, "entries": chunk} for n, chunk in grown.items()])
        body = orjson.dumps({**summary_of(state), "outbox": orjson.Fragment(state.outbox.pack())})
        kept = f"{VERSION} {zlib.crc32(body):08x} {body.decode()}"
        values = {"snapshot": state.offset, "claim": state.claim, "kept": kept}
        connection.execute(sa.update(POSITIONS).where(*self.of(POSITIONS)).values(values))
        self._changed.clear()
        self._chunks = {number: len(chunk) for number, chunk in state.ended.chunks.items()}

    def of(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
        """The conditions for the rows of this projection and partition."""
        return table.c.projection == self._projection, table.c.partition == self._partition


def _summary(kept: Any) -> dict[str, Any]:
    version, _, rest = str(kept).partition(" ")
    if version != VERSION:
        raise ValueError("it was kept by another version of stepfold")
    crc, _, body = rest.partition(" ")
    if int(crc, 16) != zlib.crc32(body.encode()):
        raise ValueError("its summary is damaged")
    return cast(dict[str, Any], orjson.loads(body))


def _summed(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(SUM_BYTES) + data


def _whole(data: Any) -> bytes:
    if not isinstance(data, bytes) or int.from_bytes(data[:SUM_BYTES]) != zlib.crc32(data[SUM_BYTES:]):
        raise ValueError("a piece is damaged")
    return data[SUM_BYTES:]
