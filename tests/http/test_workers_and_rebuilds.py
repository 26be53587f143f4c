"""Workers by their claims, and projections that are made again."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role
from stepfold.http.service import PartitionBounds, workers_in


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> None: ...

    return client


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    async with served(client) as browser:
        yield browser


async def test_workers_own_partitions_since_their_claims(client: Client, browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/v1/workers")).json() == {"workers": [], "unowned": list(range(client.log.partitions))}
    before = datetime.fromtimestamp(client.log.now() / 1000, UTC)
    async with client.worker() as worker:

        async def owned() -> list[dict[str, Any]]:
            answer = (await browser.get("/v1/workers")).json()
            return answer["workers"] if not answer["unowned"] else []

        [one] = await eventually(owned)
        assert (one["worker"], one["host"], one["pid"]) == (worker.name, socket.gethostname(), os.getpid())
        assert [part["partition"] for part in one["partitions"]] == list(range(client.log.partitions))
        assert before <= datetime.fromisoformat(one["since"]) <= datetime.fromtimestamp(client.log.now() / 1000, UTC)
        page = (await browser.get("/workers")).text
        assert worker.name in page
        assert f">{os.getpid()}<" in page
    assert (await browser.get("/v1/workers")).json()["workers"] == []
    assert {one["since"] for one in (await browser.get("/v1/partitions")).json()["partitions"]} == {None}


def test_a_name_that_holds_no_process_is_only_a_name() -> None:
    bounds = [
        PartitionBounds(0, "by hand", 0, 1, 5),
        PartitionBounds(1, "a-b-7-12345678", 0, 1, 9),
        PartitionBounds(2, None, 0, 0, None),
    ]
    assert [(one.worker, one.host, one.pid, one.since) for one in workers_in(bounds)] == [
        ("a-b-7-12345678", "a-b", 7, 9),
        ("by hand", None, None, 5),
    ]


async def test_a_projection_is_rebuilt(client: Client, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stepfold.http")
    for number in range(5):
        await client.start_workflow("greet", "", run_id=f"run-{number}")

    async def listed() -> bool:
        return (await browser.get("/v1/runs/count")).json()["count"] == 5

    await eventually(listed)
    assert (await browser.post("/v1/projections/nobody/rebuild", json={})).status_code == 404
    begun = await browser.post("/v1/projections/stepfold-runs/rebuild", json={"by": "ada", "why": "to be sure"})
    assert begun.status_code == 202
    assert {one["projection"] for one in begun.json()["projections"] if one["rebuilding"]} == {"stepfold-runs"}
    again = await browser.post("/v1/projections/stepfold-runs/rebuild", json={})
    assert again.status_code in (202, 409)

    async def done() -> bool:
        return not any(one["rebuilding"] for one in (await browser.get("/v1/projections")).json()["projections"])

    await eventually(done)
    assert await listed()
    assert "asked by ada, to be sure" in caplog.text
    form = await browser.post("/workers", data={"name": "stepfold-steps", "why": "by hand"})
    assert form.status_code == 303
    assert "asked by dashboard, by hand" in caplog.text
    await eventually(done)


async def test_only_an_admin_rebuilds(client: Client) -> None:
    callers = {"act": Caller("ada", frozenset({Role.OPERATE, Role.PAYLOAD}))}
    async with served(client, authenticate=callers.get) as browser:
        browser.headers["Authorization"] = "Bearer act"
        assert (await browser.post("/v1/projections/stepfold-runs/rebuild", json={})).status_code == 403
        assert (await browser.post("/workers", data={"name": "stepfold-runs"})).status_code == 403
        assert "Rebuild a projection" not in (await browser.get("/workers")).text
