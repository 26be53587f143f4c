"""The route that shows the types of a workflow's input and result as JSON Schemas, if the server knows its code."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from ..authoring.workflow import Workflow, version_order
from ..client.client import Client
from ..values.codec import Codec
from .problems import HttpRefusal
from .routing import Answer, HttpCall, Role, Row


class WorkflowSchema(BaseModel):
    """The input and the result of a workflow in the highest version that this server knows. A schema is null if the type has
    none; `{}` accepts any JSON."""

    workflow: str
    version: str
    versions: list[str]
    input: dict[str, Any] | None
    result: dict[str, Any] | None


def known_workflows(client: Client) -> dict[str, Workflow[Any, Any]]:
    """The workflows that this process has registered, by id, each in its highest version."""
    found: dict[str, Workflow[Any, Any]] = {}
    for one in sorted(client.registry, key=lambda one: version_order(one.version)):
        found[one.id] = one
    return dict(sorted(found.items()))


def schema_of(codec: Codec, *, taken: bool) -> dict[str, Any] | None:
    """The JSON Schema of values that a workflow takes, or gives; None if their type has none."""
    if codec.adapter is None:
        return {}
    try:
        return codec.adapter.json_schema(mode="validation" if taken else "serialization")
    except (PydanticInvalidForJsonSchema, ValueError, TypeError):
        return None


async def get_schema(call: HttpCall) -> Answer:
    """Show the JSON Schemas of a workflow's input and result."""
    known = known_workflows(call.service.client).get(call.path["name"])
    if known is None:
        raise HttpRefusal(
            404, "workflow-unknown", "this server does not know the code of this workflow: start the server with --app"
        )
    versions = [one.version for one in call.service.client.registry if one.id == known.id]
    return Answer(
        WorkflowSchema(
            workflow=known.id,
            version=known.version,
            versions=sorted(versions, key=version_order),
            input=schema_of(known.input, taken=True),
            result=schema_of(known.output, taken=False),
        )
    )


ROWS = (
    Row(
        method="GET",
        path="/v1/workflows/{name}/schema",
        role=Role.VIEW,
        name="get_schema",
        handler=get_schema,
        answers={200: WorkflowSchema},
    ),
)
