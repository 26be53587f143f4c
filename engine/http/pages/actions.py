"""The actions of people: forms, whose requests are events of the run with who and why."""

from __future__ import annotations

from typing import Any

from starlette.responses import RedirectResponse, Response

from ...client.client import Client
from ...client.waiting import actions
from ...core.state import RunState
from ...operations.callback import CallbackId
from ..problems import HttpRefusal
from ..routing import HttpCall
from ..runs import checked_id
from .forms import ActForm, data
from .render import run_path

NAMELESS = "dashboard"
"""The name in `by` if the server knows no names."""


def offered(run: RunState) -> dict[str, Any]:
    """The requests that the run accepts now, and the steps that wait for an answer or a signal."""
    allowed = actions(run)
    return {
        "actions": allowed,
        "signals": sorted({getattr(op, "signal", "") for op in run.open.values() if not run.ended} - {""}),
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
