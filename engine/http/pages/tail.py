"""The page of the whole history: the newest records of all runs, as pages or live."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

import orjson
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from stepfold.projections.runs import runs

from ...core.records import Request
from ...events import SHAPES, Event, decode, parse
from ...log import CLAIM_KEY
from ...values.words import joined
from ..payload import event_for
from ..problems import HttpRefusal
from ..routing import HttpCall, Role
from ..streaming import RETRY_MS, CountedStream
from ..tailing import Positions, Tailed, TailReader, before, read_positions, written
from .live import PAUSE_S, wanted
from .render import around, run_path, show, text, with_query
from .times import beside

ROWS = 200
"""How many rows a page, or one message of the stream, has at most."""
SCAN = 2000
"""How many records of each partition a page reads at most."""
LOOK_S = 1.0
NAMES = 10_000
"""A stream remembers the workflows of this many runs."""


class TailQuery(BaseModel, extra="ignore"):
    """`type`, `workflow`, `run`, `text`: filters of records. `from`, `until`: show only records from these positions on, or below
    them."""

    model_config = ConfigDict(populate_by_name=True)

    type: str = ""
    workflow: str = ""
    run: str = ""
    text: Annotated[str, Field(max_length=200)] = ""
    from_: Annotated[str, Field(alias="from", max_length=3000)] = ""
    until: Annotated[str, Field(max_length=3000)] = ""

    def chosen(self) -> dict[str, str]:
        """The filters that are set."""
        return {name: value for name, value in self.model_dump(include={"type", "workflow", "run", "text"}).items() if value}


class _Rows:
    """Makes rows from records, and remembers the workflows of their runs."""

    def __init__(self, call: HttpCall) -> None:
        self.call = call
        self.query: TailQuery = call.query
        self.payload = call.caller.may(Role.PAYLOAD)
        self.workflows: dict[str, str] = {}

    async def fitting(self, tailed: Sequence[Tailed]) -> list[dict[str, Any]]:
        """The rows of the records that fit the filters, in the same order."""
        events = [(one, fields) for one in tailed if (fields := self._fields(one)) is not None]
        await self._learn([(one.record.key, fields) for one, fields in events])
        wanted_ = self.query.workflow
        return [
            self._row(one, parse(fields, one.record.offset, one.record.timestamp))
            for one, fields in events
            if not wanted_ or self.workflows.get(one.record.key) == wanted_
        ]

    def _fields(self, tailed: Tailed) -> dict[str, Any] | None:
        """The event of a record; None if it does not fit the filters. Claims fit only if `type` asks for them."""
        query, record = self.query, tailed.record
        if query.run and record.key != query.run:
            return None
        fields = decode(record.value)
        if fields is None or (query.type and fields["type"] != query.type) or (not query.type and record.key == CLAIM_KEY):
            return None
        if query.text:
            seen = orjson.dumps(event_for(self.call.caller, fields)).decode().casefold()
            if query.text.casefold() not in seen and query.text.casefold() not in record.key.casefold():
                return None
        return fields

    async def _learn(self, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.workflows.update((run_id, fields["workflow"]) for run_id, fields in events if fields["type"] == "started")
        unknown = {run_id for run_id, _ in events if run_id not in self.workflows and run_id != CLAIM_KEY}
        if unknown:
            self.workflows.update(await self.call.service.read(_workflows_of, sorted(unknown)))
        while len(self.workflows) > NAMES:
            del self.workflows[next(iter(self.workflows))]

    def _row(self, tailed: Tailed, event: Event) -> dict[str, Any]:
        record = tailed.record
        line = getattr(event, "at_line", None)
        sender = event.sender() if isinstance(event, Request) else ""
        is_run = record.key != CLAIM_KEY
        return {
            "place": f"{tailed.partition}:{record.offset}",
            "at": record.timestamp,
            "type": event.type,
            "tone": event.tone,
            "run": record.key if is_run else "",
            "path": with_query(run_path(record.key), at=record.offset) if is_run else "",
            "workflow": self.workflows.get(record.key, ""),
            "step": getattr(event, "step_id", ""),
            "detail": joined(event.detail(beside) if self.payload else "", sender, f"at {line}" if line else ""),
        }


def _workflows_of(connection: sa.Connection, run_ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for at in range(0, len(run_ids), 500):
        rows = connection.execute(sa.select(runs.c.run_id, runs.c.workflow).where(runs.c.run_id.in_(run_ids[at : at + 500])))
        found.update((row.run_id, row.workflow) for row in rows)
    return found


def _positions(call: HttpCall, name: str, positions_text: str) -> Positions:
    try:
        return read_positions(positions_text, call.service.client.connected().partitions)
    except ValueError as error:
        raise HttpRefusal(422, "invalid", f"`{name}`: {error}") from None


async def tail_page(call: HttpCall) -> Response:
    query: TailQuery = call.query
    if wanted(call):
        return CountedStream(_stream(call, await _begin(call)), call.service.streams)
    client = call.service.client
    log = client.connected()
    chosen, rows = query.chosen(), _Rows(call)
    async with client.patience():
        ends = {partition: (await log.bounds(partition))[1] for partition in range(log.partitions)}
        if query.from_:
            tailed, begin, behind, found = await _onward(call, rows, ends)
        else:
            until = _positions(call, "until", query.until) if query.until else ends
            tailed, begin, behind, found = await _backward(call, rows, until)
    starts = {partition: (await log.bounds(partition))[0] for partition in begin}
    newest = all(behind[partition] >= end for partition, end in ends.items())
    context = around(call) | {
        "active": "/history",
        "query": query,
        "chosen": chosen,
        "rows": found[::-1],
        "looked": len(tailed),
        "types": sorted(SHAPES),
        "live": newest and not query.from_ and not query.until,
        "stream": with_query("/history", **chosen, **{"from": written(behind)}),
        "older": with_query("/history", **chosen, until=written(begin))
        if any(begin[partition] > start for partition, start in starts.items())
        else None,
        "newer": None if newest else with_query("/history", **chosen, **{"from": written(behind)}),
        "all": with_query("/history", **chosen, **{"from": written(starts)}),
        "newest": with_query("/history", **chosen),
        "first_at": tailed[0].record.timestamp if tailed else None,
        "last_at": tailed[-1].record.timestamp if tailed else None,
    }
    return show(call, "history.html", **context)


_Looked = tuple[list[Tailed], Positions, Positions, list[dict[str, Any]]]
"""Records that were read, the positions at which they begin, those after them, and the rows that fit."""


async def _backward(call: HttpCall, rows: _Rows, until: Positions) -> _Looked:
    log = call.service.client.connected()
    tailed, begin = await before(log, until, SCAN)
    found = await rows.fitting(tailed)
    if len(found) > ROWS:
        found = found[-ROWS:]
        first = next(at for at, one in enumerate(tailed) if f"{one.partition}:{one.record.offset}" == found[0]["place"])
        tailed = tailed[first:]
        begin = dict(until)
        for one in reversed(tailed):
            begin[one.partition] = one.record.offset
    return tailed, begin, until, found


async def _onward(call: HttpCall, rows: _Rows, ends: Positions) -> _Looked:
    async with TailReader(call.service.client.connected(), _positions(call, "from", call.query.from_), ends) as reader:
        begin = dict(reader.positions)
        tailed, found = list[Tailed](), list[dict[str, Any]]()
        while len(found) < ROWS and len(tailed) < SCAN * len(ends):
            more = await reader.read(ROWS)
            if not more:
                break
            tailed += more
            found += await rows.fitting(more)
        behind = {partition: min(position, ends[partition]) for partition, position in reader.positions.items()}
    return tailed, begin, behind, found


async def _begin(call: HttpCall) -> Positions:
    """Where the stream begins: after the last message that the browser has got, or at the positions in the URL."""
    last = call.request.headers.get("last-event-id") or call.query.from_
    log = call.service.client.connected()
    if not last:
        return {partition: (await log.bounds(partition))[1] for partition in range(log.partitions)}
    return _positions(call, "from", last)


async def _stream(call: HttpCall, begin: Positions) -> AsyncGenerator[ServerSentEvent]:
    """The stream of rows and of the reader's progress. A client that reads slowly gets fewer and larger messages, not a queue."""
    rows, news = _Rows(call), call.service.news
    log = call.service.client.connected()
    looked = shown = skipped = 0
    async with TailReader(log, begin) as reader:
        first = sum(reader.positions.values())
        while True:
            number = news.number
            tailed = await reader.read(1000)
            found = await rows.fitting(tailed)
            looked, shown, skipped = looked + len(tailed), shown + len(found), skipped + max(len(found) - ROWS, 0)
            end = sum([(await log.bounds(partition))[1] for partition in reader.positions])
            progress = {
                "looked": looked,
                "shown": shown,
                "skipped": skipped,
                "done": sum(reader.positions.values()) - first,
                "all": end - first,
            }
            if found:
                html = text("history_rows.html", around(call) | {"rows": found[: -ROWS - 1 : -1]})
                yield ServerSentEvent(html, event="rows", id=written(reader.positions), retry=RETRY_MS)
            yield ServerSentEvent(orjson.dumps(progress).decode(), event="progress", id=written(reader.positions), retry=RETRY_MS)
            if sum(reader.positions.values()) < end:
                await asyncio.sleep(0.02)
                continue
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await news.after(number)
