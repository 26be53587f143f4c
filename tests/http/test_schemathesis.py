"""The API against its own description: Schemathesis makes requests, good and bad ones, and judges the answers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from http_served import served
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.python import asgi

from stepfold import Client, Context, NonRetryable, Step
from stepfold.client.bulk import Wanted, start_job
from stepfold.client.requests import NOBODY
from stepfold.http import Caller, Role, app
from stepfold.http.guard import HEADERS

TOKEN = "a-token-of-an-admin"
REFUSED = ["400", "401", "403", "404", "405", "409", "412", "413", "414", "415", "422", "431"]
CONFIG = {
    "seed": 1,
    "headers": {"Authorization": f"Bearer {TOKEN}"},
    "continue-on-failure": True,
    "generation": {"max-examples": 10, "deterministic": True, "database": "none", "no-shrink": True},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        "enabled": False,
        "not_a_server_error": {"enabled": True},
        "status_code_conformance": {"enabled": True},
        "content_type_conformance": {"enabled": True},
        "response_schema_conformance": {"enabled": True},
        "response_headers_conformance": {"enabled": True},
        "negative_data_rejection": {"enabled": True, "expected-statuses": REFUSED},
        "unsupported_method": {"enabled": True},
        "allow_header_conformance": {"enabled": True},
        "ignored_auth": {"enabled": True},
    },
}
OF_PROBLEMS = ("Retry-After", "WWW-Authenticate")
EVERYWHERE = {"content-type", "content-length", "allow", "accept-encoding", "cache-control", *map(str.lower, HEADERS)}
STARTS = ["start_run", "start_new_run"]
"""They come last: they make runs under ids that others hold for unknown."""
RUNS = {"cancel_run": ["ends"], "signal_run": ["waits"], "get_bulk": ["job"], "abort_bulk": ["job"]}
NAMES = {"get_schema": ["done"], "rebuild_projection": ["stepfold-runs"]}
MAY_WAIT = ("Prefer", "Accept", "Stepfold-Position")
"""Headers with which an answer may wait or go on."""


def workflows(client: Client, tokens: dict[str, str]) -> Client:
    @client.workflow(id="done")
    async def done(ctx: Context[str], step: Step) -> str:
        return f"hello {ctx.input.data}"

    @client.workflow(id="failed")
    async def failed(ctx: Context[str], step: Step) -> None:
        raise NonRetryable("no")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> object:
        callback = await step.callback("answer", heartbeat="1d")
        tokens[ctx.run_id] = callback.id
        return await callback

    return client


async def some_runs(url: str) -> tuple[dict[str, Any], str]:
    """The description of the API, and the id of an open callback."""
    tokens: dict[str, str] = {}
    client = workflows(Client(url), tokens)
    async with client, client.worker():
        for name in ("done", "failed", "waits"):
            await client.start_workflow(name, "Ada", run_id=name)
        await client.start_workflow("waits", "Ada", run_id="ends")
        await start_job(client, "job", Wanted("cancel", {"ids": ["nobody"]}, NOBODY), ["nobody"], [])
        await asyncio.gather(*(client.run(name).result() for name in ("done", "failed")), return_exceptions=True)
        while "waits" not in tokens:
            await asyncio.sleep(0.02)
    async with served(Client(url)) as browser:
        return (await browser.get("/v1/openapi.json")).json(), tokens["waits"]


def known(document: dict[str, Any], token: str) -> dict[str, Any]:
    """The description with the ids of runs that exist, without `default`, which would allow any status, and without the stream
    that never ends."""
    del document["paths"]["/v1/changes"]
    for item in document["paths"].values():
        for method, operation in item.items():
            del operation["responses"]["default"]
            operation["parameters"] = [one for one in operation["parameters"] if one["name"] not in MAY_WAIT]
            for parameter in operation["parameters"]:
                if parameter["name"] == "id" and method != "put":
                    parameter["schema"] = {"enum": RUNS.get(operation["operationId"], ["done", "failed", "waits"])}
                elif parameter["name"] == "name" and operation["operationId"] in NAMES:
                    parameter["schema"] = {"enum": NAMES[operation["operationId"]]}
                elif parameter["name"] == "token":
                    parameter["schema"] = {"enum": [token]}
    return document


def statuses(recorder: ScenarioRecorder) -> set[int]:
    return {one.response.status_code for one in recorder.interactions.values() if one.response is not None}


def undeclared(recorder: ScenarioRecorder, responses: dict[str, Any]) -> set[str]:
    """The headers of answers that the description does not name, but for those that every answer of a server may have."""
    found: set[str] = set()
    for one in recorder.interactions.values():
        if one.response is not None:
            status = responses.get(str(one.response.status_code), {})
            declared = status.get("headers", {} if "$ref" not in status else dict.fromkeys(OF_PROBLEMS))
            found |= {*one.response.headers} - {name.lower() for name in declared} - EVERYWHERE
    return found


def failures(recorder: ScenarioRecorder) -> list[str]:
    """All but that a GET of the path of searches shows a run of the id "search"."""
    return [
        f"{one.failure_info.code_sample}\n{one.name}: {one.failure_info.failure.message}"
        for checks in recorder.checks.values()
        for one in checks
        if one.failure_info is not None
        and not (one.name == "unsupported_method" and re.search(r"-X GET .*/v1/runs/search\b", one.failure_info.code_sample))
    ]


@pytest.mark.slow
def test_answers_are_as_described(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    document, token = asyncio.run(some_runs(url))
    callers = {TOKEN: Caller("ada", frozenset({Role.ADMIN}))}
    schema: Any = schemathesis.openapi.from_dict(known(document, token), config=cast(Any, SchemathesisConfig).from_dict(CONFIG))
    schema.app = app(workflows(Client(url), {}), hosts=[asgi.HOST], authenticate=callers.get)
    asked: dict[str, set[int]] = {}
    wrong: list[str] = []
    try:
        for part in (schema.exclude(operation_id=STARTS), schema.include(operation_id=STARTS)):
            for event in from_schema(part).execute():
                if isinstance(event, events.NonFatalError | events.FatalError):
                    wrong.append(str(event))
                elif isinstance(event, events.ScenarioFinished):
                    asked.setdefault(str(event.label), set()).update(statuses(event.recorder))
                    wrong += failures(event.recorder)
                    method, _, path = str(event.label).partition(" ")
                    headers = undeclared(event.recorder, document["paths"][path][method.lower()]["responses"])
                    wrong += [f"{event.label} sends {name}" for name in headers]
    finally:
        asgi.shutdown_lifespans()
    assert not wrong, "\n\n".join(wrong)
    assert len(asked) == sum(map(len, document["paths"].values()))
    refused = {label for label, found in asked.items() if not found & {200, 201, 202}}
    lacking = {"GET /v1/dashboards/{name}", "POST /v1/dead-letters/redrive", "POST /v1/dead-letters/drop"}
    assert refused == lacking, "this server has no dashboard of users, and no inbox"
