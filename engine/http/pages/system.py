"""The pages of errors and of workers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from stepfold.projections import ErrorGroup, list_errors

from ...values.times import ms_of
from ..payload import lags_for
from ..routing import HttpCall, Role
from ..service import workers_in
from ..system import begin_rebuild
from .forms import REFUSALS, kept, sender
from .live import stream, wanted
from .render import around, show, with_query

GROUPS = 50


class ErrorsQuery(BaseModel, extra="ignore"):
    """`workflow`: show only this workflow's errors; "" for all."""

    workflow: str = ""


async def errors_view(call: HttpCall) -> dict[str, Any]:
    workflow: str = call.query.workflow
    runner = call.service.projections
    groups = await runner.query(list_errors, workflow=workflow or None, limit=GROUPS + 1)
    payload = call.caller.may(Role.PAYLOAD)
    return around(call) | {
        "active": "/errors",
        "workflow": workflow,
        "groups": [_group(group, payload) for group in groups[:GROUPS]],
        "more": len(groups) > GROUPS,
    }


def _group(group: ErrorGroup, payload: bool) -> dict[str, Any]:
    return {
        "fingerprint": group.fingerprint,
        "workflow": group.workflow,
        "step": group.step,
        "type": group.type,
        "sample": group.sample if payload else "",
        "count": group.count,
        "first": ms_of(group.first_at),
        "last": ms_of(group.last_at),
        "run": group.last_run_id,
        "runs": with_query("/", alike=group.fingerprint),
    }


async def errors_page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "errors_live.html", errors_view)
    return show(call, "errors.html", **await errors_view(call))


async def workers_view(call: HttpCall) -> dict[str, Any]:
    lags, partitions = lags_for(call.caller, await call.service.projections.lag()), await call.service.partitions()
    delays = await call.service.delays.of(lags)
    return around(call) | {
        "active": "/workers",
        "partitions": partitions,
        "delays": {one.partition: one.delay(delays).words for one in partitions},
        "workers": workers_in(partitions),
        "rebuilding": set(call.service.rebuilding),
        "names": call.service.projections.names,
        "unowned": sum(1 for one in partitions if not one.owner),
        "lags": lags,
    }


class RebuildForm(BaseModel, extra="ignore"):
    """The form that rebuilds a projection, with the reason."""

    name: str
    why: str = ""


async def rebuild(call: HttpCall) -> Response:
    """Begin to rebuild a projection. The answer redirects to the page that shows the progress, or shows the refused form."""
    form: RebuildForm = call.body
    try:
        begin_rebuild(call, form.name, sender(call, form.why))
    except REFUSALS as error:
        return show(call, "workers.html", **await workers_view(call) | {"refused": kept(form, error)})
    return RedirectResponse(call.request.scope.get("root_path", "") + "/workers#projections-title", 303)


async def workers_page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "workers_live.html", workers_view)
    return show(call, "workers.html", **await workers_view(call))
