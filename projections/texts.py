"""An index of the runs' texts, so that a search does not read every run.

SQLite: an FTS5 table with the trigrams of each text, but not the text. The row number of an entry is a millisecond: its
candidates are all runs that started in it, so they come in the order of their starts. Entries are only added; a search reads the
texts of the candidates. PostgreSQL: an index of pg_trgm. If the database has neither, a search reads row by row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError

from .bulk import execute_many

TRIGRAM = 3
"""A search of this length or more finds the text anywhere; a shorter one only at the beginning of an id or workflow."""
_TABLE = "stepfold_runs_texts"
_ROWID: sa.ColumnClause[int] = sa.column("rowid", sa.BigInteger)
_INDEX = sa.table(_TABLE, _ROWID, sa.column("text", sa.Text))
_MATCHES = sa.literal_column(_TABLE).op("MATCH", is_comparison=True)(sa.bindparam("asked", type_=sa.Text))
_BEGIN = "\x02\x02"  # before an id and a workflow, so that their beginnings have trigrams
_CHOSEN = 4
_PROBED = 24
_ADD = sa.insert(_INDEX)
_PROBE = sa.select(_ROWID).select_from(_INDEX).where(_MATCHES).order_by(_ROWID.desc()).limit(1).offset(200)


def keep_index(table: sa.Table, columns: Sequence[str]) -> None:
    """Make the index of these columns whenever the table of runs is made, and drop it with the table."""

    @event.listens_for(table, "after_create")
    def made(_target: sa.Table, connection: sa.Connection, **_: object) -> None:
        if connection.dialect.name == "sqlite":
            options = "content='', columnsize=0, detail=none, tokenize='trigram'"
            with contextlib.suppress(OperationalError):  # an SQLite without FTS5, or older than 3.34
                connection.exec_driver_sql(f"CREATE VIRTUAL TABLE IF NOT EXISTS {_TABLE} USING fts5(text, {options})")
        elif connection.dialect.name == "postgresql":
            of = ", ".join(f"{column} gin_trgm_ops" for column in columns)
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
                    connection.exec_driver_sql(f"CREATE INDEX {_TABLE} ON {table.name} USING gin ({of})")
            except DBAPIError as error:  # the extension is not installed, or this user may not create it
                if error.connection_invalidated:
                    raise

    @event.listens_for(table, "before_drop")
    def dropped(_target: sa.Table, connection: sa.Connection, **_: object) -> None:
        if connection.dialect.name == "sqlite" and has_index(connection):
            connection.exec_driver_sql(f"DROP TABLE {_TABLE}")

    assert made is not dropped


def has_index(connection: sa.Connection) -> bool:
    """Whether this database has a table of trigrams."""
    if connection.dialect.name != "sqlite":
        return False
    return connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = ?", (_TABLE,)).first() is not None


def head(run_id: str, workflow: str) -> str:
    """The indexed text of an id and a workflow."""
    return f"{_BEGIN}{run_id}\n{_BEGIN}{workflow}"


def add(connection: sa.Connection, texts: Mapping[int, Sequence[str]]) -> None:
    """Add texts of runs, by the milliseconds in which the runs started, to an index that exists."""
    rows = [{"rowid": started_at, "text": "\n".join(texts[started_at])} for started_at in sorted(texts)]
    execute_many(connection, _ADD, rows)


def starts(connection: sa.Connection, text: str, *, falls: bool, first: int | None, last: int | None) -> Iterator[list[int]]:
    """The milliseconds in which runs started that may contain the text, the newest or the oldest first, in growing portions.

    A text of one or two characters must begin an id or a workflow. `first`, `last`: the range of milliseconds.
    """
    text = text if len(text) >= TRIGRAM else (_BEGIN + text)[-TRIGRAM:]
    trigrams = list(dict.fromkeys(text[at : at + TRIGRAM] for at in range(len(text) - TRIGRAM + 1)))
    asked = " AND ".join(map(_quoted, _rare(connection, trigrams)))
    query = sa.select(_ROWID).select_from(_INDEX).where(_MATCHES).order_by(_ROWID.desc() if falls else _ROWID)
    if first is not None:
        query = query.where(first <= _ROWID)
    if last is not None:
        query = query.where(last >= _ROWID)
    with connection.execute(query, {"asked": asked}) as found:
        size = 100
        while portion := [int(row[0]) for row in found.fetchmany(size)]:
            yield portion
            size = min(2 * size, 500)


def _rare(connection: sa.Connection, trigrams: Sequence[str]) -> Sequence[str]:
    """The trigrams that few of the newest runs have. Intersecting the long lists of the others costs more than it saves."""
    trigrams = trigrams[:: len(trigrams) // _PROBED + 1]
    if len(trigrams) <= 1:
        return trigrams
    reached = {trigram: connection.execute(_PROBE, {"asked": _quoted(trigram)}).scalar() for trigram in trigrams}
    return sorted(trigrams, key=lambda trigram: -math.inf if (at := reached[trigram]) is None else at)[:_CHOSEN]


def _quoted(trigram: str) -> str:
    return '"' + trigram.replace('"', '""') + '"'
