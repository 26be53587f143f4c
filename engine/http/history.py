"""The routes that show what happened in a run: its operations, and its history as pages, as lines, and as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

from ..client.past import Moment
from ..client.story import line_json
from ..client.tail import follow
from ..events import Event
from .models import Name
from .payload import event_for, line_for
from .positions import LogPosition
from .routing import Answer, HttpCall, Role, Row
from .runs import past_of, run_id_of, view_of
from .streaming import RETRY_MS, CountedStream

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


class StepNow(BaseModel):
    """An operation of a run. `heartbeat` and `input` are null for callers who may not see payloads."""

    step_id: str
    kind: str
    state: str
    attempts: int
    lost: int
    first_at: datetime | None
    last_at: datetime | None
    queued_ms: int | None
    ran_ms: int | None
    at_line: str | None
    by: str | None
    why: str | None
    next_at: datetime | None
    running_since: datetime | None
    worker: str | None
    heartbeat: Any
    heartbeat_at: datetime | None
    heartbeat_by: datetime | None
    until: datetime | None
    child: str | None
    input: Any
    input_note: str | None
    error: dict[str, Any] | None


class StepsNow(BaseModel):
    """The operations of a run, in the order of their first records."""

    steps: list[StepNow]


async def get_steps(call: HttpCall) -> Answer:
    """Show the operations of a run."""
    lines = (await _now(call)).story()
    return Answer(StepsNow(steps=[StepNow.model_validate(line_for(call.caller, line_json(line))) for line in lines]))


async def _now(call: HttpCall) -> Moment:
    return (await past_of(call, run_id_of(call))).now()


class HistoryWindow(BaseModel, extra="forbid"):
    """A part of the history: `limit` events at or after the offset `from`, of a type, of a step, with a text in their JSON.

    The search for `text` reads only what the caller may see.
    """

    from_: Annotated[int, Field(alias="from", ge=0, le=2**63 - 1)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    type: Annotated[str, Field(max_length=50)] | None = None
    step: Annotated[str, Field(max_length=1300)] | None = None
    text: Annotated[Name, Field(max_length=200)] | None = None

    def take(self, call: HttpCall, event: Event) -> dict[str, Any] | None:
        """The event, without what the caller may not see; None if the filters leave it out."""
        if event.offset is None or event.offset < self.from_ or self.type not in (None, event.type):
            return None
        fields = event.model_dump(mode="json", by_alias=True, exclude_none=True)
        shown = event_for(call.caller, fields | {"offset": event.offset, "timestamp": event.timestamp})
        if self.step is not None and shown.get("step_id") != self.step:
            return None
        if self.text is not None and self.text.casefold() not in orjson.dumps(shown).decode().casefold():
            return None
        return shown


class HistoryPage(BaseModel):
    """Events of a run. `total`: how many events the run has; `next`: the `from` of the next page; null on the last page."""

    events: list[dict[str, Any]]
    total: int
    next: int | None


async def get_history(call: HttpCall) -> Answer | Response:
    """Show the events of a run as a page of JSON, as lines of JSON, or as a stream that ends with the run."""
    form = _form(call.request.headers.get("accept", ""))
    if form == SSE:
        return await _stream(call)
    window: HistoryWindow = call.query
    now = await _now(call)
    events = now.events
    chosen = now.select(step=window.step, types=None if window.type is None else (window.type,))
    fitting = (one for event in chosen[chosen.from_offset(window.from_) :] if (one := window.take(call, event)) is not None)
    shown = list(islice(fitting, window.limit + 1))
    following = shown[window.limit]["offset"] if len(shown) > window.limit else None
    if form == NDJSON:
        lines = b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in shown[: window.limit])
        return Response(lines, media_type=NDJSON)
    return Answer(HistoryPage(events=shown[: window.limit], total=len(events), next=following))


def _form(accept: str) -> str:
    """The first of the three media types that `Accept` names; JSON if it names none."""
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in (SSE, NDJSON):
            return media
        if media == "application/json":
            break
    return "application/json"


async def _stream(call: HttpCall) -> Response:
    """All events that fit the filters, after `Last-Event-ID` and until the run ends, without a `limit`."""
    last = call.request.headers.get("last-event-id")
    seen, reset = -1, False
    if last is None:
        await view_of(call)  # raises RunNotFound before the stream begins
    else:
        now = await _now(call)
        try:
            position = LogPosition.parse(last)
        except ValueError:
            position = LogPosition(-1, -1)
        reset = position.partition != now.state.partition or not now.events.has(position.offset)
        seen = -1 if reset else position.offset
    return CountedStream(_events(call, seen, reset), call.service.streams)


async def _events(call: HttpCall, seen: int, reset: bool) -> AsyncGenerator[dict[str, Any]]:
    window: HistoryWindow = call.query
    if reset:
        yield {"event": "reset", "data": "the log does not hold the event of Last-Event-ID; the stream begins at the first event"}
    async for news in follow(call.service.client.connected(), run_id_of(call)):
        event = news.event
        if event is None or event.offset is None or event.offset <= seen:
            continue
        shown = window.take(call, event)
        if shown is not None:
            where = f"{news.history.state.partition}:{event.offset}"
            yield {"id": where, "event": "event", "data": orjson.dumps(shown).decode(), "retry": RETRY_MS}
    yield {"event": "end", "data": ""}


ROWS = (
    Row(
        method="GET",
        path="/v1/runs/{id}/steps",
        role=Role.VIEW,
        name="get_steps",
        handler=get_steps,
        answers={200: StepsNow},
    ),
    Row(
        method="GET",
        path="/v1/runs/{id}/history",
        role=Role.VIEW,
        name="get_history",
        handler=get_history,
        query=HistoryWindow,
        headers=("Accept", "Last-Event-ID"),
        answers={200: HistoryPage},
        media=(NDJSON, SSE),
    ),
)
