"""A caller without the role `payload` sees metadata only, whatever it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Retry, Step
from stepfold.http.payload import lags_for
from stepfold.http.routing import Caller, Role
from stepfold.http.table import ROWS
from stepfold.projections import Lag

CANARY = "canary-7f1d"
CALLERS = {role.value: Caller(role.value, frozenset({role})) for role in Role}
tokens: list[str] = []


async def handed_out() -> list[str]:
    return tokens


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A log with the canary in every payload: of runs that wait, have failed, are quarantined and have completed."""
    client = Client(f"sqlite:///{tmp_path}/log.db")
    tokens.clear()

    def breaks() -> str:
        raise ValueError(CANARY)

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> str:
        if ctx.input.data == f"{CANARY} fails":
            raise RuntimeError(CANARY)
        if ctx.input.data == f"{CANARY} ends":
            return CANARY
        await step.publish("said", {CANARY: CANARY})
        await step.wait_for_signal("first", signal="hello")
        callback = await step.callback("answer", heartbeat="1h")
        tokens.append(callback.id)
        return await step.run("later", breaks, retry=Retry(backoff="1h"))

    async with served(client, authenticate=CALLERS.get) as browser, client.worker(), asyncio.timeout(20):
        browser.headers["Authorization"] = "Bearer admin"
        for run_id in ("waits", "fails", "ends"):
            made = await browser.put(f"/v1/runs/{run_id}", json={"workflow": "waits", "input": f"{CANARY} {run_id}"})
            assert made.status_code == 201
        await browser.post("/v1/runs/waits/signals/hello", json={"data": CANARY})
        await browser.post("/v1/runs/waits/signals/unread", json={"data": {CANARY: CANARY}})

        async def backs_off() -> bool:
            waits = (await browser.get("/v1/runs/waits")).json()["waits"]
            return any(CANARY in (wait["last"] or "") for wait in waits)

        await eventually(handed_out)
        await eventually(backs_off)
        await browser.get("/v1/runs/fails/result", headers={"Prefer": "wait=30"})
        ended = await browser.get("/v1/runs/ends/result", headers={"Prefer": "wait=30"})
        assert ended.json()["result"] == CANARY
        yield browser


async def read_all(browser: httpx.AsyncClient, role: str) -> dict[str, httpx.Response]:
    """The answers of all routes of the API that read and end, for every run."""
    headers = {"Authorization": f"Bearer {role}"}
    answers: dict[str, httpx.Response] = {}
    for row in ROWS:
        if row.method != "GET" or row.page or row.streams:
            continue
        for run_id in ("waits", "fails", "ends") if "{id}" in row.path else ("",):
            path = row.path.replace("{id}", run_id)
            answers[path] = await browser.get(path, headers=headers)
    return answers


@pytest.mark.parametrize("role", ["view", "operate"])
async def test_metadata_hold_no_payload(browser: httpx.AsyncClient, role: str) -> None:
    answers = await read_all(browser, role)
    assert {path for path, answer in answers.items() if CANARY in answer.text} == set()
    assert {path for path, answer in answers.items() if answer.status_code == 200} >= {"/v1/runs", "/v1/runs/waits"}
    for path in ("/v1/runs?include=input", "/v1/runs?search=canary", "/v1/runs/count?error=canary"):
        refused = await browser.get(path, headers={"Authorization": f"Bearer {role}"})
        assert refused.status_code == 403


async def test_payloads_are_for_callers_who_may_see_them(browser: httpx.AsyncClient) -> None:
    answers = await read_all(browser, "payload")
    assert {path for path, answer in answers.items() if CANARY in answer.text} >= {
        "/v1/runs/waits",
        "/v1/runs/ends/result",
        "/v1/runs/waits/published",
    }


@pytest.mark.parametrize("role", ["view", "payload"])
async def test_nobody_who_may_only_look_sees_the_id_of_a_callback(browser: httpx.AsyncClient, role: str) -> None:
    [token] = tokens
    answers = await read_all(browser, role)
    assert {path for path, answer in answers.items() if token in answer.text or "nonce" in answer.text} == set()
    operator = await browser.get("/v1/runs/waits", headers={"Authorization": "Bearer operate"})
    assert token in operator.text


@pytest.mark.parametrize(
    ("role", "stopped"), [(Role.VIEW, "it has stopped"), (Role.OPERATE, "it has stopped"), (Role.PAYLOAD, "Ada")]
)
def test_why_a_projection_has_stopped_is_a_payload(role: Role, stopped: str) -> None:
    lags = [Lag("orders", 0, 5, 9, "Ada"), Lag("orders", 1, 5, 9)]
    assert [lag.stopped for lag in lags_for(Caller("one", frozenset({role})), lags)] == [stopped, None]
