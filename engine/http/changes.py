"""The stream of changes of all runs: one event a change. The event's id holds the position in every partition of the log."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence

import orjson
from pydantic import BaseModel
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from ..client.status import run_state
from ..errors import LogUnavailable
from ..log import CLAIM_KEY, Log, Record
from .models import Name
from .positions import LogPosition
from .problems import HttpRefusal
from .routing import HttpCall, Role, Row
from .runs import States
from .streaming import PING_S, RETRY_MS, CountedStream

SSE = "text/event-stream"
READ_RECORDS = 500
MAX_STREAMS = 20
"""How many streams of changes one server keeps open at most; each has its own readers of the log."""


class ChangesWanted(BaseModel, extra="forbid"):
    """Filters: changes of this workflow's runs, and changes after which the run is in one of these states."""

    workflow: Name | None = None
    state: States | None = None


async def get_changes(call: HttpCall) -> Response:
    """Follow the changes of all runs that fulfil the conditions, as server-sent events.

    An event `change` names the run, its state now, and the record. Without `Last-Event-ID` the stream begins now, with the event
    `begin`. With it, the stream continues after that event; if the log does not hold that position, the stream begins now, with
    an event `reset`. An event `position` advances the position while no change fits the filters.
    """
    log, last = call.service.client.connected(), call.request.headers.get("last-event-id")
    async with call.service.client.patience():
        bounds = [await log.bounds(partition) for partition in range(log.partitions)]
    positions = None if last is None else _parsed(log, last, bounds)
    streams = call.service.changes
    if streams.open >= MAX_STREAMS:
        raise HttpRefusal(503, "too-many-streams", f"{MAX_STREAMS} streams of changes are open", headers={"Retry-After": "5"})
    begin = "begin" if last is None else None if positions is not None else "reset"
    return CountedStream(_events(call, positions or [end for _, end in bounds], begin), streams)


def _mark(log: Log) -> str:
    """A short digest that identifies the log."""
    return hashlib.sha256(log.id.encode()).hexdigest()[:12]


def _written(log: Log, positions: Sequence[int]) -> str:
    return f"{_mark(log)} {' '.join(f'{partition}:{position}' for partition, position in enumerate(positions))}"


def _parsed(log: Log, text: str, bounds: Sequence[tuple[int, int]]) -> list[int] | None:
    """The positions in an event id; None if the id is not of this log, or the log no longer holds the positions."""
    mark, *parts = text[: 64 + 40 * len(bounds)].split(" ")
    if mark != _mark(log) or len(parts) != len(bounds):
        return None
    positions: list[int] = []
    for partition, (part, (start, end)) in enumerate(zip(parts, bounds, strict=True)):
        try:
            position = LogPosition.parse(part)
        except ValueError:
            return None
        if position.partition != partition or not start <= position.offset <= end:
            return None
        positions.append(position.offset)
    return positions


_Batch = tuple[int, Sequence[Record], int]
"""A partition, records of it, and the position after them."""


async def _read(log: Log, partition: int, position: int, into: asyncio.Queue[_Batch | LogUnavailable]) -> None:
    reader = log.reader(partition, position)
    try:
        while True:
            records = await reader.read(READ_RECORDS, None)
            if records:
                await into.put((partition, records, reader.position))
    except LogUnavailable as error:
        await into.put(error)
    finally:
        await reader.close()


async def _events(call: HttpCall, positions: list[int], begin: str | None) -> AsyncGenerator[ServerSentEvent]:
    log = call.service.client.connected()
    batches: asyncio.Queue[_Batch | LogUnavailable] = asyncio.Queue(
        1
    )  # a slow client holds back these readers, and fills no memory
    tasks = [asyncio.create_task(_read(log, partition, position, batches)) for partition, position in enumerate(positions)]
    try:
        if begin is not None:
            yield ServerSentEvent("", event=begin, id=_written(log, positions), retry=RETRY_MS)
        told_s = time.monotonic()
        while True:
            batch = await batches.get()
            if isinstance(batch, LogUnavailable):
                raise batch
            partition, records, position = batch
            for run_id, first, last in _runs_in(records):
                change = await _change(call, partition, run_id, first, last)
                if change is not None:
                    positions[partition] = last + 1
                    told_s = time.monotonic()
                    yield ServerSentEvent(change, event="change", id=_written(log, positions))
            positions[partition] = position
            if time.monotonic() - told_s > PING_S:
                told_s = time.monotonic()
                yield ServerSentEvent("", event="position", id=_written(log, positions))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _runs_in(records: Sequence[Record]) -> list[tuple[str, int, int]]:
    """The runs of these records with the offsets of their first and last records, in the order of the last ones."""
    runs: dict[str, tuple[int, int]] = {}
    for record in records:
        if record.key != CLAIM_KEY:
            first, _ = runs.pop(record.key, (record.offset, 0))
            runs[record.key] = first, record.offset
    return [(run_id, first, last) for run_id, (first, last) in runs.items()]


async def _change(call: HttpCall, partition: int, run_id: str, first: int, last: int) -> str | None:
    """The change that a run's records from `first` to `last` have made, as JSON without payloads; None if no record counts, or
    the filters leave the run out."""
    wanted: ChangesWanted = call.query
    view = await call.service.client.views.read(run_id)
    run = view.run
    if run is None or view.changed_at < first or wanted.workflow not in (None, run.workflow):
        return None
    state = run_state(run, view.owner is not None)
    if wanted.state is not None and state not in [one.value for one in wanted.state]:
        return None
    shown = {"run_id": run.id, "workflow": run.workflow, "state": state, "partition": partition, "offset": last}
    return orjson.dumps(shown).decode()


ROWS = (
    Row(
        method="GET",
        path="/v1/changes",
        role=Role.VIEW,
        name="follow_changes",
        handler=get_changes,
        query=ChangesWanted,
        headers=("Last-Event-ID",),
        answers={200: None},
        media=(SSE,),
        streams=True,
    ),
)
