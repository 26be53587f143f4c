"""The published contract: what AsyncAPI 3 requires, what its Kafka binding knows, and that it tells the truth about the wire.

The document was also held against the official JSON Schema of AsyncAPI 3.0.0, which is too large to keep here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast, get_args

import orjson
import pytest
from shell import Shell

from stepfold import Client, Context, Step
from stepfold.cli.asyncapi import document, history_schema
from stepfold.core.records import Request
from stepfold.drivers import KafkaDriver
from stepfold.events import Event, RunEvent, decode
from stepfold.log import CLAIM_KEY, InboxRecord
from stepfold.operations.callback import CallbackId
from stepfold.worker.inbox import ASKED_AS, Refused, as_found, parse

LOG = KafkaDriver.from_url("kafka://kafka-1:9092,kafka-2:9092/shop")
DOCUMENT = document(LOG.namespace, LOG.bootstrap)
SCHEMAS = DOCUMENT["components"]["schemas"]

# Of each object of the specification that is used: what must be there, and what else may be.
FIELDS = {
    "document": ({"asyncapi", "info"}, {"id", "servers", "defaultContentType", "channels", "operations", "components"}),
    "info": ({"title", "version"}, {"description", "license", "contact", "termsOfService", "tags", "externalDocs"}),
    "server": ({"host", "protocol"}, {"protocolVersion", "pathname", "description", "title", "summary", "bindings"}),
    "channel": (set[str](), {"address", "messages", "title", "summary", "description", "servers", "bindings"}),
    "operation": ({"action", "channel"}, {"title", "summary", "description", "messages", "bindings", "reply"}),
    "message": (set[str](), {"headers", "payload", "contentType", "name", "title", "summary", "description", "bindings"}),
    "channel binding": (set[str](), {"topic", "partitions", "replicas", "topicConfiguration", "bindingVersion"}),
    "message binding": (set[str](), {"key", "schemaIdLocation", "bindingVersion"}),
    "components": (set[str](), {"schemas", "messages"}),
}


def check(kind: str, value: dict[str, Any]) -> None:
    required, optional = FIELDS[kind]
    assert required <= value.keys() <= required | optional, kind


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from references(inner)


def resolve(reference: str, root: dict[str, Any]) -> Any:
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def fits(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """As much of JSON Schema as the contract uses."""
    if "$ref" in schema:
        return fits(resolve(schema["$ref"], root), value, root)
    kinds: dict[str, Any] = {"object": dict, "string": str, "integer": int, "null": type(None), "array": list, "boolean": bool}
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, kinds[kind]) or isinstance(value, bool) != (kind == "boolean")):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(fits(one, value, root) for one in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(fits(one, value, root) for one in schema["oneOf"]) != 1:
        return False
    if isinstance(value, str):
        long = not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        if long or ("pattern" in schema and not re.search(schema["pattern"], value)):
            return False
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if not set(schema.get("required", ())) <= fields.keys():
            return False
        properties: dict[str, Any] = schema.get("properties", {})
        return all(fits(properties[name], inner, root) for name, inner in fields.items() if name in properties)
    return True


def test_it_has_what_asyncapi_requires_and_nothing_else() -> None:
    check("document", DOCUMENT)
    assert DOCUMENT["asyncapi"] == "3.0.0"
    check("info", DOCUMENT["info"])
    check("components", DOCUMENT["components"])
    for server in DOCUMENT["servers"].values():
        check("server", server)
    for channel in DOCUMENT["channels"].values():
        check("channel", channel)
        check("channel binding", channel["bindings"]["kafka"])
        assert channel["bindings"]["kafka"]["topic"] == channel["address"]
        assert channel["messages"]
    for message in DOCUMENT["components"]["messages"].values():
        check("message", message)
        check("message binding", message["bindings"]["kafka"])
    for operation in DOCUMENT["operations"].values():
        check("operation", operation)
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"] in {f"#/channels/{name}" for name in DOCUMENT["channels"]}


def test_it_names_this_namespaces_topics_and_brokers() -> None:
    assert [channel["address"] for channel in DOCUMENT["channels"].values()] == [
        "shop.history",
        "shop.inbox",
        "shop.dead-letters",
    ]
    assert [server["host"] for server in DOCUMENT["servers"].values()] == ["kafka-1:9092", "kafka-2:9092"]


@pytest.mark.parametrize("root", [DOCUMENT, history_schema()], ids=["asyncapi", "json schema"])
def test_every_reference_leads_somewhere(root: dict[str, Any]) -> None:
    found = list(references(root))
    assert found
    for reference in found:
        assert isinstance(resolve(reference, root), dict), reference


def test_the_history_says_of_every_event_when_it_counts() -> None:
    conditions = DOCUMENT["channels"]["history"]["description"].partition("of its type holds:\n")[2].splitlines()
    for model in get_args(Event):
        assert model.counts_if
        line = next(line for line in conditions if f"`{model.model_fields['type'].default}`" in line.partition(": ")[0])
        assert line.startswith("  - `") and line.endswith(f": {model.counts_if}")


def test_every_event_is_a_message_of_the_history() -> None:
    kinds = {model.model_fields["type"].default for model in get_args(RunEvent)} | {"claim", "delivered"}
    assert DOCUMENT["channels"]["history"]["messages"].keys() == kinds
    assert len(history_schema()["oneOf"]) == len(kinds)


async def test_what_the_engine_writes_fits_the_schema() -> None:
    client = Client("memory://")

    @client.workflow(id="w")
    async def w(ctx: Context[int], step: Step) -> int:
        await step.sleep("nap", 0.01)
        await step.wait_for_signal("wait", signal="go", timeout="1h")
        return await step.run("add", lambda: ctx.input.data + 1)

    async with client.worker():
        run = await client.start_workflow(w, 1, run_id="r")
        await run.signal("go", {"x": [1]})
        await run.result()
        records = await client.log.find(0, ("r", CLAIM_KEY))
    schema = history_schema()
    values = [orjson.loads(record.value) for record in records]
    assert {value["type"] for value in values} >= {"claim", "started", "sleep-scheduled", "wait-started", "completed"}
    for value in values:
        assert fits(schema, value, schema), value
        for name in ("type", "v", "at"):
            assert not fits(schema, {key: inner for key, inner in value.items() if key != name}, schema)


@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if "const" in schema["properties"].get("type", {})])
def test_what_the_schema_requires_the_code_requires(name: str) -> None:
    """The smallest record that the schema allows is accepted; without one of its fields it is not."""
    schema = SCHEMAS[name]
    smallest: dict[str, Any] = {field: _value(schema["properties"].get(field, {})) for field in schema["required"]}
    if name == "callback":
        smallest |= {"id": str(CallbackId("r", "s", "n")), "heartbeat": True}
    assert fits(schema, smallest, DOCUMENT)
    assert _is_taken(smallest)
    for field in smallest:
        assert not _is_taken({key: value for key, value in smallest.items() if key != field}) or (name, field) == (
            "signal",
            "run_id",
        )


def test_every_request_that_the_router_serves_is_in_the_contract() -> None:
    """By kind, as a record of the history becomes one again."""
    place = {"inbox": "i", "partition": 0, "offset": 1}
    error = {"type": "E", "message": "no"}
    record = {"at": 1, "run_id": "r", "from": place, "error": error, "workflow": "w", "version": "1", "input": 1}
    record |= {"signal": "s", "data": [1], "reason": "r", "step_id": "a", "nonce": "n"}
    kinds: list[str] = []
    for model in get_args(RunEvent):
        if issubclass(model, Request) and model.model_fields["type"].default in ASKED_AS:
            own = {name: value for name, value in record.items() if name in (*model.model_fields, "from")}
            found = as_found({**own, "type": model.model_fields["type"].default})
            request = orjson.loads(found.value or b"")
            schema = SCHEMAS[request["type"]]
            assert fits(schema, request, DOCUMENT) and request.keys() <= schema["properties"].keys()
            assert parse(found).type == request["type"]
            kinds.append(request["type"])
    messages = DOCUMENT["channels"]["inbox"]["messages"].keys()
    assert messages == {*(f"request-{kind}" for kind in kinds), "request-cloud-event"}
    assert set(SCHEMAS["cloud-event"]["properties"]["type"]["enum"]) == {f"stepfold.{kind}" for kind in kinds}


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ({"data": None}, True),
        ({"heartbeat": True}, True),
        ({"error": {"message": ""}}, True),
        ({"error": {"message": "m", "type": "E"}}, True),
        ({}, False),
        ({"data": 1, "heartbeat": True}, False),
        ({"heartbeat": False}, False),
        ({"error": {"type": "E"}}, False),
        ({"error": {"message": 5}}, False),
        ({"error": "no"}, False),
    ],
)
def test_an_answer_is_taken_if_the_schema_says_so(answer: dict[str, Any], good: bool) -> None:
    record = {"type": "callback", "id": str(CallbackId("r", "s", "n")), **answer}
    assert fits(SCHEMAS["callback"], record, DOCUMENT) == _is_taken(record) == good


def _value(schema: dict[str, Any]) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "$ref" in schema:
        return {"type": "ValueError", "message": ""}
    if "anyOf" in schema:
        return None
    values: dict[str, Any] = {"integer": 1, "boolean": True, "object": {}}
    return values.get(schema.get("type", ""), "x")


def _is_taken(record: dict[str, Any]) -> bool:
    data = orjson.dumps(record)
    if "v" in record or record.get("type") not in ("start", "signal", "cancel", "callback", None):
        return decode(data) is not None
    try:
        parse(InboxRecord("shop.inbox/0/1", 0, None, data, ()))
    except Refused:
        return decode(data) is not None
    return True


def test_a_cloud_event_by_the_schema_is_understood() -> None:
    event = {
        "specversion": "1.0",
        "type": "stepfold.start",
        "source": "/shop",
        "id": "1",
        "data": {"workflow": "order", "data": {"n": 1}},
    }
    assert fits(SCHEMAS["cloud-event"], event, DOCUMENT)
    header = ("content-type", b"application/cloudevents+json")
    assert parse(InboxRecord("shop.inbox/0/1", 0, None, orjson.dumps(event), (header,))).workflow == "order"
    for field in ("specversion", "type", "source", "id"):
        less = {name: value for name, value in event.items() if name != field}
        assert not fits(SCHEMAS["cloud-event"], less, DOCUMENT)
        with pytest.raises(Refused):
            parse(InboxRecord("shop.inbox/0/1", 0, None, orjson.dumps(less), (header,)))


def test_the_command_prints_them_without_a_broker(shell: Shell) -> None:
    url = f"kafka://{LOG.bootstrap}/shop"
    assert orjson.loads(shell("topics", "describe", "--asyncapi", "--url", url).stdout) == DOCUMENT
    assert orjson.loads(shell("topics", "describe", "--schema").stdout) == history_schema()
    assert orjson.loads(shell("topics", "describe", "--schema", "-o", "jsonl").stdout.splitlines()[0]) == history_schema()
