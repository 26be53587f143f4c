"""The OpenAPI 3.1 document, made from the route table. Clients, editors and tests read it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib import metadata
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from .headers import POSITION
from .problems import MEDIA_TYPE, ProblemDetail
from .routing import JSON, HttpCall, Role, Row

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]
SCHEMAS = "#/components/schemas/"
PROBLEM = "Problem"
HEADERS = {
    "Accept": "The media types that the caller accepts.",
    "Idempotency-Key": "1 to 200 printable ASCII characters: the same request again has no second effect.",
    "If-Match": "An ETag of the run: 412 if it has a newer record.",
    "If-None-Match": "An ETag of the run: 304 if it has no newer record.",
    "Last-Event-ID": "The id of the last event that the reader of a stream has seen.",
    "Prefer": "`wait=n`: answer after up to n seconds, at most 60, once there is news.",
    POSITION: "`partition:offset`: answer once the tables hold everything below this position.",
}
"""Request headers and their descriptions."""
_TEXT = {"type": "string"}
SENT: dict[str, tuple[str, Json]] = {
    "ETag": ("The place of the newest record of the run, or of the claim of its partition.", _TEXT | {"pattern": r'^"\d+-\d+"$'}),
    "Link": ("The next page, as `rel=next`; the last page has none.", _TEXT),
    "Location": ("The path of the new run or job.", _TEXT | {"format": "uri-reference"}),
    "Preference-Applied": (
        "How long the answer may have waited, if that was asked for.",
        _TEXT | {"pattern": r"^wait=\d+$"},
    ),
    "Retry-After": ("Ask again after this many seconds.", {"type": "integer", "minimum": 0}),
    "WWW-Authenticate": ("How to authenticate, with a 401.", _TEXT),
    POSITION: ("`partition:offset`: the position after the record of the request.", _TEXT | {"pattern": r"^\d+:\d+$"}),
}
"""Response headers with their descriptions and schemas."""
_MAY_LACK = ("Link", "Preference-Applied")
_EVERY = (401, 414, 421, 422, 431, 503)
_OF_BODIES = (400, 403, 408, 409, 413, 415)


def described(rows: Sequence[Row]) -> Row:
    """The route of the OpenAPI document of these rows and of this route."""

    @functools.cache
    def document() -> Json:
        return _document([*rows, row])

    async def get_openapi(call: HttpCall) -> Response:
        """Describe this API as OpenAPI."""
        servers = [{"url": call.request.scope.get("root_path") or "/"}]
        return Response(orjson.dumps(document() | {"servers": servers}), media_type=JSON)

    row = Row(
        method="GET",
        path="/v1/openapi.json",
        role=Role.VIEW,
        name="get_openapi",
        handler=get_openapi,
        answers={200: None},
        media=(JSON,),
    )
    return row


@dataclass(frozen=True, slots=True)
class _Schemas:
    """The schemas of all models. `references`: from a model and its mode to the `$ref` of one of `kept`."""

    references: Mapping[Any, Json]
    kept: Json

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Schemas:
        read = [ProblemDetail, *(model for row in rows for model in (row.query, row.body) if model is not None)]
        answers = [model for row in rows for model in row.answers.values() if model is not None]
        inward: list[tuple[type[BaseModel], Mode]] = [(model, "validation") for model in dict.fromkeys(read)]
        outward: list[tuple[type[BaseModel], Mode]] = [(model, "serialization") for model in dict.fromkeys(answers)]
        references, made = models_json_schema([*inward, *outward], ref_template=SCHEMAS + "{model}")
        return cls(references, made["$defs"])

    def query(self, model: type[BaseModel]) -> Json:
        return self.kept[self.references[model, "validation"]["$ref"].removeprefix(SCHEMAS)]

    def components(self, rows: Sequence[Row]) -> Json:
        """All schemas but those of queries, which are written as parameters."""
        inlined = {self.references[row.query, "validation"]["$ref"].removeprefix(SCHEMAS) for row in rows}
        inlined -= {self.references[row.body, "validation"]["$ref"].removeprefix(SCHEMAS) for row in rows if row.body is not None}
        others = orjson.dumps([schema for name, schema in self.kept.items() if name not in inlined]).decode()
        return {name: one for name, one in self.kept.items() if name not in inlined or f'"{SCHEMAS}{name}"' in others}


def _document(rows: Sequence[Row]) -> Json:
    schemas = _Schemas.of(rows)
    paths: dict[str, Json] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas)
    problem = {
        "description": "The problem.",
        "headers": {name: _sent(name, required=False) for name in ("Retry-After", "WWW-Authenticate")},
        "content": {MEDIA_TYPE: {"schema": schemas.references[ProblemDetail, "validation"]}},
    }
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "stepfold",
            "version": metadata.version("stepfold"),
            "description": "The durable workflows of one log. `x-role` is the right that a caller needs.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components(rows),
            "responses": {PROBLEM: problem},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(row: Row, schemas: _Schemas) -> Json:
    summary, _, text = (inspect.getdoc(row.handler) or "").partition("\n")
    found: Json = {
        "operationId": row.name,
        "summary": summary,
        "x-role": row.role.value,
        "security": [] if row.role is Role.ANYONE else [{"bearer": []}],
        "parameters": [*_of_path(row), *_of_query(schemas.query(row.query)), *map(_header, row.headers)],
        "responses": _answers(row, schemas),
    }
    if text.strip():
        found["description"] = text.strip()
    if row.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas.references[row.body, "validation"]}}}
    return found


def _of_path(row: Row) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)", row.path)
    ]


def _of_query(model: Json) -> list[Json]:
    required = model.get("required", ())
    return [_parameter(name, name in required, schema) for name, schema in model.get("properties", {}).items()]


def _parameter(name: str, required: bool, schema: Json) -> Json:
    """A parameter of the query. A query has no null: the parameter is left out instead."""
    schema = dict(schema)
    choices = [one for one in schema.pop("anyOf", ()) if one != {"type": "null"}]
    if schema.get("default", "") is None:
        del schema["default"]
    if len(choices) == 1:
        schema |= choices[0]
    elif choices:
        schema["anyOf"] = choices
    found: Json = {"name": name, "in": "query", "required": required, "schema": schema}
    return found | {"style": "form", "explode": False} if schema.get("type") == "array" else found


def _header(name: str) -> Json:
    return {"name": name, "in": "header", "description": HEADERS[name], "schema": {"type": "string"}}


def _sent(name: str, *, required: bool) -> Json:
    description, schema = SENT[name]
    return {"description": description, "required": required, "schema": schema}


def _answers(row: Row, schemas: _Schemas) -> Json:
    found: Json = {}
    for status, model in row.answers.items():
        content: Json = {} if model is None else {JSON: {"schema": schemas.references[model, "serialization"]}}
        if status == 200:
            content |= {media: {"schema": {"type": "object" if media == JSON else "string"}} for media in row.media}
        headers = {name: _sent(name, required=name not in _MAY_LACK) for name in row.sends.get(status, ())}
        parts: Json = {"headers": headers, "content": content}
        found[str(status)] = {"description": HTTPStatus(status).phrase} | {name: part for name, part in parts.items() if part}
    reference = {"$ref": f"#/components/responses/{PROBLEM}"}
    for status in _refused(row):
        found.setdefault(str(status), reference)
    return found | {"default": reference}


def _refused(row: Row) -> list[int]:
    """The statuses of the problems that the route may answer, from its role, path, headers and body."""
    found = {*_EVERY, *(_OF_BODIES if row.body is not None else ())}
    conditions: list[tuple[bool, int]] = [
        (bool({"Idempotency-Key", POSITION} & {*row.headers}), 400),
        (row.role is not Role.ANYONE, 403),
        ("{" in row.path, 404),
        ("If-Match" in row.headers, 412),
    ]
    return sorted(found | {status for applies, status in conditions if applies})
