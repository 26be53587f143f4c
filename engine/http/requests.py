"""The routes that make requests: starts, signals, cancellations, answers to callbacks. Each appends a record to the history.

The sender of a request is the caller's name. Without authentication callers have no name, and may give one in the body.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import orjson
from pydantic import BaseModel

from ..client import callbacks
from ..client.callbacks import Answered
from ..client.client import Client
from ..client.requests import Sender, of_signal
from ..client.starting import FirstSignal
from ..client.tail import read_run
from ..client.tracing import named
from ..errors import CallbackIdInvalid, InputInvalid, RunAlreadyExists, ValueInvalid
from ..log import partition_of
from ..operations.callback import CallbackId
from ..values.codec import Written, written
from ..values.digits import raw
from ..values.names import BUILT_IN, valid_name
from ..values.same import same_json
from ..values.trace import Trace
from .headers import POSITION, applied, check_match, etag_of, position_after, request_id, wait_s, while_asked
from .models import Accepted, Asking, Name, RunNow, Words
from .problems import HttpRefusal
from .routing import NOBODY, Answer, HttpCall, Role, Row
from .runs import run_id_of, run_now, view_of


def sender_of(call: HttpCall) -> Sender:
    """The sender of a request. Raises HttpRefusal if the body names another sender than the caller."""
    asked: Asking = call.body
    known = call.caller.name
    if asked.by not in (None, known) and (known is not None or call.caller is NOBODY):
        raise HttpRefusal(
            422,
            "sender-known",
            "by: the server takes the caller's name from the authentication; leave `by` out",
            errors=[{"pointer": "/by", "detail": "only for a server without authentication"}],
        )
    return Sender(known if known is not None else asked.by, asked.why)


# -- starts


class StartSignal(BaseModel, extra="forbid"):
    """A signal that goes with the start."""

    name: Name
    data: Any = None


class StartRun(Asking):
    """A request to start a run. `version`: of the workflow; without it, the first worker that decides chooses its highest
    version. `signal`: for the run, also if it exists; the same request again under the same run id sends it once.
    """

    workflow: Name
    input: Any = None
    version: Name | None = None
    signal: StartSignal | None = None


async def put_run(call: HttpCall) -> Answer:
    """Start a run with the id in the path. A repeated start gets the same run."""
    return await _start(call, run_id_of(call))


async def post_run(call: HttpCall) -> Answer:
    """Start a run with a new id, or with the value of `Idempotency-Key` as its id."""
    key = request_id(call.request)
    if key is not None and key.startswith("@"):
        raise HttpRefusal(400, "idempotency-key-invalid", 'Idempotency-Key becomes the run id, which does not begin with "@"')
    try:
        return await _start(call, key)
    except RunAlreadyExists as error:
        raise HttpRefusal(422, "idempotency-key-reused", f"this Idempotency-Key came before with another body: {error}") from None


def check_startable(workflow: str) -> None:
    """Raises HttpRefusal for a workflow that only stepfold itself may start."""
    if workflow.startswith(BUILT_IN):
        raise HttpRefusal(422, "workflow-built-in", "workflows whose ids begin with @ are stepfold's own: it starts them itself")


def _first_signal(client: Client, signal: StartSignal, run_id: str | None) -> FirstSignal | None:
    """The signal of a start: under a run id of the caller's, the same start again sends the same one."""
    data = raw(signal.data)
    said = orjson.dumps([run_id, signal.name]) + data
    return FirstSignal.of(
        (signal.name, Written(data)), client.ids if run_id is None else lambda: hashlib.sha256(said).hexdigest()[:32]
    )


async def _start(call: HttpCall, run_id: str | None) -> Answer:
    body: StartRun = call.body
    client, asked, waited_s = call.service.client, sender_of(call), wait_s(call.request)
    check_startable(body.workflow)
    headers = call.request.headers
    token = named.set(Trace.of(headers.get("traceparent"), headers.get("tracestate")))
    try:
        signal = None if body.signal is None else _first_signal(client, body.signal, run_id)
        starting = client.start_workflow(
            body.workflow,
            Written(raw(body.input)),
            run_id=run_id,
            version=body.version,
            signal=signal,
            by=asked.by,
            why=asked.why,
        )
    finally:
        named.reset(token)
    run = await starting
    if waited_s:
        await while_asked(call.request, call.service.ended(run.id, waited_s))
    async with client.patience():
        view = await client.views.read(run.id)
    found = view.found(client.log)
    headers = {
        "Location": f"{call.request.scope.get('root_path', '')}/v1/runs/{quote(run.id, safe='')}",
        "ETag": etag_of(view),
        **position_after(view.state.partition, found.start),
        **applied(waited_s),
    }
    return Answer(run_now(call, view), 201 if run.new else 200, headers)


# -- signals and cancellations


class SignalRun(Asking):
    """A signal."""

    data: Any = None


class CancelRun(Asking):
    """A request to cancel a run."""


async def post_signal(call: HttpCall) -> Answer:
    """Send a signal to a run."""
    body: SignalRun = call.body
    name, asked, request = call.path["name"], sender_of(call), request_id(call.request)
    if not valid_name(name):
        raise HttpRefusal(422, "signal-name-invalid", "the name of a signal has 1 to 200 printable characters")
    view = await view_of(call)
    check_match(call.request, view)
    client, run_id = call.service.client, view.run_id
    data = _json_of(body.data, of_signal(name))
    async with client.patience():
        ack = await client.signal_run(run_id, name, data, request or client.ids(), asked)
    if ack is None:
        return await _repeated(call, run_id, request, {"signal": name, "data": body.data})
    return await _asked(call, run_id, ack.offset)


async def post_cancel(call: HttpCall) -> Answer:
    """Cancel a run."""
    asked, request = sender_of(call), request_id(call.request)
    view = await view_of(call)
    check_match(call.request, view)
    client, run_id = call.service.client, view.run_id
    async with client.patience():
        ack = await client.cancel_run(run_id, asked.why, request or client.ids(), asked.by)
    if ack is None:
        return await _repeated(call, run_id, request, {"reason": asked.why})
    return await _asked(call, run_id, ack.offset)


CONTENT = frozenset({"signal", "data", "reason", "step_id", "nonce", "error"})
"""The fields that tell a repeated request from another one under the same key."""


async def _asked(call: HttpCall, run_id: str, offset: int, counts: bool | None = None) -> Answer:
    log = call.service.client.connected()
    partition = partition_of(run_id, log.partitions)
    if offset < 0:  # the log could not tell
        offset = (await log.bounds(partition))[1] - 1
    return Answer(
        Accepted(run_id=run_id, partition=partition, offset=offset, counts=counts), 202, position_after(partition, offset)
    )


async def _repeated(call: HttpCall, run_id: str, request: str | None, asked: dict[str, Any]) -> Answer:
    """The answer to a repeated request. Raises HttpRefusal if the key came with another request before."""
    client = call.service.client
    async with client.patience():
        history = await read_run(client.connected(), run_id)
    for event in history.events:
        fields = event.model_dump(exclude_unset=True)
        if fields.get("request") == request:
            if not same_json({name: value for name, value in fields.items() if name in CONTENT}, asked):
                raise HttpRefusal(422, "idempotency-key-reused", "this Idempotency-Key came before with another request")
            return await _asked(call, run_id, event.offset or 0, True)
    raise HttpRefusal(409, "request-repeated", "the run has had a request with this Idempotency-Key")


# -- answers to callbacks


class AnswerCallback(Asking):
    """The answer to a callback."""

    data: Any = None


class FailCallback(Asking):
    """The answer that a callback has failed: `await callback` raises CallbackFailed with this type and message."""

    message: Words
    type: Name = "CallbackFailed"


async def post_callback(call: HttpCall) -> Answer:
    """Complete a callback. Anybody who has its id may do so."""
    data = _json_of(call.body.data, callbacks.DATA)
    answered = await callbacks.complete(call.service.client, _token(call), data, None, sender_of(call), request_id(call.request))
    return await _answered(call, answered, data=call.body.data)


async def post_callback_fail(call: HttpCall) -> Answer:
    """Fail a callback. Anybody who has its id may do so."""
    body: FailCallback = call.body
    answered = await callbacks.fail(
        call.service.client, _token(call), body.type, body.message, None, sender_of(call), request_id(call.request)
    )
    return await _answered(call, answered, error={"type": body.type, "message": body.message})


async def post_callback_heartbeat(call: HttpCall) -> Answer:
    """Tell that somebody still works on a callback. Anybody who has its id may do so."""
    answered = await callbacks.heartbeat(call.service.client, _token(call), None, sender_of(call), request_id(call.request))
    return await _answered(call, answered)


def _token(call: HttpCall) -> str:
    """The id of the callback. Raises HttpRefusal for an invalid id, without repeating it: ids are secret."""
    try:
        CallbackId.parse(call.path["token"])
    except CallbackIdInvalid:
        raise HttpRefusal(404, "callback-id-invalid", "this is not the id of a callback") from None
    return call.path["token"]


async def _answered(call: HttpCall, answered: Answered, **asked: Any) -> Answer:
    """The response to an answer to a callback. Raises HttpRefusal if the key came with another request before."""
    if answered.ack is None:
        callback = CallbackId.parse(_token(call))
        said = {"step_id": callback.step_id, "nonce": callback.nonce, **asked}
        return await _repeated(call, answered.run_id, request_id(call.request), said)
    return await _asked(call, answered.run_id, answered.ack.offset, answered.counts)


def _json_of(data: Any, what: str) -> bytes:
    try:
        return written(Written(raw(data)), what)
    except InputInvalid as error:
        raise ValueInvalid(str(error)) from error


KEYED = ("Idempotency-Key",)
_OF_START = ("Location", "ETag", POSITION, "Preference-Applied")
ROWS = (
    Row(
        method="PUT",
        path="/v1/runs/{id}",
        role=Role.OPERATE,
        name="start_run",
        handler=put_run,
        body=StartRun,
        headers=("Prefer",),
        answers={200: RunNow, 201: RunNow},
        sends={200: _OF_START, 201: _OF_START},
    ),
    Row(
        method="POST",
        path="/v1/runs",
        role=Role.OPERATE,
        name="start_new_run",
        handler=post_run,
        body=StartRun,
        headers=("Prefer", *KEYED),
        answers={200: RunNow, 201: RunNow},
        sends={200: _OF_START, 201: _OF_START},
    ),
    Row(
        method="POST",
        path="/v1/runs/{id}/signals/{name}",
        role=Role.OPERATE,
        name="signal_run",
        handler=post_signal,
        body=SignalRun,
        headers=("If-Match", *KEYED),
        answers={202: Accepted},
        sends={202: (POSITION,)},
    ),
    Row(
        method="POST",
        path="/v1/runs/{id}/cancel",
        role=Role.OPERATE,
        name="cancel_run",
        handler=post_cancel,
        body=CancelRun,
        headers=("If-Match", *KEYED),
        answers={202: Accepted},
        sends={202: (POSITION,)},
    ),
    Row(
        method="POST",
        path="/v1/callbacks/{token}",
        role=Role.ANYONE,
        name="complete_callback",
        handler=post_callback,
        body=AnswerCallback,
        headers=KEYED,
        answers={202: Accepted},
        sends={202: (POSITION,)},
        secret=True,
    ),
    Row(
        method="POST",
        path="/v1/callbacks/{token}/fail",
        role=Role.ANYONE,
        name="fail_callback",
        handler=post_callback_fail,
        body=FailCallback,
        headers=KEYED,
        answers={202: Accepted},
        sends={202: (POSITION,)},
        secret=True,
    ),
    Row(
        method="POST",
        path="/v1/callbacks/{token}/heartbeat",
        role=Role.ANYONE,
        name="heartbeat_callback",
        handler=post_callback_heartbeat,
        body=Asking,
        headers=KEYED,
        answers={202: Accepted},
        sends={202: (POSITION,)},
        secret=True,
    ),
)
