"""Requests from outside as events of the history: under no claim, idempotent by their `request` id. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from ..core.lifecycle import MAX_REASON_CHARS, is_reason
from ..errors import ConfigError, PayloadTooLarge
from ..events import FORMAT, PLAIN, encode
from ..log import Entry
from ..operations.callback import CallbackId
from ..values.names import BUILT_IN, no_run_id, quoted, valid_name, valid_run_id
from ..values.trace import Trace


class Sender(NamedTuple):
    """The sender of a request and why, for people: a name of 1 to 200 printable characters, and a text of up to 10,000.

    Nobody checks the name.
    """

    by: str | None = None
    why: str | None = None

    def fields(self) -> dict[str, str]:
        """The fields that the record gets. Raises ValueError for a name or text that is not valid."""
        if self.by is not None and not valid_name(self.by):
            raise ValueError(f"by={quoted(self.by)} is not the name of who asks: 1 to 200 printable characters")
        if self.why is not None and not is_reason(self.why):
            raise ValueError(f"why={str(self.why)[:100]!r} is not a text of up to {MAX_REASON_CHARS:,} characters")
        return {name: value for name, value in zip(self._fields, self, strict=True) if value is not None}


NOBODY = Sender()


def started(
    run_id: str,
    workflow: str,
    version: str | None,
    data: bytes,
    *,
    request: str,
    at: int,
    trigger: dict[str, Any] | None = None,
    place: dict[str, Any] | None = None,
    asked: Sender = NOBODY,
    trace: Trace | None = None,
) -> Entry:
    """A request to start a run.

    `data`: the input as JSON bytes; `request`: the id that makes a repeat harmless; `at`: ms since 1970; `place`: the
    request's place in an inbox; `trace`: that of the sender. Raises ConfigError for a bad run id, workflow id or version.
    """
    for what, value in (("workflow id", workflow), ("version", "-" if version is None else version)):
        if not valid_name(value):
            raise ConfigError(f"{quoted(value)} is not a {what}: 1 to 200 printable characters")
    event: dict[str, Any] = {
        "type": "started",
        "v": PLAIN,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "workflow": workflow,
        "version": version,
        "input": orjson.Fragment(data),
    }
    if trigger is not None:
        event["trigger"] = trigger
    if trace is not None:
        event |= trace.fields
    return _entry(event, place, asked)


def signal_received(
    run_id: str,
    signal: str,
    data: bytes,
    *,
    request: str,
    at: int,
    place: dict[str, Any] | None = None,
    asked: Sender = NOBODY,
) -> Entry:
    """A signal for a run. `data`: JSON bytes. Raises ValueError for a bad name and ConfigError for a bad run id."""
    if not valid_name(signal):
        raise ValueError(f"{quoted(signal)} is not the name of a signal: 1 to 200 printable characters")
    event = {
        "type": "signal-received",
        "v": PLAIN,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "signal": signal,
        "data": orjson.Fragment(data),
    }
    return _entry(event, place, asked)


def cancel_requested(
    run_id: str, why: str | None, *, request: str, at: int, place: dict[str, Any] | None = None, by: str | None = None
) -> Entry:
    """A request to cancel a run; its field for `why` is called `reason`. Raises ValueError as `Sender.fields`."""
    fields = Sender(by, why).fields()
    event = {
        "type": "cancel-requested",
        "v": PLAIN,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "reason": fields.get("why"),
    }
    return _entry(event, place, Sender(by))


def callback_completed(
    callback: CallbackId,
    data: bytes,
    *,
    request: str,
    at: int,
    place: dict[str, Any] | None = None,
    asked: Sender = NOBODY,
) -> Entry:
    """The answer to a callback. `data`: JSON bytes."""
    return _answer("callback-completed", callback, request, at, place, asked, data=orjson.Fragment(data))


def callback_failed(
    callback: CallbackId,
    type: str,
    message: str,
    *,
    request: str,
    at: int,
    place: dict[str, Any] | None = None,
    asked: Sender = NOBODY,
) -> Entry:
    """The answer to a callback that it has failed. Raises ValueError for a type that is not a name, and for a message that is
    not a text of up to 10,000 characters."""
    if not valid_name(type):
        raise ValueError(f"{quoted(type)} is not the type of an error: 1 to 200 printable characters")
    if not is_reason(message):
        raise ValueError(f"the message {str(message)[:100]!r} is not a text of up to {MAX_REASON_CHARS:,} characters")
    return _answer("callback-failed", callback, request, at, place, asked, error={"type": type, "message": message})


def callback_heartbeat(
    callback: CallbackId, *, request: str, at: int, place: dict[str, Any] | None = None, asked: Sender = NOBODY
) -> Entry:
    """A heartbeat of a callback."""
    return _answer("callback-heartbeat", callback, request, at, place, asked)


def _answer(
    type: str, callback: CallbackId, request: str, at: int, place: dict[str, Any] | None, asked: Sender, **fields: Any
) -> Entry:
    event = {
        "type": type,
        "v": FORMAT,
        "run_id": callback.run_id,
        "at": at,
        "request": request,
        "step_id": callback.step_id,
        "nonce": callback.nonce,
        **fields,
    }
    return _entry(event, place, asked)


def _entry(event: dict[str, Any], place: dict[str, Any] | None, asked: Sender) -> Entry:
    if place is not None:
        event["from"] = place
    if asked.by is not None or asked.why is not None:
        event |= asked.fields()
    return Entry(event["run_id"], encode(event))


def checked_run_id(run_id: str) -> str:
    """Returns the run id. Raises ConfigError if it is not valid."""
    if not valid_run_id(run_id):
        raise ConfigError(no_run_id(run_id))
    return run_id


def users_own(workflow_id: str) -> str:
    """Returns the workflow id. Raises ConfigError if it is one of stepfold's own workflows."""
    if str(workflow_id).startswith(BUILT_IN):
        raise ConfigError(
            f"workflow {quoted(workflow_id)}: ids that begin with {BUILT_IN} are stepfold's own; only stepfold starts their runs"
        )
    return workflow_id


Taken = bytes | Exception
"""Data as JSON, written when the caller gave them; or the error of that, to raise when the caller awaits."""


def taken(encode: Callable[[], bytes]) -> Taken:
    """Write data now. Raises nothing: a caller may hold coroutines that it has not awaited yet."""
    try:
        return encode()
    except Exception as error:  # noqa: BLE001  # the user's types may raise anything; `untaken` raises it
        return error


def untaken(data: Taken) -> bytes:
    """The JSON. Raises the error of writing it."""
    if isinstance(data, Exception):
        raise data
    return data


def check_size(data: bytes, limit_bytes: int, what: str) -> None:
    """Raises PayloadTooLarge if the data exceed the limit."""
    if len(data) > limit_bytes:
        raise PayloadTooLarge(
            f"{what} is {len(data):,} bytes; the limit is {limit_bytes:,}. Store it elsewhere and pass a reference to it"
        )


def of_signal(name: str) -> str:
    """The data of a signal, for messages."""
    return f"the data of signal {name!r}"
