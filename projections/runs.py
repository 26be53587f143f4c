"""The runs, one row each: for `run list`, dashboards and SQL clients.

    stepfold_runs(run_id, workflow, version, state, partition, started_at, updated_at, ended_at, steps_completed,
                  attempts_failed, waiting_on, waiting_kind, waiting_step, waiting_until, last_error, input, result)

Times are milliseconds since 1970, UTC, by the log's clock. `state` and `waiting_on` (a JSON list) are those of `Run.status()`.
`waiting_kind` and `waiting_step` are kind and step id of the oldest open operation; `waiting_until` is the time of the first
timer of the open operations. `input` and `result` are the beginning of the JSON, to be shown and searched. A run id can be used
again a day after the run's end; the row is then that of the last run.

A search uses an index of texts (`texts`). It takes the index's candidates in the order of their starts and reads their rows. If
only a few runs fulfil the other conditions, it reads all of these instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast, get_args

import orjson
import sqlalchemy as sa

from stepfold.client.status import State
from stepfold.errors import ErrorInfo
from stepfold.events import RunEvent
from stepfold.operations import COUNTED
from stepfold.values.names import BUILT_IN
from stepfold.values.times import ms_of, utc

from . import texts
from .base import Batch, Gathering, RunChange, RunSoFar
from .bulk import execute_many

_ERROR_RUNS = sa.table("stepfold_error_runs", sa.column("fingerprint", sa.String), sa.column("run_id", sa.String))
EXCERPT = 2000
"""How many characters of inputs, results and errors a row keeps."""

metadata = sa.MetaData()
runs = sa.Table(
    "stepfold_runs",
    metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("workflow", sa.String(200), nullable=False),
    sa.Column("version", sa.String(200)),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("steps_completed", sa.Integer, nullable=False),
    sa.Column("attempts_failed", sa.Integer, nullable=False),
    sa.Column("waiting_on", sa.Text, nullable=False),
    sa.Column("waiting_kind", sa.String(20)),
    sa.Column("waiting_step", sa.String(1300)),
    sa.Column("waiting_until", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Index("stepfold_runs_started", "started_at"),
    sa.Index("stepfold_runs_updated", "updated_at"),
    sa.Index("stepfold_runs_state", "state", "started_at"),
    sa.Index("stepfold_runs_workflow", "workflow", "started_at"),
    sa.Index("stepfold_runs_workflow_state", "workflow", "state", "started_at"),
)


def _where(name: str, columns: Sequence[str], condition: sa.ColumnElement[bool]) -> sa.Index:
    """A partial index: of the runs that fulfil a condition."""
    return sa.Index(name, *(runs.c[column] for column in columns), sqlite_where=condition, postgresql_where=condition)


_WAITS = runs.c.waiting_kind.is_not(None)
_TROUBLED = sa.text("attempts_failed > 0")  # a literal, not a bound value: SQLite can then use a partial index
_ERRED = runs.c.last_error.is_not(None)
_where("stepfold_runs_waiting", ["waiting_kind", "started_at"], _WAITS)
_where("stepfold_runs_waiting_workflow", ["workflow", "waiting_kind", "started_at"], _WAITS)
_where("stepfold_runs_troubled", ["started_at"], cast("sa.ColumnElement[bool]", _TROUBLED))
_where("stepfold_runs_erred", ["started_at"], _ERRED)
_TEXTS = ("run_id", "workflow", "last_error", "input", "result")
texts.keep_index(runs, _TEXTS)

_WAITING = ("waiting_on", "waiting_kind", "waiting_step", "waiting_until")
_CHANGING = ("version", "state", "updated_at", "ended_at", *_WAITING, "result")
_NEW_VALUES: dict[str, sa.ColumnElement[Any]] = {name: sa.bindparam(f"new_{name}", type_=runs.c[name].type) for name in _CHANGING}
_SUMS: dict[str, sa.ColumnElement[Any]] = {
    "steps_completed": runs.c.steps_completed + sa.bindparam("more_steps_completed", type_=sa.Integer),
    "attempts_failed": runs.c.attempts_failed + sa.bindparam("more_attempts_failed", type_=sa.Integer),
    "last_error": sa.func.coalesce(sa.bindparam("new_error", type_=sa.Text), runs.c.last_error),
}
HAVE_ERRORS = frozenset(model.model_fields["type"].default for model in get_args(RunEvent) if "error" in model.model_fields)
_OF_RUN = runs.c.run_id == sa.bindparam("id", type_=sa.String)
_DELETE = sa.delete(runs).where(_OF_RUN)
_INSERT = sa.insert(runs)
_UPDATE = sa.update(runs).where(_OF_RUN).values({**_NEW_VALUES, **_SUMS})
_COMPLETE = sa.update(runs).where(_OF_RUN).values(input=sa.bindparam("new_input"))


class RunsProjection(Gathering):
    """Keeps the table `stepfold_runs`; `list_runs` and `count_runs` read it."""

    name = "stepfold-runs"
    version = 3
    metadata = metadata

    def gather(self, batch: Batch) -> _News:
        """Collects the batch: each changed run is written once, in its last state."""
        return _News(batch)


class _News:
    """The changes of one batch by run id; if the run id began again in the batch, those of the last run."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.changed: dict[str, RunSoFar] = {}
        self.begun: set[str] = set()
        self.counts: dict[str, Counter[str]] = {"steps_completed": Counter(), "attempts_failed": Counter()}
        self.errors: dict[str, str] = {}
        self.inputs: dict[str, str] = {}

    def take(self, change: RunChange) -> None:
        run_id, kind = change.run.id, change.kind
        self.changed[run_id] = change.run
        if kind == "started":
            self.begun.add(run_id)
            for noted in (*self.counts.values(), self.errors, self.inputs):
                noted.pop(run_id, None)
        elif kind == "input-completed":
            self.inputs[run_id] = _json(change.fields["input"])
        elif COUNTED.get(kind) in self.counts:
            self.counts[COUNTED[kind]][run_id] += 1
        if kind in HAVE_ERRORS and change.fields.get("error") is not None:
            self.errors[run_id] = text_of(str(ErrorInfo.from_json(change.fields["error"])))

    def write(self, connection: sa.Connection) -> None:
        if self._batch.owned != self._batch.was_owned:
            for run in self._batch.open_runs():
                if not run.folded.open and run.folded.phase == "open":
                    self.changed.setdefault(run.id, run)
        updates = [self._update(run) for run_id, run in self.changed.items() if run_id not in self.begun]
        if self.begun:
            execute_many(connection, _DELETE, [{"id": run_id} for run_id in self.begun])
            execute_many(connection, _INSERT, [self._row(self.changed[run_id]) for run_id in self.begun])
        execute_many(connection, _UPDATE, updates)
        execute_many(connection, _COMPLETE, [{"id": run_id, "new_input": text} for run_id, text in self.inputs.items()])
        if texts.has_index(connection):
            texts.add(connection, self._texts())

    def _texts(self) -> dict[int, list[str]]:
        """The new texts of these runs, by the runs' start."""
        new: dict[int, list[str]] = {}

        def add(run_id: str, text: str) -> None:
            new.setdefault(self.changed[run_id].folded.started_at, []).append(text)

        for run_id in self.begun:
            run = self.changed[run_id]
            add(run_id, texts.head(run_id, text_of(run.workflow, 200)))
            add(run_id, _json(run.input))
        for run_id, text in (*self.inputs.items(), *self.errors.items()):
            add(run_id, text)
        for run_id, run in self.changed.items():
            if run.folded.phase == "completed":
                add(run_id, _json(run.folded.result))
        return new

    def _row(self, run: RunSoFar) -> dict[str, Any]:
        return {
            **_changing(run),
            "run_id": run.id,
            "workflow": text_of(run.workflow, 200),
            "partition": run.partition,
            "started_at": run.folded.started_at,
            **{name: count[run.id] for name, count in self.counts.items()},
            "last_error": self.errors.get(run.id),
            "input": _json(run.input),
        }

    def _update(self, run: RunSoFar) -> dict[str, Any]:
        return {
            "id": run.id,
            **{f"new_{name}": value for name, value in _changing(run).items()},
            **{f"more_{name}": count[run.id] for name, count in self.counts.items()},
            "new_error": self.errors.get(run.id),
        }


def _changing(run: RunSoFar) -> dict[str, Any]:
    folded = run.folded
    open_ones = () if folded.ended else folded.open.values()
    oldest = next(iter(folded.open), None) if open_ones else None
    return {
        "version": None if run.version is None else text_of(run.version, 200),
        "state": run.state,
        "updated_at": folded.now,
        "ended_at": folded.ended_at,
        "waiting_on": orjson.dumps(run.waiting_on).decode(),
        "waiting_kind": None if oldest is None else folded.open[oldest].kind,
        "waiting_step": None if oldest is None else text_of(oldest, 1300),
        "waiting_until": min((due for op in open_ones for due in (op.due_at, op.due_by_log) if due is not None), default=None),
        "result": _json(folded.result) if folded.phase == "completed" else None,
    }


def _json(value: Any) -> str:
    return text_of(orjson.dumps(value).decode())


def text_of(text: str, limit: int = EXCERPT) -> str:
    """The text cut to the length of its column, without NUL, which some databases refuse."""
    if len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. Times are UTC; `input` and `result`: the beginning of their JSON; `attempts_failed`: of all steps."""

    run_id: str
    workflow: str
    version: str | None
    state: State
    partition: int
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    steps_completed: int
    attempts_failed: int
    waiting_on: list[str]
    waiting_kind: str | None
    waiting_step: str | None
    waiting_until: datetime | None
    last_error: str | None
    input: str
    result: str | None


class RunFilter(TypedDict, total=False):
    """Conditions on runs; all must hold.

    `state`: one or several; `started_after`, `started_before`: aware datetimes; `waiting_kind`: of the oldest open operation;
    `attempts_failed`: at least this many; `error`: text in the last error; `search`: text in the run id, workflow, last error,
    input or result; one or two characters are searched only at the beginning of run ids and workflows. Texts match in upper and
    lower case alike. `fingerprint`: the run has had an error of this group; this needs a StepsProjection in the same database.
    """

    workflow: str
    state: State | Collection[State]
    started_after: datetime
    started_before: datetime
    waiting_kind: str
    attempts_failed: int
    error: str
    fingerprint: str
    search: str


class Counted(NamedTuple):
    """The number of runs that match. If not `exact`, there are at least this many."""

    number: int
    exact: bool = True


COUNT_MOST = 10_000
LOOK_MOST = 2000
"""`count_some` counts up to this many rows, or reads up to this many candidates of a search."""
_FEW = 2000
"""If at most this many rows fulfil the other conditions, a search reads them all instead of trying candidates one by one."""

Order = Literal["newest", "oldest", "updated"]
_ORDERS: dict[Order, tuple[sa.Column[int], bool]] = {
    "newest": (runs.c.started_at, True),
    "oldest": (runs.c.started_at, False),
    "updated": (runs.c.updated_at, True),
}


def list_runs(
    connection: sa.Connection,
    *,
    order: Order = "newest",
    limit: int = 50,
    after: RunRow | None = None,
    **filters: Unpack[RunFilter],
) -> list[RunRow]:
    """Up to `limit` runs after the row `after`, by start, the newest or the oldest first, or by last change.

    With a runner: `await runner.query(list_runs, state="failed")`. Every page takes the same time. Raises ValueError for a naive
    datetime.
    """
    column, falls = _ORDERS[order]
    conditions, ordered = _conditions(filters), (column.desc() if falls else column, runs.c.run_id)
    at = None
    if after is not None:
        at = ms_of(after.updated_at if order == "updated" else after.started_at)
        reached = column <= at if falls else column >= at
        conditions.append(sa.and_(reached, sa.or_(column != at, runs.c.run_id > after.run_id)))
    text = _searched(connection, filters)
    if text is not None and order != "updated":
        first, last = _span(filters)
        if at is not None:
            first, last = (first, at) if falls else (at, last)
        candidates = texts.starts(connection, text, falls=falls, first=first, last=last)
        found = _among(connection, candidates, sa.select(runs), conditions, ordered)
    elif (
        text is not None and (started := _all_few(texts.starts(connection, text, falls=True, first=None, last=None))) is not None
    ):
        rows = list(_among(connection, [started], sa.select(runs), conditions, ordered))
        rows.sort(key=lambda row: (-row.updated_at, row.run_id))
        found = iter(rows)
    else:
        found = iter(_in_order(connection, filters, conditions, ordered, limit))
    return [_row(row) for row in islice(found, limit)]


def count_runs(connection: sa.Connection, **filters: Unpack[RunFilter]) -> int:
    """The number of matching runs. Raises ValueError for a naive datetime."""
    text = _searched(connection, filters)
    if text is None:
        query = sa.select(sa.func.count()).select_from(runs).where(*_conditions(filters))
        return connection.execute(query).scalar_one()
    first, last = _span(filters)
    candidates = texts.starts(connection, text, falls=True, first=first, last=last)
    return sum(1 for _ in _among(connection, candidates, sa.select(runs.c.run_id), _conditions(filters)))


def count_some(connection: sa.Connection, **filters: Unpack[RunFilter]) -> Counted:
    """The number of matching runs, exact if it is quickly counted, else a lower bound. Raises ValueError for a naive datetime."""
    text = _searched(connection, filters)
    if text is None:
        found = _at_most(connection, filters, COUNT_MOST + 1)
        return Counted(min(found, COUNT_MOST), found <= COUNT_MOST)
    first, last = _span(filters)
    started: list[int] = []
    for portion in texts.starts(connection, text, falls=True, first=first, last=last):
        started += portion
        if len(started) >= LOOK_MOST:
            break
    found = sum(1 for _ in _among(connection, [started], sa.select(runs.c.run_id), _conditions(filters)))
    return Counted(found, len(started) < LOOK_MOST)


def _searched(connection: sa.Connection, filters: RunFilter) -> str | None:
    """The text whose candidates a search should try one by one; None if it should read the rows that fulfil the other
    conditions."""
    text, error = filters.get("search", ""), filters.get("error", "")
    if not text and len(error) >= texts.TRIGRAM:
        text = error
    if not text or not texts.has_index(connection):
        return None
    others = cast(RunFilter, {name: value for name, value in filters.items() if name not in ("search", "error")})
    if others and _at_most(connection, others, _FEW + 1) <= _FEW:
        return None
    return text_of(text)


def _at_most(connection: sa.Connection, filters: RunFilter, most: int) -> int:
    """The number of runs that fulfil the conditions, at most `most`."""
    some = sa.select(sa.literal(1)).select_from(runs).where(*_conditions(filters)).limit(most).subquery()
    return connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()


def _all_few(candidates: Iterator[list[int]]) -> list[int] | None:
    """All candidates; None if there are more than a few."""
    found: list[int] = []
    for portion in candidates:
        found += portion
        if len(found) > _FEW:
            return None
    return found


def _among(
    connection: sa.Connection,
    candidates: Iterable[list[int]],
    query: sa.Select[Any],
    conditions: Sequence[sa.ColumnElement[bool]],
    ordered: Sequence[sa.ColumnElement[Any]] = (),
) -> Iterator[sa.Row[Any]]:
    """The rows of the query that started in these milliseconds, in portions."""
    for portion in candidates:
        for begin in range(0, len(portion), _AT_ONCE):
            started = runs.c.started_at.in_(portion[begin : begin + _AT_ONCE])
            yield from connection.execute(query.where(started, *conditions).order_by(*ordered))


_AT_ONCE = 500


def _in_order(
    connection: sa.Connection,
    filters: RunFilter,
    conditions: list[sa.ColumnElement[bool]],
    ordered: Sequence[sa.ColumnElement[Any]],
    limit: int,
) -> Sequence[sa.Row[Any]]:
    """The first rows, by the index that fits the conditions: one select for each state, because an index is in order only within
    a state."""
    query = sa.select(runs).where(*conditions).order_by(*ordered).limit(limit)
    state = filters.get("state", "")
    states = [] if isinstance(state, str) else list(dict.fromkeys(state))
    if len(states) < 2:
        return connection.execute(query).all()
    parts = [query.where(runs.c.state == one).subquery() for one in states]
    together = sa.union_all(*(sa.select(part) for part in parts)).subquery()
    of = {column.name: column for column in together.c}
    by = [of[one.element.name].desc() if isinstance(one, sa.UnaryExpression) else of[one.name] for one in ordered]
    return connection.execute(sa.select(together).order_by(*by).limit(limit)).all()


def _span(filters: RunFilter) -> tuple[int | None, int | None]:
    """The first and the last millisecond in which matching runs may have started; None: no limit."""
    first = ms_of(filters["started_after"]) if "started_after" in filters else None
    last = ms_of(filters["started_before"]) - 1 if "started_before" in filters else None
    return first, last


def _conditions(filters: RunFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    first, last = _span(filters)
    if "workflow" in filters:
        found.append(runs.c.workflow == filters["workflow"])
    if "state" in filters:
        state = filters["state"]
        states = [state] if isinstance(state, str) else list(state)
        found.append(runs.c.state == states[0] if len(states) == 1 else runs.c.state.in_(states))
    if first is not None:
        found.append(runs.c.started_at >= first)
    if last is not None:
        found.append(runs.c.started_at <= last)
    if "waiting_kind" in filters:
        found.append(runs.c.waiting_kind == filters["waiting_kind"])
    if "attempts_failed" in filters and filters["attempts_failed"] > 0:
        found += [cast("sa.ColumnElement[bool]", _TROUBLED), runs.c.attempts_failed >= filters["attempts_failed"]]
    error, search = text_of(filters.get("error", "")), text_of(filters.get("search", ""))
    if error:
        found += [_ERRED, runs.c.last_error.icontains(error, autoescape=True)]
    if len(search) >= texts.TRIGRAM:
        found.append(sa.or_(*(runs.c[name].icontains(search, autoescape=True) for name in _TEXTS)))
    elif search:
        found.append(sa.or_(*(runs.c[name].istartswith(search, autoescape=True) for name in ("run_id", "workflow"))))
    if "fingerprint" in filters:
        alike = sa.select(_ERROR_RUNS.c.run_id).where(_ERROR_RUNS.c.fingerprint == filters["fingerprint"])
        found.append(runs.c.run_id.in_(alike))
    return found


def _row(row: sa.Row[Any]) -> RunRow:
    return RunRow(
        row.run_id,
        row.workflow,
        row.version,
        cast(State, row.state),
        row.partition,
        utc(row.started_at),
        utc(row.updated_at),
        None if row.ended_at is None else utc(row.ended_at),
        row.steps_completed,
        row.attempts_failed,
        orjson.loads(row.waiting_on),
        row.waiting_kind,
        row.waiting_step,
        None if row.waiting_until is None else utc(row.waiting_until),
        row.last_error,
        row.input,
        row.result,
    )


# -- selections, without runs of stepfold's own workflows

_OF_USERS = ~runs.c.workflow.startswith(BUILT_IN, autoescape=True)
_AT_A_TIME = 500


def list_run_ids(connection: sa.Connection, *, limit: int, **filters: Unpack[RunFilter]) -> list[str]:
    """The ids of matching runs, the newest first."""
    order = runs.c.started_at.desc(), runs.c.run_id
    query = sa.select(runs.c.run_id).where(_OF_USERS, *_conditions(filters)).order_by(*order).limit(limit)
    return list(connection.execute(query).scalars())


def count_states(connection: sa.Connection, **filters: Unpack[RunFilter]) -> dict[State, int]:
    """The number of matching runs in each state."""
    query = sa.select(runs.c.state, sa.func.count()).where(_OF_USERS, *_conditions(filters)).group_by(runs.c.state)
    return {cast(State, state): count for state, count in connection.execute(query)}


def states_of(connection: sa.Connection, run_ids: Sequence[str]) -> dict[str, State]:
    """The states of the runs that the table has, by id."""
    states: dict[str, State] = {}
    for first in range(0, len(run_ids), _AT_A_TIME):
        query = sa.select(runs.c.run_id, runs.c.state).where(runs.c.run_id.in_(run_ids[first : first + _AT_A_TIME]))
        states |= {run_id: cast(State, state) for run_id, state in connection.execute(query)}
    return states
