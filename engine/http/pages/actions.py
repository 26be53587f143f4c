"""The forms by which people act on a run. Each request becomes an event of the run that says who asked and why.

`client/actions.py` says which actions a run offers.
"""

from __future__ import annotations

from dataclasses import replace

from starlette.responses import RedirectResponse, Response

from ...client import callbacks
from ...client.requests import Sender, of_signal
from ...operations.callback import CallbackId
from ...values.codec import written
from ..problems import HttpRefusal
from ..routing import HttpCall
from ..runs import checked_id
from .forms import REFUSALS, ActForm, data, kept, request_of, sender
from .render import run_path, show
from .run import RunQuery, view


async def act(call: HttpCall) -> Response:
    """Act on a run. The answer redirects to the run's page, or shows the page with the refused form."""
    form: ActForm = call.body
    run_id = checked_id(call.path["id"] or form.id)
    try:
        await _ask(call, run_id, form)
    except REFUSALS as error:
        refused, shown = kept(form, error), replace(call, query=RunQuery(id=form.id))
        return show(shown, "run.html", **await view(shown) | {"refused": refused})
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run_id), 303)


async def _ask(call: HttpCall, run_id: str, form: ActForm) -> None:
    """Append the request, unless the run has it already. Raises `REFUSALS`."""
    client, asked = call.service.client, sender(call, form.why)
    request = request_of(call, form, run_id, form.at)
    async with client.patience():
        run = (await client.views.read(run_id)).found(client.log)
        if request in run.requests:
            return
        if form.do == "signal":
            name = form.name.strip()
            await client.signal_run(run_id, name, written(data(form.data), of_signal(name)), request, asked)
        elif form.do == "cancel":
            await client.cancel_run(run_id, asked.why, request, asked.by)
        else:
            await _answer(call, form, run_id, getattr(run.open.get(form.step), "nonce", None), request, asked)


async def _answer(call: HttpCall, form: ActForm, run_id: str, nonce: str | None, request: str, asked: Sender) -> None:
    """Answer a callback of the run. Pages do not hold its id, so this reads it from the log."""
    client, message = call.service.client, form.message.strip()
    if form.do == "complete" and message:  # a browser presses the form's first button on Enter, so it may send both
        raise HttpRefusal(422, "invalid", "a completed callback has no failure message; remove the message, or press Fail")
    if form.do == "fail" and not message:
        raise HttpRefusal(422, "invalid", "say why the callback has failed: the workflow's code gets this message")
    if form.do == "fail" and form.data.strip():
        raise HttpRefusal(422, "invalid", "a failed callback has no data; remove the data, or press Complete")
    if nonce is None:
        raise HttpRefusal(409, "callback-over", f"the run does not wait for the answer to {form.step!r} any more")
    callback = str(CallbackId(run_id, form.step, nonce))
    if form.do == "complete":
        value = written(data(form.data), callbacks.DATA)
        answered = await callbacks.complete(client, callback, value, None, asked, request)
    else:
        answered = await callbacks.fail(client, callback, "CallbackFailed", message, None, asked, request)
    if not answered.counts:
        raise HttpRefusal(409, "callback-over", "the answer is in the history, but it came too late to count")
