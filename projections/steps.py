"""The operations of all runs, groups of their errors, and counts by minute: for dashboards and SQL clients.

    stepfold_steps(run_id, step_id, kind, state, attempts, lost, began_at, ended_at, until, last_error, fingerprint)
    stepfold_errors(fingerprint, workflow, step, type, likeness, sample, count, first_at, last_at, last_run_id)
    stepfold_error_runs(fingerprint, run_id, last_at)
    stepfold_minutes(minute, partition, workflow, started, completed, failed, cancelled, steps_completed, attempts_failed,
                     attempts_lost)
    stepfold_workflows(workflow, partition, first_minute, last_minute, and the sums of the counts of all minutes)
    stepfold_durations(minute, partition, workflow, measure, bucket, count)

Times are milliseconds since 1970, UTC, by the log's clock; `minute` is the beginning of one. One row of `stepfold_steps` is one
operation: `state` is open, done, failed, dropped or timed out; `attempts` is the number of its last attempt. Errors are alike,
and have one `fingerprint`, if workflow, step and type are the same and the messages differ only in numbers, ids and quoted texts.
`stepfold_durations` counts durations in buckets (see `bucket_of`): `run`, from start to end, and `queue`, how long attempts
waited for a slot.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from stepfold.core.state import RunState
from stepfold.errors import ErrorInfo
from stepfold.operations import COUNTED, ENDS, GIVES_BACK, KIND_OF
from stepfold.operations.line import Line
from stepfold.values.times import ms_of, utc

from .base import Batch, Gathering, RunChange
from .bulk import execute_many
from .runs import HAVE_ERRORS, text_of

MINUTE_MS = 60_000
BUCKETS_AN_OCTAVE = 8
"""The buckets of durations for each doubling. Neighbours differ by a factor of 2 ** (1 / 8), so a percentile is right to 5 %."""

metadata = sa.MetaData()
steps = sa.Table(
    "stepfold_steps",
    metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("step_id", sa.String(1300), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lost", sa.Integer, nullable=False),
    sa.Column("began_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("until", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("fingerprint", sa.String(32)),
    sa.Index("stepfold_steps_fingerprint", "fingerprint"),
)
errors = sa.Table(
    "stepfold_errors",
    metadata,
    sa.Column("fingerprint", sa.String(32), primary_key=True),
    sa.Column("workflow", sa.String(200), nullable=False),
    sa.Column("step", sa.String(1300), nullable=False),
    sa.Column("type", sa.String(200), nullable=False),
    sa.Column("likeness", sa.Text, nullable=False),
    sa.Column("sample", sa.Text, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("first_at", sa.BigInteger, nullable=False),
    sa.Column("last_at", sa.BigInteger, nullable=False),
    sa.Column("last_run_id", sa.String(200), nullable=False),
    sa.Index("stepfold_errors_last", "last_at"),
)
error_runs = sa.Table(
    "stepfold_error_runs",
    metadata,
    sa.Column("fingerprint", sa.String(32), primary_key=True),
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("last_at", sa.BigInteger, nullable=False),
    sa.Index("stepfold_error_runs_run", "run_id"),
)
_COUNTS = ("started", "completed", "failed", "cancelled", "steps_completed", "attempts_failed", "attempts_lost")
minutes = sa.Table(
    "stepfold_minutes",
    metadata,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("workflow", sa.String(200), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
)
workflows = sa.Table(
    "stepfold_workflows",
    metadata,
    sa.Column("workflow", sa.String(200), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("first_minute", "last_minute", *_COUNTS)),
)
durations = sa.Table(
    "stepfold_durations",
    metadata,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("workflow", sa.String(200), primary_key=True),
    sa.Column("measure", sa.String(10), primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)

_VARIABLE = re.compile(
    r"""'[^']*'|"[^"]*"|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=[a-z_-]*\d)[0-9a-z_-]{6,}|\d+""", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+")
LIKENESS_CHARS = 300
HAVE_ATTEMPTS = ("steps_completed", "attempts_failed")
"""The counts of attempts that a worker has run to their end."""


class StepsProjection(Gathering):
    """Keeps the six tables of this module, on SQLite and PostgreSQL; the functions here read them."""

    name = "stepfold-steps"
    version = 3
    metadata = metadata

    def gather(self, batch: Batch) -> _News:
        """Collects the batch: each changed row is written once."""
        return _News(batch.partition)


class _News:
    """The changes of one batch."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.begun: set[str] = set()
        self.ended: dict[str, int] = {}
        self.steps: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)  # by run and step id
        self.errors: dict[str, dict[str, Any]] = {}
        self.error_runs: dict[tuple[str, str], dict[str, Any]] = {}  # by run id and fingerprint
        self.counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)  # by minute and workflow
        self.durations: Counter[tuple[int, str, str, int]] = Counter()  # by minute, workflow, measure and bucket

    def take(self, change: RunChange) -> None:
        run, kind, fields = change.run.folded, change.kind, change.fields
        workflow = text_of(run.workflow, 200)
        counts = self.counts[run.now // MINUTE_MS * MINUTE_MS, workflow]
        error = key = None
        if kind in HAVE_ERRORS and fields.get("error") is not None:
            error = ErrorInfo.from_json(fields["error"])
            key = fingerprint(workflow, fields.get("step_id"), error)
            self._take_error(run, workflow, fields.get("step_id"), error, key)
        if kind in COUNTED:
            counts[COUNTED[kind]] += 1
        if kind == "started":
            self._forget(run.id)
            self.begun.add(run.id)
            counts["started"] += 1
        elif run.ended_at is not None:
            counts[run.phase] += 1
            self.ended[run.id] = run.ended_at
            self._take_duration(workflow, run, "run", run.ended_at - run.started_at)
            for row in self.steps[run.id].values():
                if row["state"] == "open":
                    row.update(state="dropped", ended_at=run.ended_at)
            return
        if COUNTED.get(kind) in HAVE_ATTEMPTS:
            began, queued = fields.get("began_at"), fields.get("queued_at")
            waited = began - queued if type(began) is int and type(queued) is int else 0
            self._take_duration(workflow, run, "queue", waited)
        if "step_id" in fields and "request" not in fields:
            row = self._take_step(run, kind, fields)
            if error is not None:
                row.update(last_error=text_of(str(error)), fingerprint=key)
        self._take_ends(run)

    def _forget(self, run_id: str) -> None:
        self.steps.pop(run_id, None)
        self.ended.pop(run_id, None)
        for key in [key for key in self.error_runs if key[0] == run_id]:
            del self.error_runs[key]

    def _take_step(self, run: RunState, type: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Take a decision about an operation into its row, and return the row."""
        step_id, kind = fields["step_id"], KIND_OF.get(type)
        row = self._row(run, step_id, None if kind is None else kind.name)
        row["attempts"] = max(row["attempts"], fields.get("attempt") or 0)
        row["lost"] += COUNTED.get(type) == "attempts_lost"
        operation = run.open.get(step_id)
        row["until"] = None if operation is None else operation.due_at
        # `step-cancelled` may come after a signal has ended the wait, and returns the signal
        if operation is None and (row["state"] == "open" or type == "step-cancelled"):
            row.update(state="dropped", ended_at=run.now)  # unless the journal holds its outcome
        return row

    def _take_ends(self, run: RunState) -> None:
        """Take the ends of operations from the newest entries of the journal; stops at entries taken before."""
        rows = self.steps[run.id]
        for step_id, outcome, at, value in reversed(run.journal):
            end = ENDS.get(outcome)
            if at != run.now:
                break
            if end is None:
                continue
            if step_id in rows and rows[step_id]["state"] not in ("open", "dropped"):
                break
            row = self._row(run, step_id, None)
            line = Line(step_id, row["kind"])
            end(line, value, at)
            given_back = outcome in GIVES_BACK and step_id in run.returned
            row.update(state="dropped" if given_back else line.became, ended_at=at, until=None)
            if line.error is not None:
                key = fingerprint(text_of(run.workflow, 200), step_id, line.error)
                row.update(last_error=text_of(str(line.error)), fingerprint=key)

    def _row(self, run: RunState, step_id: str, kind: str | None) -> dict[str, Any]:
        rows = self.steps[run.id]
        row = rows.get(step_id)
        if row is None:
            row = rows[step_id] = {
                "run_id": run.id,
                "step_id": text_of(step_id, 1300),
                "kind": kind or "",
                "state": "open",
                "attempts": 0,
                "lost": 0,
                "began_at": run.now,
                "ended_at": None,
                "until": None,
                "last_error": None,
                "fingerprint": None,
            }
        return row

    def _take_error(self, run: RunState, workflow: str, step_id: str | None, error: ErrorInfo, key: str) -> None:
        row = self.errors.get(key)
        if row is None:
            row = self.errors[key] = {
                "fingerprint": key,
                "workflow": workflow,
                "step": text_of(step_name(step_id), 1300),
                "type": text_of(error.type, 200),
                "likeness": text_of(likeness(error.message)),
                "count": 0,
                "first_at": run.now,
            }
        self.error_runs[run.id, key] = {"fingerprint": key, "run_id": run.id, "last_at": run.now}
        row["count"] += 1
        row.update(sample=text_of(error.message), last_at=run.now, last_run_id=run.id)

    def _take_duration(self, workflow: str, run: RunState, measure: str, ms: int) -> None:
        self.durations[run.now // MINUTE_MS * MINUTE_MS, workflow, measure, bucket_of(ms)] += 1

    def write(self, connection: sa.Connection) -> None:
        if self.begun:
            for forget in _FORGET:
                execute_many(connection, forget, [{"id": run_id} for run_id in self.begun])
        _upsert(connection, steps, [row for rows in self.steps.values() for row in rows.values()])
        execute_many(connection, _DROP, [{"id": run_id, "at": at} for run_id, at in self.ended.items()])
        _upsert(connection, errors, self.errors.values())
        _upsert(connection, error_runs, self.error_runs.values())
        _upsert(connection, minutes, [self._minute(*key, counts) for key, counts in sorted(self.counts.items())])
        _upsert(connection, workflows, self._sums())
        _upsert(connection, durations, [self._duration(key, count) for key, count in sorted(self.durations.items())])

    def _minute(self, minute: int, workflow: str, counts: Counter[str]) -> dict[str, Any]:
        return {"minute": minute, "partition": self.partition, "workflow": workflow, **{name: counts[name] for name in _COUNTS}}

    def _sums(self) -> list[dict[str, Any]]:
        sums: dict[str, dict[str, Any]] = {}
        for (minute, workflow), counts in sorted(self.counts.items()):
            begin = {"workflow": workflow, "partition": self.partition, "first_minute": minute, **dict.fromkeys(_COUNTS, 0)}
            row = sums.setdefault(workflow, begin)
            row["last_minute"] = minute
            for name, count in counts.items():
                row[name] += count
        return list(sums.values())

    def _duration(self, place: tuple[int, str, str, int], count: int) -> dict[str, Any]:
        names = ("minute", "workflow", "measure", "bucket")
        return {**dict(zip(names, place, strict=True)), "partition": self.partition, "count": count}


def likeness(message: str) -> str:
    """The first line of a message, with an asterisk for each number, id and quoted text."""
    line = message.strip().partition("\n")[0][:LIKENESS_CHARS]
    return _VARIABLE.sub("*", line)


def step_name(step_id: str | None) -> str:
    """A step id without the numbers of scopes and of repeated ids; "" for the run's own code."""
    return "" if step_id is None else _NUMBER.sub("*", step_id.partition("#")[0])


def fingerprint(workflow: str, step_id: str | None, error: ErrorInfo) -> str:
    """The fingerprint that all errors of a group share."""
    parts = "\0".join((workflow, step_name(step_id), error.type, likeness(error.message)))
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def bucket_of(ms: int) -> int:
    """The bucket of a duration: 0 below 1 ms, then `BUCKETS_AN_OCTAVE` for each doubling."""
    return 0 if ms < 1 else 1 + math.floor(math.log2(ms) * BUCKETS_AN_OCTAVE)


def middle_ms(bucket: int) -> float:
    """The middle of a bucket, in milliseconds."""
    return 0.0 if bucket == 0 else 2 ** ((bucket - 0.5) / BUCKETS_AN_OCTAVE)


def _upsert(connection: sa.Connection, table: sa.Table, rows: Iterable[Mapping[str, Any]]) -> None:
    execute_many(connection, _statement(table, connection.dialect.name), list(rows))


@cache
def _statement(table: sa.Table, dialect: str) -> sa.Insert:
    """Made once: SQLAlchemy takes longer to build it than SQLite to run it."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=_CHANGES[table](insert.excluded))


def _changes(new: Any) -> dict[str, Any]:
    old = steps.c
    return {
        "kind": sa.case((old.kind == "", new.kind), else_=old.kind),
        "state": new.state,
        "attempts": sa.case((new.attempts > old.attempts, new.attempts), else_=old.attempts),
        "lost": old.lost + new.lost,
        "ended_at": new.ended_at,
        "until": new.until,
        "last_error": sa.func.coalesce(new.last_error, old.last_error),
        "fingerprint": sa.func.coalesce(new.fingerprint, old.fingerprint),
    }


def _error_changes(new: Any) -> dict[str, Any]:
    return {"count": errors.c["count"] + new["count"], **{name: new[name] for name in ("sample", "last_at", "last_run_id")}}


def _sums(new: Any) -> dict[str, Any]:
    return {name: minutes.c[name] + new[name] for name in _COUNTS}


def _workflow_changes(new: Any) -> dict[str, Any]:
    old = workflows.c
    return {
        "first_minute": sa.case((new.first_minute < old.first_minute, new.first_minute), else_=old.first_minute),
        "last_minute": sa.case((new.last_minute > old.last_minute, new.last_minute), else_=old.last_minute),
        **{name: old[name] + new[name] for name in _COUNTS},
    }


def _more(new: Any) -> dict[str, Any]:
    return {"count": durations.c["count"] + new["count"]}


_CHANGES: dict[sa.Table, Callable[[Any], dict[str, Any]]] = {
    steps: _changes,
    errors: _error_changes,
    error_runs: lambda new: {"last_at": new.last_at},
    minutes: _sums,
    workflows: _workflow_changes,
    durations: _more,
}
_FORGET = [sa.delete(table).where(table.c.run_id == sa.bindparam("id", type_=sa.String)) for table in (steps, error_runs)]
_DROP = (
    sa.update(steps)
    .where(steps.c.run_id == sa.bindparam("id", type_=sa.String), steps.c.state == "open")
    .values(state="dropped", ended_at=sa.bindparam("at", type_=sa.BigInteger), until=None)
)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One operation of a run. Times are UTC, by the log's clock; `until`: when a sleep, a wait or a back-off ends."""

    run_id: str
    step_id: str
    kind: str
    state: str
    attempts: int
    lost: int
    began_at: datetime
    ended_at: datetime | None
    until: datetime | None
    last_error: str | None
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """A group of similar errors. `step`: "" for errors of the workflow's own code; `sample`: the message of the last one."""

    fingerprint: str
    workflow: str
    step: str
    type: str
    likeness: str
    sample: str
    count: int
    first_at: datetime
    last_at: datetime
    last_run_id: str


@dataclass(frozen=True, slots=True)
class Minute:
    """The counts of one minute, UTC. `p50_ms`, `p95_ms` and `p99_ms`: the durations of the runs that ended in it; None if none
    did."""

    minute: datetime
    started: int
    completed: int
    failed: int
    cancelled: int
    steps_completed: int
    attempts_failed: int
    attempts_lost: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def list_steps(connection: sa.Connection, run_id: str, *, limit: int = 200, after: str | None = None) -> list[StepRow]:
    """Up to `limit` operations of a run after the one with the step id `after`, in the order of their beginning."""
    query = sa.select(steps).where(steps.c.run_id == run_id)
    if after is not None:
        of_it = sa.select(steps.c.began_at).where(steps.c.run_id == run_id, steps.c.step_id == after).scalar_subquery()
        query = query.where(sa.or_(steps.c.began_at > of_it, sa.and_(steps.c.began_at == of_it, steps.c.step_id > after)))
    rows = connection.execute(query.order_by(steps.c.began_at, steps.c.step_id).limit(limit))
    return [StepRow(**_with_times(row, "began_at", "ended_at", "until")) for row in rows.mappings()]


def list_errors(
    connection: sa.Connection,
    *,
    workflow: str | None = None,
    fingerprint: str | None = None,
    after: datetime | None = None,
    limit: int = 50,
) -> list[ErrorGroup]:
    """Groups of errors, that with the newest error first: of a workflow, with a fingerprint, with errors since `after`.

    Raises ValueError for a naive datetime.
    """
    query = sa.select(errors).order_by(errors.c.last_at.desc(), errors.c.fingerprint).limit(limit)
    if workflow is not None:
        query = query.where(errors.c.workflow == workflow)
    if fingerprint is not None:
        query = query.where(errors.c.fingerprint == fingerprint)
    if after is not None:
        query = query.where(errors.c.last_at >= ms_of(after))
    return [ErrorGroup(**_with_times(row, "first_at", "last_at")) for row in connection.execute(query).mappings()]


def list_minutes(connection: sa.Connection, *, after: datetime, before: datetime, workflow: str | None = None) -> list[Minute]:
    """The minutes between two times in which something happened, the oldest first, of a workflow or of all.

    Raises ValueError for a naive datetime.
    """
    span = ms_of(after) // MINUTE_MS * MINUTE_MS, ms_of(before)
    sums = [sa.func.sum(minutes.c[name]) for name in _COUNTS]
    query = sa.select(minutes.c.minute, *sums).where(*_between(minutes, span, workflow))
    counted = connection.execute(query.group_by(minutes.c.minute).order_by(minutes.c.minute)).all()
    minute, bucket = durations.c.minute, durations.c.bucket
    of_runs = sa.select(minute, bucket, sa.func.sum(durations.c["count"])).where(*_between(durations, span, workflow))
    of_runs = of_runs.where(durations.c.measure == "run").group_by(minute, bucket).order_by(minute, bucket)
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for when, number, count in connection.execute(of_runs):
        found[when].append((number, int(count)))
    return [
        Minute(
            utc(row[0]), *(int(total) for total in row[1:]), *(percentile(found[row[0]], share) for share in (0.5, 0.95, 0.99))
        )
        for row in counted
    ]


def percentile(buckets: Sequence[tuple[int, int]], share: float) -> float | None:
    """The duration that `share` of all do not exceed, in ms. `buckets`: (bucket, count), in order of the buckets."""
    left = share * sum(count for _, count in buckets)
    for bucket, count in buckets:
        left -= count
        if left <= 0:
            return middle_ms(bucket)
    return None


def _between(table: sa.Table, span: tuple[int, int], workflow: str | None) -> list[sa.ColumnElement[bool]]:
    found = [table.c.minute >= span[0], table.c.minute < span[1]]
    return found if workflow is None else [*found, table.c.workflow == workflow]


def _with_times(row: sa.RowMapping, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = {str(name): value for name, value in row.items()}
    return found | {name: None if found[name] is None else utc(found[name]) for name in names}
