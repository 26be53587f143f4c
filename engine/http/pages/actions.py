"""The actions of people: forms, whose requests are events of the run with who and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from ...client.client import Client
from ...client.waiting import actions
from ...core.state import RunState
from ...operations.callback import CallbackId
from ...operations.line import Line
from ...values.names import quoted, valid_name
from ..problems import HttpRefusal
from ..routing import HttpCall
from ..runs import checked_id
from .forms import ActForm, StartForm, data
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
    form: ActForm = call.body
    run_id = checked_id(call.path["id"] or form.id)
    asked, why = call.caller.name or NAMELESS, form.why.strip() or None
    client = call.service.client
    run = client.run(run_id)
    if form.do == "complete" and form.message.strip():  # Enter in a field presses the first button
        raise HttpRefusal(422, "invalid", "an answer that completes has no words why it has failed; remove them, or press Fail")
    try:
        if form.do == "signal":
            await run.signal(form.name.strip(), data(form.data), by=asked, why=why)
        elif form.do == "cancel":
            await run.cancel(why, by=asked)
        else:
            callback = await _callback(client, run_id, form.step)
            if form.do == "complete":
                counts = await client.complete_callback(callback, data(form.data), by=asked, why=why)
            else:
                counts = await client.fail_callback(callback, form.message.strip(), by=asked, why=why)
            if not counts:
                raise HttpRefusal(409, "callback-over", "the answer is in the history, but it came too late to count")
    except ValueError as error:
        raise HttpRefusal(422, "invalid", str(error)) from None
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run_id), 303)


async def _callback(client: Client, run_id: str, step_id: str) -> str:
    """The id of an open callback of the run: only the log knows it."""
    async with client.patience():
        view = await client.views.read(run_id)
    nonce = getattr(view.found(client.log).open.get(step_id), "nonce", None)
    if nonce is None:
        raise HttpRefusal(409, "callback-over", f"the run does not wait for the answer to {step_id!r} any more")
    return str(CallbackId(run_id, step_id, nonce))


async def start_page(call: HttpCall) -> Response:
    """The form that starts a run."""
    known = {one.id: one for one in call.service.client.registry}
    return show(call, "start.html", **around(call), active="/start", workflows=sorted(known), workflow=call.query.workflow)


async def start(call: HttpCall) -> Response:
    """Start a run; the answer leads to its page."""
    form: StartForm = call.body
    workflow, run_id = form.workflow.strip(), form.run_id.strip()
    if not valid_name(workflow):
        raise HttpRefusal(422, "invalid", f"{quoted(workflow)} is not a workflow id: 1 to 200 printable characters")
    try:
        run = await call.service.client.start_workflow(
            workflow,
            data(form.data),
            run_id=checked_id(run_id) if run_id else None,
            by=call.caller.name or NAMELESS,
            why=form.why.strip() or None,
        )
    except ValueError as error:
        raise HttpRefusal(422, "invalid", str(error)) from None
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run.id), 303)
