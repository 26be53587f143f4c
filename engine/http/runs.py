"""The routes that show runs."""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BaseModel, BeforeValidator, Field

from stepfold.projections import RunRow, count_runs, list_runs

from ..client.past import Past
from ..client.status import State, status_json
from ..client.view import RunView
from ..errors import ErrorInfo, WorkflowCancelled, WorkflowFailed
from ..values.names import valid_run_id
from ..values.times import utc
from .headers import POSITION, applied, etag_of, next_page, reach, wait_s, while_asked
from .models import WHOLE, Name, RunNow, StateName, Time, an_id, place_of_view
from .payload import row_for, run_for
from .problems import HttpRefusal
from .routing import Answer, HttpCall, Role, Row

RETRY_AFTER_S = 1


def run_id_of(call: HttpCall) -> str:
    """The run id in the path. Raises HttpRefusal if it is not a valid one."""
    return checked_id(call.path["id"])


def checked_id(run_id: str) -> str:
    """Returns the text if it is a valid run id, else raises HttpRefusal."""
    try:
        return an_id(run_id)
    except ValueError as error:
        raise HttpRefusal(422, "run-id-invalid", str(error)) from None


async def view_of(call: HttpCall) -> RunView:
    """The run in the path, as it is now. Raises RunNotFound. Read the view before you await anything: other reads change it."""
    client, run_id = call.service.client, run_id_of(call)
    async with client.patience():
        view = await client.views.read(run_id)
    view.found(client.log)
    return view


def run_now(call: HttpCall, view: RunView) -> RunNow:
    """The run, without what the caller may not see."""
    run = view.found(call.service.client.log)
    return RunNow.model_validate(run_for(call.caller, status_json(run, view.owner is not None)) | place_of_view(view))


class PastOffset(BaseModel, extra="forbid"):
    """`at`: show the run as it was after the record at this offset."""

    at: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None


async def get_run(call: HttpCall) -> Answer:
    """Show a run as it is now, or as it was after the record at an offset.

    With `If-None-Match` and `Prefer: wait=n` the answer comes once the run has changed.
    """
    if call.query.at is not None:
        view = (await past_of(call, run_id_of(call))).at(call.query.at, call.service.client.log)
        return Answer(run_now(call, view), headers={"ETag": etag_of(view)})
    known, waited_s = call.request.headers.get("if-none-match"), wait_s(call.request)
    view = await view_of(call)
    if known is not None and waited_s and etag_of(view) == known.strip():
        await while_asked(call.request, call.service.changed(view.run_id, view.state.offset, waited_s))
        view = await view_of(call)
    headers = {"ETag": etag_of(view), **(applied(waited_s) if known is not None else {})}
    if known is not None and known.strip() in (etag_of(view), "*"):
        return Answer(status=304, headers=headers)
    return Answer(run_now(call, view), headers=headers)


async def past_of(call: HttpCall, run_id: str) -> Past:
    """The run and its past. Raises RunNotFound. Copy what you need before you await anything: other reads change the same
    objects."""
    async with call.service.client.patience():
        return await call.service.pasts.read(run_id)


class RunResult(BaseModel):
    """The result of a run that has completed."""

    id: str
    result: Any


async def get_result(call: HttpCall) -> Answer:
    """Show the result of a run; 202 while the run is open. If the run has failed, the answer is a problem with its error.

    With `Prefer: wait=n` the answer comes once the run has ended.
    """
    waited_s = wait_s(call.request)
    view = await view_of(call)
    if waited_s and not view.found(call.service.client.log).ended:
        await while_asked(call.request, call.service.ended(view.run_id, waited_s))
        view = await view_of(call)
    run, headers = view.found(call.service.client.log), applied(waited_s)
    if not run.ended:
        return Answer(run_now(call, view), 202, headers | {"Retry-After": str(RETRY_AFTER_S)})
    if run.phase == "failed":
        raise WorkflowFailed(run.id, ErrorInfo.from_json(run.error))
    if run.phase == "cancelled":
        raise WorkflowCancelled(run.id, run.reason)
    return Answer(RunResult(id=run.id, result=run.result), headers=headers)


# -- lists


def _several(value: Any) -> Any:
    """The parts of `a,b`, and of a parameter that comes several times. Other values stay, for the model to refuse."""
    if not isinstance(value, str | list):
        return value
    texts = cast("list[object]", value) if isinstance(value, list) else [value]
    return [part for text in texts for part in (text.split(",") if isinstance(text, str) else [text])]


class Included(StrEnum):
    """The payloads that a list may include, each as the beginning of its JSON."""

    INPUT = "input"
    RESULT = "result"
    LAST_ERROR = "last_error"


States = Annotated[list[StateName], BeforeValidator(_several), Field(min_length=1)]


class RunConditions(BaseModel, extra="forbid"):
    """Conditions on runs; all must hold. `error` and `search` look into payloads and need the role `payload`."""

    workflow: Name | None = None
    state: States | None = None
    started_after: Time | None = None
    started_before: Time | None = None
    waiting_kind: Annotated[str, Field(max_length=20)] | None = None
    attempts_failed: Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE] | None = None
    error: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    fingerprint: Annotated[str, Field(max_length=32)] | None = None
    search: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def filters(self, call: HttpCall) -> dict[str, Any]:
        """The keywords of `list_runs`. Raises HttpRefusal if they search payloads and the caller may not see payloads."""
        if (self.error is not None or self.search is not None) and not call.caller.may(Role.PAYLOAD):
            raise HttpRefusal(403, "forbidden", "a search looks into payloads: it needs the role 'payload'")
        conditions = {name: getattr(self, name) for name in RunConditions.model_fields}
        return {name: value for name, value in conditions.items() if value is not None}


class RunsPage(RunConditions):
    """Conditions, order and page of a list. `cursor`: from the link to the next page."""

    order: Literal["newest", "oldest", "updated"] = "newest"
    limit: Annotated[int, Field(ge=1, le=1000), WHOLE] = 50
    cursor: Annotated[str, Field(max_length=1000)] | None = None
    include: Annotated[list[Included], BeforeValidator(_several)] = []


class ListedRun(BaseModel):
    """A row of the table of runs. `input`, `result` and `last_error`: only if `include` names them."""

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
    last_error: str | None = None
    input: str | None = None
    result: str | None = None


class ListedRuns(BaseModel):
    """A page of runs. `next`: the cursor of the next page; null on the last page."""

    runs: list[ListedRun]
    next: str | None


class RunCount(BaseModel):
    """The number of runs that match."""

    count: int


async def get_runs(call: HttpCall) -> Answer:
    """List the runs that fulfil all conditions, page by page."""
    page = await _page(call, call.query)
    return Answer(page, headers=next_page(call.request, "/v1/runs", page.next))


async def post_search(call: HttpCall) -> Answer:
    """List the runs that fulfil all conditions in the body, page by page.

    The same as `GET /v1/runs`, for conditions that must not be in a URL.
    """
    return Answer(await _page(call, call.body))


async def _page(call: HttpCall, asked: RunsPage) -> ListedRuns:
    if asked.include and not call.caller.may(Role.PAYLOAD):
        raise HttpRefusal(403, "forbidden", "`include` shows payloads: it needs the role 'payload'")
    filters, after = asked.filters(call), None if asked.cursor is None else _row_at(asked.cursor, asked.order)
    await reach(call.service, call.request)
    rows = await call.service.read(list_runs, order=asked.order, limit=asked.limit + 1, after=after, **filters)
    more = len(rows) > asked.limit
    rows = rows[: asked.limit]
    included = frozenset(one.value for one in asked.include)
    return ListedRuns(
        runs=[ListedRun.model_validate(row_for(call.caller, asdict(row), included)) for row in rows],
        next=_cursor(rows[-1], asked.order) if more else None,
    )


async def get_count(call: HttpCall) -> Answer:
    """Count the runs that fulfil all conditions."""
    filters = call.query.filters(call)
    await reach(call.service, call.request)
    return Answer(RunCount(count=await call.service.read(count_runs, **filters)))


def _cursor(row: RunRow, order: str) -> str:
    at = row.updated_at if order == "updated" else row.started_at
    return base64.urlsafe_b64encode(orjson.dumps([order, round(at.timestamp() * 1000), row.run_id])).decode().rstrip("=")


def _row_at(cursor: str, order: str) -> RunRow:
    """A row with the order and id that a cursor holds. Raises HttpRefusal for an invalid cursor."""
    try:
        found = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        ordered_by, at, run_id = found
        if ordered_by != order or type(at) is not int or not valid_run_id(run_id):
            raise ValueError
        when = utc(at)
    except (ValueError, TypeError, binascii.Error):
        raise HttpRefusal(422, "cursor-invalid", "the cursor is not one of a link to the next page in this order") from None
    return row_at(run_id, when)


def row_at(run_id: str, when: datetime) -> RunRow:
    """A row with only an id and a time: `list_runs` continues after it."""
    return RunRow(run_id, "", None, "pending", 0, when, when, None, 0, 0, [], None, None, None, None, "", None)


ROWS = (
    Row(
        method="GET",
        path="/v1/runs",
        role=Role.VIEW,
        name="list_runs",
        handler=get_runs,
        query=RunsPage,
        headers=(POSITION,),
        answers={200: ListedRuns},
        sends={200: ("Link",)},
    ),
    Row(
        method="POST",
        path="/v1/runs/search",
        role=Role.VIEW,
        name="search_runs",
        handler=post_search,
        body=RunsPage,
        headers=(POSITION,),
        answers={200: ListedRuns},
    ),
    Row(
        method="GET",
        path="/v1/runs/count",
        role=Role.VIEW,
        name="count_runs",
        handler=get_count,
        query=RunConditions,
        headers=(POSITION,),
        answers={200: RunCount},
    ),
    Row(
        method="GET",
        path="/v1/runs/{id}",
        role=Role.VIEW,
        name="get_run",
        handler=get_run,
        query=PastOffset,
        headers=("If-None-Match", "Prefer"),
        answers={200: RunNow, 304: None},
        sends={200: ("ETag", "Preference-Applied"), 304: ("ETag", "Preference-Applied")},
    ),
    Row(
        method="GET",
        path="/v1/runs/{id}/result",
        role=Role.PAYLOAD,
        name="get_result",
        handler=get_result,
        headers=("Prefer",),
        answers={200: RunResult, 202: RunNow},
        sends={200: ("Preference-Applied",), 202: ("Retry-After", "Preference-Applied")},
    ),
)
