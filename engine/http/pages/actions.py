"""The actions of people: forms, whose requests are events of the run with who and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from ...client.client import Client
from ...client.waiting import actions
from ...core.state import RunState
from ...operations.callback import CallbackId
from ...operations.line import Line
from ...values.names import valid_run_id
from ..problems import HttpRefusal
from ..routing import HttpCall
from .forms import data, fields
from .render import around, run_path, show

NAMELESS = "dashboard"
"""The name in `by` if the server knows no names."""


class StartQuery(BaseModel, extra="ignore"):
    """`workflow`: the one to start, as the form begins with it."""

    workflow: str = ""


def offered(run: RunState, lines: Sequence[Line]) -> dict[str, Any]:
    """The requests that the run accepts now, and the steps that wait for an answer or a signal."""
    allowed = actions(run)
    return {
        "actions": allowed,
        "signals": sorted({line.signal for line in lines if line.signal is not None and line.became == "open"}),
        "answers": [step_id for step_id, op in run.open.items() if "complete" in op.actions],
    }


async def act(call: HttpCall) -> Response:
    """One action on a run; the answer leads back to its page."""
    form = await fields(call)
    run_id = call.path["id"] or form.get("id", "")
    asked = {"by": call.caller.name or NAMELESS}
    why = form.get("why", "").strip() or None
    client = call.service.client
    run = client.run(run_id)
    try:
        match form.get("do"):
            case "signal":
                await run.signal(form.get("name", "").strip(), data(form.get("data", "")), why=why, **asked)
            case "cancel":
                await run.cancel(why, **asked)
            case "complete":
                counts = await client.complete_callback(
                    await _callback(client, run_id, form), data(form.get("data", "")), why=why, **asked
                )
                _check(counts)
            case "fail":
                message = form.get("message", "").strip()
                _check(await client.fail_callback(await _callback(client, run_id, form), message, why=why, **asked))
            case _:
                raise HttpRefusal(422, "invalid", "there is no such action")
    except ValueError as error:
        raise HttpRefusal(422, "invalid", str(error)) from None
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run_id), 303)


async def _callback(client: Client, run_id: str, form: Mapping[str, str]) -> str:
    """The id of an open callback of the run: only the log knows it."""
    async with client.patience():
        view = await client.views.read(run_id)
    step_id = form.get("step", "")
    nonce = getattr(view.found(client.log).open.get(step_id), "nonce", None)
    if nonce is None:
        raise HttpRefusal(409, "callback-over", f"the run does not wait for the answer to {step_id!r} any more")
    return str(CallbackId(run_id, step_id, nonce))


def _check(counts: bool) -> None:
    if not counts:
        raise HttpRefusal(409, "callback-over", "the answer is in the history, but it came too late to count")


async def start_page(call: HttpCall) -> Response:
    """The form that starts a run."""
    known = {one.id: one for one in call.service.client.registry}
    return show(call, "start.html", **around(call), active="/start", workflows=sorted(known), workflow=call.query.workflow)


async def start(call: HttpCall) -> Response:
    form = await fields(call)
    run_id = form.get("run_id", "").strip() or None
    if run_id is not None and not valid_run_id(run_id):
        raise HttpRefusal(422, "invalid", 'a run id has 1 to 200 printable characters, and does not begin with "@"')
    value, why = data(form.get("data", "")), form.get("why", "").strip() or None
    try:
        run = await call.service.client.start_workflow(
            form.get("workflow", "").strip(), value, run_id=run_id, by=call.caller.name or NAMELESS, why=why
        )
    except ValueError as error:
        raise HttpRefusal(422, "invalid", str(error)) from None
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run.id), 303)
