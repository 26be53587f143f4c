"""The pages of one action on many runs: a preview, the list of jobs, and the progress of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from stepfold.projections import RunFilter

from ...client.bulk import OPEN_STATES
from ...client.waiting import waits
from ...values.times import ms_of, utc
from ..bulk import BulkNow, Chosen, ask_many, end_job, job_of, newest_jobs, preview_of, with_items
from ..payload import waits_for
from ..problems import HttpRefusal
from ..routing import HttpCall, Role
from .forms import REFUSALS, RefusedForm, kept, sender
from .live import stream, wanted
from .render import around, show, with_query
from .runs import ListQuery, filters_of
from .times import marked

TIMES = ("started_after", "started_before")
ITEMS = 50
JOBS = 50


class BulkQuery(ListQuery):
    """The filters of the list. `begin`: only runs that started at this time or later, in ms since 1970; "" for all. `key`: of the
    page; two forms with the same key start one job."""

    begin: Annotated[str, Field(pattern=r"^\d{0,15}$")] = ""
    action: Literal["cancel"] = "cancel"
    why: str = ""
    key: Annotated[str, Field(max_length=100)] = ""


class JobQuery(BaseModel, extra="ignore"):
    """`first`: the number of the first run to show."""

    first: Annotated[int, Field(ge=0, le=10_000_000)] = 0


class AbortForm(BaseModel, extra="ignore"):
    """The form that aborts a job."""

    why: str = ""


def job_path(job_id: str) -> str:
    return f"/bulk/{quote(job_id, safe='')}"


def _chosen(call: HttpCall, query: BulkQuery) -> Chosen:
    """The runs that the filters choose. Raises HttpRefusal without a filter, and for a filter that the caller's role does not
    allow."""
    if query.q and not call.caller.may(Role.PAYLOAD):
        raise HttpRefusal(403, "forbidden", "a search reads inputs and results: it needs the role 'payload'")
    filters: RunFilter = filters_of(query, call.service.client.log.now())
    if query.begin:
        filters["started_after"] = utc(int(query.begin))
    if not filters:
        raise HttpRefusal(422, "invalid", "choose the runs by at least one filter first")
    said: dict[str, Any] = dict(filters)
    if "started_after" in filters:
        said["started_after"] = filters["started_after"].isoformat()
    return Chosen(dict(filters), None, said)


def _conditions(chosen: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The conditions in words, with their times marked (`times.marked`)."""
    return [
        (name.replace("_", " "), marked(ms_of(datetime.fromisoformat(value))) if name in TIMES else str(value))
        for name, value in chosen.items()
        if value is not None
    ]


async def new_page(call: HttpCall, refused: RefusedForm | None = None) -> Response:
    """The runs that an action would ask, and the form that asks them."""
    query: BulkQuery = call.query
    chosen = _chosen(call, query)
    fields = {name: value for name, value in query.chosen().items() if name not in ("since", "why", "key", "begin")}
    if "started_after" in chosen.filters:
        fields["begin"] = str(ms_of(chosen.filters["started_after"]))
    return show(
        call,
        "bulk_new.html",
        active="",
        refused=refused,
        preview=await preview_of(call, query.action, chosen),
        conditions=_conditions(chosen.said),
        fields=fields | {"key": call.service.client.ids()},
        back=with_query("/", **{name: value for name, value in query.chosen().items() if name in ListQuery.model_fields}),
    )


async def start(call: HttpCall) -> Response:
    """Start a job. The answer redirects to its page, or shows the refused form."""
    form: BulkQuery = call.body
    try:
        job_id = await ask_many(call, form.action, _chosen(call, form), sender(call, form.why), form.key or None)
    except REFUSALS as error:
        return await new_page(replace(call, query=form), kept(form, error))
    return RedirectResponse(call.request.scope.get("root_path", "") + job_path(job_id), 303)


async def view(call: HttpCall) -> dict[str, Any]:
    """The template's values of a job."""
    first: int = call.query.first
    found = await job_of(call)
    job = await with_items(call, found, first, ITEMS)
    path = job_path(job.id)
    open_runs = sum(count for state, count in (job.states or {}).items() if state in OPEN_STATES)
    return around(call) | {
        "active": "",
        "job": job,
        "path": path,
        "conditions": _conditions(job.chosen),
        "page_path": with_query(path, first=first or None),
        "done": job.count - job.outcomes.open,
        "started": ms_of(job.started_at),
        "ended": None if job.ended_at is None else ms_of(job.ended_at),
        "waits": waits_for(call.caller, waits(found.run, found.owner is not None)),
        "first": first,
        "before": with_query(path, first=max(first - ITEMS, 0) or None) if first else None,
        "behind": None if job.next is None else with_query(path, first=job.next),
        "over": found.run.ended and not open_runs,
    }


async def page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "bulk_live.html", view)
    return show(call, "bulk.html", **await view(call))


async def abort(call: HttpCall) -> Response:
    """Abort a job. The answer redirects to its page, or shows the page with the refused form."""
    form: AbortForm = call.body
    try:
        job_id = await end_job(call, sender(call, form.why))
    except REFUSALS as error:
        refused, shown = kept(form, error), replace(call, query=JobQuery())
        return show(shown, "bulk.html", **await view(shown) | {"refused": refused})
    return RedirectResponse(call.request.scope.get("root_path", "") + job_path(job_id), 303)


async def list_view(call: HttpCall) -> dict[str, Any]:
    jobs = await newest_jobs(call, JOBS)
    return around(call) | {"active": "", "jobs": [_row(job) for job in jobs]}


def _row(job: BulkNow) -> dict[str, Any]:
    return {"job": job, "path": job_path(job.id), "started": ms_of(job.started_at), "done": job.count - job.outcomes.open}


async def list_page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "bulk_list_live.html", list_view)
    return show(call, "bulk_list.html", **await list_view(call))
