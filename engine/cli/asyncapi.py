"""The contract of a namespace's topics for users without stepfold: JSON Schema and AsyncAPI 3. Pure.

The history's part comes from the event models, which also say when a record counts. The inbox's part comes from the models of
requests and the sorts of request that `stepfold.worker.inbox` knows. This module adds limits and texts. The contract leaves out
requests that the router refuses for now (events, and signals without a run id).
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast, get_args

from ..core.records import OperationRequest, Request
from ..events import FORMAT, Event, RunEvent, json_schema
from ..worker import inbox

if TYPE_CHECKING:
    from stepfold.drivers.kafka.topics import Namespace

JSON_SCHEMA = "http://json-schema.org/draft-07/schema#"  # the draft that AsyncAPI 3 builds on
BINDING = "0.5.0"

_ACCEPTANCE = """\
One partition holds the whole history of each of its runs; key = run id, partition = CRC-32 of the key modulo their count.
A record counts only if every reader of the partition, in the order of offsets, accepts it:

- Of all but `claim`: `v` is not above that of the current claim, the last accepted one, and the key is the `run_id`.
- A record with a field `claim`: that is the offset of the current claim, and the run has not ended.
- A record with a field `request`: no accepted record of the run within the memory has the same one. The memory of the partition
  is the `memory_ms` of its first claim, or 24 hours if that claim has none. With `from`, a place in an inbox: the place is above
  the highest one seen of that inbox and partition.
- The condition of its type holds:
{conditions}

All other records (duplicates, late records of a worker that lost its partition, garbage) change nothing."""

_INBOX = """\
Requests from anyone, in any language: one JSON object per record, with any key, from any partitioner; or a CloudEvent of
version 1 in the Kafka binding, structured or binary, of type {types}, with that
object (without its `type`) as JSON data. A request that cannot be served goes to the dead letters with the reason.
One key, such as the run id, keeps the requests for a run in order. A signal that comes before its run is kept for 24 hours."""

_DEAD_LETTERS = """\
Requests that could not be served: the original key, value and headers, followed by the headers named here. A request that only
the owner of the run refused has no key and no original headers; its value is written as plain JSON.
A record with only the header `stepfold-redriven` says that the record at that place was sent to the inbox again."""


def history_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of the value of one history record."""
    schemas = _event_schemas("#/definitions/")
    types = sorted(name for name, schema in schemas.items() if _type_in(schema))
    return {
        "$schema": JSON_SCHEMA,
        "title": f"A record of a stepfold history, format {FORMAT}",
        "oneOf": [{"$ref": f"#/definitions/{name}"} for name in types],
        "definitions": schemas,
    }


def document(namespace: Namespace, bootstrap: str) -> dict[str, Any]:
    """The AsyncAPI 3 document of a namespace, as JSON. `bootstrap`: `host:port[,host:port…]`."""
    events = _event_schemas("#/components/schemas/")
    history = {type_: name for name, schema in events.items() if (type_ := _type_in(schema))}
    requests = _request_schemas()
    messages = {type_: _message(type_, events[name], name) for type_, name in history.items()}
    messages |= {f"request-{type_}": _message(type_, schema, type_) for type_, schema in requests.items()}
    messages["request-cloud-event"] = {
        "name": "request-cloud-event",
        "title": "A request as a structured CloudEvent",
        "contentType": "application/cloudevents+json",
        "payload": {"$ref": "#/components/schemas/cloud-event"},
        "bindings": {"kafka": {"bindingVersion": BINDING}},
    }
    messages["dead-letter"] = {
        "name": "dead-letter",
        "title": "A refused request, unchanged",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object",
            "required": ["stepfold-reason", "stepfold-origin"],
            "properties": {
                "stepfold-reason": {"type": "string", "description": "The reason of the refusal."},
                "stepfold-origin": {"type": "string", "description": "The place of the request: topic/partition/offset."},
                "stepfold-omitted-bytes": {
                    "type": "string",
                    "description": "The size of the request, if it was too large to be kept.",
                },
            },
        },
        "payload": {"description": "The bytes of the request."},
        "bindings": {"kafka": {"bindingVersion": BINDING}},
    }
    for_ever = {"cleanup.policy": ["delete"], "retention.ms": -1, "retention.bytes": -1}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"stepfold namespace {namespace.name}",
            "version": f"{FORMAT}.0.0",
            "description": "Durable workflow runs. The history is the only state; through the inbox any program makes requests.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {f"broker-{n}": {"host": host, "protocol": "kafka"} for n, host in enumerate(bootstrap.split(","), 1)},
        "channels": {
            "history": _channel(namespace.history, _acceptance(), sorted(history), topicConfiguration=for_ever),
            "inbox": _channel(
                namespace.inbox, _inbox(list(requests)), [*(f"request-{type_}" for type_ in requests), "request-cloud-event"]
            ),
            "dead-letters": _channel(namespace.dead_letters, _DEAD_LETTERS, ["dead-letter"]),
        },
        "operations": {
            "record": _operation("send", "history", "The history of each run, for any reader."),
            "request": _operation("receive", "inbox", "Start a run, send it a signal, cancel it, or answer a callback."),
            "refuse": _operation("send", "dead-letters", "Requests that could not be served."),
        },
        "components": {"messages": messages, "schemas": {**events, **requests, "cloud-event": _cloud_event(list(requests))}},
    }


def _acceptance() -> str:
    """The rules by which a record counts; types of one condition share a line."""
    types: dict[str, list[str]] = {}
    for model in get_args(Event):
        types.setdefault(model.counts_if, []).append(f"`{model.model_fields['type'].default}`")
    return _ACCEPTANCE.format(conditions="\n".join(f"  - {', '.join(names)}: {words}" for words, names in types.items()))


def _inbox(types: list[str]) -> str:
    *others, last = (f"`stepfold.{type_}`" for type_ in types)
    return _INBOX.format(types=f"{', '.join(others)} or {last}")


def _channel(topic: str, description: str, messages: list[str], **binding: Any) -> dict[str, Any]:
    return {
        "address": topic,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topic": topic, **binding, "bindingVersion": BINDING}},
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _message(type_: str, schema: dict[str, Any], name: str) -> dict[str, Any]:
    key: dict[str, Any] = {"type": "string", "description": "Any key."}
    if "claim" in schema["properties"] or "request" in schema["properties"]:
        key = {"type": "string", "description": "The run id."}
    elif type_ == "claim":
        key = {"type": "string", "const": "@claim"}
    return {
        "name": type_,
        "title": type_,
        "summary": schema.get("description", type_),
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {"kafka": {"key": key, "bindingVersion": BINDING}},
    }


def _type_in(schema: dict[str, Any]) -> str | None:
    """The event type of a schema; None for a schema of anything else."""
    return cast("str | None", schema["properties"].get("type", {}).get("const"))


def _event_schemas(refs: str) -> dict[str, dict[str, Any]]:
    """The schemas of the event models by name. They describe the value alone and require the fields that every record has."""
    found: dict[str, dict[str, Any]] = _mended(json_schema()["$defs"], refs)
    for schema in found.values():
        properties = schema["properties"]
        if _type_in(schema):
            del properties["offset"], properties["timestamp"]
            del properties["type"]["default"], properties["v"]["default"]
            schema["required"] = ["type", "v", *(name for name in schema["required"] if name not in ("type", "v"))]
    return found


def _mended(value: Any, refs: str) -> Any:
    """The schema with references to `refs`, and without titles that only repeat a name."""
    if isinstance(value, list):
        return [_mended(one, refs) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, inner in cast("dict[str, Any]", value).items():
        if name == "$ref":
            found[name] = refs + str(inner).rpartition("/")[2]
        elif name != "title" or not isinstance(inner, str):
            found[name] = _mended(inner, refs)
    return found


_RUN_ID = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "pattern": "^[^@]",
    "description": "Printable, not beginning with @.",
}


_ANY = {"description": "Any JSON value; null if it is left out."}
_TEXT = {"type": "string", "minLength": 1}
_HEARTBEAT = "heartbeat"  # the field that stands for a request without content
_FIELDS: dict[str, dict[str, Any]] = {
    "workflow": {**_TEXT, "description": "The workflow's id."},
    "version": {**_TEXT, "description": "The workflow's version; without it the newest that the worker knows."},
    "run_id": _RUN_ID,
    "input": {"description": "The workflow's input."},
    "signal": {**_TEXT, "maxLength": 200},
    "reason": {**_TEXT, "description": "Why, for people; `why` says the same."},
    "by": {"type": "string", "maxLength": 200, "description": "Who asks, for people; of a CloudEvent its source if left out."},
    "why": {"type": "string", "maxLength": 10_000, "description": "Why, for people."},
    _HEARTBEAT: {"const": True},
    "error": {
        "type": "object",
        "required": ["message"],
        "properties": {"type": {**_TEXT, "description": "CallbackFailed if it is left out."}, "message": {"type": "string"}},
    },
}
_NAMES = {"input": "data"}
"""Field of a record -> its name in the inbox, where the two differ."""
_TAKEN = {field.name for field in fields(inbox.InboxRequest)}
_SUMMARIES = {
    "start": "Start a run. A repeat of its `run_id` starts nothing. Without one, the record's place or CloudEvent gives it.",
    "signal": "Send a signal to a run.",
    "cancel": "Ask a run to end.",
    "callback": "Answer a callback with data or with an error, or say that somebody still works on the answer.",
}


def _request_schemas() -> dict[str, dict[str, Any]]:
    """Sort of request -> the fields of the records that it may become, without those of every request."""
    models: dict[str, list[type[Request]]] = {}
    for model in get_args(RunEvent):
        asked_as = inbox.ASKED_AS.get(str(model.model_fields["type"].default))  # None: a message, which nobody outside sends
        if issubclass(model, Request) and asked_as is not None:
            models.setdefault(asked_as, []).append(model)
    return {type_: _request_schema(type_, of_type) for type_, of_type in models.items()}


def _request_schema(type_: str, models: list[type[Request]]) -> dict[str, Any]:
    if issubclass(models[0], OperationRequest):  # a callback's id holds the run id, the step id and the nonce
        address = set(models[0].model_fields).intersection(*(model.model_fields for model in models))
        properties: dict[str, Any] = {"id": {**_TEXT, "description": "The id that the workflow's code has handed out."}}
        contents = [next((name for name in model.model_fields if name not in address), _HEARTBEAT) for model in models]
        properties |= {name: _FIELDS.get(name, {"description": "Any JSON value."}) for name in (*contents, "by", "why")}
        return _object(type_, ["id"], properties) | {"oneOf": [{"required": [name]} for name in contents]}
    [model] = models
    own = [name for name in model.model_fields if name not in Request.model_fields and _NAMES.get(name, name) in _TAKEN]
    required = [name for name in own if model.model_fields[name].annotation is str]
    if type_ != "start":
        required.insert(0, "run_id")
    properties = {_NAMES.get(name, name): _FIELDS.get(name, _ANY) for name in ("run_id", *own, "by")}
    return _object(type_, required, properties)


def _object(type_: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": _SUMMARIES[type_],
        "required": ["type", *required],
        "properties": {"type": {"type": "string", "const": type_}, **properties},
    }


def _cloud_event(types: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A repeat with the same `source` and `id` has no effect.",
        "required": ["specversion", "type", "source", "id", "data"],
        "properties": {
            "specversion": {"type": "string", "pattern": "^1\\."},
            "type": {"type": "string", "enum": [f"stepfold.{type_}" for type_ in types]},
            "source": {"type": "string", "minLength": 1},
            "id": {"type": "string", "minLength": 1},
            "datacontenttype": {"type": "string"},
            "data": {"type": "object", "description": "The request; its `type` may be left out."},
        },
    }
