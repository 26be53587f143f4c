"""Parses records of the inbox. Anyone may write there, in any language, so `parse` is total: an `InboxRequest`, or `Refused`.

A record is one JSON object, or a CloudEvent (its Kafka binding, structured or binary) whose data is that object. Pure: no
clock, no randomness, no I/O. Every id is derived from the record, so a record that is read again gives the same request. The
router judges everything that depends on workflows, limits or the log.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import orjson

from ..core.lifecycle import is_reason
from ..errors import CallbackIdInvalid
from ..events import PLACE
from ..log import InboxRecord
from ..operations.callback import CallbackId
from ..values.digits import loads, raw
from ..values.names import printable, quoted, valid_name, valid_run_id
from ..values.nesting import MAX_DEPTH, is_deeper
from ..values.trace import Trace

InboxType = Literal["start", "signal", "event", "cancel", "callback"]

_TYPES: tuple[InboxType, ...] = ("start", "signal", "event", "cancel", "callback")
_PREFIX = "stepfold."
ASKED_AS: dict[str, InboxType] = {
    "started": "start",
    "signal-received": "signal",
    "cancel-requested": "cancel",
    "callback-completed": "callback",
    "callback-failed": "callback",
    "callback-heartbeat": "callback",
}
_STRUCTURED = "application/cloudevents"
_TRACE = ("traceparent", "tracestate")


class Refused(Exception):
    """The record cannot be served. The message is the reason for the dead letters."""


@dataclass(frozen=True, slots=True)
class InboxRequest:
    """A request from outside. `start` and `cancel` always have a `run_id`, `start` a `workflow`, `signal` a `signal`, `event` an
    `event`, `callback` a `callback`.

    A callback has failed if it has an `error` (type and message), and is a heartbeat if `heartbeat` says so; otherwise `data` is
    its answer. `data` is any JSON value as `digits.loads` returns it. `id` is the same when the record, or the CloudEvent, comes
    again. `by`, `why`: who asks and why, for people. `trace`: the trace of the sender.
    """

    type: InboxType
    id: str
    run_id: str | None = None
    workflow: str | None = None
    version: str | None = None
    signal: str | None = None
    event: str | None = None
    data: Any = None
    reason: str | None = None
    callback: CallbackId | None = None
    error: tuple[str, str] | None = None
    heartbeat: bool = False
    by: str | None = None
    why: str | None = None
    trace: Trace | None = None


class _CloudEvent(NamedTuple):
    type: str
    source: str
    id: str
    data: Any
    trace: tuple[Any, Any] = (None, None)

    @property
    def digest(self) -> str:
        """Identifies the event: only source and id together are unique."""
        return hashlib.sha256(f"{self.source}\0{self.id}".encode("utf-8", "surrogatepass")).hexdigest()


def parse(record: InboxRecord) -> InboxRequest:
    """Returns the request of a record. Raises only Refused, for any bytes."""
    if record.damage:
        raise Refused(record.damage)
    headers = {name.lower(): (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    content_type = headers.get("content-type", "")
    if content_type.lower().startswith(_STRUCTURED):
        event = _structured(_json(record.value, "the record"), content_type)
    elif "ce_type" in headers or "ce_specversion" in headers:
        _check_attributes(record)
        event = _binary(headers, record.value, content_type)
    else:
        fields = _object(_json(record.value, "the record"), "the record")
        if "specversion" not in fields:
            place = _unique(record)
            return _traced(_request(fields, _type_of(fields), place, place), fields, headers)
        event = _structured(fields, "")  # a structured CloudEvent that lost its headers on the way
    readable_id = printable(event.id).lstrip("@")
    if event.type in {_PREFIX + request_type for request_type in _TYPES}:
        request_type = cast(InboxType, event.type.removeprefix(_PREFIX))
        fields = {"by": event.source} | _object(event.data, f"the data of {event.type}")
        request = _request(fields, request_type, f"ce-{event.digest[:32]}", f"{readable_id[:180]}-{event.digest[:12]}")
        return _traced(request, dict(zip(_TRACE, event.trace, strict=True)), headers)
    return InboxRequest("event", f"ce-{event.digest[:32]}", event=event.type, data=event.data)


def _traced(request: InboxRequest, named: dict[str, Any], headers: dict[str, str]) -> InboxRequest:
    """The request with a trace: that of the CloudEvent (its extension for distributed tracing) or of the object, else of the
    headers.

    An invalid trace is left out, because no decision depends on it.
    """
    trace = Trace.of(*(named.get(name) for name in _TRACE)) or Trace.of(*(headers.get(name) for name in _TRACE))
    return request if trace is None else replace(request, trace=trace)


def _unique(record: InboxRecord) -> str:
    """The place of a record, with the identity of its inbox: places repeat in an inbox that was deleted and made again."""
    return f"{record.place}-{record.inbox}" if record.inbox else record.place


def place_of(record: InboxRecord) -> dict[str, Any] | None:
    """The inbox, partition and offset of a record, as the history holds them; None if its inbox has no identity."""
    if not record.inbox:
        return None
    _, partition, offset = record.place.rsplit("/", 2)
    return {"inbox": record.inbox, "partition": int(partition), "offset": int(offset)}


def as_found(event: dict[str, Any]) -> InboxRecord:
    """The inbox record that asks for the same as a request of the history that came from an inbox.

    Its original form (a CloudEvent, say) is lost. Total: the request need not have been written by a router.
    """
    request_type = ASKED_AS[event["type"]]
    fields: dict[str, Any] = {"type": request_type}
    if request_type == "callback":
        fields["id"] = str(CallbackId(event["run_id"], event["step_id"], event["nonce"]))
    else:
        fields["run_id"] = event["run_id"]
    for name in ("workflow", "version", "signal", "reason", "error", "by", "why", *_TRACE):
        if event.get(name) is not None:
            fields[name] = event[name]
    if event["type"] in ("started", "signal-received", "callback-completed"):
        fields["data"] = event["input" if request_type == "start" else "data"]
    elif event["type"] == "callback-heartbeat":
        fields["heartbeat"] = True
    origin: Any = event.get("from")
    place = cast(dict[str, Any], origin) if isinstance(origin, dict) else {}
    where = f"{place['inbox']}/{place['partition']}/{place['offset']}" if PLACE.fits(place) else "unknown/0/0"
    return InboxRecord(where, event["at"], None, orjson.dumps(fields), ())


def _request(fields: dict[str, Any], request_type: InboxType, request_id: str, new_run_id: str) -> InboxRequest:
    """An invalid `by` or `why` is left out, because no decision depends on it."""
    by, why = fields.get("by"), fields.get("why")
    request = _asked_for(fields, request_type, request_id, new_run_id)
    return replace(request, by=by if valid_name(by) else None, why=why if is_reason(why) else None)


def _asked_for(fields: dict[str, Any], request_type: InboxType, request_id: str, new_run_id: str) -> InboxRequest:
    if request_type == "callback":
        return _answer(fields, request_id)
    run_id = _text(fields, "run_id", request_type, required=request_type == "cancel")
    if run_id is None and request_type == "start":
        run_id = (
            new_run_id if valid_run_id(new_run_id) else hashlib.sha256(new_run_id.encode("utf-8", "surrogatepass")).hexdigest()
        )
    elif run_id is not None and not valid_run_id(run_id):
        raise Refused(f'`run_id` must be 1 to 200 printable characters, not beginning with "@"; it is {quoted(run_id)}')
    if request_type == "start" and fields.get("reply_to") is not None:
        raise Refused("`reply_to` is not served yet: leave it out, and read the outcome from the history")
    if request_type == "event":
        request_id = _text(fields, "id", request_type) or request_id
    return InboxRequest(
        request_type,
        request_id,
        run_id,
        _text(fields, "workflow", request_type, required=True) if request_type == "start" else None,
        _text(fields, "version", request_type) if request_type == "start" else None,
        _text(fields, "signal", request_type, required=True) if request_type == "signal" else None,
        _text(fields, "event", request_type, required=True) if request_type == "event" else None,
        fields.get("data"),
        _text(fields, "reason", request_type) if request_type == "cancel" else None,
    )


def _answer(fields: dict[str, Any], request_id: str) -> InboxRequest:
    request_type: InboxType = "callback"
    try:
        callback = CallbackId.parse(fields.get("id"))
    except CallbackIdInvalid as error:
        raise Refused(f"the callback's `id`: {error}") from None
    parts = [name for name in ("data", "error", "heartbeat") if name in fields]
    if len(parts) != 1:
        raise Refused(f"a callback has one of `data`, `error` and `heartbeat`; this one has {' and '.join(parts) or 'none'}")
    if parts == ["data"]:
        return InboxRequest(request_type, request_id, callback=callback, data=fields["data"])
    if parts == ["heartbeat"]:
        if fields["heartbeat"] is not True:
            raise Refused(f"the callback's `heartbeat` must be true; it is {_shown(fields['heartbeat'])}")
        return InboxRequest(request_type, request_id, callback=callback, heartbeat=True)
    error = _object(fields["error"], "the callback's `error`")
    message = error.get("message")
    if not isinstance(message, str):
        raise Refused(f"the `message` of the callback's `error` must be a text; it is {_shown(message)}")
    error_type = _text(error, "type", request_type) or "CallbackFailed"
    return InboxRequest(request_type, request_id, callback=callback, error=(error_type, message))


def _type_of(fields: dict[str, Any]) -> InboxType:
    asked = fields.get("type")
    for request_type in _TYPES:
        if asked == request_type:
            return request_type
    raise Refused(f"`type` must be one of {', '.join(_TYPES)}; it is {_shown(asked)}")


def _structured(value: Any, content_type: str) -> _CloudEvent:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("", _STRUCTURED, f"{_STRUCTURED}+json"):
        raise Refused(f"content-type {media_type!r}: of the structured CloudEvents only {_STRUCTURED}+json is understood")
    fields = _object(value, "a structured CloudEvent")
    data_type = fields.get("datacontenttype")
    if data_type is not None and not (isinstance(data_type, str) and _is_json(data_type)):
        raise Refused(f"the CloudEvent's datacontenttype must be JSON; it is {_shown(data_type)}")
    data = fields.get("data")
    if "data_base64" in fields:
        encoded = fields["data_base64"]
        try:
            data = _json(base64.b64decode(encoded, validate=True), "the CloudEvent's data_base64")
        except (TypeError, ValueError, binascii.Error):
            raise Refused("the CloudEvent's data_base64 is not Base64") from None
    attributes = {name: fields.get(name) for name in ("specversion", "type", "source", "id")}
    return _cloud_event(attributes, data)._replace(trace=(fields.get(_TRACE[0]), fields.get(_TRACE[1])))


def _binary(headers: dict[str, str], value: bytes | None, content_type: str) -> _CloudEvent:
    attributes = {name: headers.get(f"ce_{name}") for name in ("specversion", "type", "source", "id")}
    if content_type and not _is_json(content_type):
        raise Refused(f"the CloudEvent's content-type must be JSON; it is {content_type!r}")
    event = _cloud_event(attributes, None if value is None else _json(value, "the CloudEvent's data"))
    return event._replace(trace=(headers.get(f"ce_{_TRACE[0]}"), headers.get(f"ce_{_TRACE[1]}")))


def _check_attributes(record: InboxRecord) -> None:
    """Refuse attributes that are not text: read with replacement characters, two ids could become one."""
    for name, value in record.headers:
        try:
            if name.lower().startswith("ce_"):
                (value or b"").decode()
        except UnicodeDecodeError:
            raise Refused(f"the CloudEvent's header {quoted(name.lower())} is not UTF-8: {quoted(value)}") from None


def _cloud_event(attributes: dict[str, Any], data: Any) -> _CloudEvent:
    for name, value in attributes.items():
        if not isinstance(value, str) or not value:
            raise Refused(f"the CloudEvent's attribute `{name}` must be a text; it is {_shown(value)}")
    if not attributes["specversion"].startswith("1."):
        raise Refused(f"CloudEvents of version 1 are understood; this one's specversion is {attributes['specversion']!r}")
    return _CloudEvent(attributes["type"], attributes["source"], attributes["id"], data)


def _is_json(content_type: str) -> bool:
    subtype = content_type.partition(";")[0].strip().lower().partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def _json(value: bytes | None, what: str) -> Any:
    if value is None:
        raise Refused(f"{what} has no value")
    try:
        parsed = loads(value)
    except ValueError as error:
        raise Refused(f"{what} is not JSON: {error}") from None
    if is_deeper(value, parsed):
        raise Refused(f"{what} is nested more than {MAX_DEPTH} deep")
    return parsed


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{what} must be a JSON object; it is {_shown(cast(object, value))}")
    return cast(dict[str, Any], value)


def _text(fields: dict[str, Any], name: str, request_type: InboxType, *, required: bool = False) -> str | None:
    value = fields.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        raise Refused(f"the {request_type}'s `{name}` must be a text; it is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    text = raw(value).decode()
    return text if len(text) <= 100 else f"{text[:100]}…"
