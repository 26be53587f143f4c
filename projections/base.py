"""What a projection is: tables, and how an accepted event changes them.

    class Orders(Projection):
        name = "orders"
        metadata = sa.MetaData()
        orders = sa.Table("orders", metadata, sa.Column("run_id", sa.String(200), primary_key=True), ...)

        def apply(self, connection, event, run):
            match event:
                case Started() if run.workflow == "process-order":
                    connection.execute(self.orders.insert().values(run_id=run.id, ...))

What reaches `apply` has passed the fold. A projection knows neither its position nor its transaction: `feed` keeps those, and
`runner` follows the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa

from stepfold.client.client import State, run_state, waiting_words
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import EXPECTED, RunState
from stepfold.errors import ErrorInfo
from stepfold.events import RunEvent, parse
from stepfold.log import Record
from stepfold.values.times import utc


class RunSoFar:
    """A run as it is right after an event. To be read only, and only while the event is applied."""

    __slots__ = ("_place", "folded")

    def __init__(self, folded: RunState, place: PartitionState) -> None:
        self.folded = folded  # the engine's own state; may change between versions of stepfold
        self._place = place

    @property
    def id(self) -> str:
        """The run id."""
        return self.folded.id

    @property
    def partition(self) -> int:
        """The history partition the run lives in."""
        return self._place.partition

    @property
    def workflow(self) -> str:
        """The workflow's id."""
        return self.folded.workflow

    @property
    def version(self) -> str | None:
        """The workflow's version; None until a worker has decided it for a start that named none."""
        return self.folded.version

    @property
    def input(self) -> Any:
        """The input, as JSON."""
        return self.folded.input

    @property
    def state(self) -> State:
        """In one word, as `Run.status()` says it."""
        return run_state(self.folded, self._place.owner is not None)

    @property
    def waiting_on(self) -> list[str]:
        """What must happen next, in words, as `Run.status()` says it; empty once the run has ended."""
        return [] if self.folded.ended else waiting_words(self.folded, self._place.owner is not None)

    @property
    def started_at(self) -> datetime:
        """UTC, by the log's clock."""
        return utc(self.folded.started_at)

    @property
    def updated_at(self) -> datetime:
        """When the run's last accepted event was appended: UTC, by the log's clock, never earlier than the one before."""
        return utc(self.folded.now)

    @property
    def ended_at(self) -> datetime | None:
        """UTC, by the log's clock."""
        return None if self.folded.ended_at is None else utc(self.folded.ended_at)

    @property
    def result(self) -> Any:
        """The workflow's return value, as JSON, once the run has completed."""
        return self.folded.result

    @property
    def error(self) -> ErrorInfo | None:
        """Why the run failed or stands still."""
        return None if self.folded.error is None else ErrorInfo.from_json(self.folded.error)

    @property
    def reason(self) -> str | None:
        """The reason given with a request to cancel."""
        return self.folded.reason


class RunChange:
    """One accepted event and its run, for `apply_all`. `fields` is the event's JSON object as it is in the log."""

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
        """The event as a typed object, made at each call."""
        return cast(RunEvent, parse(self.fields, self.offset, self.timestamp))


class Batch:
    """The changes of one transaction, all of one partition. Iterate once, to the end; that is what folds them."""

    def __init__(self, place: PartitionState, records: Sequence[Record], note: Callable[[str], None]) -> None:
        self.partition = place.partition
        self.was_owned = place.owner is not None
        self.current = records[0].offset  # the record that is being folded or applied
        self.last: RunChange | None = None
        self.claim: Record | None = None  # the last claim among these records that was accepted
        self._place = place
        self._records = iter(records)
        self._note = note

    def __iter__(self) -> Iterator[RunChange]:
        place, note = self._place, self._note
        for record in self._records:
            self.current = record.offset
            self.last = None
            change = fold(place, record)
            if change is None:
                continue
            if change.early is not None:
                note(change.early.id)
            elif change.run is None:
                self.claim = record
            else:
                note(change.run.id)
                self.last = RunChange(change.event, record, RunSoFar(change.run, place))
                yield self.last

    @property
    def owned(self) -> bool:
        """Whether a worker owns the partition after the changes seen so far; `was_owned`: before the first."""
        return self._place.owner is not None

    def open_runs(self) -> Iterator[RunSoFar]:
        """The partition's runs that have not ended."""
        runs = map(self._place.runs.get, self._place.runs.ids())
        return (RunSoFar(run, self._place) for run in runs if run is not None and run.phase != EXPECTED)


class Projection:
    """Tables that follow the log. Subclass it.

    `name` is the projection's for ever. A higher `version` rebuilds its tables at the next start. `metadata` is its own: a
    rebuild drops every table in it.
    """

    name: str
    version: int = 1
    metadata: sa.MetaData

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        """Write what `event` changes through `connection`, whose transaction is the runner's: neither commit nor roll back.

        Called in the log's order within each run, never for two events at a time, off the event loop. What is raised undoes the
        transaction and stops this projection. The rows are written exactly once; any other effect may happen again.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither apply nor apply_all")

    def apply_all(self, connection: sa.Connection, batch: Batch) -> None:
        """Write what a batch of events changes. Override it instead of `apply` to write in bulk; take every change."""
        for change in batch:
            self.apply(connection, change.event, change.run)
