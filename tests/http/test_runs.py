"""Runs by HTTP: one run, its result, and lists."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from asked import ask
from http_served import served

from stepfold import Client, Context, NonRetryable, Step
from stepfold.http import app, runs, service

GREET = {"workflow": "greet", "input": "Ada"}


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        return f"hello {ctx.input.data}"

    @client.workflow(id="break")
    async def broken(ctx: Context[str], step: Step) -> str:
        raise NonRetryable("it broke")

    return client


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    async with served(client) as browser:
        yield browser


async def test_a_run_is_shown_without_a_worker(client: Client, browser: httpx.AsyncClient) -> None:
    await client.start_workflow("greet", "Ada", run_id="one")
    shown = await browser.get("/v1/runs/one")
    assert (shown.status_code, shown.json()["state"], shown.json()["input"]) == (200, "pending", "Ada")
    missing = await browser.get("/v1/runs/two")
    assert (missing.status_code, missing.json()["code"]) == (404, "run-not-found")
    assert missing.headers["content-type"] == "application/problem+json"
    foreign = await browser.get("/v1/runs/one", headers={"Host": "evil.example"})
    assert foreign.status_code == 421


async def test_an_etag_tells_whether_the_run_has_changed(browser: httpx.AsyncClient) -> None:
    made = await browser.put("/v1/runs/one", json=GREET)
    shown = await browser.get("/v1/runs/one")
    assert shown.headers["etag"] == f'"{made.json()["partition"]}-{made.json()["offset"]}"'
    same = await browser.get("/v1/runs/one", headers={"If-None-Match": shown.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    polled = await browser.get("/v1/runs/one", headers={"If-None-Match": shown.headers["etag"], "Prefer": "wait=1"})
    assert (polled.status_code, polled.headers["preference-applied"]) == (304, "wait=1")


async def test_a_long_poll_answers_when_the_run_changes(browser: httpx.AsyncClient) -> None:
    await browser.put("/v1/runs/one", json=GREET)
    etag = (await browser.get("/v1/runs/one")).headers["etag"]
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        poll = group.create_task(browser.get("/v1/runs/one", headers={"If-None-Match": etag, "Prefer": "wait=60"}))
        await asyncio.sleep(0)
        await browser.post("/v1/runs/one/cancel", json={"why": "enough"})
    assert poll.result().status_code == 200
    assert poll.result().headers["etag"] != etag


async def test_a_run_is_shown_as_it_was(client: Client, browser: httpx.AsyncClient) -> None:
    async with client.worker():
        ended = await browser.put("/v1/runs/one", json=GREET, headers={"Prefer": "wait=30"})
    start = int(ended.headers["stepfold-position"].partition(":")[2]) - 1
    then = await browser.get(f"/v1/runs/one?at={start}")
    assert (then.status_code, then.json()["ended_at"], then.json()["offset"]) == (200, None, start)
    now = await browser.get(f"/v1/runs/one?at={ended.json()['offset']}")
    assert now.json()["state"] == "completed"
    if start:
        assert (await browser.get(f"/v1/runs/one?at={start - 1}")).status_code == 404
    assert (await browser.get("/v1/runs/one?at=-1")).status_code == 422


async def test_the_result_of_a_run(client: Client, browser: httpx.AsyncClient) -> None:
    await browser.put("/v1/runs/one", json=GREET)
    open_yet = await browser.get("/v1/runs/one/result", headers={"Prefer": "wait=1"})
    assert (open_yet.status_code, open_yet.headers["retry-after"]) == (202, "1")
    await browser.put("/v1/runs/two", json={"workflow": "break", "input": ""})
    async with client.worker():
        good = await browser.get("/v1/runs/one/result", headers={"Prefer": "wait=30"})
        bad = await browser.get("/v1/runs/two/result", headers={"Prefer": "wait=30"})
    assert (good.status_code, good.json()) == (200, {"id": "one", "result": "hello Ada"})
    assert (bad.status_code, bad.json()["code"]) == (422, "workflow-failed")
    assert "it broke" in bad.json()["detail"]


async def test_a_list_in_pages(browser: httpx.AsyncClient) -> None:
    position = {}
    for number in range(5):
        made = await browser.put(f"/v1/runs/run-{number}", json=GREET | {"input": f"person {number}"})
        position = {"Stepfold-Position": made.headers["stepfold-position"]}
        await browser.get("/v1/runs", headers=position)  # 16 partitions may lag one by one
    seen: list[str] = []
    url: str | None = "/v1/runs?limit=2&order=oldest"
    while url is not None:
        page = await browser.get(url, headers=position)
        assert page.status_code == 200
        seen += [run["run_id"] for run in page.json()["runs"]]
        url = page.links["next"]["url"] if "next" in page.links else None
        assert (page.json()["next"] is None) == (url is None)
    assert sorted(seen) == [f"run-{number}" for number in range(5)]
    counted = await browser.get("/v1/runs/count?state=pending,running&workflow=greet", headers=position)
    assert counted.json() == {"count": 5}
    found = await browser.get("/v1/runs?search=PERSON%203&include=input")
    assert [(run["run_id"], run["input"]) for run in found.json()["runs"]] == [("run-3", '"person 3"')]
    plain = await browser.get("/v1/runs?search=person%203")
    assert "person 3" not in plain.text


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "state=asleep",
        "order=started_at",
        "cursor=x",
        "started_after=2026-01-01",
        "started_after=1767225600",
        "nothing=1",
        "limit=1&limit=2",
    ],
)
async def test_a_query_that_is_not_valid(browser: httpx.AsyncClient, query: str) -> None:
    refused = await browser.get(f"/v1/runs?{query}")
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")


async def test_a_position_that_is_not_one(browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/v1/runs", headers={"Stepfold-Position": "3"})).status_code == 400
    assert (await browser.get("/v1/runs", headers={"Stepfold-Position": "0:99999"})).status_code == 200  # behind the log's end


@pytest.mark.parametrize(("path", "known"), [("/v1/runs/one/result", False), ("/v1/runs/one", True)])
async def test_a_wait_ends_when_its_caller_leaves(client: Client, path: str, known: bool) -> None:
    made = app(client)
    async with made.lifespan(), asyncio.timeout(30):  # less than the wait
        await client.start_workflow("greet", "Ada", run_id="one")
        headers = [(b"host", b"localhost"), (b"prefer", b"wait=60")]
        if known:
            headers.append((b"if-none-match", (await ask(made, "GET", "/v1/runs/one")).headers["etag"].encode()))
        parts = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return parts.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers, "scheme": "http"}
        await made(scope, receive, send)
        assert sent[0]["status"] == (304 if known else 202)


async def test_a_log_that_is_replaced_is_a_fault_of_the_server(
    client: Client, browser: httpx.AsyncClient, tmp_path: Path
) -> None:
    await browser.put("/v1/runs/one", json=GREET)
    shutil.copy(tmp_path / "log.db", tmp_path / "copy.db")
    (tmp_path / "copy.db").replace(tmp_path / "log.db")
    for path in ("/v1/runs/one", "/runs/one", "/readyz"):
        assert (await browser.get(path)).status_code == 503
    refused = await browser.put("/v1/runs/two", json=GREET)
    assert (refused.status_code, "restart everything that uses it" in refused.json()["detail"]) == (503, True)


async def test_a_search_by_post_is_the_list_of_the_same_conditions(client: Client, browser: httpx.AsyncClient) -> None:
    made = [await browser.put(f"/v1/runs/run-{n}", json=GREET | {"input": f"customer {n % 2}"}) for n in range(5)]
    seen = {"Stepfold-Position": made[-1].headers["Stepfold-Position"]}
    asked: dict[str, Any] = {"search": "CUSTOMER 0", "state": ["pending"], "workflow": "greet", "limit": 2, "include": ["input"]}
    first = await browser.post("/v1/runs/search", json=asked, headers=seen)
    listed = await browser.get("/v1/runs", params=asked)
    assert first.status_code == 200 and first.json() == listed.json()
    assert [run["input"] for run in first.json()["runs"]] == ['"customer 0"'] * 2
    rest = await browser.post("/v1/runs/search", json=asked | {"cursor": first.json()["next"]})
    assert [run["run_id"] for run in (*first.json()["runs"], *rest.json()["runs"])] == ["run-4", "run-2", "run-0"]
    assert rest.json()["next"] is None
    kind = {"Content-Type": "application/json"}
    for wrong in ('{"unknown":1}', '{"limit":0}', '{"state":[]}', '{"state":["none"]}', '{"cursor":"x"}', '{"search":"\\ud800"}'):
        refused = await browser.post("/v1/runs/search", content=wrong, headers=kind)
        assert refused.status_code in (400, 422), (wrong, refused.text)


async def test_a_search_that_takes_too_long_is_a_problem(browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(connection: sa.Connection, **_: Any) -> None:
        connection.execute(sa.text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"))

    monkeypatch.setattr(service, "READ_S", 0.05)
    monkeypatch.setattr(runs, "list_runs", slow)
    for answer in (await browser.get("/v1/runs?search=words"), await browser.post("/v1/runs/search", json={"search": "words"})):
        assert (answer.status_code, answer.json()["code"]) == (503, "search-too-long")
        assert "Retry-After" in answer.headers
