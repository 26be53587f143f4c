"""Parents and children: by HTTP, and as links between their pages."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role

CALLERS = {role.value: Caller(role.value, frozenset({role})) for role in Role}
PATH = "/v1/runs/o%2F1/children"


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A log with a parent that has ended, its awaited child, and two that it does not wait for."""
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="ship")
    async def ship(ctx: Context[int], step: Step) -> int:
        return ctx.input.data * 2

    @client.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> int:
        total = await step.invoke_workflow("ship", ship, ctx.input.data)
        await step.start_workflow("later", ship, 0, run_id="<b>")
        await step.start_workflow("last", ship, 0, run_id="u")
        return total

    async with served(client, authenticate=CALLERS.get) as browser, client.worker():
        browser.headers["Authorization"] = "Bearer admin"
        await browser.put("/v1/runs/o%2F1", json={"workflow": "order", "input": 3}, headers={"Prefer": "wait=30"})
        await client.run("o/1").result(30)
        await client.run((await client.run("o/1").children())[0].id).result(30)
        yield browser


async def test_the_children_of_a_run(browser: httpx.AsyncClient) -> None:
    browser.headers["Authorization"] = "Bearer view"
    shown = (await browser.get(PATH)).json()
    events = (await browser.get("/v1/runs/o%2F1/history")).json()["events"]
    assert (shown["id"], shown["offset"]) == ("o/1", events[-1]["offset"])
    shipped, later, _ = shown["children"]
    child = shipped.pop("id")
    assert child.startswith("o/1/ship~")
    assert shipped == {"workflow": "ship", "step_id": "ship", "state": "completed", "detached": False}
    assert later == {"id": "<b>", "workflow": "ship", "step_id": "later", "state": "detached", "detached": True}
    assert (await browser.get("/v1/runs/nobody/children")).status_code == 404
    steps = (await browser.get("/v1/runs/o%2F1/steps")).json()["steps"]
    assert [step["child"] for step in steps] == [child, "<b>", "u"]

    of_child = f"/v1/runs/{child.replace('/', '%2F')}"
    assert (await browser.get(f"{of_child}/children")).json()["children"] == []
    told = (await browser.get(of_child)).json()
    assert (told["parent"], told["parent_step"]) == ("o/1", "ship")
    told = (await browser.get("/v1/runs/o%2F1")).json()
    assert (told["parent"], told["parent_step"]) == (None, None)


async def test_the_children_as_they_were(browser: httpx.AsyncClient) -> None:
    events = (await browser.get("/v1/runs/o%2F1/history")).json()["events"]
    known: dict[str, list[str]] = {}
    for event in events:
        children = (await browser.get(PATH, params={"at": event["offset"]})).json()["children"]
        known.setdefault(event["type"], [child["state"] for child in children])
    assert (known["started"], known["child-scheduled"], known["child-ended"]) == ([], ["open"], ["completed"])


@pytest.mark.parametrize("role", ["view", "payload"])
async def test_the_pages_of_parent_and_child_lead_to_each_other(browser: httpx.AsyncClient, role: str) -> None:
    browser.headers["Authorization"] = f"Bearer {role}"
    steps = (await browser.get("/runs/o%2F1")).text.partition('id="run-steps"')[2].partition("</section>")[0]
    links = re.findall(r'<td class="note">([^<]*)<a href="([^"]*)">([^<]*)</a>([^<]*)', steps)
    child = (await browser.get(PATH)).json()["children"][0]["id"]
    assert [(before, name) for before, _, name, _ in links] == [("run ", child), ("run ", "&lt;b&gt;"), ("run ", "u")]
    assert ("; 6" in links[0][3], " at test_parents.py:" in links[0][3]) == (role == "payload", role == "view")
    for _, path, name, _ in links:
        page = await browser.get(path)
        assert page.status_code == 200 and f"<h1>{name}</h1>" in page.text
        head = page.text.partition('id="run-head"')[2].partition("</dl>")[0]
        assert '<dt>parent</dt><dd><a href="/runs/o%2F1#step-' in head
    assert "<dt>parent</dt>" not in (await browser.get("/runs/o%2F1")).text
