"""A projection that writes down all it is told, and what it should have been told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from histories import Ledger

from stepfold.client.status import run_state
from stepfold.core.ended import REMEMBER_MS
from stepfold.core.fold import PartitionState, fold
from stepfold.drivers import MemoryDriver
from stepfold.events import RunEvent
from stepfold.log import Entry, Log, Record
from stepfold.projections import Projection, ProjectionRunner, RunSoFar

Told = tuple[int, int, str, str, str, int]
"""partition, offset, type, run id, state after it, and how manieth event of its run."""


class Recorder(Projection):
    """One row for each event, which fails if there is one already, and a count for each run, which doubles would show in."""

    name = "recorder"
    metadata = sa.MetaData()
    events = sa.Table(
        "recorded_events",
        metadata,
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True),
        sa.Column("type", sa.String(30)),
        sa.Column("run_id", sa.String(200)),
        sa.Column("state", sa.String(20)),
        sa.Column("number", sa.Integer),
    )
    counts = sa.Table(
        "recorded_counts", metadata, sa.Column("run_id", sa.String(200), primary_key=True), sa.Column("events", sa.Integer)
    )

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        one = self.counts.c.run_id == run.id
        before: int | None = connection.scalar(sa.select(self.counts.c.events).where(one))
        if before is None:
            connection.execute(self.counts.insert().values(run_id=run.id, events=1))
        else:
            connection.execute(self.counts.update().where(one).values(events=before + 1))
        connection.execute(
            self.events.insert().values(
                partition=run.partition,
                offset=event.offset,
                type=event.type,
                run_id=event.run_id,
                state=run.state,
                number=(before or 0) + 1,
            )
        )


def recorded(connection: sa.Connection) -> list[Told]:
    table = Recorder.events
    return [tuple(row) for row in connection.execute(sa.select(table).order_by(table.c.partition, table.c.offset))]


async def told(runner: ProjectionRunner) -> list[Told]:
    return await runner.query(recorded)


async def records_of(log: Log, partition: int) -> list[Any]:
    reader = log.reader(partition, 0)
    found: list[Any] = []
    _, end = await log.bounds(partition)
    while reader.position < end:
        found += await reader.read(1000, 1)
    await reader.close()
    return found


async def log_of(records: Sequence[Record]) -> MemoryDriver:
    """A memory log that holds these records, at their times."""
    now_ms = 0
    log = MemoryDriver(clock=lambda: now_ms)
    await log.open()
    for record in records:
        now_ms = record.timestamp
        await log.append(0, [Entry(record.key, record.value)])
    return log


async def used_again() -> Log:
    """A memory log in which the id `order-42` is used for a second run, a day after the first one completed."""
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    error = {"type": "E", "message": "no"}
    ledger.accepts("step-failed", step_id="a", attempt=1, error=error, next_at=1)
    ledger.accepts("step-completed", step_id="a", attempt=2, result=1)
    ledger.accepts("completed", result="first")
    ledger.now_ms += REMEMBER_MS
    ledger.start(input={"n": 2})
    ledger.accepts("sleep-scheduled", step_id="b", wake_at=ledger.now_ms + 1)
    return await log_of(ledger.records)


async def to_be_told(log: Log) -> list[Told]:
    """By the fold, from the beginning of the log."""
    found: list[Told] = []
    for partition in range(log.partitions):
        state = PartitionState(partition, log.partitions)
        counts: dict[str, int] = {}
        for record in await records_of(log, partition):
            change = fold(state, record)
            if change is not None and change.run is not None:
                run = change.run
                counts[run.id] = counts.get(run.id, 0) + 1
                word = run_state(run, state.owner is not None)
                found.append((partition, record.offset, change.event["type"], run.id, word, counts[run.id]))
    return found
