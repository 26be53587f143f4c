"""The requests of people, one row each: who asked for what, and why. For audits, dashboards and SQL clients.

    stepfold_actions(partition, offset, at, type, run_id, workflow, subject, by, why)

Each row is an accepted request that says who asked or why: a start, a signal, a cancellation, an answer to a callback. `type`
is the type of its event; `at` is in milliseconds since 1970, UTC, by the log's clock; `subject` is the signal or the step that
it is about. A signal that came before its run's start has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from stepfold.values.times import utc

from .base import Batch, Gathering, RunChange
from .bulk import execute_many
from .runs import text_of

metadata = sa.MetaData()
actions = sa.Table(
    "stepfold_actions",
    metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("type", sa.String(40), nullable=False),
    sa.Column("run_id", sa.String(200), nullable=False),
    sa.Column("workflow", sa.String(200), nullable=False),
    sa.Column("subject", sa.String(1300)),
    sa.Column("by", sa.String(200)),
    sa.Column("why", sa.Text),
    sa.Index("stepfold_actions_at", "at"),
    sa.Index("stepfold_actions_by", "by", "at"),
    sa.Index("stepfold_actions_run", "run_id", "at"),
)


_INSERT = sa.insert(actions)


class ActionsProjection(Gathering):
    """Keeps the table `stepfold_actions`; `list_actions` reads it."""

    name = "stepfold-actions"
    version = 1
    metadata = metadata

    def gather(self, batch: Batch) -> _Requests:
        """Collect requests, and write their rows at the end of the batch."""
        return _Requests(batch.partition)


class _Requests:
    """The rows of one batch."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._rows: list[dict[str, Any]] = []

    def take(self, change: RunChange) -> None:
        if "request" in change.fields and (row := _row_of(change, self._partition)) is not None:
            self._rows.append(row)

    def write(self, connection: sa.Connection) -> None:
        execute_many(connection, _INSERT, self._rows)


def _row_of(change: RunChange, partition: int) -> dict[str, Any] | None:
    """The row of a request; None if nobody says who asked or why."""
    fields = change.fields
    by, why = _words(fields, "by"), _words(fields, "why") or _words(fields, "reason")
    if by is None and why is None:
        return None
    subject = _words(fields, "signal") or _words(fields, "step_id")
    return {
        "partition": partition,
        "offset": change.offset,
        "at": change.timestamp,
        "type": change.kind,
        "run_id": change.run.id,
        "workflow": text_of(change.run.workflow, 200),
        "subject": None if subject is None else text_of(subject, 1300),
        "by": None if by is None else text_of(by, 200),
        "why": None if why is None else text_of(why, 10_000),
    }


def _words(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class ActionRow:
    """An accepted request. `type`: of its event; `subject`: the signal or the step that it is about."""

    partition: int
    offset: int
    at: datetime
    type: str
    run_id: str
    workflow: str
    subject: str | None
    by: str | None
    why: str | None


class ActionFilter(TypedDict, total=False):
    """Conditions on requests; all must hold."""

    by: str
    type: str
    run_id: str
    workflow: str


ActionPlace = tuple[int, int, int]
"""Time (ms), partition and offset of a request: where a page of `list_actions` ends."""


def list_actions(
    connection: sa.Connection, *, limit: int = 50, after: ActionPlace | None = None, **filters: Unpack[ActionFilter]
) -> list[ActionRow]:
    """Up to `limit` requests after the row `after`, the newest first. Every page takes the same time."""
    order = actions.c.at.desc(), actions.c.partition, actions.c.offset.desc()
    query = sa.select(actions).where(*(actions.c[name] == value for name, value in filters.items())).order_by(*order).limit(limit)
    if after is not None:
        at, partition, offset = after
        here = sa.and_(actions.c.partition == partition, actions.c.offset < offset)
        same = sa.and_(actions.c.at == at, sa.or_(actions.c.partition > partition, here))
        query = query.where(sa.or_(actions.c.at < at, same))
    return [
        ActionRow(row.partition, row.offset, utc(row.at), row.type, row.run_id, row.workflow, row.subject, row.by, row.why)
        for row in connection.execute(query)
    ]
