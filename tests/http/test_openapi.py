"""The description of the API: whole, valid, and nothing but the route table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_served import served
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Mount

from stepfold import Client
from stepfold.http import app
from stepfold.http.problems import MEDIA_TYPE
from stepfold.http.table import ROWS

API = [row for row in ROWS if not row.page]


@pytest.fixture
async def document(tmp_path: Path) -> dict[str, Any]:
    async with served(Client(f"sqlite:///{tmp_path}/log.db")) as browser:
        answered = await browser.get("/v1/openapi.json")
    assert (answered.status_code, answered.headers["content-type"]) == (200, "application/json")
    return answered.json()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): one for path, item in document["paths"].items() for method, one in item.items()}


def references(document: dict[str, Any]) -> set[str]:
    return set(re.findall(r'"\$ref": ?"([^"]*)"', json.dumps(document)))


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_it_describes_every_row_of_the_api_and_nothing_else(document: dict[str, Any]) -> None:
    found = operations(document)
    assert {place: one["operationId"] for place, one in found.items()} == {(row.method, row.path): row.name for row in API}
    for row in API:
        one = found[row.method, row.path]
        assert (one["x-role"], bool(one["security"])) == (row.role, row.role != "anyone")
        assert re.fullmatch(r"[A-Z].*\.", one["summary"]), row.name
        assert {status for status in one["responses"] if "$ref" not in one["responses"][status]} == {*map(str, row.answers)}
        for status in row.answers:
            assert set(one["responses"][str(status)].get("headers", {})) == set(row.sends.get(status, ())), row.name
        assert set(row.sends) <= set(row.answers)
        assert ("requestBody" in one) == (row.body is not None)


def test_it_describes_all_that_a_route_reads(document: dict[str, Any]) -> None:
    for (method, path), one in operations(document).items():
        row = next(row for row in API if (row.method, row.path) == (method, path))
        named = {(parameter["in"], parameter["name"]) for parameter in one["parameters"]}
        query = {("query", field.alias or name) for name, field in row.query.model_fields.items()}
        in_path = {("path", name) for name in re.findall(r"{(\w+)}", path)}
        assert named == query | in_path | {("header", name) for name in row.headers}


def test_no_schema_is_missing_and_none_is_left_over(document: dict[str, Any]) -> None:
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert {one for one in references(document) if one.startswith("#/components/schemas/")} == schemas


def test_parameters_are_those_of_a_query(document: dict[str, Any]) -> None:
    parameters = {one["name"]: one for one in document["paths"]["/v1/runs"]["get"]["parameters"]}
    assert parameters["state"]["schema"]["items"] == {"$ref": "#/components/schemas/StateName"}
    assert (parameters["state"]["style"], parameters["state"]["explode"]) == ("form", False)
    assert parameters["started_after"]["schema"] == {"format": "date-time", "title": "Started After", "type": "string"}
    assert parameters["limit"]["schema"]["maximum"] == 1000
    window = {one["name"] for one in document["paths"]["/v1/runs/{id}/history"]["get"]["parameters"]}
    assert {"from", "limit", "Last-Event-ID"} <= window


def test_answers_have_their_media_types(document: dict[str, Any]) -> None:
    history = document["paths"]["/v1/runs/{id}/history"]["get"]["responses"]
    assert set(history["200"]["content"]) == {"application/json", "application/x-ndjson", "text/event-stream"}
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    assert "content" not in document["paths"]["/v1/runs/{id}"]["get"]["responses"]["304"]
    assert history["404"] == history["default"] == {"$ref": "#/components/responses/Problem"}
    assert set(document["components"]["responses"]["Problem"]["content"]) == {MEDIA_TYPE}
    assert {"400", "408", "409", "412", "413", "415"} <= set(
        document["paths"]["/v1/runs/{id}/signals/{name}"]["post"]["responses"]
    )


async def test_it_names_the_path_below_which_the_app_is_mounted(tmp_path: Path) -> None:
    made = app(Client(f"sqlite:///{tmp_path}/log.db"))
    outer = Starlette(routes=[Mount("/flows", made)])
    async with (
        made.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://localhost") as browser,
    ):
        assert (await browser.get("/flows/v1/openapi.json")).json()["servers"] == [{"url": "/flows"}]
