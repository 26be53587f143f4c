"""Operations and histories by HTTP, in pages, lines and streams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import app


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        await step.run("look", str.upper, ctx.input.data)
        signal = await step.wait_for_signal("answer", signal="go")
        return str(signal.data)

    return client


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """A real server on a socket: a stream is read while it is written."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app(client), log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        port = listener.getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as browser:
            while not server.started:
                await asyncio.sleep(0.01)
            yield browser
        server.should_exit = True
        await serving


async def run_to_its_end(client: Client, browser: httpx.AsyncClient) -> None:
    async with client.worker():
        await browser.put("/v1/runs/one", json={"workflow": "greet", "input": "Ada"})
        await browser.post("/v1/runs/one/signals/go", json={"data": "yes", "why": "it may"})
        ended = await browser.get("/v1/runs/one/result", headers={"Prefer": "wait=30"})
        assert ended.json()["result"] == "yes"


async def test_the_story_of_a_run(client: Client, browser: httpx.AsyncClient) -> None:
    await run_to_its_end(client, browser)
    steps = (await browser.get("/v1/runs/one/steps")).json()["steps"]
    assert [(step["step_id"], step["kind"], step["state"]) for step in steps] == [
        ("look", "step", "done"),
        ("answer", "wait", "done"),
    ]
    assert steps[1]["why"] == "it may"


async def test_a_history_in_pages_and_lines(client: Client, browser: httpx.AsyncClient) -> None:
    await run_to_its_end(client, browser)
    events: list[dict[str, object]] = []
    start: int | None = 0
    while start is not None:
        page = (await browser.get("/v1/runs/one/history", params={"from": start, "limit": 2})).json()
        events += page["events"]
        start = page["next"]
        assert (len(page["events"]) <= 2, page["total"]) == (True, len(await client.run("one").history()))
    assert [event["type"] for event in events] == [event.type for event in await client.run("one").history()]
    lines = await browser.get("/v1/runs/one/history", headers={"Accept": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [orjson.loads(line) for line in lines.text.splitlines()] == events
    for params, expected in (
        ({"step": "look"}, {"step-completed"}),
        ({"type": "started"}, {"started"}),
        ({"text": "IT MAY"}, {"signal-received"}),
        ({"text": "nowhere"}, set[str]()),
    ):
        found = (await browser.get("/v1/runs/one/history", params=params)).json()["events"]
        assert {event["type"] for event in found} == expected


async def read_stream(browser: httpx.AsyncClient, last: str | None = None) -> list[dict[str, str]]:
    """The messages of the stream until it ends."""
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
    messages: list[dict[str, str]] = []
    async with browser.stream("GET", "/v1/runs/one/history", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        current: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                current[name] = value
            elif current:
                messages.append(current)
                current = {}
    return messages


async def test_a_history_as_a_stream(client: Client, browser: httpx.AsyncClient) -> None:
    await browser.put("/v1/runs/one", json={"workflow": "greet", "input": "Ada"})
    async with client.worker(), asyncio.timeout(30), asyncio.TaskGroup() as group:
        reading = group.create_task(read_stream(browser))
        await browser.post("/v1/runs/one/signals/go", json={"data": "yes"})
    messages = reading.result()
    history = await client.run("one").history()
    assert [orjson.loads(one["data"])["type"] for one in messages if one["event"] == "event"] == [one.type for one in history]
    assert messages[-1]["event"] == "end"
    resumed = await read_stream(browser, messages[1]["id"])
    assert resumed[0]["id"] == messages[2]["id"]
    partition = messages[0]["id"].partition(":")[0]
    for gone in (f"{partition}:99999", "77:0", "x"):
        anew = await read_stream(browser, gone)
        assert (anew[0]["event"], anew[1]["id"]) == ("reset", messages[0]["id"])


async def test_a_stream_ends_after_its_life_and_goes_on_where_it_was(
    client: Client, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepfold.http.streaming.LIFE_S", 0.5)
    await browser.put("/v1/runs/one", json={"workflow": "greet", "input": "Ada"})
    messages = await read_stream(browser)
    assert [orjson.loads(one["data"])["type"] for one in messages] == ["started"]  # and no "end"
    await browser.post("/v1/runs/one/signals/go", json={})
    assert [orjson.loads(one["data"])["type"] for one in await read_stream(browser, messages[0]["id"])] == ["signal-received"]


def rename_all(folder: Path, old: str, new: str) -> None:
    for path in folder.glob(f"{old}*"):
        path.rename(folder / path.name.replace(old, new))


@pytest.mark.parametrize("trouble", ["the log is gone", "nobody reads"])
async def test_a_stream_ends_with_its_log_or_its_reader(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    monkeypatch.setattr("stepfold.http.streaming.SEND_S", 0.2)
    made = app(client)
    async with made.lifespan(), asyncio.timeout(30):
        await client.start_workflow("greet", "Ada", run_id="one")
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 2 and trouble == "nobody reads":
                await asyncio.Event().wait()
            elif len(sent) == 2:
                rename_all(tmp_path, "log.db", "away.db")

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        headers = [(b"host", b"localhost"), (b"accept", b"text/event-stream")]
        scope = {"type": "http", "method": "GET", "path": "/v1/runs/one/history", "query_string": b"", "headers": headers}
        await made(scope | {"scheme": "http"}, receive, send)
        if trouble == "the log is gone":
            assert sent[-1] == {"type": "http.response.body", "body": b""}
            assert "a stream ends: " in caplog.text
            rename_all(tmp_path, "away.db", "log.db")


async def test_the_number_of_streams_is_bounded(
    client: Client, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepfold.http.streaming.MAX_STREAMS", 1)
    await browser.put("/v1/runs/one", json={"workflow": "greet", "input": "Ada"})
    stream = {"Accept": "text/event-stream"}
    async with browser.stream("GET", "/v1/runs/one/history", headers=stream) as first:
        assert first.status_code == 200
        refused = await browser.get("/v1/runs/one/history", headers=stream)
        assert (refused.status_code, refused.json()["code"]) == (503, "too-many-streams")
    async with asyncio.timeout(30):
        while True:  # the server learns of the end of a stream a moment later
            async with browser.stream("GET", "/v1/runs/one/history", headers=stream) as again:
                if again.status_code == 200:
                    break
            await asyncio.sleep(0.05)


async def test_the_system(client: Client) -> None:
    async with served(client) as browser:
        made = await browser.put("/v1/runs/one", json={"workflow": "greet", "input": "Ada"})
        position = {"Stepfold-Position": made.headers["stepfold-position"]}
        partitions = (await browser.get("/v1/partitions")).json()["partitions"]
        assert {one["owner"] for one in partitions} == {None}
        assert partitions[made.json()["partition"]]["end"] == made.json()["offset"] + 1
        minutes = (await browser.get("/v1/minutes", headers=position)).json()["minutes"]
        assert sum(minute["started"] for minute in minutes) == 1
        projections = (await browser.get("/v1/projections")).json()["projections"]
        assert {one["projection"] for one in projections} == {"stepfold-runs", "stepfold-steps", "stepfold-actions"}
        assert (await browser.get("/v1/errors", headers=position)).json() == {"errors": []}
        span = {"after": "2020-01-01T00:00:00Z", "before": "2026-01-01T00:00:00Z"}
        assert (await browser.get("/v1/minutes", params=span)).status_code == 422
