"""A projection that writes down all it is told, and what it should have been told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from histories import Ledger

from stepfold.client.requests import started
from stepfold.client.status import run_state
from stepfold.core.ended import REMEMBER_MS
from stepfold.core.fold import PartitionState, fold
from stepfold.drivers import MemoryDriver
from stepfold.events import FORMAT, RunEvent
from stepfold.log import CLAIM_KEY, Entry, Log, Record, partition_of
from stepfold.projections import Batch, Projection, ProjectionRunner, RunSoFar
from stepfold.projections.base import Gathering, RunChange

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


class Noter(Gathering):
    """One row for each event, which fails if there is one already. It shares its batches with others of another letter."""

    version = 1

    def __init__(self, letter: str) -> None:
        self.name = f"noter-{letter}"
        self.metadata = sa.MetaData()
        self.events = sa.Table(
            f"noted_{letter}",
            self.metadata,
            sa.Column("partition", sa.Integer, primary_key=True),
            sa.Column("offset", sa.BigInteger, primary_key=True),
            sa.Column("type", sa.String(30)),
            sa.Column("run_id", sa.String(200)),
            sa.Column("state", sa.String(20)),
        )
        self.fails_at: tuple[str, str] | None = None  # type and run id

    def gather(self, batch: Batch) -> _Notes:
        return _Notes(self)

    async def told(self, runner: ProjectionRunner) -> list[Any]:
        order = self.events.c.partition, self.events.c.offset
        return await runner.query(lambda asked: [tuple(row) for row in asked.execute(sa.select(self.events).order_by(*order))])


class _Notes:
    def __init__(self, noter: Noter) -> None:
        self._noter = noter
        self._rows: list[tuple[Any, ...]] = []

    def take(self, change: RunChange) -> None:
        if (change.kind, change.run.id) == self._noter.fails_at:
            raise KeyError("total")
        self._rows.append((change.run.partition, change.offset, change.kind, change.run.id, change.run.state))

    def write(self, connection: sa.Connection) -> None:
        for row in self._rows:
            connection.execute(self._noter.events.insert().values(row))


def recorded(connection: sa.Connection) -> list[Told]:
    table = Recorder.events
    return [tuple(row) for row in connection.execute(sa.select(table).order_by(table.c.partition, table.c.offset))]


async def some_runs(log: Log, count: int, prefix: str = "run") -> None:
    """Runs as a worker would have them: two steps, the first one tried twice, some still open; with repeats in between."""
    for partition in range(log.partitions):
        if not await log.find(partition, [CLAIM_KEY]):
            event = {"type": "claim", "v": FORMAT, "at": 1, "prev": -1, "owner": "worker", "nonce": "n"}
            await log.append(partition, [Entry(CLAIM_KEY, orjson.dumps(event))])
    for number in range(count):
        run_id = f"{prefix}-{number}"
        partition = partition_of(run_id, log.partitions)
        [claim, *_] = await log.find(partition, [CLAIM_KEY])

        def decided(type: str, run_id: str = run_id, claim: int = claim.offset, **fields: Any) -> Entry:
            return Entry(run_id, orjson.dumps({"type": type, "v": FORMAT, "run_id": run_id, "at": 1, "claim": claim, **fields}))

        error = {"type": "E", "message": "no"}
        start = started(run_id, "w", "1", b'{"n":%d}' % number, request=run_id, at=1)
        failed = decided("step-failed", step_id="a", attempt=1, error=error, next_at=1)
        first = decided("step-completed", step_id="a", attempt=2, result=number)
        second = decided("step-completed", step_id="b", attempt=1, result=None)
        end = decided("completed", result={"n": number})
        await log.append(partition, [start, failed, failed, first, start, second, second, *([end] if number % 3 else [])])


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
