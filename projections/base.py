"""A projection: tables, and how an accepted event changes them.

    class Orders(Projection):
        name = "orders"
        metadata = sa.MetaData()
        orders = sa.Table("orders", metadata, sa.Column("run_id", sa.String(200), primary_key=True), ...)

        def apply(self, connection, event, run):
            match event:
                case Started() if run.workflow == "process-order":
                    connection.execute(self.orders.insert().values(run_id=run.id, ...))

`apply` gets only events that the fold accepted. A projection does not know its position or its transaction: `feed` keeps
those, and `runner` follows the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol, cast

import sqlalchemy as sa

from stepfold.client.status import State, run_state, waiting_words
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import EXPECTED, RunState
from stepfold.errors import ErrorInfo
from stepfold.events import RunEvent, parse
from stepfold.log import CLAIM_KEY, Record
from stepfold.values.times import utc

from .panels import Panel


class RunSoFar:
    """A run right after an event. Read it only while the event is applied, and do not change it."""

    __slots__ = ("_state", "folded")

    def __init__(self, folded: RunState, state: PartitionState) -> None:
        self.folded = folded  # the engine's own state; may change between versions of stepfold
        self._state = state

    @property
    def id(self) -> str:
        """The run id."""
        return self.folded.id

    @property
    def partition(self) -> int:
        """The partition of the history that holds the run."""
        return self._state.partition

    @property
    def workflow(self) -> str:
        """The workflow's id."""
        return self.folded.workflow

    @property
    def version(self) -> str | None:
        """The workflow's version; None until a worker has decided it, if the start named none."""
        return self.folded.version

    @property
    def input(self) -> Any:
        """The input, as JSON."""
        return self.folded.input

    @property
    def state(self) -> State:
        """The state in one word, as in `Run.status()`."""
        return run_state(self.folded, self._state.owner is not None)

    @property
    def waiting_on(self) -> list[str]:
        """The things that must happen next, in words, as in `Run.status()`; empty once the run has ended."""
        return [] if self.folded.ended else waiting_words(self.folded, self._state.owner is not None)

    @property
    def started_at(self) -> datetime:
        """When the run started: UTC, by the log's clock."""
        return utc(self.folded.started_at)

    @property
    def updated_at(self) -> datetime:
        """When the run's last accepted event was appended: UTC, by the log's clock, never earlier than the event before."""
        return utc(self.folded.now)

    @property
    def ended_at(self) -> datetime | None:
        """When the run ended: UTC, by the log's clock; None while it is open."""
        return None if self.folded.ended_at is None else utc(self.folded.ended_at)

    @property
    def result(self) -> Any:
        """The workflow's return value, as JSON, once the run has completed."""
        return self.folded.result

    @property
    def error(self) -> ErrorInfo | None:
        """Why the run failed or is quarantined."""
        return None if self.folded.error is None else ErrorInfo.from_json(self.folded.error)

    @property
    def reason(self) -> str | None:
        """The reason in the request to cancel the run; None without one."""
        return self.folded.reason


class RunChange:
    """One accepted event and its run, for `apply_all`. `fields` is the event's JSON object as in the log."""

    __slots__ = ("fields", "offset", "run", "timestamp")

    def __init__(self, fields: dict[str, Any], record: Record, run: RunSoFar) -> None:
        self.fields = fields
        self.offset = record.offset
        self.timestamp = record.timestamp
        self.run = run

    @property
    def kind(self) -> str:
        """The event's `type`."""
        return self.fields["type"]

    @property
    def event(self) -> RunEvent:
        """The event as a typed object; each access makes a new one."""
        return cast(RunEvent, parse(self.fields, self.offset, self.timestamp))


class Batch:
    """The changes of one transaction, all of one partition. Iterate over it once and to the end: the iteration folds the
    records."""

    def __init__(self, state: PartitionState, records: Sequence[Record]) -> None:
        self.partition = state.partition
        self.was_owned = state.owner is not None
        self.current = records[0].offset  # the record that is being folded or applied
        self.last: RunChange | None = None
        self.claim: Record | None = None  # the last accepted claim among these records
        self.changed: set[str] = set()  # ids of the runs of the changes so far
        self._state = state
        self._records = iter(records)

    def __iter__(self) -> Iterator[RunChange]:
        state, note = self._state, self.changed.add
        for record in self._records:
            self.current = record.offset
            self.last = None
            change = fold(state, record)
            if change is None:
                continue
            if change.early is not None:
                note(change.early.id)
            elif change.run is None:
                self.claim = record if record.key == CLAIM_KEY else self.claim
            else:
                note(change.run.id)
                self.last = RunChange(change.event, record, RunSoFar(change.run, state))
                yield self.last

    @property
    def owned(self) -> bool:
        """Whether a worker owns the partition after the changes so far; `was_owned`: before the first change."""
        return self._state.owner is not None

    def open_runs(self) -> Iterator[RunSoFar]:
        """The partition's runs that have not ended."""
        runs = map(self._state.runs.get, self._state.runs.ids())
        return (RunSoFar(run, self._state) for run in runs if run is not None and run.phase != EXPECTED)


class Projection:
    """Tables that follow the log. Subclass it.

    `name` identifies the projection and must never change. A higher `version` rebuilds its tables at the next start. `metadata`
    belongs to the projection alone: a rebuild drops every table in it. `pages`: the panels of its dashboard.
    """

    name: str
    version: int = 1
    metadata: sa.MetaData
    pages: Sequence[Panel] = ()

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        """Write the changes of `event` through `connection`. The runner owns the transaction: neither commit nor roll back.

        The runner calls this off the event loop, in the log's order within each run, and never for two events at a time. An
        exception undoes the transaction and stops this projection. Rows are written exactly once; any other effect may happen
        again.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither apply nor apply_all")

    def apply_all(self, connection: sa.Connection, batch: Batch) -> None:
        """Write the changes of a batch of events. Override it instead of `apply` to write in bulk; iterate over all changes."""
        for change in batch:
            self.apply(connection, change.event, change.run)


class Gathered(Protocol):
    """Collects the changes of one batch, and writes them at its end."""

    def take(self, change: RunChange) -> None:
        """Collect a change."""
        ...

    def write(self, connection: sa.Connection) -> None:
        """Write the rows, after the last change of the batch."""
        ...


class Gathering(Projection):
    """A projection that collects changes and writes at the end of a batch, so that one fold serves several such projections."""

    def gather(self, batch: Batch) -> Gathered:
        """Returns a new collector for a batch. The caller iterates over the batch."""
        raise NotImplementedError

    def apply_all(self, connection: sa.Connection, batch: Batch) -> None:
        gather_all(connection, batch, [self])


def gather_all(connection: sa.Connection, batch: Batch, projections: Sequence[Gathering]) -> None:
    """Write the changes of a batch to the tables of all these projections."""
    gathered = [projection.gather(batch) for projection in projections]
    takes = [one.take for one in gathered]
    for change in batch:
        for take in takes:
            take(change)
    for one in gathered:
        one.write(connection)
