"""The page that lists runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, NamedTuple, cast, get_args
from urllib.parse import urlencode

import sqlalchemy as sa
from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response
from typing_extensions import Unpack

from stepfold.projections import (
    Counted,
    RunFilter,
    RunRow,
    RunsProjection,
    count_some,
    list_errors,
    list_runs,
    positions,
)

from ...client.status import State
from ...operations import BY_NAME
from ...values.names import valid_run_id
from ...values.times import ms_of, utc
from ..payload import lags_for
from ..problems import HttpRefusal
from ..routing import HttpCall, Role
from ..runs import row_at
from .live import stream, wanted
from .render import around, run_path, show, with_query
from .times import remarked
from .views import views_of

PAGE = 50
STATES: tuple[str, ...] = get_args(State)
SINCE = {
    "15m": (timedelta(minutes=15), "15 minutes"),
    "1h": (timedelta(hours=1), "hour"),
    "24h": (timedelta(hours=24), "24 hours"),
    "7d": (timedelta(days=7), "7 days"),
}


class ListQuery(BaseModel, extra="ignore"):
    """The filters of the list, "" for none; `alike`: the fingerprint of a group of errors; `after`: the last run of the previous
    page, as `cursor` writes it."""

    state: str = ""
    workflow: str = ""
    waiting: str = ""
    q: str = ""
    since: str = ""
    alike: Annotated[str, Field(max_length=32)] = ""
    after: str = ""

    def chosen(self) -> dict[str, str]:
        """The filters that are set, without `after`."""
        return {name: value for name, value in self.model_dump(exclude={"after"}).items() if value}


class JumpQuery(BaseModel, extra="ignore"):
    """The text of the search box."""

    q: str = ""


class AnyQuery(BaseModel, extra="ignore"):
    """A query whose parameters the route ignores."""


def cursor(row: RunRow) -> str:
    return f"{ms_of(row.started_at)}~{row.run_id}"


def _after(text: str) -> RunRow | None:
    """A row with only the cursor's id and time. Raises HttpRefusal for an invalid cursor."""
    if not text:
        return None
    started, tilde, run_id = text.partition("~")
    if not tilde or not started.isascii() or not started.isdecimal() or len(started) > 15 or not valid_run_id(run_id):
        raise HttpRefusal(422, "invalid", "`after` is not a place in the list of runs")
    return row_at(run_id, utc(int(started)))


def filters_of(query: ListQuery, now_ms: int) -> RunFilter:
    """The keywords of `list_runs` for the filters. Raises HttpRefusal for an unknown state or `since`."""
    found: RunFilter = {}
    if query.state:
        if query.state not in STATES:
            raise HttpRefusal(422, "invalid", f"there is no such state; the states are {', '.join(STATES)}")
        found["state"] = cast(State, query.state)
    if query.workflow:
        found["workflow"] = query.workflow
    if query.waiting:
        found["waiting_kind"] = query.waiting
    if query.alike:
        found["fingerprint"] = query.alike
    if query.q:
        found["search"] = query.q
    if query.since:
        if query.since not in SINCE:
            raise HttpRefusal(422, "invalid", f"`since` is one of {', '.join(SINCE)}")
        found["started_after"] = utc(now_ms) - SINCE[query.since][0]
    return found


class _Listed(NamedTuple):
    """`rows`: those of a page and one more; `matching`: how many runs match; `total`: how many runs there are; `reached`: the
    positions of the table."""

    rows: list[RunRow]
    matching: Counted
    total: Counted
    reached: dict[int, int]


def _read(connection: sa.Connection, after: RunRow | None, **filters: Unpack[RunFilter]) -> _Listed:
    rows = list_runs(connection, limit=PAGE + 1, after=after, **filters)
    count = Counted(len(rows)) if after is None and len(rows) <= PAGE else count_some(connection, **filters)
    return _Listed(rows, count, count if count.number else count_some(connection), positions(connection, RunsProjection.name))


async def view(call: HttpCall) -> dict[str, Any]:
    """The template's values of the list."""
    query: ListQuery = call.query
    payload = call.caller.may(Role.PAYLOAD)
    if query.q and not payload:
        raise HttpRefusal(403, "forbidden", "a search reads inputs and results: it needs the role 'payload'")
    context = around(call)
    rows, count, total, reached = await call.service.read(_read, _after(query.after), **filters_of(query, context["now"]))
    lags = [lag for lag in lags_for(call.caller, await call.service.lags.recent()) if lag.projection == RunsProjection.name]
    groups = await call.service.read(list_errors, fingerprint=query.alike, limit=1) if query.alike else []
    more = len(rows) > PAGE
    rows = rows[:PAGE]
    known = {workflow.id for workflow in call.service.client.registry} | {row.workflow for row in rows}
    chosen, saved = query.chosen(), views_of(call.request)
    home = "/?state=" if any(one.default for one in saved) else "/"

    def listed(filters: dict[str, str]) -> str:
        return with_query("/", **filters) if filters else home

    return context | {
        "active": "/",
        "q": "",
        "query": query,
        "chosen": chosen,
        "home": home,
        "group": groups[0] if groups else None,
        "views": saved,
        "here": urlencode(chosen),
        "without": [
            (name, value, listed({other: text for other, text in chosen.items() if other != name}))
            for name, value in chosen.items()
        ],
        "tabs": [("", listed({name: text for name, text in chosen.items() if name != "state"}))]
        + [(state, with_query("/", **(chosen | {"state": state}))) for state in STATES],
        "rows": [_shown(row, payload) for row in rows],
        "count": count.number,
        "counted": _in_words(count),
        "total": total.number,
        "of_all": _in_words(total),
        "states": STATES,
        "sinces": {name: words for name, (_, words) in SINCE.items()},
        "kinds": sorted(BY_NAME),
        "workflows": sorted(known),
        "next": with_query("/", **chosen, after=cursor(rows[-1])) if more else None,
        "first": listed(chosen) if query.after else None,
        "behind": sum(max(0, lag.end - reached.get(lag.partition, 0)) for lag in lags),
        "stopped": next((lag.stopped for lag in lags if lag.stopped), None),
        "position": " ".join(f"{partition}:{position}" for partition, position in reached.items()),
    }


def _in_words(count: Counted) -> str:
    return f"{count.number:,}" if count.exact else f"at least {count.number:,}"


def _shown(row: RunRow, payload: bool) -> dict[str, Any]:
    """A row for the template. Without the role `payload`, nothing that quotes a payload."""
    started = ms_of(row.started_at)
    ended = None if row.ended_at is None else ms_of(row.ended_at)
    said = remarked("; ".join(row.waiting_on)) if row.waiting_on else row.last_error if row.state == "failed" else None
    if not payload:
        said = f"{row.waiting_kind} {row.waiting_step!r}" if row.waiting_kind else None
    return {
        "id": row.run_id,
        "workflow": row.workflow,
        "version": row.version,
        "state": row.state,
        "said": said or "",
        "failed": row.attempts_failed,
        "steps": row.steps_completed,
        "started": started,
        "ended": ended,
    }


async def page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "runs_fragment.html", view)
    default = None if call.request.url.query else next((one for one in views_of(call.request) if one.default), None)
    if default is not None:
        return RedirectResponse(call.request.scope.get("root_path", "") + default.path, 303)
    return show(call, "runs.html", **await view(call))


async def jump(call: HttpCall) -> Response:
    """The search box: redirects to the run with this id, else to the list of runs that match the text."""
    base = call.request.scope.get("root_path", "")
    text = call.query.q.strip()
    if valid_run_id(text):
        client = call.service.client
        async with client.patience():
            found = (await client.views.read(text)).run
        if found is not None:
            return RedirectResponse(base + run_path(text), 303)
    return RedirectResponse(base + with_query("/", q=text or None), 303)
