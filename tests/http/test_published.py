"""Values that a run has published: by HTTP, in its stream, and on its page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role

CALLERS = {role.value: Caller(role.value, frozenset({role})) for role in Role}
PATH = "/v1/runs/one/published"
ODD = "<b>&\"'/?#"


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A log with a run that has published and ended, and one that has published nothing."""
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="import")
    async def rows(ctx: Context[int], step: Step) -> None:
        for number in range(ctx.input.data):
            await step.publish("progress", {"done": number})
        if ctx.input.data:
            await step.publish(ODD, "x" * 500)

    async with served(client, authenticate=CALLERS.get) as browser, client.worker():
        browser.headers["Authorization"] = "Bearer admin"
        for run_id, count in (("one", 3), ("none", 0)):
            await browser.put(f"/v1/runs/{run_id}", json={"workflow": "import", "input": count}, headers={"Prefer": "wait=30"})
        yield browser


async def history(browser: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    return (await browser.get("/v1/runs/one/history", params=query)).json()["events"]


async def test_the_last_value_of_each_key(browser: httpx.AsyncClient) -> None:
    shown = (await browser.get(PATH)).json()
    assert (shown["id"], shown["offset"]) == ("one", (await history(browser))[-1]["offset"])
    assert {key: (one["value"], one["seq"]) for key, one in shown["values"].items()} == {
        "progress": ({"done": 2}, 3),
        ODD: ("x" * 500, 1),
    }
    assert shown["values"]["progress"]["at"].endswith("Z")
    assert (await browser.get("/v1/runs/none/published")).json()["values"] == {}
    assert (await browser.get("/v1/runs/nobody/published")).status_code == 404


async def test_the_values_as_they_were(browser: httpx.AsyncClient) -> None:
    for event in await history(browser, type="published"):
        then = (await browser.get(PATH, params={"at": event["offset"]})).json()
        assert then["values"][event["key"]]["value"] == event["value"]
        assert then["values"][event["key"]]["seq"] == event["seq"]
    first = (await history(browser))[0]["offset"]
    assert (await browser.get(PATH, params={"at": first})).json()["values"] == {}


async def test_the_stream_of_a_run_has_all_values(browser: httpx.AsyncClient) -> None:
    stream = await browser.get("/v1/runs/one/history", params={"type": "published"}, headers={"Accept": "text/event-stream"})
    told = [orjson.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert [(one["key"], one["seq"]) for one in told] == [("progress", 1), ("progress", 2), ("progress", 3), (ODD, 1)]


async def test_values_are_payloads(browser: httpx.AsyncClient) -> None:
    for role, status in (("view", 403), ("operate", 403), ("payload", 200)):
        browser.headers["Authorization"] = f"Bearer {role}"
        assert (await browser.get(PATH)).status_code == status
        events = await history(browser, type="published")
        assert [("value" in one, one["seq"]) for one in events] == [(status == 200, seq) for seq in (1, 2, 3, 1)]
        page = (await browser.get("/runs/one")).text
        assert ("published-title" in page, "xxxxx" in page) == (status == 200, status == 200)


async def test_the_page_shows_them_as_they_were(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/runs/one")).text
    assert "{&#34;done&#34;" in page.replace("\n", "").replace("  ", "") and "&lt;b&gt;&amp;" in page and "<b>" not in page
    second = (await history(browser, type="published"))[1]["offset"]
    then = (await browser.get("/runs/one", params={"at": second})).text
    part = then.partition('id="run-published"')[2].partition("</section>")[0]
    assert "done&#34;: 1" in part and "done&#34;: 2" not in part
    first = (await history(browser))[0]["offset"]
    assert "published-title" not in (await browser.get("/runs/one", params={"at": first})).text
